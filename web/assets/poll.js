// The vote page of a poll: its state, the vote of whoever looks, and the results as they come in.
// Must never show a vote as stored before the server says that it is durable.

import { call, explain, pause, pollOfAddress, pollPath } from "./api.js";
import { Bars } from "./bars.js";
import { $, write } from "./dom.js";
import { clock, count, countdown, nameOf, percent, plural, sentence, stateName, stateOf, timing } from "./format.js";
import { browserUser, hasToken, lastVote, rememberVote } from "./identity.js";
import { isVotable, watch } from "./watch.js";

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
  $("said").textContent = text;
}

function sayResults(total) {
  clearTimeout(sayLater);
  sayLater = setTimeout(() => {
    const [first, ...others] = bars.leaders();
    const name = others.length ? plural(others.length + 1, "option") : first && nameOf(first.option);
    say(`${first ? `In front: ${name} with ${percent(first.level)}. ` : ""}${plural(total, "person has", "people have")} voted.`);
  }, saidAt + SAY_EVERY_MS - Date.now());
}

// --- The poll.

function note({ hidden, results }) {
  const checked = poll.needs_recount ? "The stored votes are checked before the result becomes final." : "The last votes are being counted.";
  const elsewhere = isVotable(poll) ? "" : "Votes are cast elsewhere.";
  const own = { SCHEDULED: "Voting has not begun.", OPEN: elsewhere, CLOSED: `Voting has ended. ${checked}` }[stateOf(poll)] ?? "";
  return results?.final ? "" : `${own} ${sentence(hidden)}`.trim();
}

function showPoll(known) {
  write($("title").firstElementChild, nameOf(poll));
  $("title").classList.toggle("long", nameOf(poll).length > LONG_TITLE);
  write($("pill"), stateName(poll));
  write($("note"), note(known));
  $("options").classList.toggle("votable", isVotable(poll));
  for (const { pick } of bars.rows) pick.hidden = pick.disabled = !isVotable(poll);
  showChoice();
  tick();
}

function tick() {
  if (!poll) return;
  write($("when"), timing(poll));
  write($("countdown"), countdown(poll));
}

function makeRows() {
  bars = new Bars($("options"), poll.options);
  for (const row of bars.rows) {
    row.pick = row.item.querySelector("input");
    for (const part of ["name", "share", "count"]) row[part].id = `${part}${row.index}`;
    row.pick.setAttribute("aria-labelledby", row.name.id);
    row.pick.setAttribute("aria-describedby", `${row.share.id} ${row.count.id}`);
    row.pick.checked = row.option.option_id === lastVote(poll);
  }
  $("tools").hidden = bars.rows.length <= FILTER_FROM;
  $("face").hidden = true;
  $("ballot").hidden = false;
}

function showResults({ votes, total, submitted, final, time }) {
  bars.show(votes, total);
  const came = `${plural(submitted, "vote")} came in, changed ones included.`;
  write($("totals"), final ? `${plural(total, "person", "people")} voted. Final since ${clock(time)}.` : `${plural(total, "person has", "people have")} voted. ${came}`);
  write($("scale"), bars.legend);
  if (final) showVerdict(total);
  else sayResults(total);
}

function showVerdict(total) {
  const first = bars.leaders();
  const [kicker, winner, figures] = $("verdict").children;
  const more = first.length > 3 ? ` and ${count(first.length - 3)} more` : "";
  kicker.textContent = ["Nobody voted", "Winner"][first.length] ?? "It is a tie";
  winner.replaceChildren(...first.slice(0, 3).flatMap((row) => [quoted(row), " · "]).slice(0, -1), more);
  write(figures, first.length ? `${percent(first[0].level)}${first[1] ? " each" : ""}, ${plural(first[0].votes, "vote")} of ${count(total)}` : "");
  $("verdict").hidden = false;
  $("options").classList.add("final");
  say(`The result is final. ${kicker.textContent}: ${winner.textContent}. ${figures.textContent}`);
}

function refuse(error) {
  const missing = error.status === 404;
  for (const part of document.querySelectorAll("main > :not(h1)")) part.hidden = true;
  write($("title"), missing ? "There is no such poll" : "You cannot see this poll");
  write($("face"), missing ? "A letter of its address may be wrong, or the poll is gone." : explain(error));
}

function draw(known, before) {
  if (known.error) return refuse(known.error);
  write($("lost"), known.lost);
  if (known.lost !== (before.lost ?? "")) say(known.lost || "Connected again.");
  if (!known.poll) return;
  poll = known.poll;
  if (!bars) makeRows();
  if (known.poll !== before.poll) showPoll(known);
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
  const votable = isVotable(poll);
  for (const { option, badge } of bars.rows) write(badge, option.option_id === mine ? "Your vote" : "");
  const again = row?.option.option_id === mine || $("outcome").className === "unknown";
  $("cast").textContent = casting ? "Casting…" : again && row ? "Cast again" : mine ? "Change vote" : "Cast vote";
  $("cast").hidden = !votable;
  $("choice").hidden = !row || !votable;
  $("choice").firstElementChild.textContent = row ? nameOf(row.option) : "";
  $("bar").hidden = !votable && !$("outcome").textContent;
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
    return outcome("bad", "Choose an option first.");
  }
  casting = true;
  outcome("busy", "Casting your vote…");
  const error = await cast(row);
  casting = false;
  if (!error) rememberVote(poll, row.option.option_id);
  if (!error) return outcome("good", "Your vote for ", quoted(row), " is stored. You can change it until the poll closes.");
  if (error.refused) return outcome("bad", `Your vote was not stored. ${explain(error)}`);
  return outcome("unknown", "Your vote for ", quoted(row), " may or may not count: no answer came. Cast it again. That is safe, since only your last vote counts.");
}

function filter() {
  const fold = (text) => text.normalize("NFKD").toLowerCase();
  const wanted = fold($("filter").value.trim());
  for (const { option, item } of bars.rows) item.hidden = !fold(`${option.title} ${option.option_id}`).includes(wanted);
  const found = bars.rows.filter(({ item }) => !item.hidden).length;
  write($("found"), wanted && `${count(found)} of ${plural(bars.rows.length, "option")}`);
}

$("ballot").addEventListener("submit", submit);
$("options").addEventListener("change", showChoice);
$("filter").addEventListener("input", filter);
setInterval(tick, 1000);
watch(draw);
