// Calls of the server's JSON API. An answer is a value, and so is an error: nothing here throws.
// Must never say that something was refused, or done, unless the server said so.

import { $, write } from "./dom.js";
import { clock, sentence } from "./format.js";
import { credentials, hasToken } from "./identity.js";

const TIMEOUT_MS = 15_000;
const PAGES_MAX = 5;

/** `refused`: it certainly had no effect. `wait`: for how many milliseconds the server wants peace. */
export async function errorOf(response) {
  const { status, headers } = response;
  // Not everything between here and the server answers in JSON.
  const { error } = await response.json().catch(() => ({}));
  const refused = Boolean(error?.code) && (status < 500 || status === 503);
  return { message: `the answer was ${status}`, field: "", ...error, status, refused, wait: 1000 * headers.get("Retry-After") || 0 };
}

/** `{ value }` or `{ error }`. */
export async function call(method, path, body) {
  const controller = new AbortController();
  const timeout = setTimeout(() => controller.abort(), TIMEOUT_MS);
  try {
    const headers = { ...credentials(), ...(body && { "Content-Type": "application/json" }) };
    const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: controller.signal });
    return response.ok ? { value: await response.json() } : { error: await errorOf(response) };
  } catch {
    return { error: { message: "the server did not answer", field: "", wait: 0 } };
  } finally {
    clearTimeout(timeout);
  }
}

/** What the server said, and what to do about it. */
export function explain({ status, message }) {
  const expired = hasToken() ? "Your link does not count any more." : "You need a link of your own: open the one that you were given, or scan your code.";
  return `${sentence(message)} ${{ 401: expired, 403: "Your link is for something else." }[status] ?? ""}`.trim();
}

export const pollPath = (poll, rest = "") => `/v1/polls/${encodeURIComponent(poll)}${rest}`;
/** The poll in the address of this page. */
export const pollOfAddress = () => location.pathname.split("/")[2];
export const pause = (milliseconds) => new Promise((resume) => setTimeout(resume, milliseconds));

/** Does something now and again while the page is seen. */
export async function repeat(milliseconds, work) {
  for (;;) {
    if (!document.hidden) await work();
    await pause(milliseconds * (0.9 + Math.random() / 5));
  }
}

let answeredAt;

/** Shows all polls that the caller may see. Writes what is wrong into the document. */
export async function refreshPolls(show) {
  const polls = [];
  let token;
  for (let page = 0; token !== "" && page < PAGES_MAX; page += 1) {
    const { value, error } = await call("GET", `/v1/polls?page_size=1000&page_token=${encodeURIComponent(token ?? "")}`);
    if (error) return write($("problem"), answeredAt && !error.refused ? `Connection lost. The list is of ${clock(answeredAt)}. Trying again…` : explain(error));
    polls.push(...value.polls);
    token = value.next_page_token;
  }
  answeredAt = Date.now();
  write($("problem"), token && "There are more polls than are shown.");
  $("empty").hidden = polls.length > 0;
  return show(polls);
}
