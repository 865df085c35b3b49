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
import { ADMIN_RPCS, DEREGISTRATION_DELAY, RELEASE_RPC } from '../lib/service-stack';
import { DEPLOY, Made, resources, ROOT } from './stacks';

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
  const shared = ['engine', 'listener'].flatMap((file) => settings(source(`process/src/config/${file}.rs`)));
  const made = new Made({ corsAllowOrigins: '*', writeUnitsPerSecond: 100 });
  const tasks = resources(made.service, 'AWS::ECS::TaskDefinition');
  for (const service of SERVICES) {
    const [, task] = tasks.find(([id]) => id.startsWith(`${service}Task`)) ?? assert.fail(service);
    const [container] = task.Properties.ContainerDefinitions;
    const known = [...shared, ...settings(source(`${service}-svc/src/settings.rs`))]
      .map((name) => `VOTESTREAM_${name.toUpperCase().replaceAll('-', '_')}`);
    const set = (container.Environment as { Name: string }[]).map(({ Name }) => Name);
    assert.deepEqual(set.filter((name) => name.startsWith('VOTESTREAM_') && !known.includes(name)), [], service);
    assert.ok(!set.includes('VOTESTREAM_CREATE_TABLES'), 'creating is for development');
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
  const inRoot = all(made, /client\.([a-z_]+)\(\)\.stream_name/g).includes('describe_stream_summary');
  assert.ok(inRoot);
  assert.deepEqual([...kinesis].sort(), [...new Set([...used('adapters/aws/src/kinesis'), 'DescribeStreamSummary'])].sort());
});

test('consumers are registered under the names that the services look for', () => {
  for (const service of ['persist', 'tally']) {
    assert.ok(source(`${service}-svc/src/main.rs`).includes(`Reading::enhanced_fan_out("${CONSUMER_PREFIX}")`), service);
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

test('calls that the load balancer knows exist', () => {
  const methods = new Map<string, string[]>();
  for (const file of readdirSync(join(ROOT, 'proto/votestream/v1'))) {
    const text = source(`proto/votestream/v1/${file}`);
    const service = /service (\w+)/.exec(text)?.[1];
    if (service !== undefined) methods.set(service, all(text, /rpc (\w+)\(/g));
  }
  for (const path of [...ADMIN_RPCS, RELEASE_RPC]) {
    const [, service = '', method = ''] = /\.(\w+)\/(\w+)$/.exec(path) ?? [];
    assert.ok(methods.get(service)?.includes(method), path);
  }
  const routed = new Made({ adminCidrs: '198.51.100.1/32' });
  const patterns = resources(routed.service, 'AWS::ElasticLoadBalancingV2::ListenerRule')
    .flatMap(([, one]) => one.Properties.Conditions as Record<string, any>[])
    .flatMap((one) => (one.PathPatternConfig?.Values ?? []) as string[]);
  for (const [service, names] of methods) {
    for (const name of names) {
      const path = `/votestream.v1.${service}/${name}`;
      const matches = (pattern: string) => pattern === path || (pattern.endsWith('*') && path.startsWith(pattern.slice(0, -1)));
      assert.ok(patterns.some(matches), `${path} is routed`);
    }
  }
});

test('what `votestream plan` prints to paste are settings', () => {
  const plan = source('cli/src/plan.rs');
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
  const known = [...settings(source('process/src/config/engine.rs')), 'listen', 'drain', 'consumer', 'log-format'];
  const set = all(compose, /^\s+VOTESTREAM_([A-Z_]+):/gm).map((name) => name.toLowerCase().replaceAll('_', '-'));
  assert.ok(set.length > 0);
  assert.deepEqual(set.filter((name) => !known.includes(name)), []);
  for (const line of ['read_only: true', `user: "${USER}"`, 'cap_drop: [ALL]', 'no-new-privileges:true']) {
    assert.ok(compose.includes(line), line);
  }
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
  const alarms = resources(new Made().service, 'AWS::CloudWatch::Alarm')
    .flatMap(([, { Properties }]) => (Properties.AlarmName as string | undefined)?.replace(/^votestream-/, '') ?? []);
  assert.ok(alarms.length > 0);
  for (const name of alarms) {
    const entry = runbook.split(/^#{2,3} /m).find((one) => one.split('\n', 1)[0]?.includes(`\`${name}\``));
    assert.ok(entry, `${name} has an entry`);
    for (const part of ['Meaning', 'Check', 'Action']) assert.ok(entry.includes(`- **${part}:** `), `${name}: ${part}`);
  }
  const headings = runbook.split('\n').filter((line) => line.startsWith('### ')).flatMap((line) => all(line, /`([a-z-]+)`/g));
  assert.deepEqual(headings.sort(), alarms.sort(), 'no entry is about an alarm that is gone');
});
