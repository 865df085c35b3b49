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

/** Takes text in pieces, and gives `take` each event. */
function parser(take) {
  let rest = "";
  let event = {};
  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    if (rest.length > LINE_MAX) throw new Error("too long a line");
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
      event[name] = name === "data" && event.data ? `${event.data}\n${value}` : value;
      if (line) continue;
      take(event);
      event = {};
    }
  };
}

/**
 * Calls `event(type, data)` for each event, `connected(yes)` when the connection is there or cannot be made, and
 * `refused(error)` if there is nothing to follow. With `always` it goes on while nobody sees the page. Returns what ends it.
 */
export function follow(poll, { event, connected, refused, always }) {
  let lastId = "";
  let retry = 1000;
  let failures = 0;
  let seen = true;
  let leaving;
  let wake;
  let connection = new AbortController();
  const over = new AbortController();
  const { signal } = over;

  function stop() {
    over.abort();
    connection.abort();
  }

  function take(received) {
    if (signal.aborted) return;
    retry = Number(received.retry) || retry;
    if (!received.data) return;
    lastId = received.id ?? lastId;
    event(received.event, JSON.parse(received.data));
    if (received.event === "final") stop();
  }

  async function read(response, heard) {
    failures = 0;
    connected(true);
    learnTime(response.headers.get("Date"));
    if (response.status === 204) return stop();
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const parse = parser(take);
    for (;;) {
      heard();
      const { done, value } = await reader.read();
      if (done) return 0;
      parse(decoder.decode(value, { stream: true }));
    }
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
      if (response.ok) return await read(response, heard);
      failures += 1;
      const error = await errorOf(response);
      if (!error.refused || error.wait || error.status === 503) return error.wait;
      stop();
      return refused(error);
    } catch {
      // Broken before the head of the answer has come, or since: then the next attempt tells.
      failures += 1;
      return 0;
    } finally {
      clearTimeout(silence);
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

  const leave = () => {
    seen = false;
    connection.abort();
  };
  const look = () => {
    clearTimeout(leaving);
    seen = true;
    if (!document.hidden) wake?.();
    else if (!always) leaving = setTimeout(leave, UNSEEN_MS);
  };
  // The browser knows before the connection does.
  const gone = () => {
    connection.abort();
    connected(false);
  };
  document.addEventListener("visibilitychange", look, { signal });
  addEventListener("online", look, { signal });
  addEventListener("offline", gone, { signal });
  run();
  return stop;
}
