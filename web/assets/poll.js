// The vote page of a poll: its state, the vote of whoever looks, and the results as they come in.
// Must never show a vote as stored before the server says that it is durable.

import { call, explain, pause, pollOfAddress, pollPath } from "./api.js";
import { Bars } from "./bars.js";
import { $, write } from "./dom.js";
import { clock, count, duration, isSoon, nameOf, percent, plural, sentence, stateName, stateOf, timing, until } from "./format.js";
import { browserUser, hasToken, lastVote, rememberVote } from "./identity.js";
import { isVotable, showBars, watch } from "./watch.js";

const FILTER_FROM = 30;
const LONG_TITLE = 90;
const SAY_EVERY_MS = 10_000;
// A vote that was certainly not stored, because the server is busy, is cast again.
const TRIES = 4;
const WAIT_MAX_MS = 20_000;

let poll;
let bars;
let casting = false;

// --- What is said aloud: the state at once, the results now and then.

let saidAt = -Infinity;
let sayLater;

function say(text) {
  clearTimeout(sayLater);
  saidAt = Date.now();
  if (text) $("said").textContent = text;
}

function sayResults({ total }) {
  clearTimeout(sayLater);
  sayLater = setTimeout(() => {
    const [first, ...others] = bars.leaders();
    const name = others.length ? plural(others.length + 1, "option") : first && nameOf(first.option);
    const lead = first ? `${name} ${others.length ? "lead" : "leads"} with ${percent(first.level)}. ` : "";
    say(`${lead}${plural(total, "person has", "people have")} voted.`);
  }, saidAt + SAY_EVERY_MS - Date.now());
}

// --- The poll.

function note({ hidden, results }) {
  const state = stateOf(poll);
  const elsewhere = state === "OPEN" && !isVotable(poll) ? "Votes are cast elsewhere." : "";
  const checked = poll.needs_recount ? "The stored votes are checked before the result becomes final." : "The last votes are being counted.";
  const own = { SCHEDULED: "Voting has not begun.", CLOSED: `Voting has ended. ${checked}` }[state] ?? elsewhere;
  return results?.final ? "" : `${own} ${sentence(hidden)}`.trim();
}

function showPoll(known) {
  const name = nameOf(poll);
  $("title").firstElementChild.textContent = name;
  $("title").classList.toggle("long", name.length > LONG_TITLE);
  document.title = `${name} – Votestream`;
  document.documentElement.dataset.state = stateOf(poll);
  write($("pill"), stateName(poll));
  write($("note"), note(known));
  $("options").classList.toggle("votable", isVotable(poll));
  for (const { pick } of bars.rows) pick.hidden = pick.disabled = !isVotable(poll);
  $("ballot").hidden = false;
  showChoice();
  tick();
}

function tick() {
  if (!poll) return;
  write($("when"), timing(poll));
  const counting = stateOf(poll) === "SCHEDULED" && isSoon(poll.opens_at);
  write($("countdown"), counting ? duration(until(poll.opens_at)) : "");
}

function makeRows() {
  bars = new Bars($("options"), poll.options);
  for (const row of bars.rows) {
    row.pick = row.item.querySelector("input");
    row.pick.value = row.option.option_id;
    for (const part of ["name", "share", "count"]) row[part].id = `${part}${row.index}`;
    row.pick.setAttribute("aria-labelledby", row.name.id);
    row.pick.setAttribute("aria-describedby", `${row.share.id} ${row.count.id}`);
    row.pick.checked = row.option.option_id === lastVote(poll);
  }
  $("tools").hidden = poll.options.length <= FILTER_FROM;
}

function showResults(results) {
  const { total, submitted, final, time } = results;
  const came = `${plural(submitted, "vote")} came in, changed ones included.`;
  write($("totals"), final ? `${plural(total, "person", "people")} voted. Final since ${clock(time)}.` : `${plural(total, "person has", "people have")} voted. ${came}`);
  write($("scale"), bars.legend());
  if (final) showVerdict(total);
  else sayResults(results);
}

function showVerdict(total) {
  const first = bars.leaders();
  const [kicker, winner, figures] = $("verdict").children;
  kicker.textContent = ["Nobody voted", "Winner"][first.length] ?? "It is a tie";
  winner.replaceChildren(...first.slice(0, 3).flatMap((row) => [quoted(row), " · "]).slice(0, -1));
  if (first.length > 3) winner.append(` and ${count(first.length - 3)} more`);
  const each = first.length > 1 ? " each" : "";
  write(figures, first.length ? `${percent(first[0].level)}${each}, ${plural(first[0].votes, "vote")} of ${count(total)}` : "");
  $("verdict").hidden = false;
  $("options").classList.add("final");
  say(`The result is final. ${kicker.textContent}: ${winner.textContent}. ${figures.textContent}`);
}

