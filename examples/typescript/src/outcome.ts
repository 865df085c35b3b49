/** What has become of a vote, and what the end of a call proves about it. */
import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import grpc from "@grpc/grpc-js";
import { ErrorInfoSchema, RetryInfoSchema, StatusSchema } from "../gen/google/rpc/details_pb.js";
import { RejectionCode, type Rejection } from "../gen/votestream/v1/ingest_pb.js";

const ATTEMPTS_MAX = 20;
const MILLIS_MAX = 60_000;
const PAUSE_MIN_MILLIS = 50;
const PAUSE_MAX_MILLIS = 5_000;

/** `rejected` means certainly not stored. */
export type Outcome = { kind: "durable" } | { kind: "rejected" | "unknown"; code: string; reason: string };

/** Reasons that held before as well: the poll had no such option then either. */
const ALWAYS = new Set(["MALFORMED", "POLL_NOT_FOUND", "OPTION_NOT_FOUND", "POLL_NOT_OPEN", "WRONG_SOURCE"]);

/** Outcome of a vote that the service has named. `mayBeStored`: it was sent before, over a connection that broke. */
export function ofRejection({ code: number, reason }: Rejection, mayBeStored: boolean): Outcome {
  const code = RejectionCode[number] ?? `${number}`;
  if (code === "OUTCOME_UNKNOWN") return { kind: "unknown", code, reason };
  if (!mayBeStored || ALWAYS.has(code)) return { kind: "rejected", code, reason };
  const doubt = `the connection broke before the vote was answered, and its copy was refused: ${reason}`;
  return { kind: "unknown", code, reason: doubt };
}

/** Why a call has ended, and what that proves. */
export interface Failure {
  text: string;
  code: string;
  /** Whether what has no answer was certainly not stored. */
  isNotStored: boolean;
  /** Whether another attempt may succeed. */
  mayPass: boolean;
  /** How long the service asks to wait. */
  retryMillis: number;
}

const MAY_PASS = new Set([
  grpc.status.UNAVAILABLE,
  grpc.status.RESOURCE_EXHAUSTED,
  grpc.status.CANCELLED,
  grpc.status.UNKNOWN,
  grpc.status.INTERNAL,
  grpc.status.DEADLINE_EXCEEDED,
  grpc.status.ABORTED,
]);

/** Reads the end of a call. What a status does not say is unknown: a proxy says UNAVAILABLE, too. */
export function failure(error: unknown): Failure {
  if (!isServiceError(error)) throw error;
  const { info, retry } = details(error);
  const isNotStored =
    (error.code === grpc.status.UNAVAILABLE && info?.domain === "votestream.v1" && info.reason === "VOTE_NOT_STORED") ||
    (error.code === grpc.status.RESOURCE_EXHAUSTED && retry !== undefined);
  const code = grpc.status[error.code];
  const delay = retry?.retryDelay;
  return {
    text: `${error.details} (${code})`,
    code,
    isNotStored,
    mayPass: MAY_PASS.has(error.code),
    retryMillis: delay ? Number(delay.seconds) * 1_000 + delay.nanos / 1_000_000 : 0,
  };
}

/** No connection came about, so nothing was sent. */
export function notConnected(url: string): Failure {
  return { text: `cannot reach ${url}`, code: "NOT_CONNECTED", isNotStored: true, mayPass: true, retryMillis: 0 };
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

function details(error: grpc.ServiceError) {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  try {
    const all = bytes instanceof Uint8Array ? fromBinary(StatusSchema, bytes).details : [];
    const first = <T>(unpack: (any: (typeof all)[number]) => T | undefined) => all.map(unpack).find((found) => found);
    return {
      info: first((any) => anyUnpack(any, ErrorInfoSchema)),
      retry: first((any) => anyUnpack(any, RetryInfoSchema)),
    };
  } catch {
    // What cannot be read proves nothing.
    return {};
  }
}

/** Pauses between attempts without progress. */
export class Backoff {
  private failures = 0;
  private since: number | undefined;

  progress() {
    this.failures = 0;
    this.since = undefined;
  }

  /** Milliseconds until the next attempt; undefined if there is none. */
  pause(atLeast: number): number | undefined {
    const now = performance.now();
    this.failures += 1;
    this.since ??= now;
    const step = Math.min(PAUSE_MIN_MILLIS * 2 ** (this.failures - 1), PAUSE_MAX_MILLIS);
    // Clients that lost the same service do not all come back at the same moment.
    const pause = Math.max(step * (0.5 + Math.random() / 2), atLeast);
    const isOver = this.failures >= ATTEMPTS_MAX || now + pause - this.since > MILLIS_MAX;
    return isOver ? undefined : pause;
  }
}
