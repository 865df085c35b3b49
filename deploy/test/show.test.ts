/** What a large show needs, and what protects it: load balancers, tasks that are pinned, alarms of the edge, keys, the fleet. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Annotations, Match, Template } from 'aws-cdk-lib/assertions';
import { BUDGET_NOTICES } from '../lib/budget';
import { LOAD_BALANCERS_MAX, RESERVED_LCUS } from '../lib/config';
import { TARGET_GROUPS_OF_A_SERVICE_MAX } from '../lib/edge';
import { LOAD_CONTAINER, SYSTEM_CONTROLS } from '../lib/load-stack';
import { TABLES } from '../lib/permissions';
import { share } from '../lib/service';
import { asArray, AUTH, Made, Resource, resources, ROOT, stacks } from './stacks';

const WEB_ACL = 'arn:aws:wafv2:us-east-1:000000000000:regional/webacl/votes/a1b2c3d4-0000-0000-0000-000000000000';
const HOST = { domain: 'vote.example.org', adminDomain: 'manage.example.org', relayDomain: 'relay.example.org', hostedZoneId: 'Z0123' };

const plain = new Made();
/** Everything that there is. */
const EVERYTHING = {
  ...HOST, loadBalancers: 3, reservedLcus: 15_000, pinTasks: 'true', ingestTasks: 100, persistTasks: 33, tallyTasks: 7,
  clientCidrs: '0.0.0.0/0,::/0', relayCidrs: '198.51.100.0/24, 2001:db8::/32', adminCidrs: '10.9.0.0/16',
  webAclArn: WEB_ACL, customerKeys: 'true', budgetUsd: 20_000, alarmEmail: 'ops@example.org', keysBucket: 'keys-of-issuers',
  loadTasks: 40, loadToken: AUTH.replace('auth', 'fleet'), authRevoked: AUTH.replace('auth', 'revoked'),
};
const large = new Made(EVERYTHING);

const of = (template: Template, type: string): Map<string, Resource> =>
  new Map(resources(template, type).map(([id, one]) => [id.replace(/[0-9A-F]{8}$/, ''), one]));
const balancers = (template: Template) => of(template, 'AWS::ElasticLoadBalancingV2::LoadBalancer');
const attribute = (one: Resource | undefined, key: string): string | undefined =>
  (one?.Properties.LoadBalancerAttributes as { Key: string; Value: string }[]).find(({ Key }) => Key === key)?.Value;
const alarmsOf = (template: Template): Map<string, Resource> => new Map(resources(template, 'AWS::CloudWatch::Alarm')
  .flatMap(([, one]) => (one.Properties.AlarmName === undefined ? [] : [[one.Properties.AlarmName as string, one] as const])));

test('there are as many public load balancers as were asked for, each with its reservation', () => {
  assert.deepEqual([...balancers(plain.service).keys()].sort(), ['Balancer', 'Internal']);
  const made = balancers(large.service);
  assert.deepEqual([...made.keys()].sort(), ['Balancer', 'Balancer2', 'Balancer3', 'Internal', 'RelayBalancer']);
  for (const [id, { Properties }] of made) {
    const isPublic = /^Balancer\d?$/.test(id);
    assert.deepEqual(Properties.MinimumLoadBalancerCapacity, isPublic ? { CapacityUnits: 15_000 } : undefined, id);
    assert.equal(Properties.Scheme, id === 'Internal' ? 'internal' : 'internet-facing', id);
  }
  for (const [id, { Properties }] of balancers(plain.service)) assert.equal(Properties.MinimumLoadBalancerCapacity, undefined, id);
  assert.equal(new Set([...made.values()].map(({ Properties }) => Properties.Name)).size, made.size);
  // As many as there may be, with everything else: CloudFormation takes 500 resources a stack, and alarms take ten metrics.
  const most = new Made({
    ...EVERYTHING, loadBalancers: LOAD_BALANCERS_MAX, tallyTasks: LOAD_BALANCERS_MAX, natGateways: 3,
    pseudonymKeys: AUTH.replace('auth', 'keys'),
  });
  assert.equal(balancers(most.service).size, LOAD_BALANCERS_MAX + 2);
  const count = Object.keys(most.service.toJSON().Resources as object).length;
  assert.ok(count <= 500, `${count} resources`);
  for (const [id, { Properties }] of resources(most.service, 'AWS::CloudWatch::Alarm')) {
    assert.ok(((Properties.Metrics ?? []) as any[]).filter((one) => one.MetricStat).length <= 10, id);
  }
});

