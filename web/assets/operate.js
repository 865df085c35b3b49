// For whoever runs polls: create, close, release and recount them, and see how fast votes come in.
// Must never do what cannot be undone without asking.

import { call, explain, pollPath, refreshPolls, repeat } from "./api.js";
import { $, arrange, copy, write } from "./dom.js";
import { follow } from "./events.js";
import { count, decimal, moment, nameOf, plural, sentence, stateName, stateOf, timing } from "./format.js";
import { hasToken } from "./identity.js";

const POLLS_EVERY_MS = 3000;
const STATUS_EVERY_MS = 2000;
// A browser opens six connections to a server over HTTP/1.1. So many polls are followed; the others are asked for in turn.
const FOLLOWED = 3;
// Rates are means of so long.
const RATE_OVER_MS = 5000;
const ORDER = ["OPEN", "CLOSED", "SCHEDULED", "FINAL"];
const FIELDS = ["submitted", "counted"];

const cards = new Map();

/** Asks before what cannot be undone. */
function confirmed(title, text, verb) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = verb;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => dialog.addEventListener("close", () => answer(dialog.returnValue), { once: true }));
}

class Card {
  samples = [];

  constructor(id) {
    this.id = id;
    this.item = copy("card");
    this.part("name").id = `name-${id}`;
    for (const button of this.item.querySelectorAll("button")) {
      button.setAttribute("aria-describedby", `name-${id}`);
      button.addEventListener("click", () => this[button.classList[0]]());
    }
    this.part("vote").href = `/p/${id}`;
    this.part("screen-link").href = `/p/${id}/screen`;
  }

  part(name) {
    return this.item.querySelector(`.${name}`);
  }

  show(poll) {
    this.poll = poll;
    const state = stateOf(poll);
    const onRelease = poll.visibility === "POLL_VISIBILITY_ON_RELEASE" && !poll.released_at;
    this.hidden = onRelease || (poll.visibility === "POLL_VISIBILITY_WHEN_FINAL" && state !== "FINAL");
    this.item.dataset.state = state;
    write(this.part("name").firstElementChild, nameOf(poll));
    write(this.part("pill"), stateName(poll));
    this.part("close").hidden = state !== "OPEN" && state !== "SCHEDULED";
    this.part("release").hidden = !onRelease;
    const facts = [poll.poll_id, plural(poll.options.length, "option"), this.hidden && "results are hidden", poll.needs_recount && "needs a recount"];
    write(this.part("facts"), facts.filter(Boolean).join(" · "));
    this.tick();
  }

  tick() {
    write(this.part("when"), timing(this.poll) || `closed ${moment(this.poll.closes_at)}`);
    for (const field of FIELDS) write(this.part(`${field}-rate`), stateOf(this.poll) === "OPEN" ? `${decimal(this.rate(field))}/s` : "");
  }

  counted({ total_submitted: submitted, total_counted: counted }) {
    const sample = { time: Date.now(), submitted, counted };
    this.samples.push(sample);
    while (this.samples[1]?.time < sample.time - RATE_OVER_MS) this.samples.shift();
    for (const field of FIELDS) write(this.part(field), count(sample[field]));
  }

  /** How much a number grew a second. Events come when something changes: silence means that nothing does. */
  rate(field) {
    const [first, last] = [this.samples[0], this.samples[this.samples.length - 1]];
    const now = Date.now();
    if (first === last || last.time < now - RATE_OVER_MS) return 0;
    return (last[field] - first[field]) / Math.max(1, (now - first.time) / 1000);
  }

  async ask() {
    // Without a token nobody is told, not even whoever runs the polls.
    if (this.hidden && !hasToken()) return;
    const { value } = await call("GET", pollPath(this.id, "/results/interim"));
    if (value) this.counted(value);
  }

  follow(yes) {
    // The last votes before the end may not have had an event of their own.
    const event = (type, data) => (type === "final" ? this.ask() : type === "interim" && this.counted(data));
    if (yes) this.unfollow ??= follow(this.id, { event, connected() {}, refused() {} });
    else if (this.unfollow) this.unfollow = this.unfollow();
  }

  say(kind, text) {
    this.part("said").className = `said ${kind}`;
    write(this.part("said"), text);
  }

  /** Does something, and says what came of it. `done` makes that of the answer: whether it is good, and a sentence. */
  async act(name, done) {
    this.say("", "One moment…");
    const { value, error } = await call("POST", pollPath(this.id, `/${name}`), {});
    if (error) return this.say("bad", `${explain(error)} ${error.refused ? "" : "Look at the poll before you try again."}`);
    if (value.poll) this.show(value.poll);
    return this.say(...done(value));
  }

  async close() {
    const text = `Nobody can vote in “${nameOf(this.poll)}” any more, and it cannot be opened again.`;
    if (await confirmed("Close this poll?", text, "Close poll")) this.act("close", () => ["good", "Closed. The final result comes in a few seconds."]);
  }