function refuse(error) {
  const missing = error.status === 404;
  for (const part of document.querySelectorAll("main > :not(h1, #face, #said)")) part.hidden = true;
  $("title").textContent = missing ? "There is no such poll" : "You cannot see this poll";
  document.title = `${$("title").textContent} – Votestream`;
  write($("face"), missing ? "A letter of its address may be wrong, or the poll is gone." : explain(error));
}

function draw(known, before) {
  if (known.lost !== before.lost) {
    write($("lost"), known.lost);
    document.documentElement.classList.toggle("lost", Boolean(known.lost));
    if (before.lost !== undefined) say(known.lost || "Connected again.");
  }
  if (known.error) return refuse(known.error);
  if (!known.poll) return;
  poll = known.poll;
  $("face").hidden = true;
  if (!bars) makeRows();
  showBars(bars, known);
  if (known.poll !== before.poll || known.results?.final) showPoll(known);
  if (before.poll && stateOf(before.poll) !== stateOf(poll)) say(`${stateName(poll)}. ${$("note").textContent}`);
  if (known.results !== before.results && stateOf(poll) !== "SCHEDULED") showResults(known.results);
}

// --- The vote.

const chosen = () => bars.rows.find((row) => row.pick.checked);

function quoted(row) {
  const name = document.createElement("bdi");
  name.textContent = nameOf(row.option);
  return name;
}

function showChoice() {
  const mine = lastVote(poll);
  const row = chosen();
  for (const { option, item, badge } of bars.rows) {
    if (item.classList.toggle("mine", option.option_id === mine) || badge.textContent) badge.textContent = option.option_id === mine ? "Your vote" : "";
  }
  const again = row?.option.option_id === mine || $("outcome").className === "unknown" ? "Cast again" : "Change vote";
  $("cast").textContent = casting ? "Casting…" : mine || $("outcome").className === "unknown" ? again : "Cast vote";
  $("cast").hidden = !isVotable(poll);
  $("outcome").parentElement.hidden = !isVotable(poll) && !$("outcome").textContent;
  $("choice").hidden = !row || !isVotable(poll);
  $("choice").firstElementChild.textContent = row ? nameOf(row.option) : "";
}

function outcome(kind, ...text) {
  $("outcome").className = kind;
  $("outcome").replaceChildren(...text);
  showChoice();
}

/** The error, or nothing if the vote is durable. */
async function cast(row) {
  const vote = { option_id: row.option.option_id, user_id: hasToken() ? undefined : browserUser() };
  for (let tries = 1; ; tries += 1) {
    const { error } = await call("POST", pollPath(pollOfAddress(), "/votes"), vote);
    if (error?.status === 400 && error.field.endsWith("user_id") && !vote.user_id) {
      // The token votes for others, or nobody looks at it.
      vote.user_id = browserUser();
      continue;
    }
    const busy = error?.refused && [429, 503].includes(error.status);
    if (!busy || tries === TRIES || error.wait > WAIT_MAX_MS) return error;
    const wait = Math.max(error.wait, 1000) * (1 + Math.random() / 2);
    outcome("busy", `Not stored yet: the server is busy. Trying again in ${Math.ceil(wait / 1000)} s…`);
    await pause(wait);
  }
}

async function submit(event) {
  event.preventDefault();
  const row = chosen();
  if (casting) return;
  if (!row) {
    bars.rows.find(({ item }) => !item.hidden)?.pick.focus();
    outcome("bad", "Choose an option first.");
    return;
  }
  casting = true;
  outcome("busy", "Casting your vote…");
  const error = await cast(row);
  casting = false;
  if (!error) {
    rememberVote(poll, row.option.option_id);
    outcome("good", "Your vote for ", quoted(row), " is stored. You can change it until the poll closes.");
  } else if (error.refused) outcome("bad", `Your vote was not stored. ${explain(error)}`);
  else outcome("unknown", "Your vote for ", quoted(row), " may or may not count: no answer came. Cast it again. That is safe, since only your last vote counts.");
}

// --- Many options.

function filter() {
  const fold = (text) => text.normalize("NFKD").toLowerCase();
  const wanted = fold($("filter").value.trim());
  for (const { option, item } of bars.rows) item.hidden = !fold(`${option.title} ${option.option_id}`).includes(wanted);
  const found = bars.rows.filter(({ item }) => !item.hidden).length;
  write($("found"), wanted && `${count(found)} of ${plural(bars.rows.length, "option")}`);
}

function sort({ target }) {
  const ranked = target.getAttribute("aria-pressed") === "false";
  target.setAttribute("aria-pressed", ranked);
  bars.arrange(ranked ? bars.ranked() : bars.rows);
}

$("ballot").addEventListener("submit", submit);
$("options").addEventListener("change", showChoice);
$("filter").addEventListener("input", filter);
$("sort").addEventListener("click", sort);
setInterval(tick, 1000);
watch(draw);
