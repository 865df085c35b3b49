/**
 * Alarms, where they go, and the dashboard. Every alarm has a section of the same name in the runbook.
 */
import { CfnOutput, Duration, Stack } from 'aws-cdk-lib';
import {
  Alarm, ComparisonOperator, Dashboard, GraphWidget, IMetric, IWidget, MathExpression, Metric, TextWidget,
  TreatMissingData, YAxisProps,
} from 'aws-cdk-lib/aws-cloudwatch';
import { SnsAction } from 'aws-cdk-lib/aws-cloudwatch-actions';
import { FargateService } from 'aws-cdk-lib/aws-ecs';
import { HttpCodeElb, IApplicationLoadBalancerMetrics } from 'aws-cdk-lib/aws-elasticloadbalancingv2';
import { PolicyStatement, ServicePrincipal } from 'aws-cdk-lib/aws-iam';
import { IKey } from 'aws-cdk-lib/aws-kms';
import { FilterPattern, MetricFilter } from 'aws-cdk-lib/aws-logs';
import { Topic } from 'aws-cdk-lib/aws-sns';
import { EmailSubscription } from 'aws-cdk-lib/aws-sns-subscriptions';
import { Construct } from 'constructs';
import { NAMESPACE } from './collector';
import { Config } from './config';
import { DataStack, Group } from './data-stack';
import { Edge, Front } from './edge';
import { groupAge, own, stream, table } from './metrics';
import { ServiceName, SERVICES, TABLES } from './permissions';
import { VoteService } from './service';

export interface MonitoringProps {
  readonly config: Config;
  readonly data: DataStack;
  readonly services: Readonly<Record<ServiceName, VoteService>>;
  readonly edge: Edge;
  /** The key of the topic, if it is one of this account. */
  readonly logKey: IKey | undefined;
}

/** How far a group may be behind. Interim results are live; storing may take the minutes that the plan says. */
const BEHIND_MS: Readonly<Record<Group, number>> = { persist: 120_000, tally: 15_000 };
/** How long a single window may take to be applied. The age of a window grows while its consumer is stuck. */
const STUCK_SECONDS: Readonly<Record<Group, number>> = { persist: 180, tally: 30 };
/** Throttled parts of requests a minute that are normal: pacing and retries deal with them. */
const THROTTLES_MAX = 100;
/** Calls to AWS of all services without an answer, a minute. A connection that stalls costs a few, and takes no more then. */
const TIMEOUTS_MAX = 50;
/** Calls that AWS refuses for their credentials, a minute. Good ones are refused some times a day. */
const UNAUTHORIZED_MAX = 10;
/** Difference between counters of two services, over a quarter of an hour, that delays do not explain. */
const DIVERGENCE_PERCENT = 5;
/** Calls denied in a minute that need not mean anything: some clients are old, and some callers guess. */
const DENIED_MAX = 100;
/** The same for calls without a right: a public address gets many of them from people who look around. */
const DENIED_WITHOUT_RIGHT_MAX = 1_000;

/** Why calls are denied: reasons with one cause and one remedy share an alarm. Every reason of the metric is in one of them. */
export const DENIALS = {
  'keys-unavailable': {
    reasons: ['keys_unavailable'], calls: 1, minutes: 1, of: 1,
    description: 'Tokens cannot be checked, because the keys of their issuer cannot be read and none are known.',
  },
  'credentials-wrong': {
    reasons: ['malformed', 'unknown_issuer', 'unknown_key', 'algorithm', 'audience', 'signature', 'claims', 'not_checked'],
    calls: DENIED_MAX, minutes: 2, of: 3,
    description: 'Many calls have credentials that cannot be right: an issuer and the auth file do not fit, or somebody forges.',
  },
  'credentials-expired': {
    reasons: ['expired', 'not_yet_valid'], calls: DENIED_MAX, minutes: 2, of: 3,
    description: 'Many calls have tokens that have expired or are not valid yet.',
  },
  'credentials-revoked': {
    reasons: ['revoked'], calls: 1, minutes: 1, of: 1,
    description: 'Somebody uses a credential that was revoked.',
  },
  'callers-without-rights': {
    reasons: ['missing', 'scope'], calls: DENIED_WITHOUT_RIGHT_MAX, minutes: 2, of: 3,
    description: 'Very many calls have no credential, or one that does not allow what they ask for.',
  },
} as const;
/** Answers of load balancers with errors of their own, a minute. */
const EDGE_ERRORS_MAX = 50;
/** Of 100 new connections, handshakes that may fail: strangers look around, and some phones are old. */
const TLS_ERRORS_PERCENT = 5;
/** Of the reserved capacity units, what a peak may use: a load balancer that needs more grows within minutes, not at once. */
const RESERVE_PERCENT = 80;
/** The slowest answer of a hundred. A vote is acknowledged within half a second as a rule, and within D = 10 s in any case. */
const SLOW_SECONDS = 2;
/** Votes that were turned away in a minute, for no fault of theirs, that need not mean anything. */
const TURNED_AWAY_MAX = 100;
/** Of 100 votes, those that may be refused for what is in them. */
const REFUSED_PERCENT = 10;

