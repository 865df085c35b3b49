// The vote page of a poll: its state, the vote of whoever looks, and the results as they come in.
// Must never show a vote as stored before the server says that it is durable.

import { advice, call, pause, pollOfAddress, pollPath } from "./api.js";
import { Bars } from "./bars.js";
import { $, write } from "./dom.js";
import { follow } from "./events.js";
import { clock, count, duration, nameOf, now, percent, plural, sentence, stateName, stateOf, timing } from "./format.js";
import { browserUser, hasToken, lastVote, rememberVote } from "./identity.js";

const FILTER_FROM = 30;
const SAY_EVERY_MS = 10_000;
// A vote that was certainly not stored because the server is busy is cast again, so many times.
const TRIES = 4;
const TRY_AFTER_MAX_MS = 20_000;

const id = pollOfAddress();
let poll;
let bars;
let hidden = "";
let results; // { counts, total, submitted, final }
let live = true;
let asOf;
let casting = false;

// --- What is said aloud: the state at once, the results now and then.

let lastSaid = -Infinity;
let later;
let saidText = "";

function say(text) {
  lastSaid = Date.now();
  saidText = text;
  $("said").textContent = text;
}

function sayResults() {
  clearTimeout(later);
  const wait = lastSaid + SAY_EVERY_MS - Date.now();
  if (wait > 0) {
    later = setTimeout(sayResults, wait);
    return;
  }
  const text = summary();
  if (text && text !== saidText) say(text);
}

function summary() {
  if (!results || results.final) return "";
  const [first, ...others] = bars.leaders();
  const voters = plural(results.total, "person has", "people have");
  if (!first) return "Nobody's vote is counted yet.";
  if (others.length) return `${count(others.length + 1)} options are level at ${percent(first.level)}. ${voters} voted.`;
  return `${nameOf(first.option)} leads with ${percent(first.level)}. ${voters} voted.`;
}

// --- The poll and its state.

function showPoll() {
  $("title").firstElementChild.textContent = nameOf(poll);
  document.title = `${nameOf(poll)} – Votestream`;
  const state = stateOf(poll);
  document.documentElement.dataset.state = state;
  write($("pill"), stateName(poll));
  write($("note"), note(state));
  const votable = state === "OPEN" && poll.source !== "POLL_SOURCE_STREAM";
  for (const { pick } of bars.rows) pick.hidden = pick.disabled = !votable;
  $("options").classList.toggle("votable", votable);
  $("cast").hidden = !votable;
  showChoice();
  tick();
}

function note(state) {
  if (state === "SCHEDULED") return `Voting has not begun. These are the options.${hidden && ` ${sentence(hidden)}`}`;
  if (poll.source === "POLL_SOURCE_STREAM" && state === "OPEN") return "Votes for this poll are cast elsewhere.";
  if (hidden) return sentence(hidden);
  if (poll.needs_recount) return "Voting has ended. The stored votes are being checked before the result becomes final.";
  if (state === "CLOSED") return "Voting has ended. The last votes are being counted; the final result comes in a moment.";
  return "";
}

function tick() {
  if (!poll) return;
  write($("when"), timing(poll));
  const opens = Date.parse(poll.opens_at) - now();
  write($("countdown"), stateOf(poll) === "SCHEDULED" && opens < 48 * 3_600_000 ? duration(opens) : "");
}

function made() {
  bars = new Bars($("options"), poll.options, (row) => {
    row.pick = row.item.querySelector("input");
    row.badge = row.item.querySelector(".badge");
    const [name, share, votes] = ["name", "share", "count"].map((part) => {
      const element = row.item.querySelector(`.${part}`);
      element.id = `${part}${row.index}`;
      return element.id;
    });
    row.pick.value = row.option.option_id;
    row.pick.setAttribute("aria-labelledby", name);
    row.pick.setAttribute("aria-describedby", `${share} ${votes}`);
  });
  $("tools").hidden = poll.options.length <= FILTER_FROM;
  const mine = bars.row(lastVote(poll));
  if (mine) mine.pick.checked = true;
}

// --- The vote.

const chosen = () => bars.rows.find((row) => row.pick.checked);

function showChoice() {
  const mine = lastVote(poll);
  const row = chosen();
  for (const { option, item, badge } of bars.rows) {
    const is = option.option_id === mine;
    if (item.classList.toggle("mine", is) !== (badge.textContent !== "")) badge.textContent = is ? "Your vote" : "";
  }
  const again = mine !== undefined && row?.option.option_id === mine;
  $("cast").textContent = casting ? "Casting…" : again ? "Cast again" : mine === undefined ? "Cast vote" : "Change vote";
  $("choice").firstElementChild.textContent = row ? nameOf(row.option) : "";
  $("choice").hidden = !row || $("cast").hidden;
  $("ballot").classList.toggle("idle", $("cast").hidden && !$("outcome").textContent);
}

function outcome(kind, ...text) {
  $("outcome").className = kind;
  $("outcome").replaceChildren(...text);
  showChoice();
}

function quoted(row) {
  const name = document.createElement("bdi");
  name.textContent = nameOf(row.option);
  return name;
}

/** Casts once more without delay if the token names nobody, and later while the server is busy. */
async function cast(row) {
  const vote = { option_id: row.option.option_id, ...(!hasToken() && { user_id: browserUser() }) };
  for (let left = TRIES - 1; ; left -= 1) {
    const { error } = await call("POST", pollPath(id, "/votes"), vote);
    if (error?.refused && error.status === 400 && /(^|\.)user_id$/.test(error.field) && !vote.user_id) {
      // The token votes for others, or nobody looks at it.
      vote.user_id = browserUser();
      continue;
    }
    const busy = error?.refused && (error.status === 429 || error.status === 503);
    if (!busy || left <= 0 || error.retryAfter > TRY_AFTER_MAX_MS) return error;
    const wait = Math.max(error.retryAfter, 1000) * (1 + Math.random() / 2);
    outcome("busy", `Your vote is not stored yet: the server is busy. Trying again in ${Math.ceil(wait / 1000)} s…`);
    await pause(wait);
  }
}

