/**
 * What an operator can choose, read from CDK context (`-c shards=40`, or cdk.json).
 *
 * Owns defaults, bounds and the text of every mistake. Must never read the account: synthesis works offline. All mistakes
 * are reported at once, since a deployment takes minutes.
 */
import { isIPv4, isIPv6 } from 'node:net';
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
  /** Public load balancers; ingest and tally have an ECS service behind each of them. */
  readonly loadBalancers: number;
  /** Capacity units that are reserved for each public load balancer; 0 for none. */
  readonly reservedLcus: number;
  /** For the show: as many tasks as the least number, and nothing scales. */
  readonly pinTasks: boolean;
  /** The secret with the auth file's text, by its ARN; none if `none` was given in so many words. */
  readonly auth: string | undefined;
  /** The secret with the text of the revocations, by its ARN. */
  readonly authRevoked: string | undefined;
  /** The secret with the keys of pseudonyms, by its ARN. */
  readonly pseudonymKeys: string | undefined;
  /** Ways from ingest and tally to the URLs of issuers' keys. */
  readonly natGateways: number;
  /** An S3 bucket of this region that tasks may read keys of issuers from, without a NAT gateway. */
  readonly keysBucket: string;
  readonly internetFacing: boolean;
  /** Whether the public load balancers have IPv6 addresses as soon as a range of IPv6 may reach them. */
  readonly ipv6: boolean;
  /** Who may reach the public load balancers: votes and results. Nobody by default. */
  readonly clientCidrs: readonly string[];
  /** Who may reach the load balancer of relays, which is made only if somebody may. */
  readonly relayCidrs: readonly string[];
  /** The web ACL of WAF for each public load balancer. */
  readonly webAclArn: string | undefined;
  /** Who may reach the internal load balancer, which has all calls. Nobody by default. */
  readonly adminCidrs: readonly string[];
  readonly corsAllowOrigins: string;
  /** Name of the public load balancers in `hostedZoneId`; empty for none. */
  readonly domain: string;
  /** Name of the load balancer of relays. */
  readonly relayDomain: string;
  /** Name of the internal one. */
  readonly adminDomain: string;
  readonly hostedZoneId: string;
  readonly alarmEmail: string;
  /** What the account may cost a month before a mail is sent; 0 for no budget. */
  readonly budgetUsd: number;
  readonly logRetentionDays: number;
  /** Whether load balancers refuse to be deleted. Tables always do. */
  readonly deletionProtection: boolean;
  /** Whether stream, tables, logs and topic are encrypted by keys of this account instead of those of AWS. */
  readonly customerKeys: boolean;
  /** Tasks of a fleet that casts votes for a rehearsal; without any, nothing is made for it. */
  readonly loadTasks: number;
  /** The secret with the token that the fleet votes with, by its ARN. */
  readonly loadToken: string | undefined;
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

/** Bits of an address. */
const BITS = { 4: 32, 6: 128 } as const;
type IpVersion = keyof typeof BITS;
/** The whole ARN, with the six characters that Secrets Manager adds to the name: it means this secret and no other. */
const SECRET = /^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+-[A-Za-z0-9]{6}$/;
/** What stands for no auth file, as in the services' setting `--auth`. */
const NO_AUTH = 'none';
/** One for each zone that the VPC uses. */
const NAT_GATEWAYS_MAX = 3;
/** What one deployment was thought through for: weighted names, and an ECS service of ingest and tally behind each. */
export const LOAD_BALANCERS_MAX = 10;
/**
 * Capacity units of one load balancer: the least that can be reserved, as the CDK checks it, and the default quota, L-0BB7B635
 * ("Quotas for your Application Load Balancers").
 */
export const RESERVED_LCUS = { min: 100, max: 15_000 } as const;
const LOAD_TASKS_MAX = 1_000;
const WEB_ACL = /^arn:aws[a-z-]*:wafv2:[a-z0-9-]+:\d{12}:regional\/webacl\/[\w-]+\/[0-9a-f-]{36}$/;

