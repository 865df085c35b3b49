/**
 * One of the three services on Fargate: task, sidecar, role, environment, drain, scaling.
 *
 * Names of variables are those of the settings (*-svc/src/settings.rs); test/contract.test.ts compares them. A role gets what
 * permissions.ts says and what the collector needs, nothing else.
 */
import { Aws, Duration, RemovalPolicy, Stack } from 'aws-cdk-lib';
import { MetricAggregationType, AdjustmentType } from 'aws-cdk-lib/aws-applicationautoscaling';
import { Metric } from 'aws-cdk-lib/aws-cloudwatch';
import { ISecurityGroup, IVpc, SubnetSelection } from 'aws-cdk-lib/aws-ec2';
import { IRepository } from 'aws-cdk-lib/aws-ecr';
import {
  AvailabilityZoneRebalancing, Capability, ContainerDependencyCondition, ContainerImage, CpuArchitecture,
  FargatePlatformVersion, FargateService, FargateTaskDefinition, ICluster, LinuxParameters, LogDrivers,
  OperatingSystemFamily, PropagatedTagSource, ScalableTaskCount, UlimitName,
} from 'aws-cdk-lib/aws-ecs';
import { PolicyStatement, Role, ServicePrincipal } from 'aws-cdk-lib/aws-iam';
import { IKey } from 'aws-cdk-lib/aws-kms';
import { LogGroup, RetentionDays } from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';
import { collectorConfig, EXPORT_INTERVAL_MS, OTLP_ENDPOINT } from './collector';
import { Config, Size, Tasks } from './config';
import { DataStack } from './data-stack';
import { KEY_USES } from './keys';
import { FAN_OUT, PERMISSIONS, POLLING, ServiceName, TABLES } from './permissions';
import { tell, Told } from './secrets';

/** How long the services may drain; given to them as `--drain`, so that both sides agree. */
export const DRAIN_SECONDS: Readonly<Record<ServiceName, number>> = { ingest: 12, persist: 25, tally: 25 };
/** After ingest's calls have ended, it settles the votes of calls that were cut off, within D. */
export const SETTLE_SECONDS: Readonly<Record<ServiceName, number>> = { ingest: 10, persist: 0, tally: 0 };
/** The last metrics, traces and logs are sent within three seconds each. */
export const TELEMETRY_SECONDS = 9;
/**
 * Longest silence of a connection through each load balancer. A phone that says nothing for a minute is gone, and its connection
 * costs a part of a capacity unit. Relays' streams are silent while nobody votes, and so are the calls of operators who wait.
 */
export const BALANCER_IDLE_SECONDS = { public: 60, relays: 600, internal: 600 } as const;
/** The services close later than any load balancer, which would otherwise send a call into a connection that is being closed. */
export const IDLE_SECONDS = Math.max(...Object.values(BALANCER_IDLE_SECONDS)) + 15;
/** Seconds that are left between the end of a drain and the kill. */
const STOP_MARGIN_SECONDS = 5;

/** When ECS kills a task that was told to stop; 120 s at most. */
export function stopTimeoutSeconds(service: ServiceName): number {
  return DRAIN_SECONDS[service] + SETTLE_SECONDS[service] + TELEMETRY_SECONDS + STOP_MARGIN_SECONDS;
}

/** Ports of the services that clients call. */
export const PORTS: Readonly<Partial<Record<ServiceName, number>>> = { ingest: 50051, tally: 50052 };
/** Where persist answers the health checks of its own container. Nobody else can reach it. */
const HEALTH_ADDRESS = '127.0.0.1:50053';
/** How the image asks its service for its health, as in the Dockerfile. */
export const HEALTH_COMMAND = ['CMD', '/service', 'health'];

/** nobody:nogroup of the image. */
export const USER = '65532:65532';
/** The collector's part of the task's memory. */
const COLLECTOR_MEMORY_MIB = 256;
/** Every client connection is a file; this is the most that Fargate gives. */
export const FILES_MAX = 65_535;

