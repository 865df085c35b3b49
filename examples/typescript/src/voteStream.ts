/**
 * A stream of votes that resumes.
 *
 * Votes are sent in their order. Those without an outcome are kept, at most WINDOW_VOTES of them: while there are so many, no
 * input is read. When a connection breaks, they are sent again over the next one, in their order. So the last vote of each user
 * stays the last. A vote that was stored already is replaced by its copy, which changes nothing.
 */
import { EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ClientDuplexStream } from "@grpc/grpc-js";
import {
  IngestService,
  type Rejection,
  type StreamVotesRequestSchema,
  type StreamVotesResponse,
} from "../gen/votestream/v1/ingest_pb.js";
import { Backoff, failure, notConnected, ofRejection, type Failure, type Outcome } from "./outcome.js";
import { bidiStream, isConnected, type Service } from "./service.js";

const MESSAGE_VOTES = 100;
const WINDOW_VOTES = 10_000;
/** How long after a break a vote that was sent before may still be stored. */
const COPIES_LAND_MILLIS = 15_000;

export interface Vote {
  pollId: string;
  userId: string;
  optionId: string;
}

export interface Numbered {
  number: number;
  vote: Vote;
}

/** A vote without an outcome. */
interface Sent extends Numbered {
  /** It was sent over a connection that broke. */
  mayBeStored: boolean;
}

type Call = ClientDuplexStream<MessageInitShape<typeof StreamVotesRequestSchema>, StreamVotesResponse>;

/** Sends the batches that `nextBatch` returns until it returns undefined. Calls `settled` once for each vote. */
export class VoteStream {
  /** To be sent over this connection. */
  private waiting: Sent[] = [];
  /** Sent over this connection. */
  private sent: Sent[] = [];
  /** Votes that this connection has settled. */
  private durableThrough = 0;
  /** Rejections of this connection, by index. */
  private readonly named = new Map<number, Rejection>();
  private input: "idle" | "reading" | "over" = "idle";
  private inputError: unknown;
  /** Tells the sender that there is room, or that there are votes. */
  private readonly news = new EventEmitter();
  private readonly copies = new Copies();

  constructor(
    private readonly service: Service,
    private readonly nextBatch: () => Promise<Numbered[] | undefined>,
    private readonly settled: (number: number, outcome: Outcome) => void,
  ) {}

  /** Returns once every vote has its outcome: undefined, or why the stream has given up. */
  async run(): Promise<string | undefined> {
    const backoff = new Backoff();
    // A connection is opened when there is something to send: the service ends streams that are silent for long.
    while (await this.hasVotes()) {
      const broken = await this.connection();
      if (this.durableThrough > 0) backoff.progress();
      if (!broken) continue;
      const unsettled = this.sent.length;
      this.breakOff(broken);
      const pause = broken.mayPass ? backoff.pause(broken.retryMillis) : undefined;
      console.error(`${unsettled} votes have no answer: ${broken.text}`);
      if (pause === undefined) {
        this.giveUp(broken);
        return broken.text;
      }
      await sleep(pause);
    }
    return undefined;
  }

  /** Sends over one connection until everything is settled, or it breaks: then returns why. */
  private async connection(): Promise<Failure | undefined> {
    this.durableThrough = 0;
    this.named.clear();
    const client = this.service.client();
    const over = new AbortController();
    try {
      if (!(await isConnected(client))) return notConnected(this.service.url);
      const call = bidiStream(client, IngestService.method.streamVotes, this.service.metadata);
      // Whoever reads the answers learns of errors.
      call.on("error", () => {});
      const sending = this.send(call, over.signal);
      // A broken input ends the call, and fails below.
      sending.catch(() => call.cancel());
      let broken: Failure | undefined;
      try {
        // Answers are read while votes are sent: the service stops reading from a client that does not.
        for await (const response of call) this.answered(response);
      } catch (error) {
        broken = failure(error);
      } finally {
        over.abort();
      }
      await sending;
      if (broken || (this.durableThrough > 0 && this.sent.length === 0)) return broken;
    } finally {
      client.close();
    }
    const text = "the stream ended before every vote was settled";
    return { text, code: "UNKNOWN", isNotStored: false, mayPass: true, retryMillis: 0 };
  }

