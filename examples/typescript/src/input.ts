/** Where the votes of a stream come from: a CSV file, or a generator. Both number them from 1 and yield batches. */
import { createHash } from "node:crypto";
import type { Vote } from "./voteStream.js";

const FIELDS = ["poll_id", "user_id", "option_id"];
/** A field is quoted or plain. One line is one vote, so that a stray quote costs one vote only. */
const FIELD = '[ \\t]*(?:"((?:[^"]|"")*)"[ \\t]*|([^",]*))';
const LINE = new RegExp(`^${FIELDS.map(() => FIELD).join(",")}$`);
const BATCH_VOTES = 100;

/** `vote` is undefined if the line is no vote. */
export interface Line {
  number: number;
  vote: Vote | undefined;
}

/** Lines that have come do not wait for others. */
export async function* fromCsv(chunks: AsyncIterable<Buffer>): AsyncGenerator<Line[]> {
  let rest: Buffer = Buffer.alloc(0);
  let number = 0;
  const read = (lines: Buffer[]): Line[] =>
    lines.flatMap((line) => {
      number += 1;
      const fields = fieldsOf(line, number === 1);
      if (fields?.length === 0 || (number === 1 && fields?.join() === FIELDS.join())) return [];
      const [pollId, userId, optionId] = fields ?? [];
      const isVote = pollId !== undefined && userId !== undefined && optionId !== undefined;
      return [{ number, vote: isVote ? { pollId, userId, optionId } : undefined }];
    });
  for await (const chunk of chunks) {
    const lines = split(Buffer.concat([rest, chunk]));
    rest = lines.pop() ?? rest;
    yield* batches(read(lines));
  }
  yield* batches(read([rest]));
}

function split(bytes: Buffer): Buffer[] {
  const lines: Buffer[] = [];
  let from = 0;
  for (let to = bytes.indexOf(10); to >= 0; to = bytes.indexOf(10, from)) {
    lines.push(bytes.subarray(from, to));
    from = to + 1;
  }
  return [...lines, bytes.subarray(from)];
}

function* batches(lines: Line[]): Generator<Line[]> {
  for (let from = 0; from < lines.length; from += BATCH_VOTES) yield lines.slice(from, from + BATCH_VOTES);
}

/** The fields of a line: none if it is blank, undefined if it is not a vote. */
function fieldsOf(line: Buffer, isFirst: boolean): string[] | undefined {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: !isFirst }).decode(line).replace(/\r$/, "");
  } catch {
    return undefined;
  }
  if (text.trim() === "") return [];
  const match = LINE.exec(text);
  // Blanks around a field are no part of it, blanks inside quotes are.
  return match ? FIELDS.map((_, at) => match[2 * at + 1]?.replaceAll('""', '"') ?? match[2 * at + 2]?.trim() ?? "") : undefined;
}

/** One vote a user. The same seed gives the same votes. */
export function* generated(count: number, pollId: string, optionIds: string[], seed: number): Generator<Line[]> {
  const choose = (number: number) => {
    const hash = createHash("sha256").update(`${seed} ${number}`).digest();
    return optionIds[hash.readUInt32BE() % optionIds.length] ?? "";
  };
  for (let first = 1; first <= count; first += BATCH_VOTES) {
    const length = Math.min(BATCH_VOTES, count + 1 - first);
    yield Array.from({ length }, (_, at) => {
      const number = first + at;
      return { number, vote: { pollId, userId: `user-${seed}-${number}`, optionId: choose(number) } };
    });
  }
}