export interface VoteServiceProps {
  readonly service: ServiceName;
  readonly config: Config;
  readonly data: DataStack;
  readonly cluster: ICluster;
  readonly vpc: IVpc;
  readonly subnets: SubnetSelection;
  readonly securityGroup: ISecurityGroup;
  readonly repository: IRepository;
  readonly imageTag: string;
  readonly collectorRepository: IRepository;
  readonly collectorTag: string;
  /** Among how many ECS services the tasks are divided. */
  readonly parts: number;
  /** The key of the logs, if it is one of this account. */
  readonly logKey: IKey | undefined;
}

/**
 * An ECS service with its share of the tasks. There is one behind each public load balancer, because an ECS service takes five
 * target groups at most ("Amazon ECS service quotas"), and a target group belongs to one load balancer.
 */
export interface Part {
  readonly fargate: FargateService;
  readonly scaling: ScalableTaskCount;
  readonly tasks: Tasks;
}

/** The share of the part with this index: all shares together are the whole, and no two differ by more than one. */
export function share(whole: number, parts: number, index: number): number {
  return Math.floor(whole / parts) + (index < whole % parts ? 1 : 0);
}

export class VoteService extends Construct {
  readonly parts: readonly Part[];
  /** Of all parts together. */
  readonly tasks: Tasks & Size;
  readonly logs: LogGroup;
  readonly metricsLogGroup: LogGroup;

  constructor(scope: Construct, id: string, private readonly props: VoteServiceProps) {
    super(scope, id);
    const { service, config } = props;
    this.tasks = config[service];

    this.logs = this.logGroup('Logs', `/${config.name}/${service}`);
    const collectorLogGroup = this.logGroup('CollectorLogs', `/${config.name}/${service}/collector`);
    this.metricsLogGroup = this.logGroup('Metrics', `/${config.name}/${service}/metrics`);

    const task = new FargateTaskDefinition(this, 'Task', {
      family: `${config.name}-${service}`,
      cpu: this.tasks.cpu,
      memoryLimitMiB: this.tasks.memoryMiB,
      runtimePlatform: {
        cpuArchitecture: CpuArchitecture.ARM64,
        operatingSystemFamily: OperatingSystemFamily.LINUX,
      },
      taskRole: this.role(),
    });

    const port = PORTS[service];
    const told = tell(this, service, config);
    const main = task.addContainer('service', {
      containerName: `${service}-svc`,
      image: ContainerImage.fromEcrRepository(props.repository, props.imageTag),
      environment: this.environment(told),
      secrets: told.secrets,
      essential: true,
      readonlyRootFilesystem: true,
      user: USER,
      linuxParameters: this.linuxParameters('Linux'),
      memoryReservationMiB: this.tasks.memoryMiB - COLLECTOR_MEMORY_MIB,
      stopTimeout: Duration.seconds(stopTimeoutSeconds(service)),
      // The load balancer asks the others.
      ...(port === undefined && {
        healthCheck: {
          command: HEALTH_COMMAND,
          interval: Duration.seconds(15),
          timeout: Duration.seconds(5),
          retries: 4,
          startPeriod: Duration.seconds(60),
        },
      }),
      logging: LogDrivers.awsLogs({ logGroup: this.logs, streamPrefix: service }),
    });
    main.addUlimits({ name: UlimitName.NOFILE, softLimit: FILES_MAX, hardLimit: FILES_MAX });
    if (port !== undefined) main.addPortMappings({ containerPort: port });

    const collector = task.addContainer('collector', {
      containerName: 'collector',
      image: ContainerImage.fromEcrRepository(props.collectorRepository, props.collectorTag),
      environment: { AOT_CONFIG_CONTENT: collectorConfig(this.metricsLogGroup.logGroupName, Stack.of(this).region) },
      // Votes go on without telemetry.
      essential: false,
      readonlyRootFilesystem: true,
      linuxParameters: this.linuxParameters('CollectorLinux'),
      memoryLimitMiB: COLLECTOR_MEMORY_MIB,
      stopTimeout: Duration.seconds(10),
      logging: LogDrivers.awsLogs({ logGroup: collectorLogGroup, streamPrefix: 'collector' }),
    });
    // Started before and stopped after the service, so that its last metrics arrive.
    main.addContainerDependencies({ container: collector, condition: ContainerDependencyCondition.START });

    this.parts = Array.from({ length: props.parts }, (_, index) => this.part(task, index));
  }

