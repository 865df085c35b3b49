/**
 * The deployed system is the planned one: `votestream plan --json` prints context, and the templates that are made with it have its
 * numbers. Needs the command, by its path in VOTESTREAM_COMMAND (check.sh builds it); without it, these tests are skipped.
 *
 * Must compare every parameter that a plan has: one that this file does not know is a failure.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { SETTINGS } from '../lib/config';
import { SERVICES, ServiceName } from '../lib/permissions';
import { Made, Resource, resources } from './stacks';

const COMMAND = process.env.VOTESTREAM_COMMAND;

/** Shows, as arguments of `votestream plan`. As many people vote as the peak lets vote in that time. */
const SHOWS: Readonly<Record<string, readonly string[]>> = Object.fromEntries(
  ([['20,000/s for 10 minutes', 20_000, 600], ['100,000/s for a minute', 100_000, 60], ['1,000,000/s for 30 s', 1_000_000, 30]] as const)
    .flatMap(([show, peak, seconds]) => (['direct', 'relay'] as const).map((clients) => [
      `${show}, ${clients}`,
      ['--peak', `${peak}`, '--voters', `${peak * seconds}`, '--duration', `${seconds}s`, '--revote-share', '0', '--clients', clients],
    ])),
);

/** What every plan has. */
const ALWAYS = [
  'shards', 'ingestTasks', 'persistTasks', 'tallyTasks', 'writeUnitsPerSecond', 'warmWriteUnits', 'loadBalancers', 'reservedLcus',
  'pinTasks',
];

type Plan = Readonly<Record<string, any>>;

function plan(show: readonly string[]): Plan {
  return JSON.parse(execFileSync(COMMAND ?? '', ['plan', '--json', ...show], { encoding: 'utf8' })) as Plan;
}

/** The context that a plan prints, by the names of settings. */
function context(cdk: Plan): Record<string, string> {
  return Object.fromEntries(Object.entries(cdk).map(([key, value]) => [key, String(value)]));
}

const some = (made: Made, type: string): Resource[] => resources(made.service, type).map(([, one]) => one);
const sum = (numbers: number[]): number => numbers.reduce((total, one) => total + one, 0);

/** The ECS services of one of ours, and how far each may scale. */
function tasks(made: Made, service: ServiceName): { desired: number[]; least: number[]; most: number[] } {
  const ids = resources(made.service, 'AWS::ECS::Service').filter(([id]) => id.startsWith(`${service}Service`));
  const scalable = resources(made.service, 'AWS::ApplicationAutoScaling::ScalableTarget')
    .filter(([id]) => id.startsWith(`${service}Service`)).map(([, one]) => one.Properties);
  assert.equal(scalable.length, ids.length);
  return {
    desired: ids.map(([, one]) => one.Properties.DesiredCount as number),
    least: scalable.map((one) => one.MinCapacity as number),
    most: scalable.map((one) => one.MaxCapacity as number),
  };
}

function variable(made: Made, service: ServiceName, name: string): string | undefined {
  const [, task] = resources(made.service, 'AWS::ECS::TaskDefinition').find(([id]) => id.startsWith(`${service}Task`)) ?? assert.fail();
  const environment = task.Properties.ContainerDefinitions[0].Environment as { Name: string; Value: string }[];
  return environment.find(({ Name }) => Name === name)?.Value;
}

/** The public load balancers. */
const balancers = (made: Made): Resource[] => some(made, 'AWS::ElasticLoadBalancingV2::LoadBalancer')
  .filter(({ Properties }) => Properties.Scheme === 'internet-facing');

const runs = (service: ServiceName) => (made: Made, value: number): void => {
  const { desired, least } = tasks(made, service);
  assert.deepEqual([sum(desired), sum(least)], [value, value], service);
};
const warm = (made: Made): number | undefined => resources(made.data, 'AWS::DynamoDB::Table').map(([, one]) => one.Properties)
  .find(({ TableName }) => TableName === 'votestream-votes')?.WarmThroughput?.WriteUnitsPerSecond;

