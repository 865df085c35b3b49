// Follows a poll's server-sent events by fetch, since EventSource sends no token. Connects again whenever the stream ends, until
// the final result has come.
// Must never connect again at once: a million pages lose their server at the same moment.

import { errorOf, pollPath } from "./api.js";
import { learnTime } from "./format.js";
import { credentials } from "./identity.js";

const WAIT_MAX_MS = 30_000;
// The server says something every 15 s.
const SILENCE_MAX_MS = 40_000;
// Browsers open few connections to a server, so a page that nobody sees gives its own back.
const UNSEEN_MS = 20_000;
const LINE_MAX = 4 << 20;

/** Takes text in pieces. Gives `take` each event, and `{ retry }`. */
function parser(take) {
  let rest = "";
  let event = { type: "message", data: "" };
  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    if (rest.length > LINE_MAX) throw new Error("a line of the stream is too long");
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
      if (name === "event") event.type = value;
      if (name === "data") event.data += `${value}\n`;
      if (name === "id") event.id = value;
      if (name === "retry") take({ retry: Number(value) });
      if (line) continue;
      if (event.data) take(event);
      event = { type: "message", data: "" };
    }
  };
}

/**
 * Calls `event(type, data)` for each event, `connected(yes)` when the connection is there or cannot be made, and
 * `refused(error)` if there is nothing to follow. With `always` it goes on while nobody sees the page. Returns what ends it.
 */
export function follow(poll, { event, connected, refused, always = false }) {
  let lastId = "";
  let retry = 1000;
  let failures = 0;
  let seen = true;
  let connection = new AbortController();
  const over = new AbortController();
  const { signal } = over;
  let wake = () => {};

  const stop = () => {
    over.abort();
    connection.abort();
    wake();
  };

  function take(received) {
    if (signal.aborted) return;
    if (received.retry) retry = received.retry;
    if (!received.data) return;
    lastId = received.id ?? lastId;
    event(received.type, JSON.parse(received.data));
    if (received.type === "final") stop();
  }

  /** One connection, to its end. For how long the server wants peace. */
  async function connect() {
    connection = new AbortController();
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => connection.abort(), SILENCE_MAX_MS);
    };
    heard();
    try {
      const headers = { ...credentials(), Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) };
      const response = await fetch(pollPath(poll, "/results/events"), { headers, cache: "no-store", signal: connection.signal });
      if (!response.ok) {
        failures += 1;
        const error = await errorOf(response);
        if (!error.refused || error.wait || error.status === 503) return error.wait;
        stop();
        refused(error);
        return 0;
      }
      failures = 0;
      connected(true);
      if (response.status === 204) stop();
      learnTime(response.headers.get("Date"));
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      const parse = parser(take);
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return 0;
        heard();
        parse(decoder.decode(value, { stream: true }));
      }
    } catch {
      // Broken before the head of the answer has come, or since: then the next attempt tells.
      failures += 1;
      return 0;
    } finally {
      clearTimeout(silence);
      connection.abort();
    }
  }

  async function run() {
    while (!signal.aborted) {
      const wait = seen ? await connect() : 0;
      if (signal.aborted) return;
      if (failures > 1) connected(false);
      // Every page at its own moment: half of the wait is random.
      const most = Math.min(WAIT_MAX_MS, retry * 2 ** failures);
      await new Promise((resume) => {
        wake = resume;
        if (seen) setTimeout(resume, wait + most * (0.5 + Math.random() / 2));
      });
    }
  }

  let leaving;
  const look = () => {
    clearTimeout(leaving);
    seen = true;
    if (document.visibilityState === "visible") wake();
    else if (!always) {
      leaving = setTimeout(() => {
        seen = false;
        connection.abort();
      }, UNSEEN_MS);
    }
  };
  document.addEventListener("visibilitychange", look, { signal });
  addEventListener("online", () => wake(), { signal });
  // The browser knows before the connection does.
  const gone = () => {
    connection.abort();
    connected(false);
  };
  addEventListener("offline", gone, { signal });
  run();
  return stop;
}
