// Every RPC that a browser can make, unary and server streaming, by a generated client over gRPC-Web. Runs in Node and in pages.
// The tests of this file are its `expect`s; a call that is missing here fails in `everyRpc`.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { IngestService } from "./gen/votestream/v1/ingest_pb.js";
import { PollService } from "./gen/votestream/v1/polls_pb.js";
import { ResultsService } from "./gen/votestream/v1/results_pb.js";
import { Health, HealthCheckResponse_ServingStatus as Status } from "./gen/grpc/health/v1/health_pb.js";

/** Longest time of a call on a busy machine, in milliseconds. */
const PATIENCE = 60_000;

function expect(what, good, seen) {
  if (!good) {
    const shown = JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? `${value}` : value));
    throw new Error(`${what}: ${shown}`);
  }
}

/** A client that notes which RPCs were called. */
function client(service, url, called) {
  const transport = createGrpcWebTransport({ baseUrl: url, defaultTimeoutMs: PATIENCE });
  const inner = createClient(service, transport);
  return new Proxy(inner, {
    get(target, method) {
      called.add(`${service.typeName}/${method}`);
      return target[method];
    },
  });
}

async function refused(call, code, what) {
  try {
    await call();
  } catch (error) {
    const seen = ConnectError.from(error);
    expect(`${what} is ${Code[code]}`, seen.code === code, `${Code[seen.code]}: ${seen.message}`);
    return;
  }
  expect(`${what} is ${Code[code]}`, false, "it succeeded");
}

async function health(url, called) {
  const health = client(Health, url, called);
  const { status } = await health.check({});
  expect("the service is healthy", status === Status.SERVING, status);
  for await (const now of health.watch({})) {
    expect("it is seen to be healthy", now.status === Status.SERVING, now);
    break;
  }
}

/** The calls of a page that casts votes. `poll` is open. */
export async function votes(ingest, poll, called = new Set()) {
  await health(ingest, called);
  const voting = client(IngestService, ingest, called);
  const vote = { pollId: poll, userId: "ada", optionId: "a" };
  await voting.castVote({ vote });
  await voting.castVote({ vote: { ...vote, optionId: "ü" } });
  await voting.castVote({ vote: { ...vote, userId: "bob" } });
  await refused(() => voting.castVote({ vote: { ...vote, pollId: "none" } }), Code.NotFound, "an unknown poll");
  await refused(() => voting.castVote({ vote: { ...vote, optionId: "z" } }), Code.InvalidArgument, "an unknown option");
  await refused(() => voting.castVote({}), Code.InvalidArgument, "no vote");
  return called;
}

/** The calls of a page that shows polls and results, before there are votes. */
export async function create(results, poll, called = new Set()) {
  await health(results, called);
  const polls = client(PollService, results, called);
  const definition = {
    pollId: poll,
    title: "Größe?",
    options: [{ optionId: "a" }, { optionId: "ü", title: "Übermut" }],
    closesAt: timestampFromDate(new Date(Date.now() + 3_600_000)),
  };
  const created = await polls.createPoll(definition);
  expect("a poll is created", created.poll.title === "Größe?", created);
  await refused(() => polls.createPoll({ ...definition, title: "no" }), Code.AlreadyExists, "another poll of that id");
  const got = await polls.getPoll({ pollId: poll });
  expect("it is got", got.poll.options[1].title === "Übermut", got);
  const listed = await polls.listPolls({ pageSize: 1_000 });
  expect("it is listed", listed.polls.some((listed) => listed.pollId === poll), listed);
  await refused(() => polls.getPoll({ pollId: "none" }), Code.NotFound, "no poll");
  return called;
}

/** The calls of the same page after the votes. */
export async function results(results, poll, called = new Set()) {
  const reading = client(ResultsService, results, called);
  let seen = 0;
  for await (const interim of reading.watchInterimResults({ pollId: poll })) {
    seen += 1;
    if (interim.totalSubmitted === 3n && interim.totalCounted === 2n) break;
  }
  expect("interim results are watched", seen > 0, seen);
  const interim = await reading.getInterimResults({ pollId: poll });
  expect("interim results hold every vote", interim.totalSubmitted === 3n, interim);
  await refused(() => reading.getFinalResults({ pollId: poll }), Code.FailedPrecondition, "a result before the end");
  await client(PollService, results, called).closePoll({ pollId: poll });
  // The stream of a poll ends by itself.
  for await (const interim of reading.watchInterimResults({ pollId: poll })) {
    expect("interim results stay", interim.totalSubmitted === 3n, interim);
  }
  const final = await reading.getFinalResults({ pollId: poll, wait: true });
  const counts = Object.fromEntries(final.options.map(({ optionId, votes }) => [optionId, Number(votes)]));
  expect("one vote a user, the last", counts.a === 1 && counts["ü"] === 1 && final.totalVotes === 2n, final);
  const recount = await reading.recount({ pollId: poll });
  expect("the recount agrees", recount.matches && recount.final, recount);
  await refused(() => reading.releaseResults({ pollId: poll }), Code.FailedPrecondition, "releasing what is shown");
  return called;
}

/** Fails unless every RPC that a browser can make was made. */
export function everyRpc(called) {
  const possible = [IngestService, PollService, ResultsService, Health].flatMap((service) =>
    service.methods
      .filter(({ methodKind }) => methodKind === "unary" || methodKind === "server_streaming")
      .map(({ localName }) => `${service.typeName}/${localName}`),
  );
  const missing = possible.filter((rpc) => !called.has(rpc));
  expect("every RPC is called", missing.length === 0, missing);
  return possible.length;
}

/** A page of an origin that may not call gets no answer and changes nothing. */
export async function nothing(ingest, poll) {
  const voting = client(IngestService, ingest, new Set());
  let answered = true;
  await voting.castVote({ vote: { pollId: poll, userId: "eve", optionId: "a" } }).catch(() => {
    answered = false;
  });
  expect("a page of an origin that is not allowed gets no answer", !answered, answered);
}

// Pages find the functions here.
globalThis.votestream = { votes, create, results, nothing };
