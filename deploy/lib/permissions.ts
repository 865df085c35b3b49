/**
 * Which AWS calls each service makes, on what. The task roles are made from this table and nothing else.
 *
 * Must never hold a call that the adapters (adapters/aws/src) do not make; test/contract.test.ts compares both.
 */

export const SERVICES = ['ingest', 'persist', 'tally'] as const;
export type ServiceName = (typeof SERVICES)[number];

export const TABLES = ['polls', 'votes', 'tallies', 'shards'] as const;
export type TableName = (typeof TABLES)[number];

/** Actions on the stream itself. */
const STREAM_CHECK = ['DescribeStreamSummary', 'ListShards'];
const STREAM_PUT = ['PutRecords'];
/** Shared reads; the iterator is asked of the stream. */
const STREAM_POLL = ['GetShardIterator', 'GetRecords'];

/** A table is described when a service starts. */
const CHECK = ['DescribeTable'];
/** Leases, checkpoints and dedup tables of a group. The rows of shards that have ended and left the stream are deleted. */
const LEASES = ['DeleteItem', 'GetItem', 'PutItem', 'Query', 'UpdateItem'];
/** Adds to one row under a condition on its position. */
const ADD_TALLY = ['GetItem', 'PutItem', 'UpdateItem'];

export interface Permissions {
  readonly stream: readonly string[];
  /** The registered consumer of the group, if the service reads. */
  readonly group?: 'persist' | 'tally';
  readonly tables: Readonly<Record<TableName, readonly string[]>>;
}

/** Calls of a reader by enhanced fan-out. DescribeStreamConsumer names stream and consumer, so both are granted. */
export const FAN_OUT = { stream: ['DescribeStreamConsumer'], consumer: ['DescribeStreamConsumer', 'SubscribeToShard'] };
/** Calls of a reader by polling. */
export const POLLING = { stream: STREAM_POLL };

export const PERMISSIONS: Readonly<Record<ServiceName, Permissions>> = {
  ingest: {
    stream: [...STREAM_CHECK, ...STREAM_PUT],
    tables: { polls: [...CHECK, 'GetItem'], votes: CHECK, tallies: CHECK, shards: CHECK },
  },
  persist: {
    stream: STREAM_CHECK,
    group: 'persist',
    tables: {
      // UpdateItem flags a poll for recount.
      polls: [...CHECK, 'GetItem', 'UpdateItem'],
      // BatchExecuteStatement is authorised by what its statements do.
      votes: [...CHECK, 'BatchGetItem', 'PartiQLInsert', 'PartiQLUpdate'],
      tallies: [...CHECK, ...ADD_TALLY],
      shards: [...CHECK, ...LEASES],
    },
  },
  tally: {
    // Markers move idle shards on, so that results become final.
    stream: [...STREAM_CHECK, ...STREAM_PUT],
    group: 'tally',
    tables: {
      // Scan lists polls, for clients and for `tally-svc give-up`.
      polls: [...CHECK, 'GetItem', 'PutItem', 'Scan', 'UpdateItem'],
      // A recount reads every vote; it never writes one.
      votes: [...CHECK, 'Query'],
      tallies: [...CHECK, ...ADD_TALLY, 'Query'],
      shards: [...CHECK, ...LEASES],
    },
  },
};