/** Why votes are refused: because of us, or because of what they are. Every reason of the metric is in one of the lists. */
export const REFUSALS = {
  /** Ours: the vote was good, and its client must send it again. */
  'turned-away': ['unavailable', 'overloaded', 'key_missing'],
  /** Theirs: a wrong client, a wrong link, a poll that was created wrongly. */
  refused: ['malformed', 'poll_not_found', 'option_not_found', 'poll_not_open', 'wrong_source', 'not_allowed', 'other'],
  /** Nobody's: after the end, people go on voting. */
  expected: ['poll_closed'],
} as const;
/** Services that deny calls. */
const ASKED = ['ingest', 'tally'] as const;
/** Begins the line that a service logs when it cannot read the keys of an issuer. The old keys serve for a day. */
export const KEYS_NOT_READ = 'cannot read the keys of an issuer';
const QUARTER = Duration.minutes(15);
const MINUTE = Duration.minutes(1);

interface Rule {
  readonly description: string;
  readonly metric: IMetric;
  readonly threshold: number;
  readonly minutes?: number;
  readonly of?: number;
  readonly below?: boolean;
  readonly missing?: TreatMissingData;
}

export class Monitoring extends Construct {
  private readonly topic: Topic;
  private readonly prefix: string;

  constructor(scope: Construct, id: string, private readonly props: MonitoringProps) {
    super(scope, id);
    this.prefix = props.config.name;
    this.topic = this.alarmTopic();
    this.alarms();
    this.dashboard();
  }

  private alarmTopic(): Topic {
    const { config, logKey } = this.props;
    const topic = new Topic(this, 'Alarms', {
      topicName: `${config.name}-alarms`, enforceSSL: true, ...(logKey && { masterKey: logKey }),
    });
    topic.addToResourcePolicy(
      new PolicyStatement({
        principals: [new ServicePrincipal('cloudwatch.amazonaws.com')],
        actions: ['sns:Publish'],
        resources: [topic.topicArn],
        conditions: { StringEquals: { 'aws:SourceAccount': Stack.of(this).account } },
      }),
    );
    if (config.alarmEmail !== '') topic.addSubscription(new EmailSubscription(config.alarmEmail));
    new CfnOutput(this, 'AlarmTopic', { description: 'Topic that alarms are sent to', value: topic.topicArn });
    return topic;
  }

  /** Makes one alarm, which also says when it is over. Those of further load balancers have a suffix, and the same runbook. */
  private alarm(name: string, rule: Rule, suffix = ''): void {
    const alarm = new Alarm(this, `${name}${suffix}`, {
      alarmName: `${this.prefix}-${name}${suffix}`,
      alarmDescription: `${rule.description} Runbook: deploy/RUNBOOK.md, "${name}".`,
      metric: rule.metric,
      threshold: rule.threshold,
      comparisonOperator: rule.below === true
        ? ComparisonOperator.LESS_THAN_THRESHOLD
        : ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
      evaluationPeriods: rule.of ?? rule.minutes ?? 1,
      datapointsToAlarm: rule.minutes ?? 1,
      treatMissingData: rule.missing ?? TreatMissingData.NOT_BREACHING,
    });
    const action = new SnsAction(this.topic);
    alarm.addAlarmAction(action);
    alarm.addOkAction(action);
  }