test('the tasks are divided among the load balancers, and an ECS service has no more target groups than AWS allows', () => {
  for (const [whole, parts] of [[100, 3], [7, 3], [3, 3], [10, 1], [11, 10]] as const) {
    const shares = Array.from({ length: parts }, (_, index) => share(whole, parts, index));
    assert.equal(shares.reduce((sum, one) => sum + one, 0), whole);
    assert.ok(Math.max(...shares) - Math.min(...shares) <= 1 && Math.min(...shares) >= 1, `${shares}`);
  }
  const services = of(large.service, 'AWS::ECS::Service');
  const counts = (service: string) => [...services].filter(([id]) => id.startsWith(service)).map(([, one]) => one.Properties.DesiredCount);
  assert.deepEqual(counts('ingest'), [34, 33, 33]);
  assert.deepEqual(counts('tally'), [3, 2, 2]);
  assert.deepEqual(counts('persist'), [33]);
  const groups = of(large.service, 'AWS::ElasticLoadBalancingV2::TargetGroup');
  for (const [id, { Properties }] of services) {
    const behind = (Properties.LoadBalancers ?? []) as Record<string, any>[];
    assert.ok(behind.length <= TARGET_GROUPS_OF_A_SERVICE_MAX, `${id}: ${behind.length}`);
    // The first also stands behind the internal load balancer and that of relays.
    const [, service, number = ''] = /^(\w+?)Service(\d*)/.exec(id) ?? [];
    const expected = service === 'persist' ? []
      : [...(number === '' ? ['Target', 'InternalTarget'] : [`Target${number}`])
        .flatMap((one) => [`${one}${service}grpc`, `${one}${service}web`]),
        ...(number === '' ? [`RelayTarget${service}grpc`] : [])];
    const ids = behind.map((one) => String(one.TargetGroupArn.Ref).replace(/[0-9A-F]{8}$/, ''));
    assert.deepEqual(ids.sort(), expected.sort(), id);
    for (const one of ids) assert.ok(groups.has(one), one);
  }
  // There are results behind each load balancer.
  const few = of(new Made({ loadBalancers: 3, pinTasks: true, ingestTasks: 3, tallyTasks: 2 }).service, 'AWS::ECS::Service');
  assert.deepEqual([...few].filter(([id]) => id.startsWith('tally')).map(([, one]) => one.Properties.DesiredCount), [1, 1, 1]);
  // One task definition, so that all tasks of a service are the same, and know how many ingest tasks there are in all.
  large.service.resourceCountIs('AWS::ECS::TaskDefinition', 3);
  const ingest = of(large.service, 'AWS::ECS::TaskDefinition').get('ingestTask')?.Properties.ContainerDefinitions[0];
  assert.ok((ingest.Environment as { Name: string; Value: string }[])
    .some(({ Name, Value }) => Name === 'VOTESTREAM_INGEST_TASKS' && Value === '100'));
});

test('a call goes to the task that has the fewest under way', () => {
  for (const [id, { Properties }] of of(large.service, 'AWS::ElasticLoadBalancingV2::TargetGroup')) {
    const attributes = Properties.TargetGroupAttributes as { Key: string; Value: string }[];
    const algorithm = attributes.find(({ Key }) => Key === 'load_balancing.algorithm.type')?.Value;
    assert.equal(algorithm, 'least_outstanding_requests', id);
    assert.equal(Properties.Protocol, 'HTTPS', `${id}: encrypted up to the task`);
  }
});

