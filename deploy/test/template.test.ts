/** What the templates must say. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Annotations, Match, Template } from 'aws-cdk-lib/assertions';
import { WILDCARD_ACTIONS } from '../lib/nag';
import { KEYS, VOTE_EXPIRY } from '../lib/data-stack';
import { PERMISSIONS, SERVICES, ServiceName, TABLES } from '../lib/permissions';
import { HEALTH_COMMAND } from '../lib/service';
import { CONDITION_VALUES_MAX, RULE_VALUES_MAX } from '../lib/paths';
import { ASKING } from '../lib/secrets';
import { asArray, AUTH, Made, resources, stacks } from './stacks';

const made = new Made();
const open = new Made({
  clientCidrs: '0.0.0.0/0', adminCidrs: '10.9.0.0/16, 198.51.100.0/28', domain: 'vote.example.org', hostedZoneId: 'Z0123',
  adminDomain: 'manage.example.org', auth: 'none',
  consumer: 'polling', streamMode: 'on-demand', writeUnitsPerSecond: '40000', persistTasksMax: '8',
  ingestTasks: '30', ingestTasksMax: '60', warmWriteUnits: '50000', corsAllowOrigins: 'https://vote.example',
});

/** All statements of the policies of one service's task role. */
function statements(service: Template, name: ServiceName): { actions: string[]; resources: string[] }[] {
  const found = resources(service, 'AWS::IAM::Policy').filter(([id]) => id.startsWith(`${name}RoleDefaultPolicy`));
  assert.equal(found.length, 1, name);
  return found.flatMap(([, policy]) =>
    (policy.Properties.PolicyDocument.Statement as Record<string, any>[]).map((statement) => {
      assert.equal(statement.Effect, 'Allow');
      return {
        actions: asArray<string>(statement.Action),
        resources: asArray<unknown>(statement.Resource).map((one) => (typeof one === 'string' ? one : JSON.stringify(one))),
      };
    }));
}

test('tables have their keys, on demand, backed up, protected', () => {
  made.data.resourceCountIs('AWS::DynamoDB::Table', 4);
  for (const name of TABLES) {
    const [partition, sort] = KEYS[name];
    const schema = [{ AttributeName: partition, KeyType: 'HASH' }];
    if (sort !== undefined) schema.push({ AttributeName: sort, KeyType: 'RANGE' });
    made.data.hasResource('AWS::DynamoDB::Table', {
      DeletionPolicy: 'Retain',
      UpdateReplacePolicy: 'Retain',
      Properties: {
        TableName: `votestream-${name}`,
        KeySchema: schema,
        AttributeDefinitions: schema.map(({ AttributeName }) => ({ AttributeName, AttributeType: 'S' })),
        BillingMode: 'PAY_PER_REQUEST',
        DeletionProtectionEnabled: true,
        PointInTimeRecoverySpecification: { PointInTimeRecoveryEnabled: true },
        // Votes may expire; results, definitions and progress must not.
        TimeToLiveSpecification: name === 'votes' ? { AttributeName: VOTE_EXPIRY, Enabled: true } : Match.absent(),
      },
    });
  }
  open.data.hasResourceProperties('AWS::DynamoDB::Table', {
    TableName: 'votestream-votes',
    WarmThroughput: { WriteUnitsPerSecond: 50_000 },
  });
  assert.equal(made.stacks.data.terminationProtection, true);
});

test('the stream is encrypted, and has a registered consumer for each group', () => {
  made.data.hasResource('AWS::Kinesis::Stream', {
    DeletionPolicy: 'Retain',
    Properties: {
      Name: 'votestream', ShardCount: 4, StreamModeDetails: { StreamMode: 'PROVISIONED' },
      StreamEncryption: { EncryptionType: 'KMS', KeyId: 'alias/aws/kinesis' },
    },
  });
  for (const group of ['persist', 'tally']) {
    made.data.hasResourceProperties('AWS::Kinesis::StreamConsumer', { ConsumerName: `votestream-${group}` });
  }
  open.data.resourceCountIs('AWS::Kinesis::StreamConsumer', 0);
  open.data.hasResourceProperties('AWS::Kinesis::Stream', {
    ShardCount: Match.absent(), StreamModeDetails: { StreamMode: 'ON_DEMAND' },
  });
});

