/** What the templates must say. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Annotations, Match, Template } from 'aws-cdk-lib/assertions';
import { WILDCARD_ACTIONS } from '../lib/nag';
import { KEYS, VOTE_EXPIRY } from '../lib/data-stack';
import { PERMISSIONS, SERVICES, ServiceName, TABLES } from '../lib/permissions';
import { HEALTH_COMMAND } from '../lib/service';
import { asArray, Made, resources, stacks } from './stacks';

const made = new Made();
const open = new Made({
  clientCidrs: '0.0.0.0/0', adminCidrs: '198.51.100.0/28', domain: 'vote.example.org', hostedZoneId: 'Z0123',
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
  for (const action of ['DeleteItem', 'DeleteTable', 'UpdateTable', 'CreateTable']) {
    assert.deepEqual(SERVICES.filter((one) => may(one, `dynamodb:${action}`)), [], action);
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

test('gRPC stays HTTP/2 from end to end', () => {
  for (const service of ['ingest', 'tally']) {
    made.service.hasResourceProperties('AWS::ElasticLoadBalancingV2::TargetGroup', {
      Name: `votestream-${service}-grpc`,
      Protocol: 'HTTPS', ProtocolVersion: 'GRPC', TargetType: 'ip',
      HealthCheckPath: '/grpc.health.v1.Health/Check', Matcher: { GrpcCode: '0' },
    });
    made.service.hasResourceProperties('AWS::ElasticLoadBalancingV2::TargetGroup', {
      Name: `votestream-${service}-web`, ProtocolVersion: 'HTTP1',
    });
  }
  made.service.resourceCountIs('AWS::ElasticLoadBalancingV2::Listener', 1);
  made.service.hasResourceProperties('AWS::ElasticLoadBalancingV2::Listener', {
    Protocol: 'HTTPS', Port: 443, Certificates: [{ CertificateArn: { Ref: 'CertificateArn' } }],
    DefaultActions: [{ Type: 'fixed-response', FixedResponseConfig: { StatusCode: '404' } }],
  });
});

test('a listener rule keeps within the five values that AWS allows', () => {
  for (const [id, { Properties }] of resources(open.service, 'AWS::ElasticLoadBalancingV2::ListenerRule')) {
    const values = (Properties.Conditions as Record<string, any>[])
      .flatMap((one) => Object.values(one).filter((of) => typeof of === 'object').flatMap((of) => of.Values));
    assert.ok(values.length <= 5, `${id}: ${values.length}`);
  }
});

test('nobody is let in unless told, and polls are changed by operators alone', () => {
  const edge = (template: Template) => resources(template, 'AWS::EC2::SecurityGroup')
    .find(([, one]) => one.Properties.GroupDescription === 'Load balancer')?.[1].Properties.SecurityGroupIngress;
  assert.equal(edge(made.service), undefined);
  assert.equal(edge(open.service).length, 2);
  for (const [template, count] of [[made.service, 0], [open.service, 1]] as const) {
    const rules = resources(template, 'AWS::ElasticLoadBalancingV2::ListenerRule').map(([, one]) => one.Properties.Conditions);
    const admin = rules.filter((conditions) => /ClosePoll|ReleaseResults|release/.test(JSON.stringify(conditions)));
    assert.equal(admin.length, 3 * count);
    for (const conditions of admin) {
      assert.ok(JSON.stringify(conditions).includes('{"Field":"source-ip","SourceIpConfig":{"Values":["198.51.100.0/28"]}}'));
    }
    const others = rules.filter((conditions) => !admin.includes(conditions)).map((one) => JSON.stringify(one)).join();
    assert.doesNotMatch(others, /CreatePoll|Recount|PollService\/\*|ResultsService\/\*/);
    // `/v1/polls/*` covers `/v1/polls/{poll}/release`, so everybody may only read there.
    const [json, ...more] = rules.filter((conditions) => JSON.stringify(conditions).includes('"/v1/polls/*"'));
    assert.equal(more.length, 0);
    assert.match(JSON.stringify(json), /"HttpRequestMethodConfig":\{"Values":\["GET","HEAD","OPTIONS"\]\}/);
  }
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
  made.service.resourceCountIs('AWS::EC2::NatGateway', 0);
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
  const both = [stacks(), stacks({ clientCidrs: '0.0.0.0/0', adminCidrs: '198.51.100.0/28', consumer: 'polling' })];
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
    ingestMemory: 30_720, domain: 'vote.example.org', writeUnitsPerSecond: 1,
  };
  assert.throws(() => stacks(wrong), (error: Error) => {
    const mistakes = error.message.split('\n').slice(1).map((line) => line.trim().split(':')[0]);
    assert.deepEqual(mistakes.sort(), [
      'clientCidrs', 'consumer', 'domain and hostedZoneId', 'ingestMemory', 'ingestTasksMax', 'shards', 'writeUnitsPerSecond',
    ]);
    return true;
  });
});