test('a name leads to each public load balancer in turn, and the outputs have all addresses', () => {
  const records = of(large.service, 'AWS::Route53::RecordSet');
  const named = (name: string, type: string) => [...records.values()].map(({ Properties }) => Properties)
    .filter(({ Name, Type }) => Name === `${name}.` && Type === type);
  for (const [name, count] of [[HOST.domain, 3], [HOST.relayDomain, 1]] as const) {
    for (const type of ['A', 'AAAA']) {
      const found = named(name, type);
      assert.equal(found.length, count, `${name} ${type}`);
      assert.equal(new Set(found.map(({ SetIdentifier }) => SetIdentifier)).size, count);
      for (const { Weight, AliasTarget } of found) assert.deepEqual([Weight, AliasTarget.EvaluateTargetHealth], [1, true]);
    }
  }
  assert.deepEqual([named(HOST.adminDomain, 'A').length, named(HOST.adminDomain, 'AAAA').length], [1, 0]);
  const outputs = large.service.toJSON().Outputs as Record<string, { Value: any }>;
  const addresses = JSON.stringify(outputs.Addresses?.Value);
  for (const id of resources(large.service, 'AWS::ElasticLoadBalancingV2::LoadBalancer').map(([id]) => id)) {
    assert.equal(addresses.includes(`"${id}"`), /^Balancer/.test(id), id);
  }
  assert.deepEqual([outputs.Endpoint?.Value, outputs.RelayEndpoint?.Value, outputs.AdminEndpoint?.Value],
    [HOST.domain, HOST.relayDomain, HOST.adminDomain]);
  assert.equal((plain.service.toJSON().Outputs as Record<string, unknown>).RelayEndpoint, undefined);
});

test('relays have a load balancer of their own only if somebody may reach it, and their connections live for a show', () => {
  const relays = balancers(large.service).get('RelayBalancer');
  assert.equal(attribute(relays, 'client_keep_alive.seconds'), '86400');
  const [, guard] = resources(large.service, 'AWS::EC2::SecurityGroup')
    .find(([, one]) => one.Properties.GroupDescription === 'Load balancer of relays') ?? assert.fail();
  const ingress = (guard.Properties.SecurityGroupIngress as any[]).map((one) => [one.CidrIp ?? one.CidrIpv6, one.FromPort, one.ToPort]);
  assert.deepEqual(ingress, [['198.51.100.0/24', 443, 443], ['2001:db8::/32', 443, 443]]);
});

test('tasks that are pinned neither scale in nor out', () => {
  const scalable = of(large.service, 'AWS::ApplicationAutoScaling::ScalableTarget');
  assert.equal(scalable.size, 7);
  for (const [id, { Properties }] of scalable) assert.equal(Properties.MinCapacity, Properties.MaxCapacity, id);
  large.service.resourceCountIs('AWS::ApplicationAutoScaling::ScalingPolicy', 0);
  assert.throws(() => stacks({ loadBalancers: 2 }), /loadBalancers: several need pinTasks/);
  assert.throws(() => stacks({ pinTasks: 'true', persistTasks: 3, persistTasksMax: 4 }), /persistTasksMax: pinTasks leaves it at/);
  stacks({ pinTasks: 'true', persistTasks: 3, persistTasksMax: 3 });
});

test('IPv6 leads to load balancers, for those who may use it, and to no task', () => {
  const subnets = (template: Template, edge: boolean) => [...of(template, 'AWS::EC2::Subnet')]
    .filter(([id]) => id.includes('edge') === edge).map(([, one]) => one.Properties.Ipv6CidrBlock !== undefined);
  for (const template of [plain.service, large.service]) {
    assert.deepEqual(subnets(template, true), [true, true, true]);
    assert.ok(subnets(template, false).every((one) => !one));
    template.resourceCountIs('AWS::EC2::VPCCidrBlock', 1);
    assert.equal(resources(template, 'AWS::EC2::Route').filter(([, one]) => one.Properties.DestinationIpv6CidrBlock === '::/0').length, 3);
    template.resourceCountIs('AWS::EC2::EgressOnlyInternetGateway', 0);
  }
  const types = (template: Template) => Object.fromEntries([...balancers(template)].map(([id, one]) => [id, one.Properties.IpAddressType]));
  assert.deepEqual(types(large.service), {
    Balancer: 'dualstack', Balancer2: 'dualstack', Balancer3: 'dualstack', RelayBalancer: 'dualstack', Internal: 'ipv4',
  });
  // Nobody who tries IPv6 first waits in front of a closed door.
  assert.deepEqual(types(new Made({ clientCidrs: '0.0.0.0/0' }).service), { Balancer: 'ipv4', Internal: 'ipv4' });
  const without = new Made({ ipv6: 'false', clientCidrs: '0.0.0.0/0' }).service;
  without.resourceCountIs('AWS::EC2::VPCCidrBlock', 0);
  new Made({ internetFacing: 'false' }).service.resourceCountIs('AWS::EC2::VPCCidrBlock', 0);
  assert.throws(() => stacks({ ipv6: 'false', clientCidrs: '::/0' }), /ranges of IPv6 need ipv6/);
  assert.throws(() => stacks({ ipv6: 'true', internetFacing: 'false' }), /ipv6: only the subnets/);
});