test('a task role has the calls of its service, on its stream and tables, and nothing else', () => {
  for (const service of SERVICES) {
    const granted = statements(made.service, service);
    const of = (prefix: string) => new Set(granted.flatMap((one) => one.actions).filter((one) => one.startsWith(prefix)));
    const { stream, group, tables } = PERMISSIONS[service];
    const fanOut = group === undefined ? [] : ['DescribeStreamConsumer', 'SubscribeToShard'];
    assert.deepEqual(of('kinesis:'), new Set([...stream, ...fanOut].map((one) => `kinesis:${one}`)), service);
    assert.deepEqual(of('dynamodb:'), new Set(Object.values(tables).flat().map((one) => `dynamodb:${one}`)), service);
    for (const table of TABLES) {
      const here = granted.filter((one) => one.resources.some((arn) => arn.includes(`Table${table}`)));
      const actions = here.flatMap((one) => one.actions);
      assert.deepEqual(new Set(actions), new Set(tables[table].map((one) => `dynamodb:${one}`)), `${service} ${table}`);
    }
    assert.equal(granted.flatMap((one) => one.actions).some((action) => action.includes('*')), false, service);
  }
});

test('nobody but persist writes votes, nobody but ingest and tally puts records', () => {
  const may = (service: ServiceName, action: string) =>
    statements(made.service, service).some((one) => one.actions.includes(action));
  assert.deepEqual(SERVICES.filter((one) => may(one, 'dynamodb:PartiQLUpdate')), ['persist']);
  assert.deepEqual(SERVICES.filter((one) => may(one, 'kinesis:PutRecords')), ['ingest', 'tally']);
  for (const action of ['DeleteTable', 'UpdateTable', 'CreateTable']) {
    assert.deepEqual(SERVICES.filter((one) => may(one, `dynamodb:${action}`)), [], action);
  }
  // Rows of shards are the only items that are ever deleted.
  for (const table of TABLES) {
    const deletes = SERVICES.filter((one) => PERMISSIONS[one].tables[table].includes('DeleteItem'));
    assert.deepEqual(deletes, table === 'shards' ? ['persist', 'tally'] : [], table);
  }
});

test('no statement is about all resources unless AWS demands it', () => {
  for (const template of [made.service, made.data, open.service]) {
    for (const type of ['AWS::IAM::Policy', 'AWS::IAM::ManagedPolicy', 'AWS::IAM::Role']) {
      for (const [id, { Properties }] of resources(template, type)) {
        const documents = [Properties.PolicyDocument, ...asArray(Properties.Policies).map((one: any) => one.PolicyDocument)];
        for (const statement of documents.filter(Boolean).flatMap((one) => one.Statement)) {
          const actions = asArray<string>(statement.Action);
          assert.equal(actions.some((action) => action.includes('*')), false, `${id}: ${actions}`);
          if (!asArray(statement.Resource).includes('*')) continue;
          const unlisted = actions.filter((action) => !(action in WILDCARD_ACTIONS));
          assert.deepEqual(unlisted, [], id);
        }
        // Managed policies of AWS name no resources.
        assert.equal(Properties.ManagedPolicyArns, undefined, id);
      }
    }
  }
});

test('gRPC stays HTTP/2 from end to end, and everything is encrypted up to the tasks', () => {
  for (const service of ['ingest', 'tally']) {
    for (const [kind, version, path, matcher] of [
      ['grpc', 'GRPC', '/grpc.health.v1.Health/Check', { GrpcCode: '0' }], ['web', 'HTTP1', '/health', { HttpCode: '404' }],
    ] as const) {
      // One for each of the load balancers. The protocol of health checks is not that of the targets unless it is given.
      const groups = resources(made.service, 'AWS::ElasticLoadBalancingV2::TargetGroup')
        .filter(([id]) => id.includes(`${service}${kind}`));
      assert.equal(groups.length, 2);
      for (const [id, { Properties }] of groups) {
        const { Protocol, ProtocolVersion, HealthCheckProtocol, HealthCheckPath, Matcher, TargetType } = Properties;
        assert.deepEqual(
          { Protocol, ProtocolVersion, HealthCheckProtocol, HealthCheckPath, Matcher, TargetType },
          {
            Protocol: 'HTTPS', ProtocolVersion: version, HealthCheckProtocol: 'HTTPS', HealthCheckPath: path, Matcher: matcher,
            TargetType: 'ip',
          },
          id,
        );
      }
    }
    made.service.hasResourceProperties('AWS::ECS::TaskDefinition', {
      Family: `votestream-${service}`,
      ContainerDefinitions: Match.arrayWith([Match.objectLike({
        Environment: Match.arrayWith([{ Name: 'VOTESTREAM_TLS_SELF_SIGNED', Value: 'true' }]),
      })]),
    });
  }
  const listeners = resources(made.service, 'AWS::ElasticLoadBalancingV2::Listener').map(([, one]) => one.Properties);
  assert.equal(listeners.length, 2);
  for (const { Protocol, Port, Certificates, DefaultActions } of listeners) {
    assert.deepEqual([Protocol, Port, Certificates], ['HTTPS', 443, [{ CertificateArn: { Ref: 'CertificateArn' } }]]);
    assert.deepEqual(DefaultActions.map((one: any) => [one.Type, one.FixedResponseConfig.StatusCode]), [['fixed-response', '404']]);
  }
});

