// Calls of the server's JSON API. An answer is a value, and so is an error: nothing here throws.
// Must never say that a vote was refused, or stored, unless the server said so.

import { credentials } from "./identity.js";

const TIMEOUT_MS = 15_000;

// With these, and a body that says why, the server has not done what it was asked for. After any other error it may have.
const REFUSED = new Set([400, 401, 403, 404, 405, 409, 413, 415, 429, 503]);

/**
 * The error of an answer: `refused` says whether it certainly had no effect, `retryAfter` after how many milliseconds to try
 * again, if the server said so.
 */
export async function errorOf(response) {
  let error;
  try {
    ({ error } = await response.json());
  } catch {
    // Something between here and the server has answered.
  }
  return {
    status: response.status,
    refused: REFUSED.has(response.status) && Boolean(error?.code),
    message: error?.message ?? `the answer was ${response.status} ${response.statusText}`.trim(),
    field: error?.field ?? "",
    retryAfter: 1000 * Number(response.headers.get("Retry-After")) || 0,
  };
}

/** `{ value }` or `{ error }`, see `errorOf`. An error without an answer has the status 0. */
export async function call(method, path, body) {
  const controller = new AbortController();
  const timeout = setTimeout(() => controller.abort(), TIMEOUT_MS);
  try {
    const response = await fetch(path, {
      method,
      headers: { ...credentials(), Accept: "application/json", ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
      signal: controller.signal,
    });
    if (!response.ok) return { error: await errorOf(response) };
    return { value: await response.json() };
  } catch {
    return { error: { status: 0, refused: false, message: "the server did not answer", field: "", retryAfter: 0 } };
  } finally {
    clearTimeout(timeout);
  }
}

/** The path of a poll in the API; `rest` begins with a slash. */
export const pollPath = (poll, rest = "") => `/v1/polls/${encodeURIComponent(poll)}${rest}`;

/** The poll in the address of this page. */
export function pollOfAddress() {
  try {
    return decodeURIComponent(location.pathname.split("/")[2] ?? "");
  } catch {
    return location.pathname.split("/")[2];
  }
}

const PAGES_MAX = 5;

/** All polls that the caller may see: `{ polls, more }`, or `{ error }`. `more` says that there are too many to show. */
export async function allPolls() {
  const polls = [];
  let token = "";
  for (let page = 0; page < PAGES_MAX; page += 1) {
    const { value, error } = await call("GET", `/v1/polls?page_size=1000&page_token=${encodeURIComponent(token)}`);
    if (error) return { error };
    polls.push(...value.polls);
    token = value.next_page_token;
    if (!token) break;
  }
  return { polls, more: Boolean(token) };
}

/** Calls `work` now and again, `milliseconds` after it has ended, while the page is seen. */
export async function repeat(milliseconds, work) {
  for (;;) {
    if (document.visibilityState === "visible") await work();
    await pause(milliseconds * (0.9 + Math.random() / 5));
  }
}

export const pause = (milliseconds) => new Promise((resume) => setTimeout(resume, milliseconds));

/** What somebody can do about an error, in a sentence; empty if there is nothing. */
export function advice({ status }, signedIn) {
  if (status === 401 && signedIn) return "Your link does not count any more. Ask for a new one.";
  if (status === 401) return "You need a link of your own: open the one that you were given, or scan your code.";
  if (status === 403) return "Your link is for something else. Ask whoever gave it to you for another one.";
  return "";
}