async function submit(event) {
  event.preventDefault();
  if (casting) return;
  const row = chosen();
  if (!row) {
    outcome("bad", "Choose an option first.");
    bars.rows[0]?.pick.focus();
    return;
  }
  casting = true;
  outcome("busy", "Casting your vote…");
  const error = await cast(row);
  casting = false;
  if (!error) {
    rememberVote(poll, row.option.option_id);
    outcome("good", "Your vote for ", quoted(row), " is stored. You can change it until the poll closes.");
  } else if (error.refused) {
    outcome("bad", `Your vote was not stored. ${sentence(error.message)} ${advice(error, hasToken())}`.trim());
  } else {
    outcome("unknown", "Your vote for ", quoted(row), " may or may not count: no answer came back. Cast it again. This is safe, since only your last vote counts.");
    $("cast").textContent = "Cast again";
  }
}

// --- Results.

function showResults() {
  const { counts, total, submitted, final } = results;
  bars.show(counts, total);
  write($("totals"), final
    ? `${plural(total, "person", "people")} voted. Final since ${clock(new Date(final))}.`
    : `${plural(total, "person has", "people have")} voted. ${plural(submitted, "vote", "votes")} came in, changed ones included.`);
  write($("scale"), bars.scale < 1000 ? `A full bar is ${percent(bars.scale)}.` : "");
  if (final) showVerdict();
  else sayResults();
}

function showVerdict() {
  const first = bars.leaders();
  const verdict = $("verdict");
  const [kicker, name, figures] = verdict.children;
  kicker.textContent = first.length > 1 ? "It is a tie" : "Winner";
  name.replaceChildren();
  first.slice(0, 3).forEach((row, index) => name.append(index ? " · " : "", quoted(row)));
  if (first.length > 3) name.append(` and ${count(first.length - 3)} more`);
  if (!first.length) kicker.textContent = "Nobody voted";
  else figures.textContent = `${percent(first[0].level)}${first.length > 1 ? " each" : ""}, ${plural(first[0].votes, "vote", "votes")} of ${count(results.total)}`;
  verdict.hidden = false;
  $("options").classList.add("final");
  clearTimeout(later);
  say(`The result is final. ${[kicker, name, figures].map((part) => part.textContent).filter(Boolean).join(": ")}`);
}

// As often as the screen is drawn at most, however many events came.
let drawing = false;

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    showResults();
  });
}

// --- The stream.

function takePoll(data) {
  const before = poll && stateOf(poll);
  poll = data.poll;
  hidden = data.hidden;
  if (!bars) made();
  showPoll();
  $("face").hidden = true;
  $("ballot").hidden = false;
  const state = stateOf(poll);
  if (before && before !== state && state !== "FINAL") say(state === "OPEN" ? "Voting is open." : `${stateName(poll)}. ${$("note").textContent}`);
}

const votesOf = (list, field) => list.map((option) => [option.option_id, option[field]]);

const handlers = {
  poll: takePoll,
  interim(data) {
    asOf = new Date(data.as_of);
    results = { counts: votesOf(data.options, "counted"), total: data.total_counted, submitted: data.total_submitted };
    draw();
  },
  final(data) {
    results = { counts: votesOf(data.options, "votes"), total: data.total_votes, final: data.finalized_at };
    hidden = "";
    poll = { ...poll, state: "POLL_STATE_FINAL" };
    showPoll();
    draw();
  },
};

function connection(yes) {
  if (yes === live) return;
  live = yes;
  document.documentElement.classList.toggle("lost", !live);
  const old = results && !live ? ` The numbers are of ${clock(asOf)}.` : "";
  write($("lost"), live ? "" : `Connection lost.${old} Trying again…`);
  say(live ? "Connected again." : $("lost").textContent);
}

function refused(error) {
  $("ballot").hidden = true;
  const missing = error.status === 404;
  $("title").firstElementChild.textContent = missing ? "There is no such poll" : "You cannot see this poll";
  document.title = `${$("title").textContent} – Votestream`;
  write($("face"), missing
    ? "Look at its address again: a letter may be wrong, or the poll is gone."
    : `${sentence(error.message)} ${advice(error, hasToken())}`.trim());
  for (const part of ["pill", "when", "countdown", "note", "verdict", "totals"]) $(part).hidden = true;
  document.documentElement.dataset.state = "NONE";
}

// --- What somebody does.

function filter() {
  const fold = (text) => text.toLowerCase().normalize("NFKD");
  const wanted = fold($("filter").value.trim());
  let shown = 0;
  for (const { option, item } of bars.rows) {
    item.hidden = !fold(`${option.title}\n${option.option_id}`).includes(wanted);
    shown += item.hidden ? 0 : 1;
  }
  write($("found"), wanted ? `${count(shown)} of ${plural(bars.rows.length, "option", "options")}` : "");
}

function sort() {
  const ranked = $("sort").getAttribute("aria-pressed") !== "true";
  $("sort").setAttribute("aria-pressed", ranked);
  bars.arrange(ranked ? bars.ranked() : bars.rows);
}

$("ballot").addEventListener("submit", submit);
$("options").addEventListener("change", showChoice);
$("filter").addEventListener("input", filter);
$("sort").addEventListener("click", sort);
setInterval(tick, 1000);
follow(pollPath(id, "/results/events"), {
  event: (type, data) => handlers[type]?.(data),
  connected: connection,
  refused,
});
