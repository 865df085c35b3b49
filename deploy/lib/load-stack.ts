/**
 * A fleet that votes as phones do, for rehearsals: a task definition of `votestream load`, and a network of its own to run it in.
 *
 * It is made only if `loadTasks` is given, and nothing runs until somebody starts it (RUNBOOK.md, "Rehearsal"). Each task has a
 * public address of its own and calls the public load balancers as everybody does. Must never get a way into the VPC of the services,
 * nor a right in the account besides its logs: it runs beside the show that it tests.
 */
import { CfnOutput, CfnParameter, Duration, RemovalPolicy, Stack, StackProps } from 'aws-cdk-lib';
import { FlowLogDestination, FlowLogTrafficType, IpAddresses, Peer, Port, SecurityGroup, SubnetType, Vpc } from 'aws-cdk-lib/aws-ec2';
import {
  Capability, Cluster, ContainerImage, ContainerInsights, CpuArchitecture, FargateTaskDefinition, LinuxParameters, LogDrivers,
  OperatingSystemFamily, Secret as TaskSecret, UlimitName,
} from 'aws-cdk-lib/aws-ecs';
import { LogGroup } from 'aws-cdk-lib/aws-logs';
import { Secret } from 'aws-cdk-lib/aws-secretsmanager';
import { Construct } from 'constructs';
import { Config } from './config';
import { RegistryStack } from './registry-stack';
import { FILES_MAX, USER } from './service';

/** Name of the container, for overrides. */
export const LOAD_CONTAINER = 'load';
/** Another range than that of the services: both VPCs may one day be connected to the same networks. */
const VPC_RANGE = '10.84.0.0/16';
/** A whole core for the handshakes, and one for the rest; Fargate gives network by size, too. */
const SIZE = { cpu: 2048, memoryLimitMiB: 4096 };
/**
 * Each vote is a connection, and its port is not free for a minute after it has ended. So that a task is not at an end after some
 * 470 votes a second to one address: nearly all ports, and those of old connections as soon as they cannot be mistaken.
 */
export const SYSTEM_CONTROLS = [
  { namespace: 'net.ipv4.ip_local_port_range', value: '1024 65535' },
  { namespace: 'net.ipv4.tcp_tw_reuse', value: '1' },
] as const;

export interface LoadStackProps extends StackProps {
  readonly config: Config;
  readonly registry: RegistryStack;
}

export class LoadStack extends Stack {
  constructor(scope: Construct, id: string, props: LoadStackProps) {
    super(scope, id, props);
    const { config, registry } = props;
    const tag = new CfnParameter(this, 'LoadTag', {
      description: 'Tag of the image of the fleet',
      allowedPattern: '^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$',
    });
    const logs = (logId: string, logGroupName: string): LogGroup =>
      new LogGroup(this, logId, { logGroupName, retention: config.logRetentionDays, removalPolicy: RemovalPolicy.DESTROY });

    const vpc = new Vpc(this, 'Vpc', {
      ipAddresses: IpAddresses.cidr(VPC_RANGE),
      maxAzs: 3,
      natGateways: 0,
      subnetConfiguration: [{ name: 'fleet', subnetType: SubnetType.PUBLIC, cidrMask: 20, mapPublicIpOnLaunch: false }],
    });
    vpc.addFlowLog('Refused', {
      trafficType: FlowLogTrafficType.REJECT,
      destination: FlowLogDestination.toCloudWatchLogs(logs('FlowLogs', `/${config.name}/load/flow`)),
    });
    const securityGroup = new SecurityGroup(this, 'Fleet', { vpc, description: 'The fleet', allowAllOutbound: false });
    securityGroup.addEgressRule(Peer.anyIpv4(), Port.tcp(443), 'load balancers, images, logs');
    new Cluster(this, 'Cluster', {
      clusterName: `${config.name}-load`, vpc, containerInsightsV2: ContainerInsights.ENABLED,
    });

    const task = new FargateTaskDefinition(this, 'Task', {
      family: `${config.name}-load`,
      ...SIZE,
      runtimePlatform: { cpuArchitecture: CpuArchitecture.ARM64, operatingSystemFamily: OperatingSystemFamily.LINUX },
    });
    const linuxParameters = new LinuxParameters(this, 'Linux');
    linuxParameters.dropCapabilities(Capability.ALL);
    const container = task.addContainer(LOAD_CONTAINER, {
      containerName: LOAD_CONTAINER,
      image: ContainerImage.fromEcrRepository(registry.repositories.load, tag.valueAsString),
      // Where to; the command line of a run says how.
      environment: config.domain === '' ? {} : { VOTESTREAM_SERVER: `https://${config.domain}` },
      ...(config.loadToken !== undefined && {
        secrets: { VOTESTREAM_TOKEN: TaskSecret.fromSecretsManager(Secret.fromSecretCompleteArn(this, 'Token', config.loadToken)) },
      }),
      readonlyRootFilesystem: true,
      user: USER,
      linuxParameters,
      systemControls: [...SYSTEM_CONTROLS],
      stopTimeout: Duration.seconds(30),
      logging: LogDrivers.awsLogs({ logGroup: logs('Logs', `/${config.name}/load`), streamPrefix: 'load' }),
    });
    container.addUlimits({ name: UlimitName.NOFILE, softLimit: FILES_MAX, hardLimit: FILES_MAX });

    new CfnOutput(this, 'LoadTasks', { description: 'Tasks of the planned fleet', value: String(config.loadTasks) });
    new CfnOutput(this, 'LoadNetwork', {
      description: 'The value of --network-configuration',
      value: `awsvpcConfiguration={subnets=[${vpc.publicSubnets.map((one) => one.subnetId).join(',')}],`
        + `securityGroups=[${securityGroup.securityGroupId}],assignPublicIp=ENABLED}`,
    });
  }
}
