/**
 * Network, load balancer, cluster and the three services. Everything here can be deleted and made again without losing a vote.
 *
 * Tasks have no way to the internet: they reach AWS by VPC endpoints. Callers are not authenticated by the services, so the
 * load balancer lets nobody in unless `clientCidrs` says so, and polls are created, closed and released from `adminCidrs` alone.
 */
import { Annotations, CfnOutput, CfnParameter, Duration, RemovalPolicy, Stack, StackProps } from 'aws-cdk-lib';
import { Certificate } from 'aws-cdk-lib/aws-certificatemanager';
import {
  FlowLogDestination, FlowLogTrafficType, GatewayVpcEndpointAwsService, InterfaceVpcEndpointAwsService, IpAddresses, Peer,
  Port, SecurityGroup, SubnetType, Vpc,
} from 'aws-cdk-lib/aws-ec2';
import { Cluster, ContainerInsights } from 'aws-cdk-lib/aws-ecs';
import {
  ApplicationListener, ApplicationLoadBalancer, ApplicationProtocol, ApplicationProtocolVersion, ApplicationTargetGroup,
  DesyncMitigationMode, ListenerAction, ListenerCondition, SslPolicy,
} from 'aws-cdk-lib/aws-elasticloadbalancingv2';
import { LogGroup } from 'aws-cdk-lib/aws-logs';
import { ARecord, HostedZone, RecordTarget } from 'aws-cdk-lib/aws-route53';
import { LoadBalancerTarget } from 'aws-cdk-lib/aws-route53-targets';
import { BlockPublicAccess, Bucket, BucketEncryption } from 'aws-cdk-lib/aws-s3';
import { Construct } from 'constructs';
import { Config } from './config';
import { DataStack } from './data-stack';
import { Monitoring } from './monitoring';
import { groupAge } from './metrics';
import { ServiceName } from './permissions';
import { RegistryStack } from './registry-stack';
import { BALANCER_IDLE_SECONDS, PORTS, VoteService } from './service';

/** Before a task is told to stop, calls under way have this long; an answer takes D = 10 s at most. */
export const DEREGISTRATION_DELAY = Duration.seconds(20);
/** CPU at which ingest gets more tasks. It is low, because a spike doubles within the minutes that a task takes to start. */
const INGEST_CPU_PERCENT = 40;
/** Requests and streams a minute and task at which ingest gets more tasks. */
const INGEST_REQUESTS_PER_TARGET = 60_000;

const INGEST = '/votestream.v1.IngestService/*';
const READ_RPCS = [
  '/votestream.v1.PollService/GetPoll',
  '/votestream.v1.PollService/ListPolls',
  '/votestream.v1.ResultsService/Get*',
  '/votestream.v1.ResultsService/WatchInterimResults',
];
/** Calls that change polls, or read every vote. */
export const ADMIN_RPCS = [
  '/votestream.v1.PollService/CreatePoll',
  '/votestream.v1.PollService/ClosePoll',
  '/votestream.v1.ResultsService/Recount',
];

/** Shows hidden results. In a rule of its own, since a rule has five values. */
export const RELEASE_RPC = '/votestream.v1.ResultsService/ReleaseResults';

export interface ServiceStackProps extends StackProps {
  readonly config: Config;
  readonly data: DataStack;
  readonly registry: RegistryStack;
}

export class ServiceStack extends Stack {
  private readonly vpc: Vpc;