  /** Sends until no more votes come, or the connection is over. Fails if the input is broken. */
  private async send(call: Call, over: AbortSignal) {
    try {
      while (await this.hasVotes(over)) {
        const message = this.waiting.slice(0, MESSAGE_VOTES);
        const wait = this.copies.waitMillis(message);
        if (wait > 0) {
          await sleep(wait, undefined, { signal: over });
          continue;
        }
        this.waiting.splice(0, message.length);
        this.sent.push(...message);
        if (!call.write({ votes: message.map(({ vote }) => vote) })) await once(call, "drain", { signal: over });
      }
      call.end();
    } catch (error) {
      if (!over.aborted) throw error;
    }
  }

  /** Waits for votes to send; false if no more come. Reads the input if there is room. */
  private async hasVotes(over?: AbortSignal): Promise<boolean> {
    for (;;) {
      over?.throwIfAborted();
      if (this.waiting.length > 0) return true;
      if (this.inputError) throw this.inputError;
      if (this.input === "over") return false;
      if (this.input === "idle" && this.sent.length + MESSAGE_VOTES <= WINDOW_VOTES) this.read();
      await once(this.news, "news", over ? { signal: over } : {});
    }
  }

  /** Starts to read a batch. It outlives the connection: what it brings waits for the next one. */
  private read() {
    this.input = "reading";
    this.nextBatch()
      .then((batch) => {
        this.waiting.push(...(batch ?? []).map((numbered) => ({ ...numbered, mayBeStored: false })));
        this.input = batch ? "idle" : "over";
      })
      .catch((error: unknown) => {
        this.inputError = error;
      })
      .finally(() => this.news.emit("news"));
  }

  private answered(response: StreamVotesResponse) {
    for (const rejection of response.rejections) this.named.set(Number(rejection.index), rejection);
    // A service that claims more than was sent is not believed.
    const settled = Math.min(Number(response.durableThrough) - this.durableThrough, this.sent.length);
    for (const { number, mayBeStored } of this.sent.splice(0, Math.max(settled, 0))) {
      const rejection = this.named.get(this.durableThrough);
      this.named.delete(this.durableThrough);
      this.durableThrough += 1;
      this.settled(number, rejection ? ofRejection(rejection, mayBeStored) : { kind: "durable" });
    }
    this.news.emit("news");
  }

  /** Votes that were sent have to be sent again, before all others. */
  private breakOff(broken: Failure) {
    if (!broken.isNotStored) {
      for (const sent of this.sent) sent.mayBeStored = true;
      this.copies.note(this.sent);
    }
    this.waiting = [...this.sent, ...this.waiting];
    this.sent = [];
  }

  private giveUp({ code, text }: Failure) {
    for (const { number, mayBeStored } of this.waiting) {
      const outcome: Outcome = mayBeStored
        ? { kind: "unknown", code, reason: `whether the vote was stored is unknown: ${text}` }
        : { kind: "rejected", code, reason: `the vote was not stored: ${text}` };
      this.settled(number, outcome);
    }
    this.waiting = [];
  }
}

/**
 * Votes that may be stored behind our back.
 *
 * What was sent over a connection that broke may be stored seconds later, behind its copy. That does no harm if the user has not
 * voted anew. Otherwise the old vote would win. So a vote of the same user for another option waits until the old one cannot land
 * any more, and everything behind it waits, too.
 */
class Copies {
  private until = 0;
  /** The option of each user in a poll; undefined if there were several. */
  private readonly choices = new Map<string, string | undefined>();

  note(sent: Numbered[]) {
    const now = performance.now();
    if (now >= this.until) this.choices.clear();
    this.until = now + COPIES_LAND_MILLIS;
    for (const { vote } of sent) {
      const user = userOf(vote);
      const isSame = !this.choices.has(user) || this.choices.get(user) === vote.optionId;
      this.choices.set(user, isSame ? vote.optionId : undefined);
    }
  }

  /** How long to wait before these votes may be sent. */
  waitMillis(message: Numbered[]): number {
    const left = this.until - performance.now();
    if (left <= 0) return 0;
    const waits = ({ vote }: Numbered) => {
      const user = userOf(vote);
      return this.choices.has(user) && this.choices.get(user) !== vote.optionId;
    };
    // Breaks may follow each other, and what is remembered must not grow.
    return this.choices.size > 4 * WINDOW_VOTES || message.some(waits) ? left : 0;
  }
}

/** No id has a control character. */
function userOf({ pollId, userId }: Vote): string {
  return `${pollId}\n${userId}`;
}
