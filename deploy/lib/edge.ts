/**
 * The load balancers: whom they let in, where they send each path, their names. Which paths there are is in paths.ts.
 *
 * - public ones (`loadBalancers`), for votes, reading and the page, each in front of ECS services of its own;
 * - one of relays, if there are any (`relayCidrs`): their streams are silent for minutes, and theirs is not a phone's time-out;
 * - an internal one, which has everything.
 *
 * Must never let anybody in who is not in a setting, and never decide what a caller may do: the services do.
 */
import { CfnOutput, Duration, RemovalPolicy } from 'aws-cdk-lib';
import { ICertificate } from 'aws-cdk-lib/aws-certificatemanager';
import { Peer, Port, SecurityGroup, SubnetType, Vpc } from 'aws-cdk-lib/aws-ec2';
import {
  ApplicationListener, ApplicationLoadBalancer, ApplicationProtocol, ApplicationProtocolVersion, ApplicationTargetGroup,
  DesyncMitigationMode, IpAddressType, ListenerAction, ListenerCondition, Protocol, SslPolicy,
  TargetGroupLoadBalancingAlgorithmType,
} from 'aws-cdk-lib/aws-elasticloadbalancingv2';
import { AaaaRecord, ARecord, HostedZone, RecordTarget } from 'aws-cdk-lib/aws-route53';
import { LoadBalancerTarget } from 'aws-cdk-lib/aws-route53-targets';
import { BlockPublicAccess, Bucket, BucketEncryption } from 'aws-cdk-lib/aws-s3';
import { CfnWebACLAssociation } from 'aws-cdk-lib/aws-wafv2';
import { Construct } from 'constructs';
import { Config, isIpv6Range } from './config';
import {
  ALL_INGEST, ALL_JSON, ALL_PAGE, ALL_TALLY, PAGE_ROUTES, Paths, READ_ROUTES, READ_RPCS, REFLECTION, VOTE_ROUTES, VOTE_RPCS,
} from './paths';
import { ServiceName } from './permissions';
import { BALANCER_IDLE_SECONDS, Part, PORTS } from './service';

/** Before a task is told to stop, calls under way have this long; an answer takes D = 10 s at most. */
export const DEREGISTRATION_DELAY = Duration.seconds(20);
/** Target groups of one ECS service ("Amazon ECS service quotas", not adjustable). */
export const TARGET_GROUPS_OF_A_SERVICE_MAX = 5;
/** Longest life of a connection of a relay. With the load balancers' own hour, streams would end in the middle of a show. */
const RELAY_CONNECTION = Duration.days(1);

/** The services that are called, and how: gRPC by HTTP/2; gRPC-Web, JSON, events and the page by HTTP/1.1. */
type Grpc = Readonly<Record<'ingestGrpc' | 'tallyGrpc', ApplicationTargetGroup>>;
type Targets = Grpc & Readonly<Record<'ingestWeb' | 'tallyWeb', ApplicationTargetGroup>>;
/** The ECS services behind a load balancer. */
type Behind = Readonly<Record<'ingest' | 'tally', Part>>;
type Groups = Readonly<Record<ServiceName, SecurityGroup>>;

/** A load balancer and where it sends calls. */
export interface Front<T extends Grpc = Grpc> {
  /** What stands behind the name of the first public one, such as `-2` or `-relays`. */
  readonly suffix: string;
  readonly balancer: ApplicationLoadBalancer;
  readonly targets: T;
}

export interface EdgeProps {
  readonly config: Config;
  readonly vpc: Vpc;
  readonly groups: Groups;
  readonly certificate: ICertificate;
  /** One for each public load balancer; the others stand in front of the first. */
  readonly behind: readonly Behind[];
}

/** What differs between load balancers. */
interface Kind {
  /** Starts the logical ids of its parts. Those of the target groups have `Target` in place of `Balancer`. */
  readonly id: string;
  readonly suffix: string;
  readonly internetFacing: boolean;
  readonly securityGroup: SecurityGroup;
  readonly cidrs: readonly string[];
  readonly idleSeconds: number;
  /** Where its access logs are. */
  readonly logs: string;
}

export class Edge {
  readonly fronts: readonly Front<Targets>[];
  readonly relays: Front | undefined;
  readonly internal: Front<Targets>;
  private readonly accessLogs: Bucket;

