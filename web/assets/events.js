// Follows a stream of server-sent events by fetch, since EventSource sends no token. Connects again whenever the stream ends,
// until the final result has come.
// Must never connect again at once or without limit: a million pages lose their server at the same moment.

import { errorOf } from "./api.js";
import { learnTime } from "./format.js";
import { credentials } from "./identity.js";

const WAIT_MAX_MS = 30_000;
// The server says something every 15 s, if only a comment.
const SILENCE_MAX_MS = 40_000;
// Browsers open few connections to a server. A page that nobody sees gives its own back.
const HIDDEN_MS = 20_000;
const LINE_MAX = 4 << 20;

/** Splits text into lines, and lines into events, as the HTML standard says. `take` gets `{ type, data, id, retry }`. */
export function parser(take) {
  let rest = "";
  let event = { type: "message", data: [] };
  const line = (text) => {
    if (text === "") {
      if (event.data.length) take({ ...event, data: event.data.join("\n") });
      event = { type: "message", data: [], id: event.id };
      return;
    }
    const [, name, value] = /^([^:]*)(?:: ?)?([^]*)$/.exec(text);
    if (name === "event") event.type = value;
    else if (name === "data") event.data.push(value);
    else if (name === "id") event.id = value;
    else if (name === "retry" && /^\d+$/.test(value)) take({ type: "retry", retry: Number(value) });
  };
  return (chunk) => {
    const lines = (rest + chunk).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    if (rest.length > LINE_MAX) throw new Error("a line of the stream is too long");
    lines.forEach(line);
  };
}

/**
 * Follows the stream at `path` until `final`, a refusal, or the answer's `stop()`. Calls
 * - `event(type, data)` for each event, with its JSON,
 * - `connected(yes)` when the connection is made, or was lost and the next attempt has failed,
 * - `refused(error)` if the server says that there is nothing to follow.
 * With `always`, it goes on while nobody sees the page.
 */
export function follow(path, { event, connected, refused, always = false }) {
  let lastId = "";
  let retry = 1000;
  let failures = 0;
  let over = false;
  let seen = true;
  let controller;
  const listening = new AbortController();
  let wake = () => {};

  const stop = () => {
    over = true;
    controller?.abort();
    listening.abort();
    wake();
  };

  const take = (received) => {
    if (received.type === "retry") {
      retry = received.retry;
      return;
    }
    const data = JSON.parse(received.data);
    if (received.id !== undefined) lastId = received.id;
    if (over) return;
    event(received.type, data);
    if (received.type === "final") stop();
  };

  /** One connection, to its end. Whether it was made, and how long the server asked to wait if it was not. */
  async function connect() {
    controller = new AbortController();
    let silence;
    const listen = () => {
      clearTimeout(silence);
      silence = setTimeout(() => controller.abort(), SILENCE_MAX_MS);
    };
    let made = false;
    try {
      listen();
      const response = await fetch(path, {
        headers: { ...credentials(), Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) },
        cache: "no-store",
        signal: controller.signal,
      });
      if (response.status === 204) {
        connected(true);
        stop();
        return { made: true };
      }
      if (!response.ok) {
        const error = await errorOf(response);
        if (error.refused && error.status !== 429 && error.status !== 503) {
          stop();
          refused(error);
        }
        return { made, wait: error.retryAfter };
      }
      learnTime(response.headers.get("Date"));
      made = true;
      failures = 0;
      connected(true);
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      const parse = parser(take);
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return { made };
        listen();
        parse(decoder.decode(value, { stream: true }));
      }
    } catch (problem) {
      if (problem instanceof SyntaxError) console.error("An event was not JSON:", problem);
      return { made };
    } finally {
      clearTimeout(silence);
      controller.abort();
    }
  }

  const sleep = (milliseconds) =>
    new Promise((resume) => {
      const timer = setTimeout(resume, milliseconds);
      wake = () => {
        clearTimeout(timer);
        resume();
      };
    });

  async function run() {
    while (!over) {
      if (!seen) {
        await new Promise((resume) => (wake = resume));
        continue;
      }
      const { made, wait = 0 } = await connect();
      if (over) return;
      if (!made && seen) {
        failures += 1;
        connected(false);
      }
      // Every page at its own moment: the wait doubles, and half of it is random.
      const most = Math.min(WAIT_MAX_MS, retry * 2 ** failures);
      await sleep(wait + most * (0.5 + Math.random() / 2));
    }
  }

  let leaving;
  const look = () => {
    clearTimeout(leaving);
    if (document.visibilityState === "visible") {
      seen = true;
      wake();
    } else if (!always) {
      leaving = setTimeout(() => {
        seen = false;
        controller?.abort();
      }, HIDDEN_MS);
    }
  };
  const { signal } = listening;
  document.addEventListener("visibilitychange", look, { signal });
  addEventListener("online", () => wake(), { signal });
  // The browser knows that the network is gone before the connection does.
  addEventListener("offline", () => {
    controller?.abort();
    connected(false);
  }, { signal });
  run();
  return { stop };
}
