/**
 * Network, load balancers, cluster and the three services. Everything here can be deleted and made again without losing a vote.
 *
 * Two load balancers: the public one lets votes, reading and the page through (paths.ts), the internal one everything. Who may do what is
 * decided by the services; the balancers let nobody in unless `clientCidrs` and `adminCidrs` say so. Tasks reach AWS by VPC
 * endpoints. Only ingest and tally have a way to the internet, for the keys of issuers, and none with `natGateways` 0.
 */
import { Annotations, CfnOutput, CfnParameter, Duration, RemovalPolicy, Stack, StackProps } from 'aws-cdk-lib';
import { Certificate, ICertificate } from 'aws-cdk-lib/aws-certificatemanager';
import {
  FlowLogDestination, FlowLogTrafficType, GatewayVpcEndpointAwsService, InterfaceVpcEndpointAwsService, IpAddresses, Peer,
  Port, SecurityGroup, SubnetSelection, SubnetType, Vpc,
} from 'aws-cdk-lib/aws-ec2';
import { Cluster, ContainerInsights } from 'aws-cdk-lib/aws-ecs';
import {
  ApplicationListener, ApplicationLoadBalancer, ApplicationProtocol, ApplicationProtocolVersion, ApplicationTargetGroup,
  DesyncMitigationMode, ListenerAction, ListenerCondition, Protocol, SslPolicy,
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
import {
  ALL_INGEST, ALL_JSON, ALL_PAGE, ALL_TALLY, PAGE_ROUTES, Paths, READ_ROUTES, READ_RPCS, REFLECTION, VOTE_ROUTES, VOTE_RPCS,
} from './paths';
import { ServiceName } from './permissions';
import { RegistryStack } from './registry-stack';
import { ASKING, SECRETS } from './secrets';
import { BALANCER_IDLE_SECONDS, PORTS, VoteService } from './service';

/** Before a task is told to stop, calls under way have this long; an answer takes D = 10 s at most. */
export const DEREGISTRATION_DELAY = Duration.seconds(20);
/** CPU at which ingest gets more tasks. It is low, because a spike doubles within the minutes that a task takes to start. */
const INGEST_CPU_PERCENT = 40;
/** Requests and streams a minute and task at which ingest gets more tasks. */
const INGEST_REQUESTS_PER_TARGET = 60_000;

/** The services that are called, and how: gRPC by HTTP/2; gRPC-Web, JSON, events and the page by HTTP/1.1. */
type Targets = Readonly<Record<'ingestGrpc' | 'ingestWeb' | 'tallyGrpc' | 'tallyWeb', ApplicationTargetGroup>>;
type Services = Readonly<Record<ServiceName, VoteService>>;

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
      description: 'Certificate of both load balancers in this region (ACM); it has the names of both',
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
      // Where there is a route: to the VPC endpoints, and for ingest and tally to the keys of issuers.
      made.addEgressRule(Peer.anyIpv4(), Port.tcp(443), 'AWS by VPC endpoints, keys of issuers');
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
        subnets: this.subnets(name),
        securityGroup: groups[name],
        repository: registry.repositories[name],
        imageTag: imageTag.valueAsString,
        collectorRepository: registry.repositories.collector,
        collectorTag: collectorTag.valueAsString,
      });
    const services = { ingest: service('ingest'), persist: service('persist'), tally: service('tally') };

    const certificate = Certificate.fromCertificateArn(this, 'Certificate', certificateArn.valueAsString);
    const accessLogs = this.accessLogs();
    const balancer = this.balancer('Balancer', config.name, config.internetFacing, this.edge('Edge', config.clientCidrs, groups));
    balancer.logAccessLogs(accessLogs, 'balancer');
    const targets = this.targets('Target', services, (kind) => `${config.name}-${kind}`);
    this.routePublic(listen(balancer, certificate), targets);
    const internal = this.balancer('Internal', `${config.name}-internal`, false, this.edge('AdminEdge', config.adminCidrs, groups));
    internal.logAccessLogs(accessLogs, 'internal');
    // A target group belongs to one load balancer.
    this.routeAll(listen(internal, certificate), this.targets('InternalTarget', services));
    this.remarks();

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

    this.name('Alias', config.domain, balancer);
    this.name('AdminAlias', config.adminDomain, internal);
    new CfnOutput(this, 'Endpoint', {
      description: 'Where clients connect with TLS; the name must be one of the certificate',
      value: config.domain === '' ? balancer.loadBalancerDnsName : config.domain,
    });
    new CfnOutput(this, 'AdminEndpoint', {
      description: 'Where operators connect with TLS, from a network of adminCidrs',
      value: config.adminDomain === '' ? internal.loadBalancerDnsName : config.adminDomain,
    });
  }

  /** What whoever deploys should know. */
  private remarks(): void {
    const { config } = this.props;
    const notes = Annotations.of(this);
    if (config.clientCidrs.length === 0) notes.addInfo('clientCidrs is empty: the public load balancer lets nobody in');
    if (config.adminCidrs.length === 0) notes.addInfo('adminCidrs is empty: nobody can create polls');
    if (config.pseudonymKeys === undefined) notes.addInfo('pseudonymKeys is not given: votes are stored under the ids of users');
    if (config.auth === undefined) {
      notes.addInfo('auth is none: whoever reaches a load balancer votes as anybody, and by the internal one closes polls');
    } else if (config.natGateways === 0) {
      notes.addInfo('natGateways is 0: tasks cannot read the keys of issuers by URL; keys in the auth file work');
    }
  }

  /** A name for a load balancer. */
  private name(id: string, domain: string, balancer: ApplicationLoadBalancer): void {
    if (domain === '') return;
    const zone = HostedZone.fromHostedZoneAttributes(this, `${id}Zone`, {
      hostedZoneId: this.props.config.hostedZoneId,
      zoneName: domain.split('.').slice(1).join('.'),
    });
    const target = RecordTarget.fromAlias(new LoadBalancerTarget(balancer));
    new ARecord(this, id, { zone, recordName: `${domain}.`, target });
  }

  /** Public subnets for the load balancer, subnets without a way out, and those of tasks that read keys of issuers. */
  private network(): Vpc {
    const { config } = this.props;
    const vpc = new Vpc(this, 'Vpc', {
      ipAddresses: IpAddresses.cidr('10.83.0.0/16'),
      maxAzs: 3,
      natGateways: config.natGateways,
      subnetConfiguration: [
        { name: 'edge', subnetType: SubnetType.PUBLIC, cidrMask: 24, mapPublicIpOnLaunch: false },
        { name: 'tasks', subnetType: SubnetType.PRIVATE_ISOLATED, cidrMask: 20 },
        // The last one, so that the ranges of the others stay when it comes or goes.
        ...(config.natGateways > 0 ? [{ name: 'outward', subnetType: SubnetType.PRIVATE_WITH_EGRESS, cidrMask: 20 }] : []),
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

  /** Those who ask callers for tokens need the keys of issuers. Nobody else gets a way out. */
  private subnets(service: ServiceName): SubnetSelection {
    const outward = this.props.config.natGateways > 0 && ASKING.includes(service);
    return { subnetType: outward ? SubnetType.PRIVATE_WITH_EGRESS : SubnetType.PRIVATE_ISOLATED };
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
      // ECS reads the secrets of a task by the task's own network.
      ...(SECRETS.some(({ key }) => this.props.config[key] !== undefined) && {
        SecretsManager: InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
      }),
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

  /** What a load balancer lets in, and where it may go. */
  private edge(id: string, cidrs: readonly string[], groups: Readonly<Record<ServiceName, SecurityGroup>>): SecurityGroup {
    const description = id === 'Edge' ? 'Load balancer' : 'Internal load balancer';
    const securityGroup = new SecurityGroup(this, id, { vpc: this.vpc, description, allowAllOutbound: false });
    for (const cidr of cidrs) {
      securityGroup.addIngressRule(Peer.ipv4(cidr), Port.tcp(443), id === 'Edge' ? 'clients' : 'operators');
    }
    for (const service of ['ingest', 'tally'] as const) {
      const port = Port.tcp(PORTS[service] ?? 0);
      securityGroup.addEgressRule(groups[service], port, `${service}-svc`);
      groups[service].addIngressRule(securityGroup, port, description.toLowerCase());
    }
    return securityGroup;
  }

  private balancer(id: string, name: string, internetFacing: boolean, securityGroup: SecurityGroup): ApplicationLoadBalancer {
    return new ApplicationLoadBalancer(this, id, {
      loadBalancerName: name,
      vpc: this.vpc,
      internetFacing,
      vpcSubnets: { subnetType: internetFacing ? SubnetType.PUBLIC : SubnetType.PRIVATE_ISOLATED },
      securityGroup,
      http2Enabled: true,
      idleTimeout: Duration.seconds(BALANCER_IDLE_SECONDS),
      dropInvalidHeaderFields: true,
      desyncMitigationMode: DesyncMitigationMode.DEFENSIVE,
    });
  }

  private accessLogs(): Bucket {
    return new Bucket(this, 'AccessLogs', {
      encryption: BucketEncryption.S3_MANAGED,
      blockPublicAccess: BlockPublicAccess.BLOCK_ALL,
      enforceSSL: true,
      lifecycleRules: [{ expiration: Duration.days(this.props.config.logRetentionDays) }],
      removalPolicy: RemovalPolicy.RETAIN,
    });
  }

  /**
   * Where a load balancer sends calls: gRPC to the tasks by HTTP/2, and everything else by HTTP/1.1, all of it with TLS, health
   * checks, too. The same ports speak all of them. No load balancer checks the certificates of its targets.
   */
  private targets(id: string, services: Services, name?: (kind: string) => string): Targets {
    const group = (service: 'ingest' | 'tally', kind: 'grpc' | 'web'): ApplicationTargetGroup =>
      new ApplicationTargetGroup(this, `${id}-${service}-${kind}`, {
        ...(name !== undefined && { targetGroupName: name(`${service}-${kind}`) }),
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
          // Not by itself that of the targets: without it the health of a port with TLS would be asked in plain HTTP.
          protocol: Protocol.HTTPS,
          // The standard gRPC health service. Over HTTP/1.1 any answer of the router will do, which is 404 at a path without a
          // route. Neither needs a credential.
          ...(kind === 'grpc'
            ? { path: '/grpc.health.v1.Health/Check', healthyGrpcCodes: '0' }
            : { path: '/health', healthyHttpCodes: '404' }),
          interval: Duration.seconds(10),
          timeout: Duration.seconds(5),
          healthyThresholdCount: 2,
          unhealthyThresholdCount: 3,
        },
      });
    return {
      ingestGrpc: group('ingest', 'grpc'),
      ingestWeb: group('ingest', 'web'),
      tallyGrpc: group('tally', 'grpc'),
      tallyWeb: group('tally', 'web'),
    };
  }

  /** Votes, reading and the page, path by path. Everything else is answered by the listener itself, with 404. */
  private routePublic(listener: ApplicationListener, targets: Targets): void {
    const rules = new Rules(listener);
    rules.rpcs('Ingest', Paths.of(...VOTE_RPCS), targets.ingestWeb, targets.ingestGrpc);
    rules.rpcs('Read', Paths.of(...READ_RPCS), targets.tallyWeb, targets.tallyGrpc);
    rules.add('VotesJson', targets.ingestWeb, Paths.ofRoutes(...VOTE_ROUTES), 'POST', 'OPTIONS');
    // A path may have another method that administers: POST /v1/polls creates a poll.
    rules.add('ResultsJson', targets.tallyWeb, Paths.ofRoutes(...READ_ROUTES), 'GET', 'HEAD', 'OPTIONS');
    rules.add('Page', targets.tallyWeb, Paths.ofRoutes(...PAGE_ROUTES), 'GET', 'HEAD');
  }

  /** Everything that both services have. */
  private routeAll(listener: ApplicationListener, targets: Targets): void {
    const rules = new Rules(listener);
    rules.rpcs('Ingest', Paths.of(ALL_INGEST), targets.ingestWeb, targets.ingestGrpc);
    rules.rpcs('Tally', Paths.of(...ALL_TALLY), targets.tallyWeb, targets.tallyGrpc);
    rules.add('Reflection', targets.tallyGrpc, Paths.of(REFLECTION));
    rules.add('VotesJson', targets.ingestWeb, Paths.ofRoutes(...VOTE_ROUTES));
    rules.add('PollsJson', targets.tallyWeb, Paths.of(ALL_JSON));
    rules.add('Page', targets.tallyWeb, Paths.of(...ALL_PAGE));
  }
}

/** The listener of a load balancer. What no rule names is not there. */
function listen(balancer: ApplicationLoadBalancer, certificate: ICertificate): ApplicationListener {
  return balancer.addListener('Https', {
    port: 443,
    protocol: ApplicationProtocol.HTTPS,
    certificates: [certificate],
    sslPolicy: SslPolicy.RECOMMENDED_TLS,
    // Who may call is decided by ranges, and then by the services.
    open: false,
    defaultAction: ListenerAction.fixedResponse(404, { contentType: 'text/plain', messageBody: 'nothing is here\n' }),
  });
}

/** Makes the rules of a listener, in their order. */
class Rules {
  private priority = 0;

  constructor(private readonly listener: ApplicationListener) {}

  /** A rule for paths, and for these methods only if there are any. Several rules if the paths do not fit into one. */
  add(id: string, target: ApplicationTargetGroup, paths: Paths, ...methods: string[]): void {
    this.split(id, target, paths, methods.length, methods.length > 0 ? [ListenerCondition.httpRequestMethods(methods)] : []);
  }

  /** Rules for methods of gRPC: gRPC-Web, and the question of a browser whether it may call, go another way than gRPC. */
  rpcs(id: string, paths: Paths, web: ApplicationTargetGroup, grpc: ApplicationTargetGroup): void {
    this.split(`${id}Preflight`, web, paths, 1, [ListenerCondition.httpRequestMethods(['OPTIONS'])]);
    this.split(`${id}Web`, web, paths, 1, [ListenerCondition.httpHeader('content-type', ['application/grpc-web*'])]);
    this.split(id, grpc, paths, 0, []);
  }

  private split(id: string, target: ApplicationTargetGroup, paths: Paths, others: number, conditions: ListenerCondition[]): void {
    for (const [at, part] of paths.parts(others).entries()) {
      this.priority += 10;
      this.listener.addAction(at === 0 ? id : `${id}${at + 1}`, {
        priority: this.priority,
        conditions: [part, ...conditions],
        action: ListenerAction.forward([target]),
      });
    }
  }
}