  constructor(scope: Construct, id: string, private readonly props: ServiceStackProps) {
    super(scope, id, props);
    const { config, data, registry } = props;

    const certificateArn = new CfnParameter(this, 'CertificateArn', {
      description: 'Certificate of the load balancer in this region (ACM)',
      allowedPattern: '^arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/[a-zA-Z0-9-]+$',
    });
    const imageTag = new CfnParameter(this, 'ImageTag', {
      description: 'Tag of the images of all three services',
      allowedPattern: '^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$',
    });
    const collectorTag = new CfnParameter(this, 'CollectorTag', {
      description: 'Tag of the image of the OpenTelemetry collector',
      allowedPattern: '^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$',
    });

    this.vpc = this.network();
    const cluster = new Cluster(this, 'Cluster', {
      clusterName: config.name,
      vpc: this.vpc,
      containerInsightsV2: ContainerInsights.ENABLED,
    });

    const group = (service: ServiceName): SecurityGroup => {
      const made = new SecurityGroup(this, `Tasks-${service}`, {
        vpc: this.vpc,
        description: `Tasks of ${service}-svc`,
        allowAllOutbound: false,
      });
      // There is no route but to the VPC endpoints.
      made.addEgressRule(Peer.anyIpv4(), Port.tcp(443), 'AWS by VPC endpoints');
      return made;
    };
    const groups = { ingest: group('ingest'), persist: group('persist'), tally: group('tally') };
    this.endpoints(Object.values(groups));

    const service = (name: ServiceName): VoteService =>
      new VoteService(this, name, {
        service: name,
        config,
        data,
        cluster,
        vpc: this.vpc,
        securityGroup: groups[name],
        repository: registry.repositories[name],
        imageTag: imageTag.valueAsString,
        collectorRepository: registry.repositories.collector,
        collectorTag: collectorTag.valueAsString,
      });
    const services = { ingest: service('ingest'), persist: service('persist'), tally: service('tally') };

    const balancer = this.balancer(groups);
    const listener = balancer.addListener('Https', {
      port: 443,
      protocol: ApplicationProtocol.HTTPS,
      certificates: [Certificate.fromCertificateArn(this, 'Certificate', certificateArn.valueAsString)],
      sslPolicy: SslPolicy.RECOMMENDED_TLS,
      // Who may call is decided below, by ranges.
      open: false,
      defaultAction: ListenerAction.fixedResponse(404, { contentType: 'text/plain', messageBody: 'nothing is here\n' }),
    });
    const targets = this.route(listener, services);

    services.ingest.scaling.scaleOnCpuUtilization('Cpu', {
      targetUtilizationPercent: INGEST_CPU_PERCENT,
      scaleOutCooldown: Duration.seconds(30),
      scaleInCooldown: Duration.minutes(10),
    });
    services.ingest.scaling.scaleOnRequestCount('Requests', {
      targetGroup: targets.ingestGrpc,
      requestsPerTarget: INGEST_REQUESTS_PER_TARGET,
      scaleOutCooldown: Duration.seconds(30),
      scaleInCooldown: Duration.minutes(10),
    });
    services.persist.scaleByAge(groupAge(config, 'persist'));
    services.tally.scaleByAge(groupAge(config, 'tally'));

    new Monitoring(this, 'Monitoring', { config, data, services, balancer, targets });

    if (config.domain !== '') {
      const zone = HostedZone.fromHostedZoneAttributes(this, 'Zone', {
        hostedZoneId: config.hostedZoneId,
        zoneName: config.domain.split('.').slice(1).join('.'),
      });
      new ARecord(this, 'Alias', {
        zone,
        recordName: `${config.domain}.`,
        target: RecordTarget.fromAlias(new LoadBalancerTarget(balancer)),
      });
    }
    new CfnOutput(this, 'Endpoint', {
      description: 'Where clients connect with TLS; the name must be one of the certificate',
      value: config.domain === '' ? balancer.loadBalancerDnsName : config.domain,
    });
  }

