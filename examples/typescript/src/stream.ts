/** Streams many votes, and says of each whether it is stored. Exit code 0 only if all are. */
import { createReadStream, createWriteStream } from "node:fs";
import { once } from "node:events";
import { parseArgs } from "node:util";
import { PollService } from "../gen/votestream/v1/polls_pb.js";
import { fromCsv, generated, type Line } from "./input.js";
import { failure, type Outcome } from "./outcome.js";
import { OPTIONS, Service, unary } from "./service.js";
import { VoteStream, type Numbered } from "./voteStream.js";

const USAGE = `usage: node build/src/stream.js [--server URL] [--results URL] [--report FILE]
           (--file FILE | --generate N --poll POLL [--seed N])

  --server    where votes are cast [${OPTIONS.server.default}]
  --results   where polls and results are, if that is another URL
  --file      CSV of poll_id,user_id,option_id, with or without this header; - for stdin
  --generate  one vote each of N users instead; the same seed generates the same votes
  --report    file for the votes that are not durable: line,outcome,code,reason`;

async function optionsOf(service: Service, pollId: string): Promise<string[]> {
  const client = service.client();
  try {
    const { poll } = await unary(client, PollService.method.getPoll, { pollId }, service.metadata);
    return poll?.options.map(({ optionId }) => optionId) ?? [];
  } catch (error) {
    throw new Error(failure(error).text);
  } finally {
    client.close();
  }
}

function readArguments() {
  const { values } = parseArgs({
    options: {
      ...OPTIONS,
      file: { type: "string" },
      generate: { type: "string" },
      seed: { type: "string", default: "1" },
      report: { type: "string" },
    },
  });
  const hasOne = (values.file === undefined) !== (values.generate === undefined);
  if (!hasOne || (values.generate !== undefined && values.poll === undefined)) throw new Error(USAGE);
  return values;
}

async function lines(values: ReturnType<typeof readArguments>): Promise<AsyncIterator<Line[]> | Iterator<Line[]>> {
  if (values.file !== undefined) return fromCsv(values.file === "-" ? process.stdin : createReadStream(values.file));
  const poll = values.poll ?? "";
  const options = await optionsOf(new Service(values.results ?? values.server), poll);
  return generated(Number(values.generate), poll, options, Number(values.seed));
}

async function main() {
  const values = readArguments();
  const service = new Service(values.server);
  const input = await lines(values);
  const report = values.report === undefined ? undefined : createWriteStream(values.report);
  const counts = { durable: 0, rejected: 0, unknown: 0 };
  const reasons: Record<string, number> = {};
  const settled = (number: number, outcome: Outcome) => {
    counts[outcome.kind] += 1;
    if (outcome.kind === "durable") return;
    const { kind, code, reason } = outcome;
    reasons[code] = (reasons[code] ?? 0) + 1;
    report?.write(`${number},${kind},${code},"${reason.replaceAll('"', '""')}"\n`);
  };
  const nextBatch = async (): Promise<Numbered[] | undefined> => {
    const { done, value } = await input.next();
    if (done) return undefined;
    return value.flatMap(({ number, vote }) => {
      if (vote) return [{ number, vote }];
      const reason = "the line is not poll_id,user_id,option_id in UTF-8";
      settled(number, { kind: "rejected", code: "NOT_A_VOTE", reason });
      return [];
    });
  };

  const gaveUp = await new VoteStream(service, nextBatch, settled).run();
  if (report) await once(report.end(), "finish");
  if (gaveUp) console.error(`the rest of the input was not read: ${gaveUp}`);
  console.log(JSON.stringify({ ...counts, reasons }));
  // Exits even if more input would come.
  process.exit(!gaveUp && counts.rejected + counts.unknown === 0 ? 0 : 1);
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
});