test('a listener rule keeps within the values that AWS allows', () => {
  for (const [id, { Properties }] of resources(open.service, 'AWS::ElasticLoadBalancingV2::ListenerRule')) {
    const values = (Properties.Conditions as Record<string, any>[]).map((one) =>
      Object.values(one).filter((of) => typeof of === 'object').flatMap((of) => [...(of.Values ?? []), ...(of.RegexValues ?? [])]));
    for (const one of values) assert.ok(one.length > 0 && one.length <= CONDITION_VALUES_MAX, `${id}: ${one.length}`);
    assert.ok(values.flat().length <= RULE_VALUES_MAX, `${id}: ${values.flat().length}`);
    for (const value of values.flat()) assert.ok(value.length <= 128, value);
  }
});

test('nobody is let in unless told, operators only by the internal load balancer', () => {
  const ranges = (template: Template, description: string) => {
    const [, found] = resources(template, 'AWS::EC2::SecurityGroup')
      .find(([, one]) => one.Properties.GroupDescription === description) ?? assert.fail(description);
    const ingress = (found.Properties.SecurityGroupIngress ?? []) as Record<string, any>[];
    return ingress.map((one) => [one.CidrIp, one.FromPort, one.ToPort]);
  };
  assert.deepEqual(ranges(made.service, 'Load balancer'), []);
  assert.deepEqual(ranges(made.service, 'Internal load balancer'), []);
  assert.deepEqual(ranges(open.service, 'Load balancer'), [['0.0.0.0/0', 443, 443]]);
  assert.deepEqual(ranges(open.service, 'Internal load balancer'), [['10.9.0.0/16', 443, 443], ['198.51.100.0/28', 443, 443]]);

  const balancers = resources(open.service, 'AWS::ElasticLoadBalancingV2::LoadBalancer').map(([, one]) => one.Properties);
  assert.deepEqual(balancers.map(({ Name, Scheme }) => [Name, Scheme]).sort(),
    [['votestream', 'internet-facing'], ['votestream-internal', 'internal']]);
  const subnets = (name: string) => JSON.stringify(balancers.find(({ Name }) => Name === name)?.Subnets);
  assert.doesNotMatch(subnets('votestream-internal'), /edge/);
  // Each listener forwards to target groups of its own, and both know the tasks.
  for (const [id, { Properties }] of resources(open.service, 'AWS::ElasticLoadBalancingV2::ListenerRule')) {
    const target = JSON.stringify(Properties.Actions);
    assert.equal(id.startsWith('Internal'), target.includes('"InternalTarget'), id);
  }
  for (const [id, { Properties }] of resources(open.service, 'AWS::ECS::Service')) {
    assert.equal((Properties.LoadBalancers ?? []).length, id.startsWith('persist') ? 0 : 4, id);
  }
  const names = resources(open.service, 'AWS::Route53::RecordSet').map(([, one]) => one.Properties.Name);
  assert.deepEqual(names.sort(), ['manage.example.org.', 'vote.example.org.']);
});