  private part(taskDefinition: FargateTaskDefinition, index: number): Part {
    const { service, config, ...props } = this.props;
    const suffix = index === 0 ? '' : `${index + 1}`;
    const min = share(this.tasks.min, props.parts, index);
    const max = share(this.tasks.max, props.parts, index);
    const fargate = new FargateService(this, `Service${suffix}`, {
      serviceName: [config.name, service, ...(index === 0 ? [] : [suffix])].join('-'),
      cluster: props.cluster,
      taskDefinition,
      desiredCount: min,
      // New tasks first: ingest keeps its capacity, and the groups hand their shards over to tasks that run.
      minHealthyPercent: 100,
      maxHealthyPercent: 200,
      circuitBreaker: { rollback: true },
      availabilityZoneRebalancing: AvailabilityZoneRebalancing.ENABLED,
      ...(PORTS[service] !== undefined && { healthCheckGracePeriod: Duration.seconds(60) }),
      platformVersion: FargatePlatformVersion.LATEST,
      vpcSubnets: props.subnets,
      securityGroups: [props.securityGroup],
      assignPublicIp: false,
      enableExecuteCommand: false,
      enableECSManagedTags: true,
      propagateTags: PropagatedTagSource.SERVICE,
    });
    return { fargate, scaling: fargate.autoScaleTaskCount({ minCapacity: min, maxCapacity: max }), tasks: { min, max } };
  }

  /** Follows how far the group is behind: fast up, slowly down. */
  scaleByAge(age: Metric): void {
    const [{ scaling }] = this.parts as [Part];
    scaling.scaleOnMetric('Age', {
      metric: age,
      adjustmentType: AdjustmentType.PERCENT_CHANGE_IN_CAPACITY,
      minAdjustmentMagnitude: 1,
      metricAggregationType: MetricAggregationType.MAXIMUM,
      cooldown: Duration.seconds(90),
      evaluationPeriods: 2,
      scalingSteps: [
        { upper: 1_000, change: -10 },
        { lower: 5_000, upper: 20_000, change: 50 },
        { lower: 20_000, change: 100 },
      ],
    });
  }