  private alarms(): void {
    const { config, services } = this.props;

    for (const group of ['persist', 'tally'] as const) {
      this.alarm(`${group}-behind`, {
        description: `${group}-svc reads votes later than it should.`,
        metric: groupAge(config, group),
        threshold: BEHIND_MS[group],
        minutes: 3,
      });
      this.alarm(`${group}-stuck`, {
        description: `A shard of ${group}-svc has been working on one window for too long.`,
        metric: own(group, 'votestream.group.iterator.age', { group }, { statistic: 'Maximum' }),
        threshold: STUCK_SECONDS[group],
        minutes: 3,
      });
      this.alarm(`${group}-shard-failed`, {
        description: `${group}-svc has given up a shard: its votes are not counted until somebody acts.`,
        metric: own(group, 'votestream.group.lease.changes', { group, change: 'failed' }),
        threshold: 1,
      });
    }

    this.alarm('stream-throttled', {
      description: 'Shards take fewer records than are put.',
      metric: stream(config, 'WriteProvisionedThroughputExceeded'),
      threshold: THROTTLES_MAX,
      minutes: 2,
      of: 3,
    });
    const failed = (outcome: string): Metric => own('ingest', 'votestream.lane.votes.settled', { outcome });
    this.alarm('put-failures', {
      description: 'Votes were refused by the stream, or nobody knows whether they were stored.',
      metric: sum({ a: failed('not_stored'), b: failed('unknown') }, 'votes not stored or unknown'),
      threshold: 1,
    });
    const writes = TABLES.map((name) => [`w_${name}`, table(config, name, 'WriteThrottleEvents')] as const);
    const reads = TABLES.map((name) => [`r_${name}`, table(config, name, 'ReadThrottleEvents')] as const);
    this.alarm('tables-throttled', {
      description: 'DynamoDB throttles a table.',
      metric: sum(Object.fromEntries([...writes, ...reads]), 'throttled requests of the tables'),
      threshold: THROTTLES_MAX,
      minutes: 2,
      of: 3,
    });

    const engines = (metric: 'votestream.engine.timeouts' | 'votestream.engine.unauthorized', label: string): IMetric =>
      sum(Object.fromEntries(SERVICES.map((service) => [service, own(service, metric, {})])), label);
    this.alarm('engine-timeouts', {
      description: 'AWS does not answer many calls in time.',
      metric: engines('votestream.engine.timeouts', 'calls without an answer'),
      threshold: TIMEOUTS_MAX,
      minutes: 3,
    });
    this.alarm('engine-unauthorized', {
      description: 'AWS goes on refusing the credentials of a service.',
      metric: engines('votestream.engine.unauthorized', 'refused calls'),
      threshold: UNAUTHORIZED_MAX,
      minutes: 3,
    });

    this.edge();
    for (const service of SERVICES) {
      const { parts, tasks } = services[service];
      this.alarm(`${service}-tasks-missing`, {
        description: `Fewer tasks of ${service}-svc run than the least number.`,
        metric: combined('SUM', parts.map(({ fargate }) => this.running(fargate, service)), `${service} tasks`),
        threshold: tasks.min,
        minutes: 5,
        below: true,
        missing: TreatMissingData.BREACHING,
      });
    }
    this.alarm('ingest-saturated', {
      description: 'ingest-svc uses all of its CPU.',
      metric: combined('MAX', services.ingest.parts.map(({ fargate }) => fargate.metricCpuUtilization({ period: MINUTE })), 'CPU (%)'),
      threshold: 85,
      minutes: 3,
    });
    this.refusals();

    const counted = (group: Group): Metric =>
      own(group, 'votestream.group.votes.applied', { group }, { period: QUARTER });
    this.alarm('groups-diverge', {
      description: 'persist-svc and tally-svc count different numbers of votes.',
      metric: new MathExpression({
        expression: '100 * ABS(FILL(p, 0) - FILL(t, 0)) / (FILL(p, 0) + FILL(t, 0) + 1000)',
        usingMetrics: { p: counted('persist'), t: counted('tally') },
        period: QUARTER,
        label: 'difference (%)',
      }),
      threshold: DIVERGENCE_PERCENT,
      minutes: 2,
    });
    const durable = own('ingest', 'votestream.lane.votes.settled', { outcome: 'durable' }, { period: QUARTER });
    this.alarm('durable-not-counted', {
      description: 'Fewer votes are counted as submitted than were acknowledged.',
      metric: new MathExpression({
        expression: '100 * (FILL(d, 0) - FILL(t, 0)) / (FILL(d, 0) + 1000)',
        usingMetrics: { d: durable, t: counted('tally') },
        period: QUARTER,
        label: 'not counted (%)',
      }),
      threshold: DIVERGENCE_PERCENT,
      minutes: 2,
    });
    const discarded = (reason: string): Metric => own('persist', 'votestream.group.votes.discarded', { reason });
    this.alarm('votes-discarded', {
      description: 'Votes in the stream do not count although they should have.',
      metric: sum({ a: discarded('late'), b: discarded('wrong_shard'), c: discarded('unreadable') }, 'discarded votes'),
      threshold: 1,
    });
    const inGroup = (group: 'persist' | 'tally', name: 'early' | 'future'): Metric =>
      own(group, `votestream.group.records.${name}`, { group });
    this.alarm('clocks-apart', {
      description: 'A clock differs from the others by more than the protocol allows: votes are refused, or shards wait.',
      metric: sum({
        a: inGroup('persist', 'early'),
        b: inGroup('persist', 'future'),
        c: inGroup('tally', 'future'),
        d: own('ingest', 'votestream.clock.contradicted', {}, { statistic: 'Maximum' }),
      }, 'signs of a wrong clock'),
      threshold: 1,
    });
    for (const service of ASKED) {
      for (const [name, { reasons, calls, minutes, of, description }] of Object.entries(DENIALS)) {
        const denied = reasons.map((reason) =>
          [reason, own(service, 'votestream.server.calls.denied', { reason })] as const);
        this.alarm(`${service}-${name}`, {
          description: `${service}-svc: ${description}`,
          metric: sum(Object.fromEntries(denied), 'denied calls'),
          threshold: calls,
          minutes,
          of,
        });
      }
    }
    this.alarm('issuer-unreachable', {
      description: 'The keys of an issuer of tokens cannot be read. Those that are known serve for a day.',
      metric: sum({ a: this.keysNotRead('ingest'), b: this.keysNotRead('tally') }, 'attempts that failed'),
      threshold: 1,
      // One failure is followed by the next attempt within half a minute.
      minutes: 5,
    });
    this.alarm('telemetry-missing', {
      description: 'ingest-svc sends no metrics, so the alarms on its own metrics see nothing.',
      metric: own('ingest', 'votestream.lane.bytes', {}, { statistic: 'SampleCount' }),
      threshold: 1,
      minutes: 10,
      below: true,
      missing: TreatMissingData.BREACHING,
    });
  }