test('WAF looks at what comes through the public load balancers, if a web ACL was named', () => {
  plain.service.resourceCountIs('AWS::WAFv2::WebACLAssociation', 0);
  const associated = [...of(large.service, 'AWS::WAFv2::WebACLAssociation').values()].map(({ Properties }) => {
    assert.equal(Properties.WebACLArn, WEB_ACL);
    return String(Properties.ResourceArn.Ref).replace(/[0-9A-F]{8}$/, '');
  });
  assert.deepEqual(associated.sort(), ['Balancer', 'Balancer2', 'Balancer3']);
});

test('load balancers and tables cannot be deleted by mistake, and the stream stays', () => {
  for (const template of [plain.service, large.service]) {
    for (const [id, one] of balancers(template)) assert.equal(attribute(one, 'deletion_protection.enabled'), 'true', id);
  }
  for (const [id, one] of balancers(new Made({ deletionProtection: 'false' }).service)) {
    assert.equal(attribute(one, 'deletion_protection.enabled'), 'false', id);
  }
  const tables = [...of(new Made({ deletionProtection: 'false' }).data, 'AWS::DynamoDB::Table').values()];
  assert.equal(tables.length, 4);
  for (const { Properties, DeletionPolicy } of tables) {
    assert.deepEqual([Properties.DeletionProtectionEnabled, DeletionPolicy], [true, 'Retain'], 'tables always');
  }
});

test('VPC endpoints let calls to what belongs to these stacks through, and no others', () => {
  const endpoints = of(large.service, 'AWS::EC2::VPCEndpoint');
  const statements = (id: string): Record<string, any>[] =>
    (endpoints.get(id)?.Properties.PolicyDocument ?? assert.fail(id)).Statement as Record<string, any>[];
  assert.deepEqual([...endpoints.keys()].sort(),
    ['Vpc/DynamoDb', 'Vpc/Ecr', 'Vpc/EcrDocker', 'Vpc/Kinesis', 'Vpc/Logs', 'Vpc/S3', 'Vpc/SecretsManager', 'Vpc/XRay']
      .map((one) => one.replace('/', '')).sort());
  for (const [id] of endpoints) {
    for (const statement of statements(id)) {
      assert.equal(statement.Effect, 'Allow', id);
      if (id !== 'VpcS3') assert.deepEqual(statement.Condition, { StringEquals: { 'aws:PrincipalAccount': '000000000000' } }, id);
      // What has no resource to name.
      if (asArray(statement.Resource).includes('*')) {
        for (const action of asArray<string>(statement.Action)) assert.match(action, /^(ecr:GetAuthorizationToken|xray:Put\w+)$/, id);
      }
    }
  }
  const named = (id: string) => JSON.stringify(statements(id).flatMap((one) => asArray(one.Resource)));
  for (const table of TABLES) assert.ok(named('VpcDynamoDb').includes(`Table${table}`), table);
  assert.equal(statements('VpcDynamoDb').flatMap((one) => asArray(one.Resource)).length, TABLES.length);
  assert.match(named('VpcKinesis'), /^\[.*Stream[^,]*,.*Stream.*\/consumer\/\*.*\]$/);
  assert.match(named('VpcS3'), /:s3:::keys-of-issuers\/\*.*:s3:::prod-us-east-1-starport-layer-bucket\/\*/);
  assert.deepEqual(statements('VpcSecretsManager').flatMap((one) => asArray(one.Resource)), [AUTH, AUTH.replace('auth', 'revoked')]);
  assert.ok(!JSON.stringify(of(plain.service, 'AWS::EC2::VPCEndpoint').get('VpcS3')).includes('keys-of-issuers'));
});

