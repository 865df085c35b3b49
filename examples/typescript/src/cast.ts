/** Casts one vote. Exit code 0 if it is stored, 1 if it was rejected, 2 if that is unknown. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { IngestService } from "../gen/votestream/v1/ingest_pb.js";
import { Backoff, failure, notConnected, type Failure, type Outcome } from "./outcome.js";
import { isConnected, OPTIONS, Service, unary } from "./service.js";
import type { Vote } from "./voteStream.js";

/** The service, or whoever checks the caller in front of it, has refused the vote. */
const REFUSED = new Set(["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED"]);

/**
 * A vote that was certainly not stored is cast again. One whose outcome is unknown is not: its copy would replace what the user
 * has cast elsewhere meanwhile.
 */
async function cast(service: Service, vote: Vote): Promise<Outcome> {
  const backoff = new Backoff();
  for (;;) {
    const failed = await attempt(service, vote);
    if (!failed) return { kind: "durable" };
    const { code, text: reason } = failed;
    if (REFUSED.has(code)) return { kind: "rejected", code, reason };
    if (!failed.isNotStored) return { kind: "unknown", code, reason };
    const pause = backoff.pause(failed.retryMillis);
    if (pause === undefined) return { kind: "rejected", code, reason };
    await sleep(pause);
  }
}

async function attempt(service: Service, vote: Vote): Promise<Failure | undefined> {
  // A program that casts many votes keeps its client.
  const client = service.client();
  try {
    if (!(await isConnected(client))) return notConnected(service.url);
    await unary(client, IngestService.method.castVote, { vote }, service.metadata);
    return undefined;
  } catch (error) {
    return failure(error);
  } finally {
    client.close();
  }
}

const { values } = parseArgs({ options: { ...OPTIONS, user: { type: "string" }, option: { type: "string" } } });
if (values.poll === undefined || values.option === undefined) {
  // The user is not needed if VOTESTREAM_TOKEN names them.
  console.error("usage: node build/src/cast.js [--server URL] --poll POLL [--user USER] --option OPTION");
  process.exit(64);
}
const vote = { pollId: values.poll, userId: values.user ?? "", optionId: values.option };
const outcome = await cast(new Service(values.server), vote);
console.log(outcome.kind === "durable" ? outcome.kind : `${outcome.kind}: ${outcome.reason}`);
process.exitCode = { durable: 0, rejected: 1, unknown: 2 }[outcome.kind];