  /** Public subnets for the load balancer, and subnets without a way out for everything else. */
  private network(): Vpc {
    const { config } = this.props;
    const vpc = new Vpc(this, 'Vpc', {
      ipAddresses: IpAddresses.cidr('10.83.0.0/16'),
      maxAzs: 3,
      natGateways: 0,
      subnetConfiguration: [
        { name: 'edge', subnetType: SubnetType.PUBLIC, cidrMask: 24, mapPublicIpOnLaunch: false },
        { name: 'tasks', subnetType: SubnetType.PRIVATE_ISOLATED, cidrMask: 20 },
      ],
    });
    vpc.addFlowLog('Refused', {
      trafficType: FlowLogTrafficType.REJECT,
      destination: FlowLogDestination.toCloudWatchLogs(
        new LogGroup(this, 'FlowLogs', {
          logGroupName: `/${config.name}/flow`,
          retention: config.logRetentionDays,
          removalPolicy: RemovalPolicy.DESTROY,
        }),
      ),
    });
    return vpc;
  }

  private endpoints(tasks: readonly SecurityGroup[]): void {
    this.vpc.addGatewayEndpoint('DynamoDb', { service: GatewayVpcEndpointAwsService.DYNAMODB });
    // Layers of images.
    this.vpc.addGatewayEndpoint('S3', { service: GatewayVpcEndpointAwsService.S3 });
    const securityGroup = new SecurityGroup(this, 'Endpoints', {
      vpc: this.vpc,
      description: 'VPC endpoints',
      allowAllOutbound: false,
    });
    for (const one of tasks) securityGroup.addIngressRule(one, Port.tcp(443), 'tasks');
    const services = {
      Kinesis: InterfaceVpcEndpointAwsService.KINESIS_STREAMS,
      Ecr: InterfaceVpcEndpointAwsService.ECR,
      EcrDocker: InterfaceVpcEndpointAwsService.ECR_DOCKER,
      Logs: InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
      XRay: InterfaceVpcEndpointAwsService.XRAY,
    };
    for (const [id, service] of Object.entries(services)) {
      this.vpc.addInterfaceEndpoint(id, {
        service,
        subnets: { subnetType: SubnetType.PRIVATE_ISOLATED },
        securityGroups: [securityGroup],
        open: false,
      });
    }
  }

  private balancer(groups: Readonly<Record<ServiceName, SecurityGroup>>): ApplicationLoadBalancer {
    const { config } = this.props;
    const securityGroup = new SecurityGroup(this, 'Edge', {
      vpc: this.vpc,
      description: 'Load balancer',
      allowAllOutbound: false,
    });
    for (const cidr of config.clientCidrs) {
      securityGroup.addIngressRule(Peer.ipv4(cidr), Port.tcp(443), 'clients');
    }
    for (const cidr of config.adminCidrs) {
      securityGroup.addIngressRule(Peer.ipv4(cidr), Port.tcp(443), 'operators');
    }
    if (config.clientCidrs.length === 0) {
      Annotations.of(this).addInfo('clientCidrs is empty: the load balancer lets no client in');
    }
    for (const service of ['ingest', 'tally'] as const) {
      const port = Port.tcp(PORTS[service] ?? 0);
      securityGroup.addEgressRule(groups[service], port, `${service}-svc`);
      groups[service].addIngressRule(securityGroup, port, 'load balancer');
    }

    const balancer = new ApplicationLoadBalancer(this, 'Balancer', {
      loadBalancerName: config.name,
      vpc: this.vpc,
      internetFacing: config.internetFacing,
      vpcSubnets: { subnetType: config.internetFacing ? SubnetType.PUBLIC : SubnetType.PRIVATE_ISOLATED },
      securityGroup,
      http2Enabled: true,
      idleTimeout: Duration.seconds(BALANCER_IDLE_SECONDS),
      dropInvalidHeaderFields: true,
      desyncMitigationMode: DesyncMitigationMode.DEFENSIVE,
    });
    const accessLogs = new Bucket(this, 'AccessLogs', {
      encryption: BucketEncryption.S3_MANAGED,
      blockPublicAccess: BlockPublicAccess.BLOCK_ALL,
      enforceSSL: true,
      lifecycleRules: [{ expiration: Duration.days(config.logRetentionDays) }],
      removalPolicy: RemovalPolicy.RETAIN,
    });
    balancer.logAccessLogs(accessLogs, 'balancer');
    return balancer;
  }