test('keys of the customer turn over, stay, and encrypt stream, tables, logs and the topic', () => {
  plain.data.resourceCountIs('AWS::KMS::Key', 0);
  plain.service.resourceCountIs('AWS::KMS::Key', 0);
  for (const template of [large.data, large.service]) {
    template.hasResource('AWS::KMS::Key', {
      DeletionPolicy: 'Retain', UpdateReplacePolicy: 'Retain', Properties: { EnableKeyRotation: true, RotationPeriodInDays: 365 },
    });
  }
  const [[key = '']] = resources(large.data, 'AWS::KMS::Key') as [[string, Resource]];
  const arn = { 'Fn::GetAtt': [key, 'Arn'] };
  large.data.hasResourceProperties('AWS::Kinesis::Stream', { StreamEncryption: { EncryptionType: 'KMS', KeyId: arn } });
  for (const [id, { Properties }] of resources(large.data, 'AWS::DynamoDB::Table')) {
    assert.deepEqual(Properties.SSESpecification, { SSEEnabled: true, SSEType: 'KMS', KMSMasterKeyId: arn }, id);
  }
  for (const [id, { Properties }] of resources(large.service, 'AWS::Logs::LogGroup')) assert.ok(Properties.KmsKeyId, id);
  const [[, { Properties: policy }]] = resources(large.service, 'AWS::KMS::Key') as [[string, Resource]];
  const principals = (policy.KeyPolicy.Statement as any[]).map((one) => one.Principal.Service).filter(Boolean);
  assert.deepEqual(principals.sort(), ['cloudwatch.amazonaws.com', 'logs.us-east-1.amazonaws.com']);
  large.service.hasResourceProperties('AWS::SNS::Topic', { KmsMasterKeyId: Match.anyValue() });
  // Those who use the stream and the tables may use their key, by these two services only.
  for (const service of ['ingest', 'persist', 'tally']) {
    const [, role] = resources(large.service, 'AWS::IAM::Policy').find(([id]) => id.startsWith(`${service}RoleDefaultPolicy`)) ?? assert.fail();
    const uses = (role.Properties.PolicyDocument.Statement as any[])
      .filter((one) => asArray<string>(one.Action).some((action) => action.startsWith('kms:')));
    assert.deepEqual(uses.map((one) => one.Condition.StringEquals['kms:ViaService']).sort(),
      ['dynamodb.us-east-1.amazonaws.com', 'kinesis.us-east-1.amazonaws.com'], service);
  }
});

test('a budget tells by mail, and needs somebody to tell', () => {
  plain.data.resourceCountIs('AWS::Budgets::Budget', 0);
  large.data.hasResourceProperties('AWS::Budgets::Budget', {
    Budget: { BudgetType: 'COST', TimeUnit: 'MONTHLY', BudgetLimit: { Amount: 20_000, Unit: 'USD' } },
    NotificationsWithSubscribers: BUDGET_NOTICES.map(([NotificationType, Threshold]) => ({
      Notification: { NotificationType, Threshold, ThresholdType: 'PERCENTAGE', ComparisonOperator: 'GREATER_THAN' },
      Subscribers: [{ SubscriptionType: 'EMAIL', Address: 'ops@example.org' }],
    })),
  });
  assert.throws(() => stacks({ budgetUsd: 5 }), /budgetUsd: needs alarmEmail/);
});