  async release() {
    const text = `Readers of “${nameOf(this.poll)}” see its results from now on. They cannot be hidden again.`;
    if (await confirmed("Release the results?", text, "Release results")) this.act("release", () => ["good", "Released."]);
  }

  recount() {
    this.act("recount", ({ matches, final, progress, options }) => {
      const votes = options.reduce((sum, option) => sum + option.recounted, 0);
      if (matches) return ["good", `The recount matches: ${plural(votes, "stored vote")}${final ? "" : " so far"}.`];
      const [first, ...others] = options.filter((option) => option.counted !== option.recounted);
      const text = `“${first.option_id}” was counted ${count(first.counted)} and recounted ${count(first.recounted)}. Other options that differ: ${count(others.length)}.`;
      return final ? ["bad", text] : ["unknown", `${text} Votes are still being counted. ${sentence(progress)}`];
    });
  }
}

async function show(polls) {
  for (const poll of polls) {
    if (!cards.has(poll.poll_id)) cards.set(poll.poll_id, new Card(poll.poll_id));
    cards.get(poll.poll_id).show(poll);
  }
  const rank = ({ poll }) => ORDER.indexOf(stateOf(poll));
  const sorted = [...cards.values()].sort((one, other) => rank(one) - rank(other) || (one.poll.opens_at < other.poll.opens_at ? 1 : -1));
  arrange($("cards"), sorted.map(({ item }) => item));
  const runs = ({ poll }) => ["OPEN", "CLOSED"].includes(stateOf(poll));
  for (const [at, card] of sorted.entries()) {
    const follows = at < FOLLOWED && runs(card);
    card.follow(follows);
    if (!follows && (runs(card) || !card.samples.length)) await card.ask();
  }
}

const refresh = () => refreshPolls(show);

// --- The server.

function pairs(list, entries) {
  list.replaceChildren(...entries.map(([name, value]) => {
    const row = copy("pair");
    row.firstElementChild.textContent = name;
    row.lastElementChild.textContent = value;
    return row;
  }));
}

async function status() {
  const { value, error } = await call("GET", "/v1/status");
  write($("status-problem"), error ? explain(error) : "");
  $("status").hidden = Boolean(error);
  if (error) return;
  const names = { persist: "Votes are stored", tally: "Votes are counted" };
  const late = (ms) => (ms === null ? "not known" : ms < 1000 ? `${count(ms)} ms behind` : `${decimal(ms / 1000)} s behind`);
  pairs($("groups"), [...value.groups.map(({ group, behind_ms }) => [names[group] ?? group, late(behind_ms)]), ["Version", value.version]]);
  const reasons = Object.entries(value.rejected ?? {}).filter(([, number]) => number).sort(([, one], [, other]) => other - one);
  const none = value.rejected ? "None" : "Not known here: votes come in elsewhere";
  pairs($("rejected"), reasons.length ? reasons.map(([reason, number]) => [reason.replaceAll("_", " "), count(number)]) : [[none, ""]]);
}

// --- A new poll.

/** `id` or `id = Title`, one a line. */
function optionsOf(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  return lines.map((line) => {
    const [id, ...title] = line.split("=");
    return { option_id: id.trim(), title: title.join("=").trim() };
  });
}

function answer(kind, text, field) {
  $("create-said").className = `said ${kind}`;
  write($("create-said"), text);
  field?.setAttribute("aria-invalid", "true");
  field?.focus();
}

async function create(event) {
  event.preventDefault();
  const [id, title, options, minutes, at, visibility] = event.target.elements;
  for (const field of [id, title, options, minutes, at]) field.removeAttribute("aria-invalid");
  const end = at.value ? new Date(at.value) : new Date(Date.now() + (minutes.value || NaN) * 60_000);
  if (!Number(end)) return answer("bad", "Say when the poll closes.", minutes);
  answer("", "One moment…");
  const body = { poll_id: id.value.trim(), title: title.value.trim(), options: optionsOf(options.value), closes_at: end.toISOString(), visibility: visibility.value };
  const { value, error } = await call("POST", "/v1/polls", body);
  const named = { title, closes_at: at.value ? at : minutes };
  if (error) return answer("bad", explain(error), error.field.startsWith("option") ? options : (named[error.field] ?? id));
  event.target.reset();
  answer("good", `“${nameOf(value.poll)}” is created and ${timing(value.poll)}.`);
  return refresh();
}

$("create").addEventListener("submit", create);
$("confirm-yes").addEventListener("click", () => $("confirm").close("yes"));
$("confirm-no").addEventListener("click", () => $("confirm").close());
setInterval(() => cards.forEach((card) => card.tick()), 1000);
repeat(POLLS_EVERY_MS, refresh);
repeat(STATUS_EVERY_MS, status);
