/**
 * A page that shows a poll, casts a vote and watches the results, by gRPC-Web.
 *
 * It is opened as index.html?poll=POLL&user=USER#TOKEN, with server=URL and results=URL if they are not the defaults. What is
 * behind # is sent to no server as a part of the address. With a token that names the user, `user` is not needed.
 */
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/details_pb.js";
import { IngestService } from "../gen/votestream/v1/ingest_pb.js";
import { PollService, type Poll } from "../gen/votestream/v1/polls_pb.js";
import { ResultsService } from "../gen/votestream/v1/results_pb.js";

const CALL_MILLIS = 30_000;
const ATTEMPTS_MAX = 10;
const PAUSE_MIN_MILLIS = 100;
const PAUSE_MAX_MILLIS = 10_000;

type Outcome = { kind: "durable" } | { kind: "rejected" | "unknown"; reason: string };

const query = new URLSearchParams(location.search);
const server = query.get("server") ?? "http://127.0.0.1:50051";
const results = query.get("results") ?? server;
const pollId = query.get("poll") ?? "";
const userId = query.get("user") ?? "";
const token = decodeURIComponent(location.hash.slice(1));

const identify: Interceptor = (next) => (request) => {
  const { protocol, hostname } = new URL(request.url);
  if (token && protocol !== "https:" && !/^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname)) {
    throw new ConnectError("the token would be sent unencrypted", Code.FailedPrecondition);
  }
  if (token) request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};
const transport = (baseUrl: string) => createGrpcWebTransport({ baseUrl, interceptors: [identify] });
const ingest = createClient(IngestService, transport(server));
const polls = createClient(PollService, transport(results));
const counts = createClient(ResultsService, transport(results));

/**
 * A vote that was certainly not stored is cast again. One whose outcome is unknown is not: its copy would replace what the user
 * has cast elsewhere meanwhile, so that they decide.
 */
async function cast(optionId: string): Promise<Outcome> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await ingest.castVote({ vote: { pollId, userId, optionId } }, { timeoutMs: CALL_MILLIS });
      return { kind: "durable" };
    } catch (error) {
      const { code, rawMessage: reason } = ConnectError.from(error);
      if (REFUSED.has(code)) return { kind: "rejected", reason };
      const retryMillis = notStored(ConnectError.from(error));
      if (retryMillis === undefined) return { kind: "unknown", reason };
      if (attempt === ATTEMPTS_MAX) return { kind: "rejected", reason };
      await pause(attempt, retryMillis);
    }
  }
}

const REFUSED = new Set([
  Code.InvalidArgument,
  Code.NotFound,
  Code.FailedPrecondition,
  Code.PermissionDenied,
  Code.Unauthenticated,
]);

/** How long to wait at least, if the vote was certainly not stored. Only the service's own words prove that. */
function notStored(error: ConnectError): number | undefined {
  const [retry] = error.findDetails(RetryInfoSchema);
  const isNotStored = error
    .findDetails(ErrorInfoSchema)
    .some(({ domain, reason }) => domain === "votestream.v1" && reason === "VOTE_NOT_STORED");
  const proves =
    (error.code === Code.Unavailable && isNotStored) || (error.code === Code.ResourceExhausted && retry !== undefined);
  return proves ? Number(retry?.retryDelay?.seconds ?? 0) * 1_000 + (retry?.retryDelay?.nanos ?? 0) / 1_000_000 : undefined;
}

/** Shows the counts until the poll is final. A broken connection is not its end. */
async function watch() {
  for (let attempt = 1; ; attempt += 1) {
    try {
      for await (const { options } of counts.watchInterimResults({ pollId })) {
        attempt = 1;
        show("counts", options.map(({ optionId, counted }) => `${optionId} ${counted}`).join(", "));
      }
      const { options } = await counts.getFinalResults({ pollId });
      show("counts", `Final: ${options.map(({ optionId, votes }) => `${optionId} ${votes}`).join(", ")}`);
      return;
    } catch (error) {
      const { code, rawMessage } = ConnectError.from(error);
      if (REFUSED.has(code)) {
        show("counts", rawMessage);
        return;
      }
      await pause(attempt, 0);
    }
  }
}

/** Doubles from attempt to attempt, and differs from page to page: thousands lose the same service at the same moment. */
function pause(attempt: number, atLeast: number): Promise<void> {
  const step = Math.min(PAUSE_MIN_MILLIS * 2 ** (attempt - 1), PAUSE_MAX_MILLIS);
  return new Promise((resolve) => setTimeout(resolve, Math.max(step * (0.5 + Math.random() / 2), atLeast)));
}

function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no ${id}`);
  return found;
}

function show(id: string, text: string) {
  element(id).textContent = text;
}

async function vote(optionId: string, buttons: HTMLButtonElement[]) {
  for (const button of buttons) button.disabled = true;
  show("status", "Your vote is on its way.");
  const outcome = await cast(optionId);
  for (const button of buttons) button.disabled = false;
  if (outcome.kind === "durable") show("status", "Your vote is stored. You may change it as long as the poll is open.");
  if (outcome.kind === "rejected") show("status", `Your vote does not count: ${outcome.reason}`);
  if (outcome.kind === "unknown") {
    show("status", "It is unknown whether your vote is stored. Vote again to be sure: only your last vote counts.");
  }
}

function build({ title, options }: Poll) {
  show("title", title || pollId);
  const buttons = options.map((option) => {
    const button = document.createElement("button");
    button.textContent = option.title || option.optionId;
    button.addEventListener("click", () => void vote(option.optionId, buttons));
    return button;
  });
  for (const button of buttons) element("options").appendChild(document.createElement("li")).append(button);
}

try {
  const { poll } = await polls.getPoll({ pollId }, { timeoutMs: CALL_MILLIS });
  if (poll) build(poll);
  await watch();
} catch (error) {
  show("status", ConnectError.from(error).rawMessage);
}