test('tasks get who may call from one secret, which nobody else reads', () => {
  const [revoked, keys] = [AUTH.replace('auth', 'revoked'), AUTH.replace('auth', 'keys')];
  const all = new Made({ authRevoked: revoked, pseudonymKeys: keys });
  for (const [template, secrets, variables] of [
    [made.service, [AUTH], { VOTESTREAM_AUTH: 'env:AUTH_FILE_TEXT' }],
    [all.service, [AUTH, revoked, keys], {
      VOTESTREAM_AUTH: 'env:AUTH_FILE_TEXT', VOTESTREAM_AUTH_REVOKED: 'env:AUTH_REVOKED_TEXT',
      VOTESTREAM_PSEUDONYM_KEYS: 'env:PSEUDONYM_KEYS_TEXT',
    }],
    [open.service, [], { VOTESTREAM_AUTH: 'none' }],
  ] as const) {
    for (const service of SERVICES) {
      const asks = ASKING.includes(service);
      const [, task] = resources(template, 'AWS::ECS::TaskDefinition')
        .find(([id]) => id.startsWith(`${service}Task`)) ?? assert.fail();
      const [container, collector] = task.Properties.ContainerDefinitions;
      const given = ((container.Secrets ?? []) as { ValueFrom: string }[]).map((one) => one.ValueFrom);
      assert.deepEqual(given, asks ? secrets : []);
      assert.equal(collector.Secrets, undefined);
      const auth = (container.Environment as { Name: string; Value: string }[]).filter(({ Name }) => /AUTH|PSEUDONYM/.test(Name));
      assert.deepEqual(Object.fromEntries(auth.map(({ Name, Value }) => [Name, Value])), asks ? variables : {}, service);
      // The role with which ECS starts the task, and only for these secrets.
      const policies = resources(template, 'AWS::IAM::Policy')
        .filter(([, one]) => JSON.stringify(one.Properties).includes('secretsmanager:'));
      for (const [id] of policies) assert.match(id, /^(ingest|tally)TaskExecutionRoleDefaultPolicy/);
      const [, policy] = policies.find(([id]) => id.startsWith(service)) ?? [];
      const statements = (policy?.Properties.PolicyDocument.Statement ?? []) as Record<string, any>[];
      const reading = statements.filter((one) =>
        asArray<string>(one.Action).some((action) => action.startsWith('secretsmanager:')));
      assert.deepEqual(reading.flatMap((one) => asArray<string>(one.Resource)).sort(), asks ? [...secrets].sort() : [], service);
      for (const one of reading) {
        assert.deepEqual(asArray<string>(one.Action).sort(), ['secretsmanager:DescribeSecret', 'secretsmanager:GetSecretValue']);
      }
    }
    const endpoints = JSON.stringify(resources(template, 'AWS::EC2::VPCEndpoint'));
    assert.equal(endpoints.includes('.secretsmanager"'), secrets.length > 0, 'tasks without a way out start, too');
  }
});

test('only those who check tokens have a way to the keys of issuers', () => {
  const [isolated, three] = [new Made({ natGateways: 0 }), new Made({ natGateways: 3 })];
  for (const [template, count] of [[made.service, 1], [isolated.service, 0], [open.service, 0], [three.service, 3]] as const) {
    template.resourceCountIs('AWS::EC2::NatGateway', count);
    const outward = SERVICES.filter((service) => {
      const [, found] = resources(template, 'AWS::ECS::Service')
        .find(([id]) => id.startsWith(`${service}Service`)) ?? assert.fail();
      return JSON.stringify(found.Properties.NetworkConfiguration.AwsvpcConfiguration.Subnets).includes('outward');
    });
    assert.deepEqual(outward, count > 0 ? ASKING : []);
  }
  // What may be reached: HTTPS, and nothing else.
  for (const [id, { Properties }] of resources(made.service, 'AWS::EC2::SecurityGroup')) {
    if (!String(Properties.GroupDescription).startsWith('Tasks')) continue;
    const egress = (Properties.SecurityGroupEgress as any[]).map((one) => [one.CidrIp, one.FromPort, one.ToPort]);
    assert.deepEqual(egress, [['0.0.0.0/0', 443, 443]], id);
  }
});

test('without a decision who may call there is no deployment', () => {
  for (const auth of [undefined, '']) {
    assert.throws(() => stacks({ auth }), /auth: missing: say who may call, by the ARN of the secret.*or none in so many words/);
  }
  for (const auth of ['votestream/auth', 'nobody', AUTH.slice(0, -7), 'arn:aws:secretsmanager:us-east-1:000000000000:secret:*']) {
    assert.throws(() => stacks({ auth }), /auth: .*expected the whole ARN of a secret/, auth);
  }
  assert.throws(() => stacks({ auth: 'none', authRevoked: AUTH }), /authRevoked: needs auth to be a secret/);
});