  /** How often a service could not read the keys of an issuer: only its log says so. */
  private keysNotRead(service: (typeof ASKED)[number]): Metric {
    const metricName = `${this.prefix}.${service}.keys_not_read`;
    new MetricFilter(this, `KeysNotRead-${service}`, {
      logGroup: this.props.services[service].logs,
      metricNamespace: NAMESPACE,
      metricName,
      filterPattern: FilterPattern.stringValue('$.message', '=', `${KEYS_NOT_READ}*`),
    });
    return new Metric({ namespace: NAMESPACE, metricName, statistic: 'Sum', period: MINUTE, label: service });
  }

  /**
   * What load balancers say: about those who cannot reach us, and about tasks that do not answer. One alarm for all public ones,
   * where a formula allows it: the dashboard says which it is, and a stack holds 500 resources.
   */
  private edge(): void {
    const { config, edge } = this.props;
    const balancers = edge.fronts.map((front) => front.balancer.metrics);
    for (const service of ASKED) {
      const groups = edge.fronts.map(({ targets }) => targets[`${service}Grpc`].metrics);
      const hosts = { statistic: 'Maximum', period: MINUTE };
      this.alarm(`${service}-unhealthy`, {
        description: `Tasks of ${service}-svc do not answer gRPC health checks.`,
        metric: combined('MAX', groups.map((one) => one.unhealthyHostCount(hosts)), 'unhealthy tasks'),
        threshold: 1,
        minutes: 3,
      });
      this.alarm(`${service}-down`, {
        description: `No task of ${service}-svc takes calls, behind one of the load balancers at least.`,
        metric: combined('MIN', groups.map((one) => one.healthyHostCount(hosts)), 'healthy tasks'),
        threshold: 1,
        minutes: 2,
        below: true,
        missing: TreatMissingData.BREACHING,
      });
    }
    // Relays' streams are answered when their first votes are, which may be long after they were opened: not theirs.
    this.alarm('edge-slow', {
      description: `One answer of a hundred takes longer than ${SLOW_SECONDS} s.`,
      metric: combined('MAX', balancers.map((one) => one.targetResponseTime({ statistic: 'p99', period: MINUTE })), 'p99 (s)'),
      threshold: SLOW_SECONDS,
      minutes: 3,
    });
    if (config.reservedLcus > 0) {
      this.alarm('edge-reserve', {
        description: `A load balancer uses more than ${RESERVE_PERCENT} % of the capacity units that are reserved for it.`,
        metric: combined('MAX', balancers.map((one) => peakUnits(one)), 'peak units'),
        threshold: Math.floor((config.reservedLcus * RESERVE_PERCENT) / 100),
      });
    }
    const all = [['', balancers], ...(edge.relays === undefined ? [] : [[edge.relays.suffix, [edge.relays.balancer.metrics]]])] as
      [string, IApplicationLoadBalancerMetrics[]][];
    for (const [suffix, metrics] of all) {
      this.alarm('edge-errors', {
        description: 'Load balancers answer with errors of their own.',
        metric: combined('SUM', metrics.map((one) => one.httpCodeElb(HttpCodeElb.ELB_5XX_COUNT, { period: MINUTE })), 'errors'),
        threshold: EDGE_ERRORS_MAX,
        minutes: 2,
        of: 3,
      }, suffix);
      this.alarm('edge-rejected', {
        description: 'A load balancer has rejected connections, because it has as many as it can have.',
        metric: combined('SUM', metrics.map((one) => one.rejectedConnectionCount({ period: MINUTE })), 'rejected'),
        threshold: 1,
      }, suffix);
    }
    for (const { suffix, balancer } of [...edge.fronts, ...(edge.relays === undefined ? [] : [edge.relays])]) {
      this.alarm('edge-tls-errors', {
        description: 'Many clients do not get through the TLS handshake with a load balancer.',
        metric: new MathExpression({
          expression: '100 * FILL(e, 0) / (FILL(n, 0) + 1000)',
          usingMetrics: {
            e: balancer.metrics.clientTlsNegotiationErrorCount({ period: MINUTE }),
            n: balancer.metrics.newConnectionCount({ period: MINUTE }),
          },
          period: MINUTE,
          label: 'failed handshakes (%)',
        }),
        threshold: TLS_ERRORS_PERCENT,
        minutes: 2,
        of: 3,
      }, suffix);
    }
  }

