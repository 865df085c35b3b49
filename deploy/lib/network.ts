/**
 * The VPC: subnets, the ways out of them, and the VPC endpoints with what each lets through.
 *
 * Must never let a task reach a stream, a table, an image or a secret of others: an endpoint lets calls to those of these stacks
 * through and no others, whatever credentials somebody brings into the VPC. Which calls a service may make is decided by its role.
 */
import { Aws, Fn, RemovalPolicy, Stack } from 'aws-cdk-lib';
import {
  CfnSubnet, CfnVPCCidrBlock, FlowLogDestination, FlowLogTrafficType, GatewayVpcEndpointAwsService, InterfaceVpcEndpointAwsService,
  IpAddresses, Port, PublicSubnet, SecurityGroup, SubnetSelection, SubnetType, Vpc, VpcEndpoint,
} from 'aws-cdk-lib/aws-ec2';
import { AnyPrincipal, PolicyStatement } from 'aws-cdk-lib/aws-iam';
import { IKey } from 'aws-cdk-lib/aws-kms';
import { LogGroup } from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';
import { Config } from './config';
import { DataStack } from './data-stack';
import { ServiceName, TABLES } from './permissions';
import { RegistryStack } from './registry-stack';
import { ASKING, SECRETS } from './secrets';

/** The range that operators must know: networks that are connected to the VPC cannot have it. */
const VPC_RANGE = '10.83.0.0/16';
/** A load balancer with thousands of capacity units takes an address for each of its nodes, and there may be several. */
const EDGE_MASK = 22;
const TASKS_MASK = 20;
/** Bits that are left of an IPv6 address within a subnet, as AWS demands. */
const IPV6_HOST_BITS = '64';
/** What the CDK calls the attachment of a VPC to its internet gateway. */
const GATEWAY_ATTACHMENT = 'VPCGW';

/** Public subnets for load balancers, subnets without a way out, and those of tasks that read keys of issuers. */
export function network(scope: Construct, config: Config, logKey: IKey | undefined): Vpc {
  const vpc = new Vpc(scope, 'Vpc', {
    ipAddresses: IpAddresses.cidr(VPC_RANGE),
    maxAzs: 3,
    natGateways: config.natGateways,
    subnetConfiguration: [
      { name: 'edge', subnetType: SubnetType.PUBLIC, cidrMask: EDGE_MASK, mapPublicIpOnLaunch: false },
      { name: 'tasks', subnetType: SubnetType.PRIVATE_ISOLATED, cidrMask: TASKS_MASK },
      // The last one, so that the ranges of the others stay when it comes or goes.
      ...(config.natGateways > 0
        ? [{ name: 'outward', subnetType: SubnetType.PRIVATE_WITH_EGRESS, cidrMask: TASKS_MASK }]
        : []),
    ],
  });
  if (config.ipv6) addIpv6(scope, vpc);
  vpc.addFlowLog('Refused', {
    trafficType: FlowLogTrafficType.REJECT,
    destination: FlowLogDestination.toCloudWatchLogs(
      new LogGroup(scope, 'FlowLogs', {
        logGroupName: `/${config.name}/flow`,
        retention: config.logRetentionDays,
        removalPolicy: RemovalPolicy.DESTROY,
        ...(logKey && { encryptionKey: logKey }),
      }),
    ),
  });
  return vpc;
}

/**
 * IPv6 for the subnets of load balancers, and for no others: phones come by it, and nothing that a task calls needs it. So a task
 * has one kind of address and one way out, which security groups and endpoints are about.
 */
function addIpv6(scope: Construct, vpc: Vpc): void {
  const block = new CfnVPCCidrBlock(scope, 'Ipv6', { vpcId: vpc.vpcId, amazonProvidedIpv6CidrBlock: true });
  const ranges = Fn.cidr(Fn.select(0, vpc.vpcIpv6CidrBlocks), vpc.publicSubnets.length, IPV6_HOST_BITS);
  for (const [at, subnet] of vpc.publicSubnets.entries()) {
    const made = subnet.node.defaultChild as CfnSubnet;
    made.ipv6CidrBlock = Fn.select(at, ranges);
    made.addResourceDependency(block);
    (subnet as PublicSubnet).addIpv6DefaultInternetRoute(vpc.internetGatewayId ?? '', vpc.node.findChild(GATEWAY_ATTACHMENT));
  }
}