  /** gRPC goes to the tasks by HTTP/2, and gRPC-Web and JSON by HTTP/1.1, all of it with TLS. The same ports speak all of them. */
  private route(
    listener: ApplicationListener,
    services: Readonly<Record<ServiceName, VoteService>>,
  ): Readonly<Record<'ingestGrpc' | 'ingestWeb' | 'tallyGrpc' | 'tallyWeb', ApplicationTargetGroup>> {
    const { config } = this.props;
    const group = (service: 'ingest' | 'tally', kind: 'grpc' | 'web'): ApplicationTargetGroup =>
      new ApplicationTargetGroup(this, `Target-${service}-${kind}`, {
        targetGroupName: `${config.name}-${service}-${kind}`,
        vpc: this.vpc,
        port: PORTS[service],
        protocol: ApplicationProtocol.HTTPS,
        protocolVersion: kind === 'grpc' ? ApplicationProtocolVersion.GRPC : ApplicationProtocolVersion.HTTP1,
        targets: [
          services[service].fargate.loadBalancerTarget({
            containerName: `${service}-svc`,
            containerPort: PORTS[service],
          }),
        ],
        deregistrationDelay: DEREGISTRATION_DELAY,
        healthCheck: {
          // The standard gRPC health service. Over HTTP/1.1 any answer of the router will do, which is 404 at a path without a route.
          ...(kind === 'grpc'
            ? { path: '/grpc.health.v1.Health/Check', healthyGrpcCodes: '0' }
            : { path: '/health', healthyHttpCodes: '404' }),
          interval: Duration.seconds(10),
          timeout: Duration.seconds(5),
          healthyThresholdCount: 2,
          unhealthyThresholdCount: 3,
        },
      });
    const targets = {
      ingestGrpc: group('ingest', 'grpc'),
      ingestWeb: group('ingest', 'web'),
      tallyGrpc: group('tally', 'grpc'),
      tallyWeb: group('tally', 'web'),
    };

    let priority = 0;
    const rule = (id: string, target: ApplicationTargetGroup, ...conditions: ListenerCondition[]): void => {
      priority += 10;
      listener.addAction(id, { priority, conditions, action: ListenerAction.forward([target]) });
    };
    const paths = (...patterns: string[]) => ListenerCondition.pathPatterns(patterns);
    const web = ListenerCondition.httpHeader('content-type', ['application/grpc-web*']);
    // A browser asks first whether it may call.
    const preflight = ListenerCondition.httpRequestMethods(['OPTIONS']);
    rule('IngestPreflight', targets.ingestWeb, paths(INGEST), preflight);
    rule('ReadPreflight', targets.tallyWeb, paths(...READ_RPCS), preflight);
    rule('IngestWeb', targets.ingestWeb, paths(INGEST), web);
    rule('Ingest', targets.ingestGrpc, paths(INGEST));
    rule('ReadWeb', targets.tallyWeb, paths(...READ_RPCS), web);
    rule('Read', targets.tallyGrpc, paths(...READ_RPCS));
    rule('VotesJson', targets.ingestWeb, paths('/vote', '/v1/polls/*/votes'));
    // Everybody may read. What changes a poll (POST /v1/polls/{poll}/release) is for administrators.
    const reading = ListenerCondition.httpRequestMethods(['GET', 'HEAD', 'OPTIONS']);
    rule('ResultsJson', targets.tallyWeb, paths('/v1/polls/*'), reading);
    if (config.adminCidrs.length > 0) {
      const administrators = ListenerCondition.sourceIps([...config.adminCidrs]);
      rule('Admin', targets.tallyGrpc, paths(...ADMIN_RPCS), administrators);
      rule('Release', targets.tallyGrpc, paths(RELEASE_RPC), administrators);
      rule('ReleaseJson', targets.tallyWeb, paths('/v1/polls/*/release'), administrators);
    }
    return targets;
  }
}
