// How numbers, shares, times and sentences look, and what time it is at the server.
// Must never touch the document or the network.

const whole = new Intl.NumberFormat("en");
const oneDigit = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
// The page is in English. Readers of English get dates in their own order.
const english = navigator.language?.startsWith("en") ? navigator.language : "en-GB";
const dateAndTime = new Intl.DateTimeFormat(english, { dateStyle: "medium", timeStyle: "short" });
const timeOfDay = new Intl.DateTimeFormat(english, { timeStyle: "medium" });

export const count = (number) => whole.format(number);
export const decimal = (number) => oneDigit.format(number);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const clock = (time) => timeOfDay.format(new Date(time));
export const moment = (time) => dateAndTime.format(new Date(time));

/**
 * A share in tenths of a percent, -1 if there is none. One that is not zero is never shown as 0%, and one that is not everything
 * never as 100%: such shares lie halfway between.
 */
export function level(votes, total) {
  if (!total) return -1;
  const tenths = Math.round((votes / total) * 1000);
  if (tenths === 0 && votes > 0) return 0.5;
  return tenths === 1000 && votes < total ? 999.5 : tenths;
}

export function percent(level) {
  if (level < 0) return "–";
  if (level === 0.5) return "<0.1%";
  if (level === 999.5) return ">99.9%";
  return level % 1000 ? `${decimal(level / 10)}%` : `${level / 10}%`;
}

/** `4:32`, `2 h 05 min`. */
export function duration(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  const minutes = Math.floor(seconds / 60);
  const two = (number) => String(number).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${two(seconds % 60)}` : `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

/** The server's words as a sentence. */
export const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

// Clocks of phones may be wrong by minutes.
let ahead = 0;

/** Learns the server's time from the `Date` header of an answer. It has whole seconds, so a small difference means nothing. */
export function learnTime(header) {
  const difference = Date.parse(header) - Date.now();
  ahead = Math.abs(difference) > 2500 ? difference : 0;
}

const DAYS_MS = 2 * 86_400_000;
/** Milliseconds until a time, by the server's clock. */
export const until = (time) => Date.parse(time) - Date.now() - ahead;
export const isSoon = (time) => until(time) < DAYS_MS;

/** `OPEN` of `POLL_STATE_OPEN`. */
export const stateOf = (poll) => poll.state.replace("POLL_STATE_", "");
/** `Open`. */
export const stateName = (poll) => stateOf(poll)[0] + stateOf(poll).slice(1).toLowerCase();
/** A poll and an option are called by their title, or by their id if they have none. */
export const nameOf = (thing) => thing.title || thing.option_id || thing.poll_id;

/** When a poll opens or closes, in a few words; empty if it has. */
export function timing(poll) {
  const [verb, time] = { SCHEDULED: ["opens", poll.opens_at], OPEN: ["closes", poll.closes_at] }[stateOf(poll)] ?? [];
  if (!time) return "";
  if (until(time) <= 0) return `${verb} now`;
  return isSoon(time) ? `${verb} in ${duration(until(time))}` : `${verb} ${moment(time)}`;
}