/** Names of the settings, as in the README's table. */
export const SETTINGS = [
  'name', 'streamMode', 'shards', 'retentionHours', 'consumer',
  'ingestTasks', 'ingestTasksMax', 'ingestCpu', 'ingestMemory',
  'persistTasks', 'persistTasksMax', 'persistCpu', 'persistMemory',
  'tallyTasks', 'tallyTasksMax', 'tallyCpu', 'tallyMemory',
  'writeUnitsPerSecond', 'warmWriteUnits', 'loadBalancers', 'reservedLcus', 'pinTasks',
  'auth', 'authRevoked', 'pseudonymKeys', 'natGateways', 'keysBucket', 'internetFacing', 'ipv6',
  'clientCidrs', 'relayCidrs', 'adminCidrs', 'webAclArn', 'corsAllowOrigins', 'domain', 'relayDomain', 'adminDomain', 'hostedZoneId',
  'alarmEmail', 'budgetUsd', 'logRetentionDays', 'deletionProtection', 'customerKeys', 'loadTasks', 'loadToken',
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
  const flag = (key: Setting, otherwise: boolean): boolean =>
    oneOf(key, String(otherwise), ['true', 'false']) === 'true';
  const cidrs = (key: Setting, ...versions: readonly IpVersion[]): string[] => {
    const value = given(key) ?? [];
    const list = Array.isArray(value) ? value.map(String) : String(value).split(',').map((one) => one.trim());
    for (const one of list) {
      if (!versions.some((version) => isRange(one, version))) {
        const or = versions.includes(6) ? ', or an IPv6 range such as 2001:db8::/32' : '';
        mistakes.push(`${key}: ${JSON.stringify(one)}: expected an IPv4 range such as 198.51.100.0/24${or}`);
      }
    }
    return list;
  };
  const named = (key: Setting, who: string, list: readonly string[]): void => {
    if (list.some((one) => one.endsWith('/0'))) mistakes.push(`${key}: name the networks of ${who}, not everybody`);
  };
  const secret = (key: Setting): string | undefined => {
    const value = text(key, '', SECRET, 'the whole ARN of a secret, such as arn:aws:secretsmanager:…:secret:NAME-a1B2c3');
    return value === '' ? undefined : value;
  };
  const name = (key: Setting): string =>
    text(key, '', /^([a-z0-9-]+\.)+[a-z]{2,}$/, 'a name such as vote.example.org');
  const service = (service: 'ingest' | 'persist' | 'tally', tasks: Tasks, size: Size, atLeast = 1): Tasks & Size => {
    const min = Math.max(whole(`${service}Tasks`, tasks.min, 1, 10_000), atLeast);
    const max = whole(`${service}TasksMax`, pinTasks ? min : Math.max(tasks.max, min), 1, 10_000);
    if (max < min) mistakes.push(`${service}TasksMax: ${max} is less than ${service}Tasks, ${min}`);
    if (pinTasks && max > min) mistakes.push(`${service}TasksMax: pinTasks leaves it at ${service}Tasks, ${min}`);
    const cpu = oneOf(`${service}Cpu`, size.cpu, [...FARGATE_SIZES.keys()]);
    const memoryMiB = whole(`${service}Memory`, Math.max(size.memoryMiB, 2 * cpu), 1024, 122_880);
    const [least, most] = FARGATE_SIZES.get(cpu) ?? [0, 0];
    if (memoryMiB < least || memoryMiB > most || memoryMiB % 1024 !== 0) {
      mistakes.push(`${service}Memory: ${memoryMiB}: ${cpu} CPU units take whole GiB from ${least} to ${most} MiB`);
    }
    return { min, max, cpu, memoryMiB };
  };

  const pinTasks = flag('pinTasks', false);
  const loadBalancers = whole('loadBalancers', 1, 1, LOAD_BALANCERS_MAX);
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
    // Each load balancer has results, however few tasks are enough for all of them.
    tally: service('tally', { min: 2, max: 4 }, { cpu: 1024, memoryMiB: 2048 }, loadBalancers),
    writeUnitsPerSecond: whole('writeUnitsPerSecond', 0, 0, 100_000_000),
    warmWriteUnits: whole('warmWriteUnits', 0, 0, 100_000_000),
    loadBalancers,
    reservedLcus: whole('reservedLcus', 0, 0, RESERVED_LCUS.max),
    pinTasks,
    auth: noAuth ? undefined : secret('auth'),
    authRevoked: secret('authRevoked'),
    pseudonymKeys: secret('pseudonymKeys'),
    natGateways: whole('natGateways', noAuth ? 0 : 1, 0, NAT_GATEWAYS_MAX),
    keysBucket: text('keysBucket', '', /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/, 'the name of an S3 bucket'),
    internetFacing: flag('internetFacing', true),
    ipv6: flag('ipv6', String(given('internetFacing') ?? true) === 'true'),
    clientCidrs: cidrs('clientCidrs', 4, 6),
    relayCidrs: cidrs('relayCidrs', 4, 6),
    adminCidrs: cidrs('adminCidrs', 4),
    webAclArn: text('webAclArn', '', WEB_ACL, 'the ARN of a regional web ACL') || undefined,
    corsAllowOrigins: text('corsAllowOrigins', '', /^(\*|https?:\/\/\S+)$/, 'origins with commas between, or *'),
    domain: name('domain'),
    relayDomain: name('relayDomain'),
    adminDomain: name('adminDomain'),
    hostedZoneId: text('hostedZoneId', '', /^Z[A-Z0-9]+$/, 'the id of a Route 53 zone'),
    alarmEmail: text('alarmEmail', '', /^[^@\s]+@[^@\s]+$/, 'a mail address'),
    budgetUsd: whole('budgetUsd', 0, 0, 100_000_000),
    logRetentionDays: oneOf<number>('logRetentionDays', 30, LOG_RETENTION_DAYS),
    deletionProtection: flag('deletionProtection', true),
    customerKeys: flag('customerKeys', false),
    loadTasks: whole('loadTasks', 0, 0, LOAD_TASKS_MAX),
    loadToken: secret('loadToken'),
  };
  mistakes.push(...contradictions(config));
  named('relayCidrs', 'relays', config.relayCidrs);
  named('adminCidrs', 'operators', config.adminCidrs);
  if (mistakes.length > 0) throw new Error(`the configuration is wrong:\n  ${mistakes.join('\n  ')}`);
  return config;
}

