/**
 * What an operator can choose, read from CDK context (`-c shards=40`, or cdk.json).
 *
 * Owns defaults, bounds and the text of every mistake. Must never read the account: synthesis works offline. All mistakes
 * are reported at once, since a deployment takes minutes.
 */
import { Node } from 'constructs';

/** Least and most tasks of a service. */
export interface Tasks {
  readonly min: number;
  readonly max: number;
}

/** Size of a task, a pair that Fargate has. */
export interface Size {
  readonly cpu: number;
  readonly memoryMiB: number;
}

/** How the stream gets its shards. */
export type StreamMode = 'provisioned' | 'on-demand';

/** How the stream is read, in the words of the services' setting. */
export type ConsumerKind = 'fan-out' | 'polling';

export interface Config {
  /** Name of the stream, and what all other names start with. */
  readonly name: string;
  readonly streamMode: StreamMode;
  /** Shards of a provisioned stream. */
  readonly shards: number;
  readonly retentionHours: number;
  readonly consumer: ConsumerKind;
  readonly ingest: Tasks & Size;
  readonly persist: Tasks & Size;
  readonly tally: Tasks & Size;
  /** Write units a second that all persist tasks together may spend on votes; 0 for no limit. */
  readonly writeUnitsPerSecond: number;
  /** Write units a second that the votes table is warmed up for; 0 leaves it to DynamoDB. */
  readonly warmWriteUnits: number;
  /** The secret with the auth file's text, by its ARN; none if `none` was given in so many words. */
  readonly auth: string | undefined;
  /** The secret with the text of the revocations, by its ARN. */
  readonly authRevoked: string | undefined;
  /** Ways from ingest and tally to the URLs of issuers' keys. */
  readonly natGateways: number;
  readonly internetFacing: boolean;
  /** Who may reach the public load balancer: votes and results. Nobody by default. */
  readonly clientCidrs: readonly string[];
  /** Who may reach the internal load balancer, which has all calls. Nobody by default. */
  readonly adminCidrs: readonly string[];
  readonly corsAllowOrigins: string;
  /** Name of the public load balancer in `hostedZoneId`; empty for none. */
  readonly domain: string;
  /** Name of the internal one. */
  readonly adminDomain: string;
  readonly hostedZoneId: string;
  readonly alarmEmail: string;
  readonly logRetentionDays: number;
}

/** Fargate's CPU units, each with the memory that it takes (MiB). */
const FARGATE_SIZES: ReadonlyMap<number, readonly [number, number]> = new Map([
  [512, [1024, 4096]],
  [1024, [2048, 8192]],
  [2048, [4096, 16384]],
  [4096, [8192, 30720]],
  [8192, [16384, 61440]],
  [16384, [32768, 122880]],
]);

/** Retention times that CloudWatch Logs has. */
export const LOG_RETENTION_DAYS = [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365] as const;

const CIDR = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\/(\d|[12]\d|3[0-2])$/;
/** The whole ARN, with the six characters that Secrets Manager adds to the name: it means this secret and no other. */
const SECRET = /^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+-[A-Za-z0-9]{6}$/;
/** What stands for no auth file, as in the services' setting `--auth`. */
const NO_AUTH = 'none';
/** One for each zone that the VPC uses. */
const NAT_GATEWAYS_MAX = 3;

/** Names of the settings, as in the README's table. */
export const SETTINGS = [
  'name', 'streamMode', 'shards', 'retentionHours', 'consumer',
  'ingestTasks', 'ingestTasksMax', 'ingestCpu', 'ingestMemory',
  'persistTasks', 'persistTasksMax', 'persistCpu', 'persistMemory',
  'tallyTasks', 'tallyTasksMax', 'tallyCpu', 'tallyMemory',
  'writeUnitsPerSecond', 'warmWriteUnits', 'auth', 'authRevoked', 'natGateways', 'internetFacing', 'clientCidrs',
  'adminCidrs', 'corsAllowOrigins', 'domain', 'adminDomain', 'hostedZoneId', 'alarmEmail', 'logRetentionDays',
] as const;

type Setting = (typeof SETTINGS)[number];

