/** Where each load balancer sends every call and every route that there is. What is new is decided here, or this fails. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { BALANCER_IDLE_SECONDS, IDLE_SECONDS } from '../lib/service';
import { Router } from './router';
import { Made, resources, ROOT } from './stacks';

const source = (path: string): string => readFileSync(join(ROOT, path), 'utf8');
const all = (text: string, pattern: RegExp): string[] => [...text.matchAll(pattern)].map((match) => match[1] ?? '');

/** What is asked, and where the public and the internal load balancer send it: a service, or nowhere. */
const TABLE: readonly (readonly [string, 'ingest' | 'tally' | '404', 'ingest' | 'tally'])[] = [
  ['rpc /votestream.v1.IngestService/CastVote', 'ingest', 'ingest'],
  ['rpc /votestream.v1.IngestService/CastVotes', 'ingest', 'ingest'],
  ['rpc /votestream.v1.IngestService/StreamVotes', 'ingest', 'ingest'],
  ['rpc /votestream.v1.PollService/GetPoll', 'tally', 'tally'],
  ['rpc /votestream.v1.PollService/ListPolls', 'tally', 'tally'],
  ['rpc /votestream.v1.PollService/CreatePoll', '404', 'tally'],
  ['rpc /votestream.v1.PollService/ClosePoll', '404', 'tally'],
  ['rpc /votestream.v1.ResultsService/GetInterimResults', 'tally', 'tally'],
  ['rpc /votestream.v1.ResultsService/WatchInterimResults', 'tally', 'tally'],
  ['rpc /votestream.v1.ResultsService/GetFinalResults', 'tally', 'tally'],
  ['rpc /votestream.v1.ResultsService/ReleaseResults', '404', 'tally'],
  ['rpc /votestream.v1.ResultsService/Recount', '404', 'tally'],
  ['POST /vote', 'ingest', 'ingest'],
  ['POST /v1/polls/{poll}/votes', 'ingest', 'ingest'],
  ['GET /v1/polls', 'tally', 'tally'],
  ['POST /v1/polls', '404', 'tally'],
  ['GET /v1/polls/{poll}', 'tally', 'tally'],
  ['POST /v1/polls/{poll}/close', '404', 'tally'],
  ['POST /v1/polls/{poll}/release', '404', 'tally'],
  ['POST /v1/polls/{poll}/recount', '404', 'tally'],
  ['GET /v1/polls/{poll}/results/interim', 'tally', 'tally'],
  ['GET /v1/polls/{poll}/results/final', 'tally', 'tally'],
  ['GET /v1/polls/{poll}/results/events', 'tally', 'tally'],
  ['GET /v1/status', '404', 'tally'],
  ['GET /', 'tally', 'tally'],
  ['GET /p/{poll}', 'tally', 'tally'],
  ['GET /p/{poll}/screen', 'tally', 'tally'],
  ['GET /p/{poll}/qr.svg', 'tally', 'tally'],
  ['GET /operate', '404', 'tally'],
  ['GET /assets/{file}', 'tally', 'tally'],
  ['GET /openapi.json', 'tally', 'tally'],
];
/** Ids of polls that are hard on rules: like parts of routes, and with every character that an id may have. */
const POLLS = ['lunch', 'show-1.final~2_b', 'votes', 'close', 'results', 'status', 'vote'];

const made = new Made({ loadBalancers: 2, pinTasks: 'true', relayCidrs: '198.51.100.0/24' });
const [open, internal] = [new Router(made.service, 'Balancer'), new Router(made.service, 'Internal')];
const [second, relays] = [new Router(made.service, 'Balancer2'), new Router(made.service, 'RelayBalancer')];
const examples = (path: string): string[] => [...new Set(POLLS.map((poll) => path.replace('{poll}', poll).replace('{file}', 'poll.js')))];