/** Whether a text is a range of addresses, such as 198.51.100.0/24. */
function isRange(text: string, version: IpVersion): boolean {
  const [, address = '', bits = ''] = /^([0-9a-fA-F.:]+)\/(\d{1,3})$/.exec(text) ?? [];
  return (version === 4 ? isIPv4(address) : isIPv6(address)) && Number(bits) <= BITS[version];
}

/** Whether a range is one of IPv6. */
export function isIpv6Range(range: string): boolean {
  return isRange(range, 6);
}

/** Settings that are right one by one, and wrong together. */
function contradictions(config: Config): string[] {
  const mistakes: string[] = [];
  if ((config.domain === '') !== (config.hostedZoneId === '')) {
    mistakes.push('domain and hostedZoneId: both or neither');
  }
  const zone = (name: string): string => name.split('.').slice(1).join('.');
  const names = { domain: config.domain, relayDomain: config.relayDomain, adminDomain: config.adminDomain };
  for (const key of ['relayDomain', 'adminDomain'] as const) {
    const name = names[key];
    if (name === '') continue;
    if (config.hostedZoneId === '') mistakes.push(`${key}: needs hostedZoneId`);
    if (config.domain !== '' && zone(name) !== zone(config.domain)) {
      mistakes.push(`${key}: ${JSON.stringify(name)} is not in the zone of domain`);
    }
    const same = Object.entries(names).find(([other, its]) => other !== key && its === name);
    if (same !== undefined) mistakes.push(`${key}: ${same[0]} has the same name`);
  }
  if (config.relayDomain !== '' && config.relayCidrs.length === 0) {
    mistakes.push('relayDomain: needs relayCidrs: without them there is no load balancer for relays');
  }
  if (config.reservedLcus > 0 && config.reservedLcus < RESERVED_LCUS.min) {
    mistakes.push(`reservedLcus: ${config.reservedLcus}: expected 0, or at least ${RESERVED_LCUS.min}: AWS reserves no fewer`);
  }
  if (config.loadBalancers > 1 && !config.pinTasks) {
    mistakes.push('loadBalancers: several need pinTasks: each has its part of the tasks, and would scale by itself');
  }
  if (config.ingest.min < config.loadBalancers) {
    mistakes.push(`ingestTasks: ${config.ingest.min} is less than one for each of ${config.loadBalancers} loadBalancers`);
  }
  if (config.ipv6 && !config.internetFacing) {
    mistakes.push('ipv6: only the subnets of a load balancer on the internet have IPv6; set internetFacing to true or ipv6 to false');
  }
  if (!config.ipv6 && [...config.clientCidrs, ...config.relayCidrs].some(isIpv6Range)) {
    mistakes.push('clientCidrs, relayCidrs: ranges of IPv6 need ipv6 to be true');
  }
  if (config.budgetUsd > 0 && config.alarmEmail === '') mistakes.push('budgetUsd: needs alarmEmail, whom to tell');
  if (config.loadToken !== undefined && config.loadTasks === 0) mistakes.push('loadToken: needs loadTasks');
  if (config.writeUnitsPerSecond > 0 && config.writeUnitsPerSecond < config.persist.max) {
    mistakes.push(`writeUnitsPerSecond: ${config.writeUnitsPerSecond} is less than one for each of persistTasksMax`);
  }
  return mistakes;
}