  /** Makes everything under `scope`, a stack: the names of what is there already must not change. */
  constructor(private readonly scope: Construct, private readonly props: EdgeProps) {
    const { config, behind } = props;
    this.accessLogs = this.bucket();
    const { internetFacing } = config;
    const [first] = behind as [Behind];

    const edge = this.guard('Edge', 'Load balancer', 'clients', config.clientCidrs);
    this.fronts = behind.map((services, index) => {
      const [number, suffix] = index === 0 ? ['', ''] : [`${index + 1}`, `-${index + 1}`];
      const balancer = this.balancer({
        id: `Balancer${number}`, suffix, internetFacing, securityGroup: edge, cidrs: config.clientCidrs,
        idleSeconds: BALANCER_IDLE_SECONDS.public, logs: `balancer${suffix}`,
      }, config.reservedLcus > 0 ? { minimumCapacityUnit: config.reservedLcus } : {});
      const targets = this.targets(`Target${number}`, services, index === 0);
      this.routePublic(listen(balancer, props.certificate), targets);
      if (config.webAclArn !== undefined) {
        new CfnWebACLAssociation(scope, `WebAcl${number}`, {
          resourceArn: balancer.loadBalancerArn, webAclArn: config.webAclArn,
        });
      }
      return { suffix, balancer, targets };
    });

    if (config.relayCidrs.length > 0) {
      const suffix = '-relays';
      const balancer = this.balancer({
        id: 'RelayBalancer', suffix, internetFacing, cidrs: config.relayCidrs, logs: 'relays',
        securityGroup: this.guard('RelayEdge', 'Load balancer of relays', 'relays', config.relayCidrs),
        idleSeconds: BALANCER_IDLE_SECONDS.relays,
      }, { clientKeepAlive: RELAY_CONNECTION });
      const targets = this.grpcTargets('RelayTarget', first);
      this.routeRelays(listen(balancer, props.certificate), targets);
      this.relays = { suffix, balancer, targets };
    }

    const suffix = '-internal';
    const balancer = this.balancer({
      id: 'Internal', suffix, internetFacing: false, cidrs: config.adminCidrs, logs: 'internal',
      securityGroup: this.guard('AdminEdge', 'Internal load balancer', 'operators', config.adminCidrs),
      idleSeconds: BALANCER_IDLE_SECONDS.internal,
    });
    // A target group belongs to one load balancer.
    const targets = this.targets('InternalTarget', first, false);
    this.routeAll(listen(balancer, props.certificate), targets);
    this.internal = { suffix, balancer, targets };
    this.names();
  }

  /** Names in Route 53, and where clients connect. */
  private names(): void {
    const { config } = this.props;
    const { fronts, relays, internal, scope } = this;
    for (const front of fronts) this.alias('Alias', front, config.domain, config.clientCidrs);
    if (relays !== undefined) this.alias('RelayAlias', relays, config.relayDomain, config.relayCidrs);
    this.alias('AdminAlias', internal, config.adminDomain, []);

    const at = (front: Front, domain: string): string => (domain === '' ? front.balancer.loadBalancerDnsName : domain);
    new CfnOutput(scope, 'Endpoint', {
      description: 'Where clients connect with TLS; the name must be one of the certificate',
      value: at(fronts[0] as Front, config.domain),
    });
    new CfnOutput(scope, 'Addresses', {
      description: 'Names of all public load balancers. Without domain, a name of the certificate must lead to each in turn',
      value: fronts.map(({ balancer }) => balancer.loadBalancerDnsName).join(','),
    });
    if (relays !== undefined) {
      new CfnOutput(scope, 'RelayEndpoint', {
        description: 'Where relays connect with TLS, by gRPC, from a network of relayCidrs',
        value: at(relays, config.relayDomain),
      });
    }
    new CfnOutput(scope, 'AdminEndpoint', {
      description: 'Where operators connect with TLS, from a network of adminCidrs',
      value: at(internal, config.adminDomain),
    });
  }

  /**
   * A name for a load balancer. Several have one name with equal weights, so that each gets its part of those who ask, and one
   * without a healthy target gets nobody. Weighted from the first one on: a name with weights cannot be added to one without.
   */
  private alias(id: string, front: Front, domain: string, cidrs: readonly string[]): void {
    const { scope, props } = this;
    if (domain === '') return;
    const number = /^-(\d+)$/.exec(front.suffix)?.[1] ?? '';
    const zone = HostedZone.fromHostedZoneAttributes(scope, `${id}${number}Zone`, {
      hostedZoneId: props.config.hostedZoneId,
      zoneName: domain.split('.').slice(1).join('.'),
    });
    const record = {
      zone, recordName: `${domain}.`, weight: 1, setIdentifier: `${props.config.name}${front.suffix}`,
      target: RecordTarget.fromAlias(new LoadBalancerTarget(front.balancer, { evaluateTargetHealth: true })),
    };
    new ARecord(scope, `${id}${number}`, record);
    if (cidrs.some(isIpv6Range)) new AaaaRecord(scope, `${id}${number}Ipv6`, record);
  }