test('alarms look at every load balancer', () => {
  const alarms = alarmsOf(large.service);
  const metric = (name: string) => {
    const { Properties } = alarms.get(`votestream-${name}`) ?? assert.fail(name);
    return Properties.MetricName ?? (Properties.Metrics as any[]).flatMap((one) => one.MetricStat?.Metric.MetricName ?? []).join();
  };
  const expression = (name: string) =>
    (alarms.get(`votestream-${name}`)?.Properties.Metrics as any[]).find((one) => one.Expression)?.Expression as string;
  const thrice = (name: string) => [name, name, name].join();
  for (const [name, of, by] of [
    ['edge-errors', 'HTTPCode_ELB_5XX_Count', 'SUM'], ['edge-rejected', 'RejectedConnectionCount', 'SUM'],
    ['edge-slow', 'TargetResponseTime', 'MAX'], ['edge-reserve', 'PeakLCUs', 'MAX'], ['ingest-down', 'HealthyHostCount', 'MIN'],
    ['tally-unhealthy', 'UnHealthyHostCount', 'MAX'], ['ingest-saturated', 'CPUUtilization', 'MAX'],
    ['tally-tasks-missing', 'RunningTaskCount', 'SUM'],
  ] as const) {
    assert.deepEqual([metric(name), expression(name)], [thrice(of), `${by}([FILL(m1, 0), FILL(m2, 0), FILL(m3, 0)])`]);
  }
  for (const suffix of ['', '-2', '-3', '-relays']) {
    assert.equal(metric(`edge-tls-errors${suffix}`), 'ClientTLSNegotiationErrorCount,NewConnectionCount');
  }
  assert.equal(metric('edge-errors-relays'), 'HTTPCode_ELB_5XX_Count');
  assert.equal(metric('edge-rejected-relays'), 'RejectedConnectionCount');
  assert.ok(!alarms.has('votestream-edge-slow-relays'), 'the first answer of a stream may come late');
  assert.equal(alarms.get('votestream-edge-reserve')?.Properties.Threshold, 12_000);
  assert.equal(alarms.get('votestream-tally-tasks-missing')?.Properties.Threshold, 7);
  assert.equal(alarmsOf(plain.service).get('votestream-edge-slow')?.Properties.ExtendedStatistic, 'p99');
  assert.ok(!alarmsOf(plain.service).has('votestream-edge-reserve'));
});

test('alarms on refused votes tell those that are our fault from those that are not', () => {
  const expression = (name: string) => {
    const { Properties } = alarmsOf(plain.service).get(`votestream-${name}`) ?? assert.fail(name);
    const metrics = Properties.Metrics as Record<string, any>[];
    const reasons = metrics.flatMap((one) => one.MetricStat?.Metric.Dimensions ?? [])
      .filter((one: any) => one.Name === 'reason').map((one: any) => one.Value as string);
    return { reasons, text: metrics.find((one) => one.Expression)?.Expression as string };
  };
  const ours = expression('votes-turned-away');
  assert.deepEqual(ours.reasons, ['unavailable', 'overloaded', 'key_missing']);
  assert.equal(ours.text, 'FILL(r_unavailable, 0) + FILL(r_overloaded, 0) + FILL(r_key_missing, 0)');
  const theirs = expression('votes-refused');
  assert.ok(!theirs.reasons.includes('poll_closed'), 'people go on after the end');
  assert.match(theirs.text, /^100 \* \((.+)\) \/ \(\1 \+ FILL\(accepted, 0\) \+ 1000\)$/);
});