/** Reads and checks the context. Throws one error that names every mistake. */
export function readConfig(node: Node): Config {
  const mistakes: string[] = [];
  const given = (key: Setting): unknown => {
    const value: unknown = node.tryGetContext(key);
    return value === '' || value === null ? undefined : value;
  };
  const text = (key: Setting, otherwise: string, form: RegExp, expected: string): string => {
    const value = String(given(key) ?? otherwise);
    if (value !== '' && !form.test(value)) mistakes.push(`${key}: ${JSON.stringify(value)}: expected ${expected}`);
    return value;
  };
  const whole = (key: Setting, otherwise: number, min: number, max: number): number => {
    const value = Number(given(key) ?? otherwise);
    if (Number.isInteger(value) && value >= min && value <= max) return value;
    mistakes.push(`${key}: ${JSON.stringify(given(key))}: expected a whole number from ${min} to ${max}`);
    return otherwise;
  };
  const oneOf = <T extends string | number>(key: Setting, otherwise: T, all: readonly T[]): T => {
    const value = String(given(key) ?? otherwise);
    const found = all.find((one) => String(one) === value);
    if (found === undefined) mistakes.push(`${key}: ${JSON.stringify(value)}: expected one of ${all.join(', ')}`);
    return found ?? otherwise;
  };
  const cidrs = (key: Setting): string[] => {
    const value = given(key) ?? [];
    const list = Array.isArray(value) ? value.map(String) : String(value).split(',').map((one) => one.trim());
    for (const one of list) {
      const match = CIDR.exec(one);
      if (!match || match.slice(1, 5).some((part) => Number(part) > 255)) {
        mistakes.push(`${key}: ${JSON.stringify(one)}: expected an IPv4 range such as 198.51.100.0/24`);
      }
    }
    return list;
  };
  const secret = (key: Setting): string | undefined => {
    const value = text(key, '', SECRET, 'the whole ARN of a secret, such as arn:aws:secretsmanager:…:secret:NAME-a1B2c3');
    return value === '' ? undefined : value;
  };
  const name = (key: Setting): string =>
    text(key, '', /^([a-z0-9-]+\.)+[a-z]{2,}$/, 'a name such as vote.example.org');
  const service = (service: 'ingest' | 'persist' | 'tally', tasks: Tasks, size: Size): Tasks & Size => {
    const min = whole(`${service}Tasks`, tasks.min, 1, 10_000);
    const max = whole(`${service}TasksMax`, Math.max(tasks.max, min), 1, 10_000);
    if (max < min) mistakes.push(`${service}TasksMax: ${max} is less than ${service}Tasks, ${min}`);
    const cpu = oneOf(`${service}Cpu`, size.cpu, [...FARGATE_SIZES.keys()]);
    const memoryMiB = whole(`${service}Memory`, Math.max(size.memoryMiB, 2 * cpu), 1024, 122_880);
    const [least, most] = FARGATE_SIZES.get(cpu) ?? [0, 0];
    if (memoryMiB < least || memoryMiB > most || memoryMiB % 1024 !== 0) {
      mistakes.push(`${service}Memory: ${memoryMiB}: ${cpu} CPU units take whole GiB from ${least} to ${most} MiB`);
    }
    return { min, max, cpu, memoryMiB };
  };

  // Fails closed, as the services do: without a decision there is no deployment.
  const noAuth = given('auth') === NO_AUTH;
  if (given('auth') === undefined) {
    mistakes.push('auth: missing: say who may call, by the ARN of the secret that holds the auth file (deploy/README.md, "Who may'
      + ' call"); or none in so many words, which lets everybody who reaches the load balancer vote as anybody');
  }
  if (noAuth && given('authRevoked') !== undefined) mistakes.push('authRevoked: needs auth to be a secret');

  const config: Config = {
    name: text('name', 'votestream', /^[a-z][a-z0-9-]{0,18}[a-z0-9]$/, '2 to 20 of a-z, 0-9 and -'),
    streamMode: oneOf('streamMode', 'provisioned', ['provisioned', 'on-demand']),
    shards: whole('shards', 4, 1, 10_000),
    retentionHours: whole('retentionHours', 24, 24, 8_760),
    consumer: oneOf('consumer', 'fan-out', ['fan-out', 'polling']),
    ingest: service('ingest', { min: 2, max: 20 }, { cpu: 2048, memoryMiB: 4096 }),
    persist: service('persist', { min: 2, max: 4 }, { cpu: 2048, memoryMiB: 4096 }),
    tally: service('tally', { min: 2, max: 4 }, { cpu: 1024, memoryMiB: 2048 }),
    writeUnitsPerSecond: whole('writeUnitsPerSecond', 0, 0, 100_000_000),
    warmWriteUnits: whole('warmWriteUnits', 0, 0, 100_000_000),
    auth: noAuth ? undefined : secret('auth'),
    authRevoked: secret('authRevoked'),
    natGateways: whole('natGateways', noAuth ? 0 : 1, 0, NAT_GATEWAYS_MAX),
    internetFacing: oneOf('internetFacing', 'true', ['true', 'false']) === 'true',
    clientCidrs: cidrs('clientCidrs'),
    adminCidrs: cidrs('adminCidrs'),
    corsAllowOrigins: text('corsAllowOrigins', '', /^(\*|https?:\/\/\S+)$/, 'origins with commas between, or *'),
    domain: name('domain'),
    adminDomain: name('adminDomain'),
    hostedZoneId: text('hostedZoneId', '', /^Z[A-Z0-9]+$/, 'the id of a Route 53 zone'),
    alarmEmail: text('alarmEmail', '', /^[^@\s]+@[^@\s]+$/, 'a mail address'),
    logRetentionDays: oneOf<number>('logRetentionDays', 30, LOG_RETENTION_DAYS),
  };
  if ((config.domain === '') !== (config.hostedZoneId === '')) {
    mistakes.push('domain and hostedZoneId: both or neither');
  }
  if (config.adminDomain !== '' && config.hostedZoneId === '') mistakes.push('adminDomain: needs hostedZoneId');
  const zone = (name: string): string => name.split('.').slice(1).join('.');
  if (config.domain !== '' && config.adminDomain !== '' && zone(config.domain) !== zone(config.adminDomain)) {
    mistakes.push(`adminDomain: ${JSON.stringify(config.adminDomain)} is not in the zone of domain`);
  }
  if (config.adminDomain !== '' && config.adminDomain === config.domain) mistakes.push('adminDomain: domain has the same name');
  if (config.adminCidrs.some((one) => one.endsWith('/0'))) {
    mistakes.push('adminCidrs: name the networks of operators, not everybody');
  }
  if (config.writeUnitsPerSecond > 0 && config.writeUnitsPerSecond < config.persist.max) {
    mistakes.push(`writeUnitsPerSecond: ${config.writeUnitsPerSecond} is less than one for each of persistTasksMax`);
  }
  if (mistakes.length > 0) throw new Error(`the configuration is wrong:\n  ${mistakes.join('\n  ')}`);
  return config;
}
