/**
 * Network, load balancers, cluster and the three services. Everything here can be deleted and made again without losing a vote.
 *
 * Who reaches the services is in edge.ts and network.ts, and who may do what is decided by the services. Tasks reach AWS by VPC
 * endpoints. Only ingest and tally have a way to the internet, for the keys of issuers, and none with `natGateways` 0.
 */
import { Annotations, CfnParameter, Duration, Stack, StackProps } from 'aws-cdk-lib';
import { Certificate } from 'aws-cdk-lib/aws-certificatemanager';
import { Peer, Port, SecurityGroup } from 'aws-cdk-lib/aws-ec2';
import { Cluster, ContainerInsights } from 'aws-cdk-lib/aws-ecs';
import { Construct } from 'constructs';
import { Config, isIpv6Range } from './config';
import { DataStack } from './data-stack';
import { Edge, Front } from './edge';
import { operationsKey } from './keys';
import { groupAge } from './metrics';
import { Monitoring } from './monitoring';
import { endpoints, network, subnetsOf } from './network';
import { ServiceName } from './permissions';
import { RegistryStack } from './registry-stack';
import { Part, VoteService } from './service';

/** CPU at which ingest gets more tasks. It is low, because a spike doubles within the minutes that a task takes to start. */
const INGEST_CPU_PERCENT = 40;
/** Requests and streams a minute and task at which ingest gets more tasks. */
const INGEST_REQUESTS_PER_TARGET = 60_000;

type Services = Readonly<Record<ServiceName, VoteService>>;

export interface ServiceStackProps extends StackProps {
  readonly config: Config;
  readonly data: DataStack;
  readonly registry: RegistryStack;
}

export class ServiceStack extends Stack {
  constructor(scope: Construct, id: string, private readonly props: ServiceStackProps) {
    super(scope, id, props);
    const { config, data, registry } = props;

    const certificateArn = new CfnParameter(this, 'CertificateArn', {
      description: 'Certificate of all load balancers in this region (ACM); it has the names of all',
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

    const logKey = config.customerKeys ? operationsKey(this, config.name) : undefined;
    const vpc = network(this, config, logKey);
    const cluster = new Cluster(this, 'Cluster', {
      clusterName: config.name,
      vpc,
      containerInsightsV2: ContainerInsights.ENABLED,
    });

    const group = (service: ServiceName): SecurityGroup => {
      const made = new SecurityGroup(this, `Tasks-${service}`, {
        vpc,
        description: `Tasks of ${service}-svc`,
        allowAllOutbound: false,
      });
      // Where there is a route: to the VPC endpoints, and for ingest and tally to the keys of issuers.
      made.addEgressRule(Peer.anyIpv4(), Port.tcp(443), 'AWS by VPC endpoints, keys of issuers');
      return made;
    };
    const groups = { ingest: group('ingest'), persist: group('persist'), tally: group('tally') };
    endpoints(this, vpc, Object.values(groups), { config, data, registry });

    const service = (name: ServiceName): VoteService =>
      new VoteService(this, name, {
        service: name,
        config,
        data,
        cluster,
        vpc,
        subnets: subnetsOf(config, name),
        securityGroup: groups[name],
        repository: registry.repositories[name],
        imageTag: imageTag.valueAsString,
        collectorRepository: registry.repositories.collector,
        collectorTag: collectorTag.valueAsString,
        parts: name === 'persist' ? 1 : config.loadBalancers,
        logKey,
      });
    const services: Services = { ingest: service('ingest'), persist: service('persist'), tally: service('tally') };

    const edge = new Edge(this, {
      config,
      vpc,
      groups,
      certificate: Certificate.fromCertificateArn(this, 'Certificate', certificateArn.valueAsString),
      behind: services.ingest.parts.map((ingest, index) => ({ ingest, tally: services.tally.parts[index] as Part })),
    });
    this.remarks();
    // Pinned for the show: whatever happens then is over before a task has started, and fewer tasks must not be the answer to a
    // lull. The least and the most number are the same, and there is nothing that would change it. Several load balancers are
    // for such a show only.
    if (!config.pinTasks) this.scale(services, edge);

    new Monitoring(this, 'Monitoring', { config, data, services, edge, logKey });
  }

  private scale(services: Services, { fronts: [front] }: Edge): void {
    const { config } = this.props;
    const cooldown = { scaleOutCooldown: Duration.seconds(30), scaleInCooldown: Duration.minutes(10) };
    const [{ scaling }] = services.ingest.parts as [Part];
    scaling.scaleOnCpuUtilization('Cpu', { targetUtilizationPercent: INGEST_CPU_PERCENT, ...cooldown });
    scaling.scaleOnRequestCount('Requests', {
      targetGroup: (front as Front).targets.ingestGrpc, requestsPerTarget: INGEST_REQUESTS_PER_TARGET, ...cooldown,
    });
    services.persist.scaleByAge(groupAge(config, 'persist'));
    services.tally.scaleByAge(groupAge(config, 'tally'));
  }

  /** What whoever deploys should know. */
  private remarks(): void {
    const { config } = this.props;
    const notes = Annotations.of(this);
    if (config.clientCidrs.length === 0) notes.addInfo('clientCidrs is empty: the public load balancers let nobody in');
    if (config.adminCidrs.length === 0) notes.addInfo('adminCidrs is empty: nobody can create polls');
    if (config.relayCidrs.length === 0) {
      notes.addInfo('relayCidrs is empty: there is no load balancer for relays, and the public ones end a stream that is silent for'
        + ' a minute');
    }
    if (config.ipv6 && config.clientCidrs.length > 0 && !config.clientCidrs.some(isIpv6Range)) {
      notes.addInfo('clientCidrs has no range of IPv6, such as ::/0: phones without IPv4 need their network to translate');
    }
    if (config.webAclArn === undefined) {
      notes.addInfo('webAclArn is not given: no WAF looks at requests (deploy/README.md, "Why there is no WAF by default")');
    }
    if (config.pseudonymKeys === undefined) notes.addInfo('pseudonymKeys is not given: votes are stored under the ids of users');
    if (config.auth === undefined) {
      notes.addInfo('auth is none: whoever reaches a load balancer votes as anybody, and by the internal one closes polls');
    } else if (config.natGateways === 0) {
      notes.addInfo('natGateways is 0: tasks cannot read the keys of issuers by URL; keys in the auth file work');
    }
  }
}