test('every call of the API, every route of the OpenAPI document and every file of the page is in the table', () => {
  const calls = readdirSync(join(ROOT, 'proto/votestream/v1')).flatMap((file) => {
    const text = source(`proto/votestream/v1/${file}`);
    return all(text, /^\s*rpc (\w+)\(/gm).map((rpc) => `rpc /votestream.v1.${/^service (\w+)/m.exec(text)?.[1]}/${rpc}`);
  });
  assert.ok(calls.length >= 12);
  const paths = Object.entries(JSON.parse(source('web/openapi.json')).paths as Record<string, object>);
  const documented = paths.flatMap(([path, methods]) =>
    Object.keys(methods).filter((one) => /^(get|put|post|delete|options|head|patch|trace)$/.test(one))
      .map((method) => `${method.toUpperCase()} ${path}`));
  assert.ok(documented.length >= 13);
  const web = source('web/src/lib.rs');
  const views = all(/const VIEWS: .*?\];/s.exec(web)?.[0] ?? '', /\("([^"]+)", &files/g);
  const others = all(web, /\.route\(&?(?:format!\()?"([^"]+)"/g).map((path) => path.replace('{}', '{file}'));
  assert.ok(views.length >= 4 && others.length >= 3);
  const page = [...views, ...others].map((path) => `GET ${path}`);
  assert.deepEqual(TABLE.map(([what]) => what).sort(), [...new Set([...calls, ...documented, ...page])].sort());
});

test('each load balancer sends everything where the table says', () => {
  for (const [what, outside, inside] of TABLE) {
    const [kind = '', path = ''] = what.split(' ');
    for (const [router, service] of [[open, outside], [internal, inside]] as const) {
      const to = (by: string) => (service === '404' ? service : `${service} ${by}`);
      const which = `${what} by the ${router === open ? 'public' : 'internal'} load balancer`;
      if (kind === 'rpc') {
        for (const contentType of ['application/grpc', 'application/grpc+proto', undefined]) {
          assert.equal(router.route({ method: 'POST', path, contentType }), to('grpc'), which);
        }
        // A target group of gRPC takes POST alone, and speaks HTTP/2 alone.
        for (const contentType of ['application/grpc-web', 'application/grpc-web+proto', 'Application/gRPC-Web-Text']) {
          assert.equal(router.route({ method: 'POST', path, contentType }), to('web'), which);
        }
        assert.equal(router.route({ method: 'OPTIONS', path }), to('web'), which);
        continue;
      }
      for (const example of examples(path)) {
        const contentType = kind === 'POST' ? 'application/json' : undefined;
        assert.equal(router.route({ method: kind, path: example, contentType }), to('web'), `${which}: ${example}`);
        if (kind === 'GET') assert.equal(router.route({ method: 'HEAD', path: example }), to('web'), `HEAD of ${which}`);
      }
    }
  }
});

test('browsers may ask whether they may call what is public', () => {
  for (const [what, outside] of TABLE.filter(([one]) => / \/(v1\/|vote$)/.test(one))) {
    for (const path of examples(what.split(' ')[1] ?? '')) {
      // A path is public for a question if any of its methods is: only the answer to the question says which.
      const expected = TABLE.find(([one, to]) => one.endsWith(what.slice(what.indexOf(' '))) && to !== '404')?.[1] ?? outside;
      assert.equal(open.route({ method: 'OPTIONS', path }), expected === '404' ? '404' : `${expected} web`, what);
    }
  }
});

test('what nobody has named is not public', () => {
  const methods = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'get'];
  for (const path of [
    '/votestream.v1.PollService/DeletePoll', '/votestream.v1.PollService/GetPolls', '/votestream.v1.PollService/GetPoll/',
    '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', '/grpc.health.v1.Health/Check',
    '/v1/polls/', '/v1/polls/a/results', '/v1/polls/a/b', '/v1/polls/a/votes/b', '/v1/polls/a/results/interim/b',
    '/v1/polls//votes', '/V1/polls', '/v1/status', '/v1/', '/v1', '/x/vote', '/vote/', '/votes', '//',
    '/operate', '/operate/', '/Operate', '/p/', '/p', '/p/a/b', '/p/a/screen/b', '/p/a/qrxsvg', '/assets/', '/assets/a/b.js', '/assets',
    '/openapi.json/', '/openapixjson', '/metrics', '/healthz', '/readyz', '/health',
  ]) {
    for (const method of methods) assert.equal(open.route({ method, path }), '404', `${method} ${path}`);
  }
  // Nothing of the page and of the results is changed by anybody, and no poll is created.
  for (const [what] of TABLE.filter(([one, to]) => one.startsWith('GET') && to !== '404')) {
    for (const path of examples(what.split(' ')[1] ?? '')) {
      for (const method of ['POST', 'PUT', 'PATCH', 'DELETE']) {
        assert.equal(open.route({ method, path }), '404', `${method} ${path}`);
      }
    }
  }
});

