/** Where this app repeats what the sources of the services say, both must say the same. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { METRICS } from '../lib/collector';
import { SETTINGS } from '../lib/config';
import { CONSUMER_PREFIX, KEYS } from '../lib/data-stack';
import { FAN_OUT, PERMISSIONS, POLLING, SERVICES } from '../lib/permissions';
import {
  DRAIN_SECONDS, HEALTH_COMMAND, SETTLE_SECONDS, stopTimeoutSeconds, TELEMETRY_SECONDS, USER,
} from '../lib/service';
import { MANAGE_ROUTES, MANAGE_RPCS, PAGE_ROUTES, READ_ROUTES, READ_RPCS, VOTE_ROUTES, VOTE_RPCS } from '../lib/paths';
import { DENIALS, KEYS_NOT_READ, REFUSALS } from '../lib/monitoring';
import { SECRETS } from '../lib/secrets';
import { DEREGISTRATION_DELAY } from '../lib/edge';
import { AUTH, DEPLOY, Made, resources, ROOT } from './stacks';

const source = (path: string): string => readFileSync(join(ROOT, path), 'utf8');
const sources = (folder: string): string => readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.rs') && !name.includes('test')).map((name) => source(join(folder, name))).join('\n');
const all = (text: string, pattern: RegExp): string[] => [...text.matchAll(pattern)].map((match) => match[1] ?? '');

/** Names of settings that a text of Rust defines. */
const settings = (text: string): string[] => all(text, /Setting::(?:new|optional|switch)\(\s*"([a-z-]+)"/g);

test('tables have the keys that the services check', () => {
  const tables = source('adapters/aws/src/dynamodb/tables.rs');
  for (const [name, keys] of Object.entries(KEYS)) {
    const line = new RegExp(`Table \\{ name: &self\\.${name}, keys: &\\[([^\\]]*)\\]`).exec(tables)?.[1];
    assert.ok(line, name);
    const found = line.split(',').map((one) => {
      const [module, constant] = one.trim().split('::');
      const text = new RegExp(`const ${constant}: &str = "([a-z_]+)"`).exec(source(`adapters/aws/src/dynamodb/${module}.rs`));
      return text?.[1];
    });
    assert.deepEqual(found, [...keys], name);
  }
  assert.match(tables, /polls: format!\("\{prefix\}polls"\)/);
});

test('every variable of a task is a setting of its service', () => {
  const shared = ['engine', 'listener', 'pseudonyms'].flatMap((file) => settings(source(`process/src/config/${file}.rs`)));
  const made = new Made({ corsAllowOrigins: '*', writeUnitsPerSecond: 100, authRevoked: AUTH, pseudonymKeys: AUTH });
  const tasks = resources(made.service, 'AWS::ECS::TaskDefinition');
  for (const service of SERVICES) {
    const [, task] = tasks.find(([id]) => id.startsWith(`${service}Task`)) ?? assert.fail(service);
    const [container] = task.Properties.ContainerDefinitions;
    const known = [...shared, ...settings(source(`${service}-svc/src/settings.rs`))]
      .map((name) => `VOTESTREAM_${name.toUpperCase().replaceAll('-', '_')}`);
    const set = (container.Environment as { Name: string }[]).map(({ Name }) => Name);
    assert.deepEqual(set.filter((name) => name.startsWith('VOTESTREAM_') && !known.includes(name)), [], service);
    assert.ok(!set.includes('VOTESTREAM_CREATE_TABLES'), 'creating is for development');
    // The services take every variable with their prefix for a setting.
    const secret = ((container.Secrets ?? []) as { Name: string }[]).map(({ Name }) => Name);
    assert.deepEqual(secret, SECRETS.filter((one) => one.services.includes(service)).map((one) => one.variable), service);
    assert.ok(secret.every((name) => !name.startsWith('VOTESTREAM_')), service);
  }
});

test('settings with secrets can be read from a variable, by the services that have them', () => {
  const [listener, pseudonyms] = ['listener', 'pseudonyms'].map((file) => source(`process/src/config/${file}.rs`));
  for (const file of ['server/src/identity/reload.rs', 'process/src/config/pseudonyms.rs']) {
    assert.match(source(file), /VARIABLE: &str = "env:"/, file);
  }
  for (const { setting, services } of SECRETS) {
    const name = setting.replace('VOTESTREAM_', '').toLowerCase().replaceAll('_', '-');
    const list = settings(listener ?? '').includes(name) ? 'listener::IDENTITY' : 'pseudonyms::PSEUDONYM_KEYS';
    assert.ok([...settings(listener ?? ''), ...settings(pseudonyms ?? '')].includes(name), name);
    assert.deepEqual(SERVICES.filter((service) => source(`${service}-svc/src/settings.rs`).includes(list)), [...services], name);
  }
});

test('a task is killed only after its drain can have ended', () => {
  const deadline = /DISTRIBUTED: Self = Self \{\s*answer_deadline: Duration::from_secs\((\d+)\)/.exec(source('core/src/model/time.rs'));
  const answer = Number(deadline?.[1]);
  assert.equal(SETTLE_SECONDS.ingest, answer, 'ingest settles within D after its calls have ended');
  assert.ok(DEREGISTRATION_DELAY.toSeconds() > answer, 'calls under way are answered before the load balancer lets go');
  const flush = /FLUSH_MAX: Duration = Duration::from_secs\((\d+)\)/.exec(source('process/src/telemetry/export.rs'));
  assert.equal(TELEMETRY_SECONDS, 3 * Number(flush?.[1]), 'three signals are flushed one after the other');
  const made = new Made();
  for (const service of SERVICES) {
    const text = source(`${service}-svc/src/settings.rs`);
    const drain = /Setting::new\(\s*"drain",\s*"DURATION",\s*"(\d+)s"/.exec(text);
    assert.equal(DRAIN_SECONDS[service], Number(drain?.[1]), `${service} drains as long as it does by default`);
    const [, task] = resources(made.service, 'AWS::ECS::TaskDefinition')
      .find(([id]) => id.startsWith(`${service}Task`)) ?? assert.fail(service);
    const [container] = task.Properties.ContainerDefinitions;
    const given = (container.Environment as { Name: string; Value: string }[]).find((one) => one.Name === 'VOTESTREAM_DRAIN');
    const longest = Number.parseInt(given?.Value ?? '', 10) + SETTLE_SECONDS[service] + TELEMETRY_SECONDS;
    assert.ok(container.StopTimeout > longest, `${service}: ${container.StopTimeout} s > ${longest} s`);
    assert.equal(container.StopTimeout, stopTimeoutSeconds(service));
    assert.ok(container.StopTimeout <= 120, 'the most that Fargate waits');
  }
});

test('the roles grant the calls that the adapters make, no more and no fewer', () => {
  const calls = (folder: string, client: string): Set<string> => {
    const text = sources(folder).replaceAll(/\s+/g, '');
    const operations = all(text, new RegExp(`${client}\\.([a-z_]+)\\(\\)`, 'g'));
    return new Set(operations.map((one) => one.split('_').map((word) => word[0]?.toUpperCase() + word.slice(1)).join('')));
  };
  // --create-tables is for development, and consumers are registered by the data stack.
  const notGranted = ['CreateTable', 'CreateStream', 'RegisterStreamConsumer', 'Clone', 'Config'];
  const used = (folder: string): string[] => [...calls(folder, '(?:client|kinesis|dynamodb)')].filter((one) => !notGranted.includes(one));

  const dynamodb = new Set(SERVICES.flatMap((one) => Object.values(PERMISSIONS[one].tables).flat()));
  const statements = sources('adapters/aws/src/dynamodb');
  assert.match(statements, /INSERT INTO/);
  assert.match(statements, /UPDATE \\"/);
  assert.doesNotMatch(statements, /"(SELECT|DELETE)/);
  const partiQl = (one: string) => (one === 'BatchExecuteStatement' ? ['PartiQLInsert', 'PartiQLUpdate'] : [one]);
  assert.deepEqual([...dynamodb].sort(), used('adapters/aws/src/dynamodb').flatMap(partiQl).sort());

  const kinesis = new Set([
    ...SERVICES.flatMap((one) => PERMISSIONS[one].stream), ...FAN_OUT.stream, ...FAN_OUT.consumer, ...POLLING.stream,
  ]);
  const made = source('adapters/aws/src/kinesis.rs').replaceAll(/\s+/g, '');
  const inRoot = all(made, /client\.([a-z_]+)\(\)\.(?:set_)?stream_name/g).includes('describe_stream_summary');
  assert.ok(inRoot);
  assert.deepEqual([...kinesis].sort(), [...new Set([...used('adapters/aws/src/kinesis'), 'DescribeStreamSummary'])].sort());
});

test('consumers are registered under the names that the services look for', () => {
  assert.ok(source('adapters/aws/src/kinesis.rs').includes(`enhanced_fan_out("${CONSUMER_PREFIX}")`));
  for (const service of ['persist', 'tally']) {
    assert.ok(source(`${service}-svc/src/main.rs`).includes('Reading::of_services('), service);
  }
});

test('metrics are those that the services export', () => {
  const table = source('process/src/telemetry.rs');
  for (const [name, labels] of Object.entries(METRICS)) {
    const line = table.split('\n').find((one) => one.includes(`\`${name}\``));
    assert.ok(line, name);
    for (const label of labels) assert.ok(line.includes(`\`${label}\``), `${name}: ${label}`);
  }
});

test('every reason why a vote is refused is ours, theirs or expected', () => {
  const metrics = source('core/src/observe/metrics.rs');
  const rejected = /"votestream\.ingest\.votes\.rejected".*?\n\);/s.exec(metrics)?.[0] ?? assert.fail();
  const reasons = all(rejected, /\("reason", "(\w+)"\)/g);
  assert.ok(reasons.length >= 11);
  assert.deepEqual(Object.values(REFUSALS).flat().sort(), reasons.sort());
  // With the accepted votes, the metrics of an expression.
  for (const reasons of Object.values(REFUSALS)) assert.ok(reasons.length < 10);
});

test('every reason why a call is denied wakes somebody by one alarm', () => {
  const metrics = source('core/src/observe/metrics.rs');
  const denied = /"votestream\.server\.calls\.denied".*?\n\);/s.exec(metrics)?.[0] ?? assert.fail();
  const reasons = all(denied, /\("reason", "(\w+)"\)/g);
  assert.ok(reasons.length >= 13);
  assert.deepEqual(Object.values(DENIALS).flatMap((one) => one.reasons).sort(), reasons.sort());
  for (const { reasons } of Object.values(DENIALS)) assert.ok(reasons.length <= 10, 'metrics of an expression');
});

test('the log line about keys that cannot be read is the one that a metric is made of', () => {
  assert.ok(source('server/src/identity/issuer.rs').includes(`"${KEYS_NOT_READ};`));
  // The message is a field of the line itself.
  assert.match(source('process/src/telemetry/export.rs'), /\.json\(\)\.flatten_event\(true\)/);
  const filters = resources(new Made().service, 'AWS::Logs::MetricFilter').map(([, one]) => one.Properties.FilterPattern);
  assert.deepEqual(filters, Array(2).fill(`{ $.message = "${KEYS_NOT_READ}*" }`));
});

/** Every call of the API, as a path. */
function rpcs(): string[] {
  return readdirSync(join(ROOT, 'proto/votestream/v1')).flatMap((file) => {
    const text = source(`proto/votestream/v1/${file}`);
    const name = /^service (\w+)/m.exec(text)?.[1];
    return all(text, /^\s*rpc (\w+)\(/gm).map((rpc) => `/votestream.v1.${name}/${rpc}`);
  });
}

test('every call is in one list, and lets through those whose callers vote or read', () => {
  assert.ok(rpcs().length >= 12);
  assert.deepEqual([...VOTE_RPCS, ...READ_RPCS, ...MANAGE_RPCS].sort(), rpcs().sort());
  // The rights that the services ask for in front of each call.
  const needs = (service: string): Map<string, string> => new Map(
    [...source(`${service}-svc/src/lib.rs`).matchAll(/\("(\/votestream\.v1\.\w+\/\w+)", Need::([\w:()]+)\)/g)]
      .map(([, path = '', need = '']) => [path, need]));
  const of = (map: Map<string, string>, need: string) => [...map].filter(([, one]) => one === need).map(([path]) => path).sort();
  assert.deepEqual(of(needs('ingest'), 'Voting'), [...VOTE_RPCS].sort());
  assert.deepEqual(of(needs('tally'), 'Some(Action::Read)'), [...READ_RPCS].sort());
  assert.deepEqual(of(needs('tally'), 'Some(Action::Manage)'), [...MANAGE_RPCS].sort());
});

test('every route is in one list', () => {
  const routes = (file: string): string[] => [...source(file).matchAll(/\.route\("([^"]+)", ((?:\.?\w+\(\w+\))+)\)/g)]
    .flatMap(([, path, methods = '']) => all(methods, /(\w+)\(/g).map((method) => `${method.toUpperCase()} ${path}`));
  assert.deepEqual(routes('ingest-svc/src/json.rs').sort(), [...VOTE_ROUTES].sort());
  const [administers, page] = [(one: string) => one.startsWith('POST') || one === 'GET /v1/status', 'GET /operate'];
  const tally = routes('tally-svc/src/json.rs').sort();
  assert.deepEqual(tally.filter((one) => !administers(one)), [...READ_ROUTES].sort());
  assert.deepEqual([...tally.filter(administers), page].sort(), [...MANAGE_ROUTES].sort());
  // Those of the page are compared with its sources by routes.test.ts.
  const lists = [VOTE_ROUTES, READ_ROUTES, PAGE_ROUTES, MANAGE_ROUTES].flat();
  assert.equal(new Set(lists).size, lists.length);
});

test('what `votestream plan` prints to paste are settings', () => {
  const plan = source('cli/src/plan.rs') + sources('cli/src/plan');
  const pairs = /fn pairs\(.*?\n    }\n/s.exec(plan)?.[0] ?? assert.fail();
  const names = all(pairs, /\("([A-Za-z]+)", /g);
  assert.deepEqual(names.filter((name) => !(SETTINGS as readonly string[]).includes(name)), []);
  for (const name of ['shards', 'ingestTasks', 'persistTasks', 'tallyTasks', 'writeUnitsPerSecond', 'warmWriteUnits']) {
    assert.ok(names.includes(name), name);
  }
});

test('the image asks for health as the task definition does, and runs as its user', () => {
  const dockerfile = readFileSync(join(DEPLOY, 'Dockerfile'), 'utf8');
  const [first, ...rest] = HEALTH_COMMAND;
  assert.ok(dockerfile.includes(` ${first} ${JSON.stringify(rest).replaceAll(',', ', ')}\n`));
  assert.ok(dockerfile.includes(`USER ${USER}\n`));
  assert.ok(source('process/src/shell/health.rs').includes(`COMMAND: &str = "${HEALTH_COMMAND.at(-1)}"`));
});

test('compose.yaml sets what the services know, and hardens them as the task definitions do', () => {
  const compose = source('compose.yaml');
  const shared = ['engine', 'listener'].flatMap((file) => settings(source(`process/src/config/${file}.rs`)));
  const known = [...shared, 'listen', 'drain', 'consumer', 'log-format'];
  const set = all(compose, /^\s+VOTESTREAM_([A-Z_]+):/gm).map((name) => name.toLowerCase().replaceAll('_', '-'));
  assert.ok(set.length > 0);
  assert.deepEqual(set.filter((name) => !known.includes(name)), []);
  for (const line of ['read_only: true', `user: "${USER}"`, 'cap_drop: [ALL]', 'no-new-privileges:true']) {
    assert.ok(compose.includes(line), line);
  }
  // Who may call is decided: by the file that the one-shot service makes before the others start.
  assert.match(compose, /keys: \{condition: service_completed_successfully\}/);
  const init = /command: \[auth, init, (--[a-z-]+), (\/\S+)\]/.exec(compose) ?? assert.fail('nothing makes the auth file');
  assert.ok(source('cli/src/args/auth.rs').includes(`${init[1]?.slice(2).replaceAll('-', '_')}: bool`));
  assert.ok(compose.includes(`VOTESTREAM_AUTH: ${init[2]}/${/const AUTH: &str = "(.*)"/.exec(source('cli/src/command/auth/init.rs'))?.[1]}`));
  for (const listening of compose.split(/^  (?=[a-z]+:\n)/m).filter((one) => one.includes('VOTESTREAM_LISTEN: 0.0.0.0'))) {
    assert.match(listening, /<<: \[\*environment, \*auth\][^]*"auth:\/auth:ro"/);
  }
  const dockerfile = readFileSync(join(DEPLOY, 'Dockerfile'), 'utf8');
  for (const [, target] of compose.matchAll(/target: (\w+)/g)) assert.match(dockerfile, new RegExp(`^FROM .* AS ${target}$`, 'm'));
  for (const service of SERVICES) {
    assert.ok(compose.includes(`args: {SERVICE: ${service}}`), service);
    const grace = new RegExp(`  ${service}:\n(?:    .*\n)*?    stop_grace_period: (\\d+)s`).exec(compose)?.[1];
    assert.equal(Number(grace), stopTimeoutSeconds(service), service);
  }
});

test('the README has every setting, and the runbook an entry with meaning, check and action for every alarm', () => {
  const readme = readFileSync(join(DEPLOY, 'README.md'), 'utf8');
  for (const setting of SETTINGS) {
    // Settings of the three services share a row.
    const name = setting.replace(/^(ingest|persist|tally)(Tasks|TasksMax|Cpu|Memory)$/, '…$2');
    assert.ok(readme.includes(`\`${name}\``), setting);
  }
  const runbook = readFileSync(join(DEPLOY, 'RUNBOOK.md'), 'utf8');
  // All alarms that there can be. Those of further load balancers have a suffix, and share the entry of the first.
  const everything = new Made({ loadBalancers: 2, pinTasks: 'true', reservedLcus: 100, relayCidrs: '198.51.100.0/24' });
  const names = resources(everything.service, 'AWS::CloudWatch::Alarm')
    .flatMap(([, { Properties }]) => (Properties.AlarmName as string | undefined)?.replace(/^votestream-/, '') ?? []);
  const alarms = [...new Set(names.map((name) => name.replace(/-(2|relays)$/, '')))];
  assert.ok(alarms.length > 0 && alarms.length < names.length);
  for (const name of alarms) assert.ok(names.includes(name), `${name}: the first has no suffix`);
  for (const name of alarms) {
    const entry = runbook.split(/^#{2,3} /m).find((one) => one.split('\n', 1)[0]?.includes(`\`${name}\``));
    assert.ok(entry, `${name} has an entry`);
    for (const part of ['Meaning', 'Check', 'Action']) assert.ok(entry.includes(`- **${part}:** `), `${name}: ${part}`);
  }
  const headings = runbook.split('\n').filter((line) => line.startsWith('### ')).flatMap((line) => all(line, /`([a-z-]+)`/g));
  assert.deepEqual(headings.sort(), alarms.sort(), 'no entry is about an alarm that is gone');
});