  private environment(told: Told): Record<string, string> {
    const { service, config, data } = this.props;
    const port = PORTS[service];
    return {
      VOTESTREAM_STREAM: config.name,
      VOTESTREAM_TABLE_PREFIX: data.tablePrefix,
      VOTESTREAM_LOG_FORMAT: 'json',
      VOTESTREAM_DRAIN: `${DRAIN_SECONDS[service]}s`,
      VOTESTREAM_LISTEN: port === undefined ? HEALTH_ADDRESS : `0.0.0.0:${port}`,
      ...(port !== undefined && { VOTESTREAM_IDLE_TIMEOUT: `${IDLE_SECONDS}s` }),
      // The load balancer checks no certificate of its targets, so each task makes one: votes are encrypted on this way, too.
      ...(port !== undefined && { VOTESTREAM_TLS_SELF_SIGNED: 'true' }),
      // Who may call. The texts themselves come from Secrets Manager.
      ...told.environment,
      ...(port !== undefined && config.corsAllowOrigins !== '' && {
        VOTESTREAM_CORS_ALLOW_ORIGINS: config.corsAllowOrigins,
      }),
      // The least number of tasks. If more tasks run, each is paced too fast, and throttling corrects that. If this number were
      // too high, the shards could not be filled, and nothing would correct that.
      ...(service === 'ingest' && { VOTESTREAM_INGEST_TASKS: String(this.tasks.min) }),
      ...(service !== 'ingest' && { VOTESTREAM_CONSUMER: config.consumer }),
      // Who administers polls goes to stdout, and a task has a chain of its own: its disk ends with it. Logs go to stderr.
      ...(service === 'tally' && { VOTESTREAM_AUDIT_LOG: '-' }),
      // Each process gets its part of the budget, so that all of them together keep within it, however many run.
      ...(service === 'persist' && {
        VOTESTREAM_WRITE_UNITS_PER_SECOND: String(Math.floor(config.writeUnitsPerSecond / this.tasks.max)),
      }),
      AWS_REGION: Stack.of(this).region,
      OTEL_EXPORTER_OTLP_ENDPOINT: OTLP_ENDPOINT,
      OTEL_METRIC_EXPORT_INTERVAL: String(EXPORT_INTERVAL_MS),
      // Logs go to CloudWatch from stderr.
      OTEL_LOGS_EXPORTER: 'none',
    };
  }

  private role(): Role {
    const { service, config, data } = this.props;
    const stack = Stack.of(this);
    const role = new Role(this, 'Role', {
      description: `What ${service}-svc may do: its calls to the stream and the tables, and the collector's`,
      assumedBy: new ServicePrincipal('ecs-tasks.amazonaws.com', {
        conditions: {
          StringEquals: { 'aws:SourceAccount': stack.account },
          ArnLike: { 'aws:SourceArn': `arn:${Aws.PARTITION}:ecs:${stack.region}:${stack.account}:*` },
        },
      }),
    });
    const allow = (prefix: string, actions: readonly string[], ...resources: string[]): void => {
      if (actions.length === 0) return;
      role.addToPolicy(new PolicyStatement({ actions: actions.map((one) => `${prefix}:${one}`), resources }));
    };
    const permissions = PERMISSIONS[service];
    const consumer = permissions.group && data.consumers[permissions.group];
    const reads = permissions.group === undefined ? [] : config.consumer === 'fan-out' ? FAN_OUT.stream : POLLING.stream;
    allow('kinesis', [...permissions.stream, ...reads], data.stream.streamArn);
    if (consumer !== undefined) allow('kinesis', FAN_OUT.consumer, consumer);
    for (const table of TABLES) allow('dynamodb', permissions.tables[table], data.tables[table].tableArn);
    // The key of stream and tables, if it is ours: for calls that these two make in the name of the task, and for nothing else.
    if (data.key !== undefined) {
      for (const [by, uses] of Object.entries(KEY_USES)) {
        role.addToPolicy(new PolicyStatement({
          actions: uses.map((one) => `kms:${one}`),
          resources: [data.key.keyArn],
          conditions: { StringEquals: { 'kms:ViaService': `${by}.${stack.region}.amazonaws.com` } },
        }));
      }
    }
    // The collector: metrics as log events of one log group, and traces.
    allow('logs', ['CreateLogStream', 'DescribeLogStreams', 'PutLogEvents'], this.metricsLogGroup.logGroupArn);
    allow('xray', ['PutTelemetryRecords', 'PutTraceSegments'], '*');
    return role;
  }

  private linuxParameters(id: string): LinuxParameters {
    const parameters = new LinuxParameters(this, id);
    parameters.dropCapabilities(Capability.ALL);
    return parameters;
  }

  private logGroup(id: string, logGroupName: string): LogGroup {
    const { config, logKey } = this.props;
    const retention: RetentionDays = config.logRetentionDays;
    return new LogGroup(this, id, {
      logGroupName, retention, removalPolicy: RemovalPolicy.DESTROY, ...(logKey && { encryptionKey: logKey }),
    });
  }
}
