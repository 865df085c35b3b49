// Calls of the server's JSON API. An answer is a value, and so is an error: nothing here throws.
// Must never say that something was refused, or done, unless the server said so.

import { sentence } from "./format.js";
import { credentials, hasToken } from "./identity.js";

const TIMEOUT_MS = 15_000;
const PAGES_MAX = 5;
// With these, and a code in the body, the server has done nothing. After any other error it may have.
const REFUSED = [400, 401, 403, 404, 409, 413, 415, 429, 503];

/** The error of an answer. `refused`: it certainly had no effect. `wait`: for how many milliseconds the server wants peace. */
export async function errorOf(response) {
  const { status, headers } = response;
  // Not everything between here and the server answers in JSON.
  const { error } = await response.json().catch(() => ({}));
  return {
    status,
    refused: REFUSED.includes(status) && Boolean(error?.code),
    message: error?.message ?? `the answer was ${status}`,
    field: error?.field ?? "",
    wait: 1000 * headers.get("Retry-After") || 0,
  };
}

/** `{ value }` or `{ error }`. An error without an answer has the status 0. */
export async function call(method, path, body) {
  const controller = new AbortController();
  const timeout = setTimeout(() => controller.abort(), TIMEOUT_MS);
  try {
    const headers = { ...credentials(), ...(body && { "Content-Type": "application/json" }) };
    const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: controller.signal });
    return response.ok ? { value: await response.json() } : { error: await errorOf(response) };
  } catch {
    return { error: { status: 0, refused: false, message: "the server did not answer", field: "", wait: 0 } };
  } finally {
    clearTimeout(timeout);
  }
}

/** All polls that the caller may see: `{ polls, more }`, or `{ error }`. `more`: there are too many to show. */
export async function allPolls() {
  const polls = [];
  let token = "";
  for (let page = 0; page === 0 || (token && page < PAGES_MAX); page += 1) {
    const { value, error } = await call("GET", `/v1/polls?page_size=1000&page_token=${encodeURIComponent(token)}`);
    if (error) return { error };
    polls.push(...value.polls);
    token = value.next_page_token;
  }
  return { polls, more: Boolean(token) };
}

export const pollPath = (poll, rest = "") => `/v1/polls/${encodeURIComponent(poll)}${rest}`;
/** The poll in the address of this page. Ids of polls need no escapes. */
export const pollOfAddress = () => location.pathname.split("/")[2];
export const pause = (milliseconds) => new Promise((resume) => setTimeout(resume, milliseconds));

/** Does something now and again while the page is seen. */
export async function repeat(milliseconds, work) {
  for (;;) {
    if (document.visibilityState === "visible") await work();
    await pause(milliseconds * (0.9 + Math.random() / 5));
  }
}

/** What the server said, and what to do about it. */
export function explain({ status, message }) {
  const anybody = "You need a link of your own: open the one that you were given, or scan your code.";
  const known = { 401: "Your link does not count any more. Ask for a new one.", 403: "Your link is for something else. Ask for another one." };
  return `${sentence(message)} ${status === 401 && !hasToken() ? anybody : (known[status] ?? "")}`.trim();
}