/** Those who ask callers for tokens need the keys of issuers. Nobody else gets a way out. */
export function subnetsOf(config: Config, service: ServiceName): SubnetSelection {
  const outward = config.natGateways > 0 && ASKING.includes(service);
  return { subnetType: outward ? SubnetType.PRIVATE_WITH_EGRESS : SubnetType.PRIVATE_ISOLATED };
}

/** The ways to AWS, for these groups of tasks. */
export function endpoints(
  scope: Construct, vpc: Vpc, tasks: readonly SecurityGroup[], props: { config: Config; data: DataStack; registry: RegistryStack },
): void {
  const { config, data, registry } = props;
  const stack = Stack.of(scope);
  const arn = (service: string, resource: string): string =>
    `arn:${Aws.PARTITION}:${service}:${stack.region}:${stack.account}:${resource}`;
  // Whatever the endpoint is asked for must come from this account.
  const ours = { StringEquals: { 'aws:PrincipalAccount': stack.account } };
  const allow = (endpoint: VpcEndpoint, actions: string[], resources: string[], conditions: object | undefined = ours): void => {
    endpoint.addToPolicy(new PolicyStatement({
      principals: [new AnyPrincipal()], actions, resources, ...(conditions && { conditions: { ...conditions } }),
    }));
  };

  const dynamodb = vpc.addGatewayEndpoint('DynamoDb', { service: GatewayVpcEndpointAwsService.DYNAMODB });
  allow(dynamodb, ['dynamodb:*'], TABLES.map((name) => data.tables[name].tableArn));
  const s3 = vpc.addGatewayEndpoint('S3', { service: GatewayVpcEndpointAwsService.S3 });
  // ECR keeps layers of images in a bucket of its own ("Amazon ECR interface VPC endpoints"), and signs the way to them itself. Keys
  // of issuers are read without credentials, from the one bucket that was named.
  const readable = [`prod-${stack.region}-starport-layer-bucket`, ...(config.keysBucket === '' ? [] : [config.keysBucket])];
  s3.addToPolicy(new PolicyStatement({
    principals: [new AnyPrincipal()],
    actions: ['s3:GetObject'],
    resources: readable.map((bucket) => `arn:${Aws.PARTITION}:s3:::${bucket}/*`),
  }));

  const securityGroup = new SecurityGroup(scope, 'Endpoints', { vpc, description: 'VPC endpoints', allowAllOutbound: false });
  for (const one of tasks) securityGroup.addIngressRule(one, Port.tcp(443), 'tasks');
  const endpoint = (id: string, service: InterfaceVpcEndpointAwsService): VpcEndpoint =>
    vpc.addInterfaceEndpoint(id, {
      service,
      subnets: { subnetType: SubnetType.PRIVATE_ISOLATED },
      securityGroups: [securityGroup],
      open: false,
    });

  const kinesis = endpoint('Kinesis', InterfaceVpcEndpointAwsService.KINESIS_STREAMS);
  allow(kinesis, ['kinesis:*'], [data.stream.streamArn, `${data.stream.streamArn}/consumer/*`]);
  const images = Object.values(registry.repositories).map((one) => one.repositoryArn);
  for (const [id, service] of [
    ['Ecr', InterfaceVpcEndpointAwsService.ECR], ['EcrDocker', InterfaceVpcEndpointAwsService.ECR_DOCKER],
  ] as const) {
    const ecr = endpoint(id, service);
    allow(ecr, ['ecr:BatchCheckLayerAvailability', 'ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer'], images);
    allow(ecr, ['ecr:GetAuthorizationToken'], ['*']);
  }
  const logs = endpoint('Logs', InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS);
  allow(logs, ['logs:CreateLogStream', 'logs:DescribeLogStreams', 'logs:PutLogEvents'], [arn('logs', `log-group:/${config.name}/*`)]);
  const xray = endpoint('XRay', InterfaceVpcEndpointAwsService.XRAY);
  allow(xray, ['xray:PutTelemetryRecords', 'xray:PutTraceSegments'], ['*']);
  // ECS reads the secrets of a task by the task's own network.
  const secrets = SECRETS.flatMap(({ key }) => config[key] ?? []);
  if (secrets.length > 0) {
    const manager = endpoint('SecretsManager', InterfaceVpcEndpointAwsService.SECRETS_MANAGER);
    allow(manager, ['secretsmanager:DescribeSecret', 'secretsmanager:GetSecretValue'], secrets);
  }
}
