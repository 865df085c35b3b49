/**
 * The OpenTelemetry collector beside every service: OTLP in on loopback, CloudWatch metrics and X-Ray traces out.
 *
 * Names of metrics and labels are those of process/src/telemetry.rs. Must never be essential: votes do not wait for telemetry.
 */

/** Namespace of the services' metrics. */
export const NAMESPACE = 'Votestream';
/** Where the services export to: the containers of a task share their loopback. */
export const OTLP_ENDPOINT = 'http://127.0.0.1:4317';
/** How often metrics are exported: alarms look at minutes. */
export const EXPORT_INTERVAL_MS = 30_000;

/** Label with the name of the binary, such as `ingest-svc`. */
export const SERVICE_LABEL = 'service.name';

/** Labels, beside the service, under which a metric appears in CloudWatch. Each series is billed, so only what is used. */
export const METRICS = {
  'votestream.ingest.votes.accepted': [],
  'votestream.ingest.votes.rejected': ['reason'],
  'votestream.lane.votes.settled': ['outcome'],
  'votestream.lane.votes.unsettled': [],
  'votestream.lane.bytes': [],
  'votestream.stream.put.duration': ['outcome'],
  'votestream.engine.throttles': ['operation'],
  'votestream.engine.timeouts': [],
  'votestream.engine.unauthorized': [],
  'votestream.store.write_units': ['table'],
  'votestream.group.votes.applied': ['group'],
  'votestream.group.votes.discarded': ['reason'],
  'votestream.group.window.duration': ['group'],
  'votestream.group.flush.age': ['group'],
  'votestream.group.iterator.age': ['group'],
  'votestream.group.lease.changes': ['group', 'change'],
  'votestream.group.records.early': ['group'],
  'votestream.group.records.future': ['group'],
  'votestream.clock.ahead': [],
  'votestream.clock.contradicted': [],
  'votestream.server.connections': [],
  'votestream.server.connections.closed': ['reason'],
  'votestream.server.calls.denied': ['reason'],
} as const satisfies Record<string, readonly string[]>;

export type MetricName = keyof typeof METRICS;

/** Configuration of the AWS Distro for OpenTelemetry. YAML is a superset of JSON. */
export function collectorConfig(logGroup: string, region: string): string {
  return JSON.stringify({
    extensions: { health_check: { endpoint: '127.0.0.1:13133' } },
    receivers: { otlp: { protocols: { grpc: { endpoint: '127.0.0.1:4317' } } } },
    processors: {
      memory_limiter: { check_interval: '1s', limit_mib: 180, spike_limit_mib: 40 },
      'batch/traces': { timeout: '1s', send_batch_size: 50 },
      'batch/metrics': { timeout: '10s' },
    },
    exporters: {
      awsxray: { region },
      awsemf: {
        region,
        namespace: NAMESPACE,
        log_group_name: logGroup,
        log_stream_name: '{TaskId}',
        dimension_rollup_option: 'NoDimensionRollup',
        resource_to_telemetry_conversion: { enabled: true },
        // The first value of a counter counts: a task that starts in the middle of the show brings votes at once.
        retain_initial_value_of_delta_metric: true,
        metric_declarations: Object.entries(METRICS).map(([name, labels]) => ({
          dimensions: [[SERVICE_LABEL, ...labels]],
          metric_name_selectors: [`^${name.replaceAll('.', '\\.')}$`],
        })),
      },
    },
    service: {
      extensions: ['health_check'],
      telemetry: { logs: { level: 'warn' } },
      pipelines: {
        traces: { receivers: ['otlp'], processors: ['memory_limiter', 'batch/traces'], exporters: ['awsxray'] },
        metrics: { receivers: ['otlp'], processors: ['memory_limiter', 'batch/metrics'], exporters: ['awsemf'] },
      },
    },
  });
}