  /** What a load balancer lets in, and where it may go. */
  private guard(id: string, description: string, who: string, cidrs: readonly string[]): SecurityGroup {
    const { vpc, groups } = this.props;
    const securityGroup = new SecurityGroup(this.scope, id, { vpc, description, allowAllOutbound: false });
    for (const cidr of cidrs) {
      securityGroup.addIngressRule(isIpv6Range(cidr) ? Peer.ipv6(cidr) : Peer.ipv4(cidr), Port.tcp(443), who);
    }
    for (const service of ['ingest', 'tally'] as const) {
      const port = Port.tcp(PORTS[service] ?? 0);
      securityGroup.addEgressRule(groups[service], port, `${service}-svc`);
      groups[service].addIngressRule(securityGroup, port, description.toLowerCase());
    }
    return securityGroup;
  }

  private balancer(
    kind: Kind, more: { readonly minimumCapacityUnit?: number; readonly clientKeepAlive?: Duration } = {},
  ): ApplicationLoadBalancer {
    const { config, vpc } = this.props;
    // Who tries IPv6 first and is not let in waits for a time-out. So there are such addresses only if somebody may use them.
    const dual = config.ipv6 && kind.internetFacing && kind.cidrs.some(isIpv6Range);
    const balancer = new ApplicationLoadBalancer(this.scope, kind.id, {
      loadBalancerName: `${config.name}${kind.suffix}`,
      vpc,
      internetFacing: kind.internetFacing,
      ipAddressType: dual ? IpAddressType.DUAL_STACK : IpAddressType.IPV4,
      vpcSubnets: { subnetType: kind.internetFacing ? SubnetType.PUBLIC : SubnetType.PRIVATE_ISOLATED },
      securityGroup: kind.securityGroup,
      http2Enabled: true,
      idleTimeout: Duration.seconds(kind.idleSeconds),
      deletionProtection: config.deletionProtection,
      dropInvalidHeaderFields: true,
      desyncMitigationMode: DesyncMitigationMode.DEFENSIVE,
      ...more,
    });
    balancer.logAccessLogs(this.accessLogs, kind.logs);
    return balancer;
  }

  /** Access logs can be encrypted by keys of S3 only ("Access logs for your Application Load Balancer"). */
  private bucket(): Bucket {
    return new Bucket(this.scope, 'AccessLogs', {
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
  private targets(id: string, services: Behind, named: boolean): Targets {
    return {
      ...this.grpcTargets(id, services, named),
      ingestWeb: this.group(id, services, 'ingest', 'web', named),
      tallyWeb: this.group(id, services, 'tally', 'web', named),
    };
  }

  private grpcTargets(id: string, services: Behind, named = false): Grpc {
    return {
      ingestGrpc: this.group(id, services, 'ingest', 'grpc', named),
      tallyGrpc: this.group(id, services, 'tally', 'grpc', named),
    };
  }

  private group(
    id: string, services: Behind, service: 'ingest' | 'tally', kind: 'grpc' | 'web', named: boolean,
  ): ApplicationTargetGroup {
    return new ApplicationTargetGroup(this.scope, `${id}-${service}-${kind}`, {
      ...(named && { targetGroupName: `${this.props.config.name}-${service}-${kind}` }),
      vpc: this.props.vpc,
      port: PORTS[service],
      protocol: ApplicationProtocol.HTTPS,
      protocolVersion: kind === 'grpc' ? ApplicationProtocolVersion.GRPC : ApplicationProtocolVersion.HTTP1,
      targets: [
        services[service].fargate.loadBalancerTarget({
          containerName: `${service}-svc`,
          containerPort: PORTS[service],
        }),
      ],
      // A task that is slow gets fewer calls, and one that has just started gets its part at once.
      loadBalancingAlgorithmType: TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS,
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

  /** Calls with votes and those that read, by gRPC. Relays are programs: there is no page for them, and no JSON. */
  private routeRelays(listener: ApplicationListener, targets: Grpc): void {
    const rules = new Rules(listener);
    rules.add('Ingest', targets.ingestGrpc, Paths.of(...VOTE_RPCS), 'POST');
    rules.add('Read', targets.tallyGrpc, Paths.of(...READ_RPCS), 'POST');
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