test('tasks run on Graviton, hardened, without a public address, and take no call but from the load balancer', () => {
  made.service.resourceCountIs('AWS::ECS::TaskDefinition', 3);
  for (const [id, { Properties }] of resources(made.service, 'AWS::ECS::TaskDefinition')) {
    assert.deepEqual(Properties.RuntimePlatform, { CpuArchitecture: 'ARM64', OperatingSystemFamily: 'LINUX' }, id);
    const containers = Properties.ContainerDefinitions as Record<string, any>[];
    assert.equal(containers.length, 2);
    for (const container of containers) {
      assert.equal(container.ReadonlyRootFilesystem, true, id);
      assert.deepEqual(container.LinuxParameters.Capabilities.Drop, ['ALL'], id);
    }
    const [service, collector] = containers as [Record<string, any>, Record<string, any>];
    assert.equal(service.User, '65532:65532');
    assert.equal(service.Essential, true);
    assert.equal(collector.Essential, false, 'votes do not wait for telemetry');
    assert.deepEqual(service.DependsOn, [{ ContainerName: 'collector', Condition: 'START' }]);
  }
  for (const [id, { Properties }] of resources(made.service, 'AWS::ECS::Service')) {
    assert.equal(Properties.NetworkConfiguration.AwsvpcConfiguration.AssignPublicIp, 'DISABLED', id);
    assert.deepEqual(Properties.DeploymentConfiguration.DeploymentCircuitBreaker, { Enable: true, Rollback: true }, id);
    assert.equal(Properties.DeploymentConfiguration.MinimumHealthyPercent, 100, id);
  }
  const inward = resources(made.service, 'AWS::EC2::SecurityGroupIngress').map(([, one]) => one.Properties);
  for (const rule of inward) assert.ok(rule.SourceSecurityGroupId, 'from a group, never from a range');
  assert.deepEqual(new Set(inward.map((rule) => rule.FromPort)), new Set([443, 50051, 50052]));
});

test('every service is asked whether it is healthy', () => {
  for (const [id, { Properties }] of resources(made.service, 'AWS::ECS::TaskDefinition')) {
    const [service] = Properties.ContainerDefinitions as Record<string, any>[];
    const listen = (service?.Environment as { Name: string; Value: string }[]).find((one) => one.Name === 'VOTESTREAM_LISTEN');
    const asked = service?.HealthCheck !== undefined;
    assert.equal(asked, id.startsWith('persistTask'), `${id}: the load balancer asks the others`);
    assert.match(listen?.Value ?? '', asked ? /^127\.0\.0\.1:/ : /^0\.0\.0\.0:/, id);
    if (asked) assert.deepEqual(service?.HealthCheck.Command, HEALTH_COMMAND);
  }
});

test('services scale within their bounds', () => {
  const scalable = resources(open.service, 'AWS::ApplicationAutoScaling::ScalableTarget').map(([, one]) => one.Properties);
  assert.deepEqual(
    scalable.map(({ MinCapacity, MaxCapacity }) => [MinCapacity, MaxCapacity]).sort((a, b) => a[1] - b[1]),
    [[2, 4], [2, 8], [30, 60]],
  );
  const policies = resources(made.service, 'AWS::ApplicationAutoScaling::ScalingPolicy').map(([, one]) => one.Properties);
  const targets = policies.map((one) => one.TargetTrackingScalingPolicyConfiguration?.PredefinedMetricSpecification?.PredefinedMetricType);
  assert.deepEqual(targets.filter(Boolean).sort(), ['ALBRequestCountPerTarget', 'ECSServiceAverageCPUUtilization']);
  const steps = resources(made.service, 'AWS::CloudWatch::Alarm').map(([, one]) => JSON.stringify(one.Properties))
    .filter((one) => /"AlarmActions":\[\{"Ref":"\w+Policy\w+"\}\]/.test(one));
  for (const consumer of ['votestream-persist', 'votestream-tally']) {
    const found = steps.filter((one) => one.includes(`{"Name":"ConsumerName","Value":"${consumer}"}`));
    assert.equal(found.length, 2, `${consumer} scales in and out`);
    for (const one of found) assert.match(one, /SubscribeToShardEvent\.MillisBehindLatest/);
  }
});