test('a fleet for rehearsals is made only if there is to be one, outside of the network that it tests', () => {
  assert.equal(plain.load, undefined);
  const load = large.load ?? assert.fail();
  load.resourceCountIs('AWS::ECS::Service', 0);
  load.resourceCountIs('AWS::ECS::TaskDefinition', 1);
  const [task] = [...of(load, 'AWS::ECS::TaskDefinition').values()] as [Resource];
  assert.equal(task.Properties.TaskRoleArn !== undefined, true);
  assert.equal(resources(load, 'AWS::IAM::Policy').filter(([id]) => id.includes('TaskRole')).length, 0, 'its role may do nothing');
  const [container] = task.Properties.ContainerDefinitions;
  assert.equal(container.Name, LOAD_CONTAINER);
  assert.deepEqual(container.SystemControls, SYSTEM_CONTROLS.map(({ namespace: Namespace, value: Value }) => ({ Namespace, Value })));
  assert.deepEqual([container.ReadonlyRootFilesystem, container.User], [true, '65532:65532']);
  assert.deepEqual(container.Ulimits.map((one: any) => one.HardLimit), [65_535]);
  assert.deepEqual(container.Environment, [{ Name: 'VOTESTREAM_SERVER', Value: `https://${HOST.domain}` }]);
  assert.deepEqual(container.Secrets.map((one: any) => one.Name), ['VOTESTREAM_TOKEN']);
  // What the command reads.
  const cli = ['connect.rs', 'args.rs'].map((file) => readFileSync(join(ROOT, 'cli/src', file), 'utf8')).join();
  for (const name of ['VOTESTREAM_SERVER', 'VOTESTREAM_TOKEN']) assert.ok(cli.includes(`"${name}"`), name);
  const [[, { Properties: group }]] = resources(load, 'AWS::EC2::SecurityGroup') as [[string, Resource]];
  assert.equal(group.SecurityGroupIngress, undefined);
  assert.deepEqual((group.SecurityGroupEgress as any[]).map((one) => [one.CidrIp, one.FromPort]), [['0.0.0.0/0', 443]]);
  load.resourceCountIs('AWS::EC2::VPCPeeringConnection', 0);
  const outputs = load.toJSON().Outputs as Record<string, { Value: any }>;
  assert.equal(outputs.LoadTasks?.Value, '40');
  assert.match(JSON.stringify(outputs.LoadNetwork?.Value), /awsvpcConfiguration=\{subnets=\[.*assignPublicIp=ENABLED\}/);
  large.registry.hasResourceProperties('AWS::ECR::Repository', { RepositoryName: 'votestream/load' });
});

test('cdk-nag finds nothing in any of it that is not explained', () => {
  const { data, registry, service, load } = large.stacks;
  for (const stack of [data, registry, service, load ?? assert.fail()]) {
    for (const find of ['findError', 'findWarning'] as const) {
      const found = Annotations.fromStack(stack)[find]('*', Match.anyValue());
      assert.deepEqual(found.map((one) => `${one.id}: ${JSON.stringify(one.entry.data)}`), [], `${stack.stackName} ${find}`);
    }
  }
});

test('every mistake in these settings is found, and all at once', () => {
  const wrong = {
    loadBalancers: 11, reservedLcus: 15_001, pinTasks: 'yes', ipv6: 'maybe', relayCidrs: '2001:db8::/129', webAclArn: 'votes',
    keysBucket: 'Keys', budgetUsd: -1, customerKeys: 1, deletionProtection: 'on', loadTasks: 1.5, loadToken: 'token', relayDomain: 'relay',
  };
  assert.throws(() => stacks(wrong), (error: Error) => {
    const mistakes = error.message.split('\n').slice(1).map((line) => line.trim().split(':')[0] ?? '');
    for (const key of Object.keys(wrong)) assert.ok(mistakes.includes(key), `${key}: ${error.message}`);
    return true;
  });
  for (const [context, mistake] of [
    [{ reservedLcus: RESERVED_LCUS.min - 1 }, /reservedLcus: 99: expected 0, or at least 100/],
    [{ loadBalancers: 3, pinTasks: true }, /ingestTasks: 2 is less than one for each of 3 loadBalancers/],
    [{ relayDomain: HOST.relayDomain }, /relayDomain: needs hostedZoneId/],
    [{ ...HOST, relayDomain: HOST.domain, relayCidrs: '198.51.100.0/24' }, /relayDomain: domain has the same name/],
    [HOST, /relayDomain: needs relayCidrs/],
    [{ relayCidrs: '::/0' }, /relayCidrs: name the networks of relays, not everybody/],
    [{ adminCidrs: '2001:db8::/32' }, /adminCidrs: .*expected an IPv4 range/],
    [{ loadToken: AUTH }, /loadToken: needs loadTasks/],
  ] as const) {
    assert.throws(() => stacks(context), mistake);
  }
});