/** How each parameter is found in the templates again. */
const FOUND: Readonly<Record<string, (made: Made, value: any) => void>> = {
  shards: (made, value) => {
    const [stream] = resources(made.data, 'AWS::Kinesis::Stream') as [[string, Resource]];
    assert.equal(stream[1].Properties.ShardCount, value);
  },
  // Only printed if a brake makes persist wait for long.
  retentionHours: (made, value) => {
    const [stream] = resources(made.data, 'AWS::Kinesis::Stream') as [[string, Resource]];
    assert.equal(stream[1].Properties.RetentionPeriodHours, value);
  },
  ingestTasks: (made, value) => {
    runs('ingest')(made, value);
    assert.equal(variable(made, 'ingest', 'VOTESTREAM_INGEST_TASKS'), String(value));
  },
  persistTasks: runs('persist'),
  persistTasksMax: (made, value) => assert.deepEqual(tasks(made, 'persist').most, [value]),
  // At least one behind each load balancer.
  tallyTasks: (made, value) => runs('tally')(made, Math.max(value, balancers(made).length)),
  writeUnitsPerSecond: (made, value) => {
    const each = Number(variable(made, 'persist', 'VOTESTREAM_WRITE_UNITS_PER_SECOND'));
    assert.equal(each, Math.floor(value / sum(tasks(made, 'persist').most)));
  },
  warmWriteUnits: (made, value) => assert.equal(warm(made), value === 0 ? undefined : value),
  loadBalancers: (made, value) => {
    assert.equal(balancers(made).length, value);
    assert.equal(tasks(made, 'ingest').desired.length, value, 'each has tasks of its own');
  },
  reservedLcus: (made, value) => {
    for (const { Properties } of balancers(made)) {
      assert.deepEqual(Properties.MinimumLoadBalancerCapacity, value === 0 ? undefined : { CapacityUnits: value });
    }
  },
  pinTasks: (made, value) => {
    assert.equal(value, true, 'a show takes less time than a task takes to start');
    for (const service of SERVICES) {
      const { least, most } = tasks(made, service);
      assert.deepEqual(most, least, service);
    }
    assert.equal(some(made, 'AWS::ApplicationAutoScaling::ScalingPolicy').length, 0);
  },
};

test('this file finds only what is a setting', () => {
  assert.deepEqual(Object.keys(FOUND).filter((key) => !(SETTINGS as readonly string[]).includes(key)), []);
});

for (const [name, show] of Object.entries(SHOWS)) {
  test(`templates have the numbers of the plan: ${name}`, { skip: COMMAND === undefined && 'VOTESTREAM_COMMAND is not given' }, () => {
    const { cdk } = plan(show);
    assert.deepEqual(ALWAYS.filter((key) => !(key in cdk)), [], 'a plan has them all');
    const made = new Made(context(cdk));
    for (const [key, value] of Object.entries(cdk)) {
      const found = FOUND[key] ?? assert.fail(`the plan has ${key}, and nothing here compares it with the templates`);
      found(made, value);
    }
  });
}

test('a plan with a brake has as many persist tasks as share it', { skip: COMMAND === undefined && 'VOTESTREAM_COMMAND is not given' }, () => {
  const { cdk } = plan([...(SHOWS['1,000,000/s for 30 s, relay'] ?? []), '--write-units-per-second', '200000']);
  const made = new Made(context(cdk));
  for (const key of ['persistTasks', 'persistTasksMax', 'writeUnitsPerSecond', 'warmWriteUnits']) FOUND[key]?.(made, cdk[key]);
  assert.equal(Number(variable(made, 'persist', 'VOTESTREAM_WRITE_UNITS_PER_SECOND')) * cdk.persistTasks <= 200_000, true);
});