test('the write-unit budget is shared by all persist tasks', () => {
  const variable = (template: Template, name: string) => resources(template, 'AWS::ECS::TaskDefinition')
    .flatMap(([, one]) => one.Properties.ContainerDefinitions)
    .flatMap((container: any) => container.Environment as { Name: string; Value: string }[])
    .filter(({ Name }) => Name === name).map(({ Value }) => Value);
  assert.deepEqual(variable(open.service, 'VOTESTREAM_WRITE_UNITS_PER_SECOND'), ['5000']);
  assert.deepEqual(variable(made.service, 'VOTESTREAM_WRITE_UNITS_PER_SECOND'), ['0']);
  assert.deepEqual(variable(open.service, 'VOTESTREAM_INGEST_TASKS'), ['30']);
  assert.deepEqual(variable(open.service, 'VOTESTREAM_CONSUMER'), ['polling', 'polling']);
  assert.deepEqual(variable(open.service, 'VOTESTREAM_CORS_ALLOW_ORIGINS').length, 2);
});

test('every log group forgets', () => {
  const groups = resources(made.service, 'AWS::Logs::LogGroup');
  assert.equal(groups.length, 10);
  for (const [id, { Properties }] of groups) assert.equal(Properties.RetentionInDays, 30, id);
});

test('alarms on denied calls look at the sum of their reasons, for each service', () => {
  const alarms = new Map(resources(made.service, 'AWS::CloudWatch::Alarm')
    .map(([, { Properties }]) => [Properties.AlarmName, Properties]));
  for (const service of ['ingest', 'tally']) {
    const found = alarms.get(`votestream-${service}-credentials-expired`) ?? assert.fail(service);
    assert.deepEqual([found.Threshold, found.EvaluationPeriods, found.DatapointsToAlarm], [100, 3, 2]);
    const metrics = found.Metrics as Record<string, any>[];
    assert.equal(metrics.find((one) => one.Expression)?.Expression, 'FILL(expired, 0) + FILL(not_yet_valid, 0)');
    const reasons = metrics.filter((one) => one.MetricStat).map((one) => one.MetricStat.Metric.Dimensions);
    assert.deepEqual(reasons, ['expired', 'not_yet_valid'].map((Value) =>
      [{ Name: 'reason', Value }, { Name: 'service.name', Value: `${service}-svc` }]));
  }
});

test('alarms reach the topic, and CloudWatch may publish there', () => {
  const alarms = resources(made.service, 'AWS::CloudWatch::Alarm').filter(([, one]) => one.Properties.AlarmName);
  assert.ok(alarms.length >= 20);
  for (const [id, { Properties }] of alarms) assert.equal(Properties.AlarmActions.length, 1, id);
  made.service.hasResourceProperties('AWS::SNS::TopicPolicy', {
    PolicyDocument: { Statement: Match.arrayWith([Match.objectLike({
      Effect: 'Allow', Action: 'sns:Publish', Principal: { Service: 'cloudwatch.amazonaws.com' },
    })]) },
  });
  made.service.resourceCountIs('AWS::CloudWatch::Dashboard', 1);
});

test('cdk-nag finds nothing that is not explained', () => {
  const both = [
    stacks({ authRevoked: AUTH, pseudonymKeys: AUTH }),
    stacks({ auth: 'none', clientCidrs: '0.0.0.0/0', adminCidrs: '198.51.100.0/28', consumer: 'polling' }),
  ];
  for (const stack of both.flatMap(({ data, registry, service }) => [data, registry, service])) {
    for (const find of ['findError', 'findWarning'] as const) {
      const found = Annotations.fromStack(stack)[find]('*', Match.anyValue());
      assert.deepEqual(found.map((one) => `${one.id}: ${JSON.stringify(one.entry.data)}`), [], `${stack.stackName} ${find}`);
    }
  }
});

test('a wrong configuration reports all its mistakes at once', () => {
  const wrong = {
    shards: 0, consumer: 'kcl', clientCidrs: '10.0.0.300/8', ingestTasks: 5, ingestTasksMax: 3, ingestCpu: 512,
    ingestMemory: 30_720, domain: 'vote.example.org', writeUnitsPerSecond: 1, auth: 'file', natGateways: 4, adminCidrs: '0.0.0.0/0',
    adminDomain: 'manage.example.com',
  };
  assert.throws(() => stacks(wrong), (error: Error) => {
    const mistakes = error.message.split('\n').slice(1).map((line) => line.trim().split(':')[0]);
    assert.deepEqual(mistakes.sort(), [
      'adminCidrs', 'adminDomain', 'adminDomain', 'auth', 'clientCidrs', 'consumer', 'domain and hostedZoneId', 'ingestMemory',
      'ingestTasksMax', 'natGateways', 'shards', 'writeUnitsPerSecond',
    ]);
    return true;
  });
});