  /** Votes that are not taken, before they have reached a lane. */
  private refusals(): void {
    const rejected = (reasons: readonly string[]): [string, Metric][] => reasons.map((reason) =>
      [`r_${reason}`, own('ingest', 'votestream.ingest.votes.rejected', { reason })]);
    this.alarm('votes-turned-away', {
      description: 'Good votes are not taken, because ingest-svc or what it needs does not keep up. Clients send them again.',
      metric: sum(Object.fromEntries(rejected(REFUSALS['turned-away'])), 'votes turned away'),
      threshold: TURNED_AWAY_MAX,
      minutes: 2,
      of: 3,
    });
    const refused = rejected(REFUSALS.refused);
    const all = refused.map(([name]) => `FILL(${name}, 0)`).join(' + ');
    this.alarm('votes-refused', {
      description: `More than ${REFUSED_PERCENT} % of the votes are refused for what is in them: a wrong client, link or poll.`,
      metric: new MathExpression({
        expression: `100 * (${all}) / (${all} + FILL(accepted, 0) + 1000)`,
        usingMetrics: { ...Object.fromEntries(refused), accepted: own('ingest', 'votestream.ingest.votes.accepted', {}) },
        period: MINUTE,
        label: 'refused votes (%)',
      }),
      threshold: REFUSED_PERCENT,
      minutes: 2,
      of: 3,
    });
  }

  private running(service: FargateService, label: string): Metric {
    return new Metric({
      namespace: 'ECS/ContainerInsights',
      metricName: 'RunningTaskCount',
      dimensionsMap: { ClusterName: service.cluster.clusterName, ServiceName: service.serviceName },
      statistic: 'Minimum',
      period: MINUTE,
      label: `${label} tasks`,
    });
  }

