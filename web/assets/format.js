// How numbers, shares, times and sentences look, and what time it is at the server.
// Must never touch the document or the network.

const whole = new Intl.NumberFormat("en");
const oneDigit = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
// The page is in English. Readers of English get dates in their own order.
const dateLocale = navigator.language?.startsWith("en") ? navigator.language : "en-GB";
const dateAndTime = new Intl.DateTimeFormat(dateLocale, { dateStyle: "medium", timeStyle: "short" });
const timeOfDay = new Intl.DateTimeFormat(dateLocale, { timeStyle: "medium" });

export const count = (number) => whole.format(number);
export const decimal = (number) => oneDigit.format(number);
export const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;
export const clock = (date) => timeOfDay.format(date);
export const moment = (time) => dateAndTime.format(new Date(time));

// A share in tenths of a percent, as far as it is shown. A share that is not zero is never shown as 0%, and one that is not
// everything never as 100%: both have a level of their own.
const NEARLY_NOTHING = 0.5;
const NEARLY_ALL = 999.5;

export function level(votes, total) {
  if (!total) return -1;
  const tenths = Math.round((votes / total) * 1000);
  if (tenths === 0 && votes > 0) return NEARLY_NOTHING;
  if (tenths >= 1000 && votes < total) return NEARLY_ALL;
  return tenths;
}

export function percent(level) {
  if (level < 0) return "–";
  if (level === NEARLY_NOTHING) return "<0.1%";
  if (level === NEARLY_ALL) return ">99.9%";
  return level === 0 || level === 1000 ? `${level / 10}%` : `${decimal(level / 10)}%`;
}

/** How long something takes: `4:32`, `2 h 05 min`, `3 days`. */
export function duration(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  const two = (number) => String(number).padStart(2, "0");
  if (seconds < 3600) return `${Math.floor(seconds / 60)}:${two(seconds % 60)}`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${two(Math.floor(seconds / 60) % 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}

/** How far something lags: `12 ms`, `1.5 s`. */
export const lag = (milliseconds) =>
  milliseconds < 1000 ? `${count(Math.round(milliseconds))} ms` : `${decimal(milliseconds / 1000)} s`;

/** The server's words as a sentence. */
export function sentence(text) {
  if (!text) return "";
  const [first] = text;
  return first.toUpperCase() + text.slice(first.length) + (/[.!?…]$/.test(text) ? "" : ".");
}

// Clocks of phones may be wrong by minutes. Answers have whole seconds, so a small difference means nothing.
let ahead = 0;

/** Learns the server's time from the `Date` header of an answer that has just arrived. */
export function learnTime(header) {
  const difference = Date.parse(header ?? "") + 500 - Date.now();
  if (Number.isFinite(difference)) ahead = Math.abs(difference) < 2500 ? 0 : difference;
}

/** The time at the server, in milliseconds. */
export const now = () => Date.now() + ahead;

const states = { SCHEDULED: "Scheduled", OPEN: "Open", CLOSED: "Closed", FINAL: "Final" };

/** `OPEN` of `POLL_STATE_OPEN`. */
export const stateOf = (poll) => poll.state.replace("POLL_STATE_", "");
export const stateName = (poll) => states[stateOf(poll)] ?? "Unknown";

/** A poll is called by its title, or by its id if it has none. So is an option. */
export const nameOf = (thing) => thing.title || thing.option_id || thing.poll_id;

/** When a poll opens or closes, in a few words; empty if it has. */
export function timing(poll) {
  const state = stateOf(poll);
  const [verb, time] = { SCHEDULED: ["opens", poll.opens_at], OPEN: ["closes", poll.closes_at] }[state] ?? [];
  if (!time) return "";
  const left = Date.parse(time) - now();
  if (left <= 0) return `${verb} now`;
  return left < 48 * 3_600_000 ? `${verb} in ${duration(left)}` : `${verb} ${moment(time)}`;
}
