/**
 * Metrics by name: those of AWS, and the services' own as the collector publishes them.
 */
import { Duration } from 'aws-cdk-lib';
import { Metric, MetricProps } from 'aws-cdk-lib/aws-cloudwatch';
import { MetricName, METRICS, NAMESPACE, SERVICE_LABEL } from './collector';
import { Config } from './config';
import { CONSUMER_PREFIX, Group } from './data-stack';
import { ServiceName, TableName } from './permissions';

const MINUTE = Duration.minutes(1);

/** How far the group's reading is behind the stream's newest record, as Kinesis sees it (ms). */
export function groupAge(config: Config, group: Group): Metric {
  const fanOut = config.consumer === 'fan-out';
  return new Metric({
    namespace: 'AWS/Kinesis',
    metricName: fanOut ? 'SubscribeToShardEvent.MillisBehindLatest' : 'GetRecords.IteratorAgeMilliseconds',
    dimensionsMap: {
      StreamName: config.name,
      ...(fanOut && { ConsumerName: `${CONSUMER_PREFIX}-${group}` }),
    },
    statistic: 'Maximum',
    period: MINUTE,
    label: group,
  });
}

/** A metric of the stream. */
export function stream(config: Config, metricName: string, statistic = 'Sum'): Metric {
  const dimensionsMap = { StreamName: config.name };
  return new Metric({ namespace: 'AWS/Kinesis', metricName, dimensionsMap, statistic, period: MINUTE });
}

/** A metric of a table. */
export function table(config: Config, name: TableName, metricName: string, statistic = 'Sum'): Metric {
  const dimensionsMap = { TableName: `${config.name}-${name}` };
  return new Metric({ namespace: 'AWS/DynamoDB', metricName, dimensionsMap, statistic, period: MINUTE, label: name });
}

/** A service's own metric, for one value of each of its labels. */
export function own<N extends MetricName>(
  service: ServiceName,
  metricName: N,
  labels: Readonly<Record<(typeof METRICS)[N][number], string>>,
  props: MetricProps | Partial<MetricProps> = {},
): Metric {
  return new Metric({
    namespace: NAMESPACE,
    metricName,
    dimensionsMap: { [SERVICE_LABEL]: `${service}-svc`, ...labels },
    statistic: 'Sum',
    period: MINUTE,
    ...props,
  });
}
