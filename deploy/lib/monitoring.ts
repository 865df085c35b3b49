/**
 * Alarms, where they go, and the dashboard. Every alarm has a section of the same name in the runbook.
 */
import { CfnOutput, Duration, Stack } from 'aws-cdk-lib';
import {
  Alarm, ComparisonOperator, Dashboard, GraphWidget, IMetric, IWidget, MathExpression, Metric, TextWidget,
  TreatMissingData, YAxisProps,
} from 'aws-cdk-lib/aws-cloudwatch';
import { SnsAction } from 'aws-cdk-lib/aws-cloudwatch-actions';
import { ApplicationLoadBalancer, ApplicationTargetGroup, HttpCodeElb } from 'aws-cdk-lib/aws-elasticloadbalancingv2';
import { PolicyStatement, ServicePrincipal } from 'aws-cdk-lib/aws-iam';
import { FilterPattern, MetricFilter } from 'aws-cdk-lib/aws-logs';
import { Topic } from 'aws-cdk-lib/aws-sns';
import { EmailSubscription } from 'aws-cdk-lib/aws-sns-subscriptions';
import { Construct } from 'constructs';
import { NAMESPACE } from './collector';
import { Config } from './config';
import { DataStack, Group } from './data-stack';
import { groupAge, own, stream, table } from './metrics';
import { ServiceName, SERVICES, TABLES } from './permissions';
import { VoteService } from './service';

export interface MonitoringProps {
  readonly config: Config;
  readonly data: DataStack;
  readonly services: Readonly<Record<ServiceName, VoteService>>;
  readonly balancer: ApplicationLoadBalancer;
  readonly targets: Readonly<Record<'ingestGrpc' | 'tallyGrpc', ApplicationTargetGroup>>;
}

/** How far a group may be behind. Interim results are live; storing may take the minutes that the plan says. */
const BEHIND_MS: Readonly<Record<Group, number>> = { persist: 120_000, tally: 15_000 };
/** How long a single window may take to be applied. The age of a window grows while its consumer is stuck. */
const STUCK_SECONDS: Readonly<Record<Group, number>> = { persist: 180, tally: 30 };
/** Throttled parts of requests a minute that are normal: pacing and retries deal with them. */
const THROTTLES_MAX = 100;
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
    const { config } = this.props;
    const topic = new Topic(this, 'Alarms', { topicName: `${config.name}-alarms`, enforceSSL: true });
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

  /** Makes one alarm, which also says when it is over. */
  private alarm(name: string, rule: Rule): void {
    const alarm = new Alarm(this, name, {
      alarmName: `${this.prefix}-${name}`,
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
    const { config, services, balancer, targets } = this.props;

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

    for (const [service, target] of [['ingest', targets.ingestGrpc], ['tally', targets.tallyGrpc]] as const) {
      this.alarm(`${service}-unhealthy`, {
        description: `Tasks of ${service}-svc do not answer gRPC health checks.`,
        metric: target.metrics.unhealthyHostCount({ statistic: 'Maximum', period: MINUTE }),
        threshold: 1,
        minutes: 3,
      });
      this.alarm(`${service}-down`, {
        description: `No task of ${service}-svc takes calls.`,
        metric: target.metrics.healthyHostCount({ statistic: 'Maximum', period: MINUTE }),
        threshold: 1,
        minutes: 2,
        below: true,
        missing: TreatMissingData.BREACHING,
      });
    }
    for (const service of SERVICES) {
      this.alarm(`${service}-tasks-missing`, {
        description: `Fewer tasks of ${service}-svc run than the least number.`,
        metric: this.running(service),
        threshold: services[service].tasks.min,
        minutes: 5,
        below: true,
        missing: TreatMissingData.BREACHING,
      });
    }
    this.alarm('edge-errors', {
      description: 'The load balancer answers with errors of its own.',
      metric: balancer.metrics.httpCodeElb(HttpCodeElb.ELB_5XX_COUNT, { period: MINUTE }),
      threshold: 50,
      minutes: 2,
      of: 3,
    });
    this.alarm('ingest-saturated', {
      description: 'ingest-svc uses all of its CPU although it scales.',
      metric: services.ingest.fargate.metricCpuUtilization({ period: MINUTE }),
      threshold: 85,
      minutes: 3,
    });

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

  private running(service: ServiceName): Metric {
    const { services } = this.props;
    return new Metric({
      namespace: 'ECS/ContainerInsights',
      metricName: 'RunningTaskCount',
      dimensionsMap: {
        ClusterName: services[service].fargate.cluster.clusterName,
        ServiceName: services[service].fargate.serviceName,
      },
      statistic: 'Minimum',
      period: MINUTE,
      label: `${service} tasks`,
    });
  }

  private dashboard(): void {
    const { config, services, balancer, targets } = this.props;
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
      graph('Load balancer', [balancer.metrics.newConnectionCount({ period: MINUTE })], [
        balancer.metrics.httpCodeElb(HttpCodeElb.ELB_5XX_COUNT, { period: MINUTE }),
        targets.ingestGrpc.metrics.unhealthyHostCount({ period: MINUTE, label: 'unhealthy ingest' }),
        targets.tallyGrpc.metrics.unhealthyHostCount({ period: MINUTE, label: 'unhealthy tally' }),
      ]),
    );
    dashboard.addWidgets(
      graph('Tasks', SERVICES.map((service) => this.running(service))),
      graph('CPU (%)', SERVICES.map((service) =>
        services[service].fargate.metricCpuUtilization({ period: MINUTE, label: service }))),
      graph('Waiting in ingest', [
        own('ingest', 'votestream.lane.votes.unsettled', {}, { label: 'votes' }),
      ], [own('ingest', 'votestream.lane.bytes', {}, { statistic: 'Maximum', label: 'bytes of the fullest task' })]),
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
