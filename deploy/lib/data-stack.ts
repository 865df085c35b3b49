/**
 * The stream with its registered consumers, and the four tables: all that must outlive a deployment of the services.
 *
 * Names and keys are those of adapters/aws (test/contract.test.ts compares them). Must never hold anything that is replaced
 * when the services change; termination protection and RETAIN keep acknowledged votes when somebody deletes a stack.
 */
import { Duration, RemovalPolicy, Stack, StackProps } from 'aws-cdk-lib';
import { AttributeType, BillingMode, Table, TableEncryption } from 'aws-cdk-lib/aws-dynamodb';
import { CfnStreamConsumer, Stream, StreamEncryption, StreamMode } from 'aws-cdk-lib/aws-kinesis';
import { IKey } from 'aws-cdk-lib/aws-kms';
import { Construct } from 'constructs';
import { budget } from './budget';
import { Config } from './config';
import { dataKey } from './keys';
import { TableName } from './permissions';

/** Partition key, then the sort key. All are texts. */
export const KEYS: Readonly<Record<TableName, readonly [string, string?]>> = {
  polls: ['poll_id'],
  votes: ['poll_bucket', 'user_id'],
  tallies: ['poll_id', 'group_shard'],
  shards: ['shard_group', 'shard_id'],
};

/** Start of the names of the registered consumers. The services look for this, a dash and the group. */
export const CONSUMER_PREFIX = 'votestream';

/** Attribute of a vote after which DynamoDB may delete it. No service writes it: see RUNBOOK.md, "After the show". */
export const VOTE_EXPIRY = 'expires_at';

export type Group = 'persist' | 'tally';

export class DataStack extends Stack {
  readonly stream: Stream;
  /** The key of stream and tables, if it is one of this account. */
  readonly key: IKey | undefined;
  readonly tablePrefix: string;
  readonly tables: Readonly<Record<TableName, Table>>;
  /** ARNs of the registered consumers; none if the stream is polled. */
  readonly consumers: Partial<Record<Group, string>>;

  constructor(scope: Construct, id: string, props: StackProps & { readonly config: Config }) {
    super(scope, id, { ...props, terminationProtection: true });
    const { config } = props;
    this.key = config.customerKeys ? dataKey(this, config.name) : undefined;
    // What costs money outlives the services, so what tells of it does, too.
    budget(this, config);

    this.stream = new Stream(this, 'Stream', {
      streamName: config.name,
      ...(config.streamMode === 'provisioned'
        ? { streamMode: StreamMode.PROVISIONED, shardCount: config.shards }
        : { streamMode: StreamMode.ON_DEMAND }),
      retentionPeriod: Duration.hours(config.retentionHours),
      ...(this.key === undefined
        ? { encryption: StreamEncryption.MANAGED }
        : { encryption: StreamEncryption.KMS, encryptionKey: this.key }),
      removalPolicy: RemovalPolicy.RETAIN,
    });

    const consumer = (group: Group): string =>
      new CfnStreamConsumer(this, `Consumer-${group}`, {
        streamArn: this.stream.streamArn,
        consumerName: `${CONSUMER_PREFIX}-${group}`,
      }).attrConsumerArn;
    this.consumers = config.consumer === 'fan-out' ? { persist: consumer('persist'), tally: consumer('tally') } : {};

    this.tablePrefix = `${config.name}-`;
    const table = (name: TableName): Table => {
      const [partition, sort] = KEYS[name];
      return new Table(this, `Table-${name}`, {
        tableName: `${this.tablePrefix}${name}`,
        partitionKey: { name: partition, type: AttributeType.STRING },
        ...(sort && { sortKey: { name: sort, type: AttributeType.STRING } }),
        billingMode: BillingMode.PAY_PER_REQUEST,
        ...(this.key !== undefined && { encryption: TableEncryption.CUSTOMER_MANAGED, encryptionKey: this.key }),
        pointInTimeRecoverySpecification: { pointInTimeRecoveryEnabled: true },
        deletionProtection: true,
        removalPolicy: RemovalPolicy.RETAIN,
        // Votes say who chose what. Everything else is small, and results must stay.
        ...(name === 'votes' && { timeToLiveAttribute: VOTE_EXPIRY }),
        ...(name === 'votes' && config.warmWriteUnits > 0 && {
          warmThroughput: { writeUnitsPerSecond: config.warmWriteUnits },
        }),
      });
    };
    this.tables = { polls: table('polls'), votes: table('votes'), tallies: table('tallies'), shards: table('shards') };
  }
}