  private dashboard(): void {
    const { config, services, edge } = this.props;
    const { fronts } = edge;
    const all: Front[] = [...fronts, ...(edge.relays === undefined ? [] : [edge.relays])];
    const label = (front: Front, what: string): string => `${what}${front.suffix}`;
    const dashboard = new Dashboard(this, 'Dashboard', {
      dashboardName: config.name,
      defaultInterval: Duration.hours(1),
    });
    const graph = (title: string, left: IMetric[], right: IMetric[] = [], axis: YAxisProps = { min: 0 }): IWidget =>
      new GraphWidget({ title, left, right, leftYAxis: axis, rightYAxis: { min: 0 }, width: 8, height: 6 });
    const heading = (markdown: string): IWidget => new TextWidget({ markdown, width: 24, height: 1 });
    const settled = (outcome: string): Metric =>
      own('ingest', 'votestream.lane.votes.settled', { outcome }, { label: outcome });
    const rejected = (reason: string): Metric =>
      own('ingest', 'votestream.ingest.votes.rejected', { reason }, { label: reason });
    const put = (outcome: string, statistic: string): Metric =>
      own('ingest', 'votestream.stream.put.duration', { outcome }, { statistic, label: `${outcome} ${statistic}` });
    const throttled = (service: ServiceName, operation: string): Metric =>
      own(service, 'votestream.engine.throttles', { operation }, { label: `${service}: ${operation}` });
    const applied = (group: Group): Metric =>
      own(group, 'votestream.group.votes.applied', { group }, { label: `counted by ${group}` });
    const perGroup = (make: (group: Group) => Metric): Metric[] => (['persist', 'tally'] as const).map(make);
    const reasons = ['poll_closed', 'poll_not_open', 'poll_not_found', 'option_not_found', 'malformed', 'unavailable',
      'key_missing', 'overloaded', 'not_allowed'];
    const denied = (service: (typeof ASKED)[number]): Metric[] =>
      Object.values(DENIALS).flatMap(({ reasons }) => reasons).map((reason) =>
        own(service, 'votestream.server.calls.denied', { reason }, { label: reason }));

    dashboard.addWidgets(heading('## Votes in'));
    dashboard.addWidgets(
      graph('Votes a minute', [settled('durable'), ...perGroup(applied)]),
      graph('Not durable', [settled('not_stored'), settled('unknown')], reasons.map(rejected)),
      graph('Unhealthy tasks', fronts.flatMap((front) => [
        front.targets.ingestGrpc.metrics.unhealthyHostCount({ period: MINUTE, label: label(front, 'ingest') }),
        front.targets.tallyGrpc.metrics.unhealthyHostCount({ period: MINUTE, label: label(front, 'tally') }),
      ])),
    );
    dashboard.addWidgets(
      graph('Tasks', SERVICES.flatMap((service) => services[service].parts.map(({ fargate }, index) =>
        this.running(fargate, index === 0 ? service : `${service}-${index + 1}`)))),
      graph('CPU (%)', SERVICES.flatMap((service) => services[service].parts.map(({ fargate }, index) =>
        fargate.metricCpuUtilization({ period: MINUTE, label: index === 0 ? service : `${service}-${index + 1}` })))),
      graph('Waiting in ingest', [
        own('ingest', 'votestream.lane.votes.unsettled', {}, { label: 'votes' }),
      ], [own('ingest', 'votestream.lane.bytes', {}, { statistic: 'Maximum', label: 'bytes of the fullest task' })]),
    );
    dashboard.addWidgets(heading('## Load balancers'));
    dashboard.addWidgets(
      graph('Connections', all.map((front) =>
        front.balancer.metrics.newConnectionCount({ period: MINUTE, label: label(front, 'new') })), all.map((front) =>
        front.balancer.metrics.activeConnectionCount({ period: MINUTE, label: label(front, 'active') }))),
      graph('Not let in', all.flatMap((front) => [
        front.balancer.metrics.rejectedConnectionCount({ period: MINUTE, label: label(front, 'rejected') }),
        front.balancer.metrics.clientTlsNegotiationErrorCount({ period: MINUTE, label: label(front, 'TLS') }),
      ]), all.map((front) =>
        front.balancer.metrics.httpCodeElb(HttpCodeElb.ELB_5XX_COUNT, { period: MINUTE, label: label(front, '5xx') }))),
      graph('Answers (s)', fronts.flatMap((front) => ['p50', 'p99'].map((statistic) =>
        front.balancer.metrics.targetResponseTime({ statistic, period: MINUTE, label: label(front, statistic) }))),
      config.reservedLcus === 0 ? [] : fronts.map((front) => peakUnits(front.balancer.metrics, label(front, 'peak units')))),
    );
    dashboard.addWidgets(heading('## Callers'));
    dashboard.addWidgets(
      graph('Calls to ingest denied', denied('ingest')),
      graph('Calls to tally denied', denied('tally')),
      graph('Votes not allowed', [rejected('not_allowed')]),
    );
    dashboard.addWidgets(heading('## Stream'));
    dashboard.addWidgets(
      graph('Put', [put('stored', 'p50'), put('stored', 'p99')], [
        put('refused', 'SampleCount'),
        put('unknown', 'SampleCount'),
      ]),
      graph('Throttled', [
        stream(config, 'WriteProvisionedThroughputExceeded'),
        stream(config, 'ReadProvisionedThroughputExceeded'),
        throttled('ingest', 'put_records'),
      ]),
      graph('Behind (ms)', perGroup((group) => groupAge(config, group))),
    );
    dashboard.addWidgets(
      graph('Calls to AWS without an answer', SERVICES.map((service) =>
        own(service, 'votestream.engine.timeouts', {}, { label: service }))),
      graph('Calls to AWS refused', SERVICES.map((service) =>
        own(service, 'votestream.engine.unauthorized', {}, { label: service }))),
    );
    dashboard.addWidgets(heading('## Groups and tables'));
    dashboard.addWidgets(
      graph('Oldest window (s)', perGroup((group) =>
        own(group, 'votestream.group.iterator.age', { group }, { statistic: 'Maximum', label: group }))),
      graph('Window (s)', perGroup((group) =>
        own(group, 'votestream.group.window.duration', { group }, { statistic: 'Average', label: group })), perGroup((group) =>
        own(group, 'votestream.group.flush.age', { group }, { statistic: 'Maximum', label: `flush age ${group}` }))),
      graph('Discarded', ['late', 'wrong_shard', 'unreadable', 'closed', 'unknown_poll', 'duplicate_or_superseded'].map((reason) =>
        own('persist', 'votestream.group.votes.discarded', { reason }, { label: reason }))),
    );
    dashboard.addWidgets(
      graph('Write units a minute', [
        ...TABLES.map((name) => table(config, name, 'ConsumedWriteCapacityUnits')),
        own('persist', 'votestream.store.write_units', { table: 'votes' }, { label: 'votes, as persist counts' }),
      ]),
      graph('Throttled tables', TABLES.map((name) => table(config, name, 'WriteThrottleEvents')), [
        throttled('persist', 'write_votes'),
        throttled('persist', 'write_tallies'),
        throttled('tally', 'write_tallies'),
      ]),
      graph('Leases', perGroup((group) =>
        own(group, 'votestream.group.lease.changes', { group, change: 'taken' }, { label: `taken ${group}` })), perGroup((group) =>
        own(group, 'votestream.group.lease.changes', { group, change: 'failed' }, { label: `failed ${group}` }))),
    );
  }
}