test('the internal load balancer has the names of calls for tools, and no admin listener', () => {
  const path = '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo';
  assert.equal(internal.route({ method: 'POST', path, contentType: 'application/grpc' }), 'tally grpc');
  for (const path of ['/metrics', '/healthz', '/readyz', '/operate/x', '/x']) {
    assert.equal(internal.route({ method: 'GET', path }), '404', path);
  }
});

test('the load balancer of relays has gRPC calls with votes and those that read, and nothing else', () => {
  for (const [what, outside] of TABLE) {
    const [kind = '', path = ''] = what.split(' ');
    const expected = kind === 'rpc' && outside !== '404' ? `${outside} grpc` : '404';
    for (const method of ['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS']) {
      for (const example of examples(path)) {
        assert.equal(relays.route({ method, path: example }), method === 'POST' ? expected : '404', `${method} ${what}`);
      }
    }
  }
  for (const path of ['/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', '/v1/status', '/metrics', '/x']) {
    assert.equal(relays.route({ method: 'POST', path, contentType: 'application/grpc' }), '404', path);
  }
});

test('all public load balancers have the same rules', () => {
  assert.equal(second.rules.length, open.rules.length);
  const methods = ['GET', 'HEAD', 'POST', 'OPTIONS'];
  for (const [what] of TABLE) {
    for (const path of examples(what.split(' ')[1] ?? '')) {
      for (const method of methods) {
        for (const contentType of ['application/grpc', 'application/grpc-web', undefined]) {
          const request = { method, path, contentType };
          assert.equal(second.route(request), open.route(request), `${method} ${path} ${contentType}`);
        }
      }
    }
  }
});

test('no load balancer closes a stream of events between two signs of life, and the services close after all of them', () => {
  const seconds = Number(/const KEEP_ALIVE: Duration = Duration::from_secs\((\d+)\)/.exec(source('tally-svc/src/events.rs'))?.[1]);
  const idle = resources(made.service, 'AWS::ElasticLoadBalancingV2::LoadBalancer').map(([id, { Properties }]) => {
    const attributes = Properties.LoadBalancerAttributes as { Key: string; Value: string }[];
    return [id.replace(/[0-9A-F]{8}$/, ''), Number(attributes.find(({ Key }) => Key === 'idle_timeout.timeout_seconds')?.Value)] as const;
  });
  assert.deepEqual(Object.fromEntries(idle), {
    Balancer: BALANCER_IDLE_SECONDS.public, Balancer2: BALANCER_IDLE_SECONDS.public,
    RelayBalancer: BALANCER_IDLE_SECONDS.relays, Internal: BALANCER_IDLE_SECONDS.internal,
  });
  for (const [id, longest] of idle) {
    assert.ok(seconds > 0 && longest > 2 * seconds, `${id}: ${longest} s, a sign every ${seconds} s`);
    assert.ok(IDLE_SECONDS > longest, `${id}: the load balancer closes first`);
  }
  // Ours is what the tasks are told.
  for (const [id, { Properties }] of resources(made.service, 'AWS::ECS::TaskDefinition')) {
    if (id.startsWith('persist')) continue;
    const [{ Environment }] = Properties.ContainerDefinitions;
    const told = (Environment as { Name: string; Value: string }[]).find(({ Name }) => Name === 'VOTESTREAM_IDLE_TIMEOUT');
    assert.equal(told?.Value, `${IDLE_SECONDS}s`, id);
  }
});
