// How numbers, shares, times and sentences look, and what time it is at the server.
// Must never touch the document or the network.

const dateLocale = navigator.language?.startsWith("en") ? navigator.language : "en-GB";
const dateAndTime = new Intl.DateTimeFormat(dateLocale, { dateStyle: "medium", timeStyle: "short" });
const timeOfDay = new Intl.DateTimeFormat(dateLocale, { timeStyle: "medium" });
const whole = new Intl.NumberFormat("en");
const oneDigit = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const count = (number) => whole.format(number);
export const decimal = (number) => oneDigit.format(number);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const clock = (time) => timeOfDay.format(new Date(time));
export const moment = (time) => dateAndTime.format(new Date(time));
/** The server's words as a sentence. */
export const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

/** A share in tenths of a percent; -1 if there is none. What is not zero, or not everything, never looks so: it lies halfway. */
export function level(votes, total) {
  if (!total) return -1;
  const tenths = Math.round((votes / total) * 1000);
  if (tenths === 0 && votes) return 0.5;
  return tenths === 1000 && votes < total ? 999.5 : tenths;
}

const ends = { [-1]: "–", 0: "0%", 0.5: "<0.1%", 999.5: ">99.9%", 1000: "100%" };
export const percent = (level) => ends[level] ?? `${decimal(level / 10)}%`;

/** `4:32`, `2 h 05 min`. */
export function duration(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  const minutes = Math.floor(seconds / 60);
  const two = (number) => String(number).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${two(seconds % 60)}` : `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

// Clocks of phones may be wrong by minutes.
let ahead = 0;

/** Learns the time from the `Date` header of an answer. It has whole seconds, so a small difference means nothing. */
export function learnTime(header) {
  const difference = Date.parse(header) - Date.now();
  ahead = Math.abs(difference) > 2500 ? difference : 0;
}

/** Milliseconds until a time of the server. */
export const until = (time) => Date.parse(time) - Date.now() - ahead;

/** `OPEN` of `POLL_STATE_OPEN`. */
export const stateOf = (poll) => poll.state.replace("POLL_STATE_", "");
/** `Open`. */
export const stateName = (poll) => stateOf(poll)[0] + stateOf(poll).slice(1).toLowerCase();
/** The title of a poll or an option, or its id if it has none. */
export const nameOf = (thing) => thing.title || thing.option_id || thing.poll_id;

const DAYS_MS = 2 * 86_400_000;

/** When a poll opens or closes, in a few words; empty if it has. */
export function timing(poll) {
  const [verb, time] = { SCHEDULED: ["opens", poll.opens_at], OPEN: ["closes", poll.closes_at] }[stateOf(poll)] ?? [];
  if (!time) return "";
  return `${verb} ${until(time) < DAYS_MS ? `in ${duration(until(time))}` : moment(time)}`;
}

/** The time until a poll opens, if that is soon. */
export const countdown = (poll) => (stateOf(poll) === "SCHEDULED" && until(poll.opens_at) < DAYS_MS ? duration(until(poll.opens_at)) : "");