/** The sum of metrics that have no value while nothing happens. */
function sum(usingMetrics: Record<string, IMetric>, label: string): MathExpression {
  const expression = Object.keys(usingMetrics).map((name) => `FILL(${name}, 0)`).join(' + ');
  return new MathExpression({ expression, usingMetrics, period: MINUTE, label });
}

/**
 * Capacity units that a load balancer used at the peak of each minute. It is what a reservation is compared with ("Capacity
 * reservations for your Application Load Balancer"), which `ConsumedLCUs`, the price, is not.
 */
function peakUnits(metrics: IApplicationLoadBalancerMetrics, label = 'peak units'): Metric {
  return metrics.custom('PeakLCUs', { statistic: 'Sum', period: MINUTE, label });
}

/** One metric of the same metrics of several load balancers or ECS services: an alarm takes ten. A missing one counts as 0. */
function combined(by: 'SUM' | 'MAX' | 'MIN', metrics: readonly Metric[], label: string): IMetric {
  const [first] = metrics as [Metric];
  if (metrics.length === 1) return first;
  const usingMetrics = Object.fromEntries(metrics.map((one, index) => [`m${index + 1}`, one]));
  const all = Object.keys(usingMetrics).map((name) => `FILL(${name}, 0)`).join(', ');
  return new MathExpression({ expression: `${by}([${all}])`, usingMetrics, period: MINUTE, label });
}
