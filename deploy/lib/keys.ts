/**
 * Keys of KMS that belong to this account (`customerKeys`): one for what must outlive the services, one for their logs and alarms.
 *
 * Both turn themselves over every year. Must never be deleted with a stack: what they encrypted could never be read again.
 */
import { Duration, RemovalPolicy, Stack } from 'aws-cdk-lib';
import { PolicyStatement, ServicePrincipal } from 'aws-cdk-lib/aws-iam';
import { Key } from 'aws-cdk-lib/aws-kms';
import { Construct } from 'constructs';

/** How often AWS exchanges what a key encrypts with. */
const ROTATION = Duration.days(365);

/**
 * What a caller of a stream and a table needs of their key, by the service that asks for it in the caller's name: putting records
 * and reading them ("Permissions to use user-generated KMS keys" of Kinesis), and all calls of DynamoDB ("DynamoDB encryption at
 * rest: usage notes").
 */
export const KEY_USES = {
  kinesis: ['Decrypt', 'GenerateDataKey'],
  dynamodb: [
    'Decrypt', 'DescribeKey', 'Encrypt', 'GenerateDataKey', 'GenerateDataKeyWithoutPlaintext', 'ReEncryptFrom', 'ReEncryptTo',
  ],
} as const;

export function dataKey(scope: Construct, name: string): Key {
  return key(scope, 'DataKey', `${name}-data`, 'The vote stream and the tables of Votestream');
}

/** The key of logs and of the topic of alarms, which the services of AWS that write there may use. */
export function operationsKey(scope: Construct, name: string): Key {
  const made = key(scope, 'OperationsKey', `${name}-operations`, 'Logs and alarms of Votestream');
  const { partition, region, account } = Stack.of(scope);
  made.addToResourcePolicy(new PolicyStatement({
    principals: [new ServicePrincipal(`logs.${region}.amazonaws.com`)],
    actions: ['kms:Decrypt', 'kms:DescribeKey', 'kms:Encrypt', 'kms:GenerateDataKey', 'kms:GenerateDataKeyWithoutPlaintext',
      'kms:ReEncryptFrom', 'kms:ReEncryptTo'],
    resources: ['*'],
    conditions: {
      ArnLike: { 'kms:EncryptionContext:aws:logs:arn': `arn:${partition}:logs:${region}:${account}:log-group:/${name}/*` },
    },
  }));
  made.addToResourcePolicy(new PolicyStatement({
    principals: [new ServicePrincipal('cloudwatch.amazonaws.com')],
    actions: ['kms:Decrypt', 'kms:GenerateDataKey'],
    resources: ['*'],
    conditions: { StringEquals: { 'aws:SourceAccount': account } },
  }));
  return made;
}

function key(scope: Construct, id: string, alias: string, description: string): Key {
  return new Key(scope, id, {
    alias, description, enableKeyRotation: true, rotationPeriod: ROTATION, removalPolicy: RemovalPolicy.RETAIN,
  });
}
