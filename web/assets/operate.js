// For whoever runs polls: create, close, release and recount them, and see how fast votes come in.
// Must never do what cannot be undone without asking.

import { advice, allPolls, call, pollPath, repeat } from "./api.js";
import { $, copy, write } from "./dom.js";
import { follow } from "./events.js";
import { clock, count, decimal, lag, moment, nameOf, plural, sentence, stateName, stateOf, timing } from "./format.js";
import { hasToken } from "./identity.js";

const POLLS_EVERY_MS = 3000;
const STATUS_EVERY_MS = 2000;
// A browser opens six connections to a server over HTTP/1.1. These many polls are followed; more are asked for in turn.
const FOLLOWED = 3;
// Rates are means of so long.
const RATE_OVER_MS = 5000;

const ORDER = ["OPEN", "SCHEDULED", "CLOSED", "FINAL"];
const cards = new Map();
const explain = (error) => `${sentence(error.message)} ${advice(error, hasToken())}`.trim();

/** How fast numbers grow. */
class Rate {
  samples = [];

  add(time, submitted, counted) {
    this.samples.push({ time, submitted, counted });
    while (this.samples.length > 2 && this.samples[1].time <= time - RATE_OVER_MS) this.samples.shift();
  }

  /** Per second, in the last seconds before `time`. Events come when something changes: silence means that nothing does. */
  of(field, time) {
    const { samples } = this;
    if (samples.length < 2) return 0;
    const [first, last] = [samples[0], samples.at(-1)];
    if (time - last.time > RATE_OVER_MS) return 0;
    return (last[field] - first[field]) / Math.max(1, (Math.max(time, last.time) - first.time) / 1000);
  }
}

// --- A question before what cannot be undone.

function confirmed(title, text, verb) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = verb;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true }));
}

$("confirm-yes").addEventListener("click", () => $("confirm").close("yes"));
$("confirm-no").addEventListener("click", () => $("confirm").close());

// --- One poll.

class Card {
  constructor(id) {
    this.id = id;
    this.item = copy("card");
    this.rate = new Rate();
    this.part("name").id = `name-${id}`;
    this.item.setAttribute("aria-labelledby", `name-${id}`);
    for (const button of this.item.querySelectorAll("button")) button.setAttribute("aria-describedby", `name-${id}`);
    this.part("vote").href = `/p/${encodeURIComponent(id)}`;
    this.part("screen").href = `/p/${encodeURIComponent(id)}/screen`;
    this.part("close").addEventListener("click", () => this.close());
    this.part("release").addEventListener("click", () => this.release());
    this.part("recount").addEventListener("click", () => this.recount());
  }

  part(name) {
    return this.item.querySelector(`.${name}`);
  }

  show(poll) {
    this.poll = poll;
    const state = stateOf(poll);
    this.item.dataset.state = state;
    write(this.part("name").firstElementChild, nameOf(poll));
    write(this.part("pill"), stateName(poll));
    this.part("close").hidden = state !== "OPEN" && state !== "SCHEDULED";
    this.part("release").hidden = poll.visibility !== "POLL_VISIBILITY_ON_RELEASE" || Boolean(poll.released_at);
    const shown = {
      POLL_VISIBILITY_WHEN_FINAL: state === "FINAL" ? "" : "results are hidden until they are final",
      POLL_VISIBILITY_ON_RELEASE: poll.released_at ? "results are released" : "results are hidden until you release them",
    }[poll.visibility];
    this.facts = [poll.poll_id, plural(poll.options.length, "option", "options"), shown, poll.needs_recount && "needs a recount"].filter(Boolean).join(" · ");
    this.tick();
    // The last counts come after the end: they are asked for until the result is final.
    if (state === "FINAL" && !this.final) this.final = this.finish();
  }

  tick() {
    const { poll } = this;
    write(this.part("when"), timing(poll) || (stateOf(poll) === "SCHEDULED" ? "" : `closed ${moment(poll.closes_at)}`));
    write(this.part("facts"), this.facts);
    const open = stateOf(poll) === "OPEN";
    for (const field of ["submitted", "counted"]) {
      const cell = this.part(`${field}-rate`);
      cell.textContent = open ? `${decimal(this.rate.of(field, Date.now()))}/s` : "–";
    }
  }

  counted(interim) {
    this.part("submitted").textContent = count(interim.total_submitted);
    this.part("counted").textContent = count(interim.total_counted);
    this.rate.add(Date.now(), interim.total_submitted, interim.total_counted);
  }

  async ask() {
    const { value } = await call("GET", pollPath(this.id, "/results/interim"));
    if (value) this.counted(value);
  }

  async finish() {
    await this.ask();
    const { value } = await call("GET", pollPath(this.id, "/results/final"));
    if (value) this.part("counted").textContent = count(value.total_votes);
  }

  follow() {
    this.following ??= follow(pollPath(this.id, "/results/events"), {
      event: (type, data) => {
        if (type === "poll") this.show(data.poll);
        if (type === "interim") this.counted(data);
        if (type === "final") this.unfollow();
      },
      connected: () => {},
      refused: () => {},
    });
  }

  unfollow() {
    this.following?.stop();
    this.following = undefined;
  }

  said(kind, text) {
    this.part("said").className = `said ${kind}`;
    write(this.part("said"), text);
  }

  /** Does something, and says what came of it. `done` makes a sentence of the answer. */
  async act(rest, doing, done) {
    this.said("busy", doing);
    const { value, error } = await call("POST", pollPath(this.id, rest), {});
    if (error) this.said("bad", error.refused ? explain(error) : `${explain(error)} Look at the poll before you try again.`);
    else this.said(...done(value));
  }

  async close() {
    const text = `Nobody can vote in “${nameOf(this.poll)}” any more, and it cannot be opened again.`;
    if (!(await confirmed("Close this poll?", text, "Close poll"))) return;
    await this.act("/close", "Closing…", ({ poll }) => {
      this.show(poll);
      return ["good", "Closed. The final result comes in a few seconds."];
    });
  }

  async release() {
    const text = `Everybody who may read “${nameOf(this.poll)}” sees its results from then on. They cannot be hidden again.`;
    if (!(await confirmed("Release the results?", text, "Release results"))) return;
    await this.act("/release", "Releasing…", ({ poll }) => {
      this.show(poll);
      return ["good", "Released."];
    });
  }

  async recount() {
    await this.act("/recount", "Counting the stored votes again…", (recount) => {
      const votes = recount.options.reduce((sum, option) => sum + option.recounted, 0);
      if (recount.matches) {
        return ["good", `The recount matches: ${plural(votes, "stored vote", "stored votes")}${recount.final ? "" : " so far"}.`];
      }
      const differing = recount.options.filter((option) => option.counted !== option.recounted);
      const [{ option_id, counted, recounted }] = differing;
      const first = `${plural(differing.length, "option differs", "options differ")}: “${option_id}” was counted ${count(counted)} and recounted ${count(recounted)}.`;
      return recount.final ? ["bad", first] : ["unknown", `${first} Votes are still being counted. ${sentence(recount.progress)}`];
    });
  }
}

// --- All polls.

function arrange() {
  const rank = ({ poll }) => ORDER.indexOf(stateOf(poll));
  const wanted = [...cards.values()].sort((one, other) => rank(one) - rank(other) || Date.parse(other.poll.opens_at) - Date.parse(one.poll.opens_at));
  const list = $("cards");
  if (wanted.some(({ item }, index) => list.children[index] !== item) || wanted.length !== list.children.length) {
    const focused = document.activeElement;
    list.replaceChildren(...wanted.map(({ item }) => item));
    if (list.contains(focused)) focused.focus();
  }
  // Those that are followed already stay so.
  const open = wanted.filter(({ poll }) => ["OPEN", "CLOSED"].includes(stateOf(poll)));
  const chosen = [...open].sort((one, other) => Boolean(other.following) - Boolean(one.following)).slice(0, FOLLOWED);
  for (const card of cards.values()) chosen.includes(card) ? card.follow() : card.unfollow();
  return open.filter((card) => !chosen.includes(card));
}

let answered;

async function refresh() {
  const { polls, more, error } = await allPolls();
  if (error) {
    write($("problem"), answered && !error.refused ? `Connection lost. The list is of ${clock(answered)}. Trying again…` : explain(error));
    return;
  }
  answered = new Date();
  write($("problem"), more ? `Only the first ${count(polls.length)} polls are shown.` : "");
  const ids = new Set(polls.map((poll) => poll.poll_id));
  for (const [id, card] of cards) {
    if (ids.has(id)) continue;
    card.unfollow();
    cards.delete(id);
  }
  for (const poll of polls) {
    if (!cards.has(poll.poll_id)) cards.set(poll.poll_id, new Card(poll.poll_id));
    cards.get(poll.poll_id).show(poll);
  }
  $("empty").hidden = polls.length > 0;
  for (const card of arrange()) await card.ask();
}

// --- The server.

const GROUPS = { persist: "Votes stored", tally: "Votes counted live" };

function pair(list, name, value) {
  const [term, description] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  description.textContent = value;
  const both = document.createElement("div");
  both.append(term, description);
  list.push(both);
}

async function status() {
  const { value, error } = await call("GET", "/v1/status");
  write($("status-problem"), error ? explain(error) : "");
  $("status").hidden = Boolean(error);
  if (error) return;
  const groups = [];
  for (const { group, behind_ms, shards } of value.groups) {
    const behind = behind_ms === null ? "not known" : `${lag(behind_ms)} behind`;
    pair(groups, GROUPS[group] ?? group, `${behind}, ${plural(shards, "shard", "shards")}`);
  }
  pair(groups, "Version", value.version);
  $("groups").replaceChildren(...groups);
  const reasons = Object.entries(value.rejected ?? {}).filter(([, number]) => number > 0);
  reasons.sort(([, one], [, other]) => other - one);
  const rejected = [];
  for (const [reason, number] of reasons) pair(rejected, reason.replaceAll("_", " "), count(number));
  $("rejected").replaceChildren(...rejected);
  $("rejected").hidden = !rejected.length;
  write($("none-rejected"), value.rejected === null ? "Votes come in elsewhere, and refused ones are counted there." : rejected.length ? "" : "None since the server started.");
}

// --- A new poll.

/** `id` or `id = Title`, one a line. */
function optionsOf(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  return lines.map((line) => {
    const [, option_id, title = ""] = /^([^=]*)(?:=([^]*))?$/.exec(line);
    return { option_id: option_id.trim(), title: title.trim() };
  });
}

function complain(field, text) {
  write($("create-said"), text);
  $("create-said").className = "said bad";
  field?.setAttribute("aria-invalid", "true");
  (field ?? $("create-said")).focus();
}

function closesAt(form) {
  if (form.end.value === "at") return form.at.value ? new Date(form.at.value).toISOString() : "";
  const start = form.opens.value ? Date.parse(form.opens.value) : Date.now();
  return Number(form.minutes.value) > 0 ? new Date(start + form.minutes.value * 60_000).toISOString() : "";
}

async function create(event) {
  event.preventDefault();
  const form = event.target.elements;
  for (const field of event.target.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  const poll = { poll_id: form.poll_id.value.trim(), title: form.title.value.trim(), options: optionsOf(form.options.value), closes_at: closesAt(form), visibility: form.visibility.value };
  if (form.opens.value) poll.opens_at = new Date(form.opens.value).toISOString();
  if (!poll.poll_id) return complain(form.poll_id, "The poll needs an id.");
  if (!poll.options.length) return complain(form.options, "The poll needs an option.");
  if (!poll.closes_at) return complain(form.end.value === "at" ? form.at : form.minutes, "Say when the poll closes.");
  write($("create-said"), "Creating…");
  $("create-said").className = "said busy";
  const { value, error } = await call("POST", "/v1/polls", poll);
  if (error) {
    const at = { poll_id: form.poll_id, title: form.title, closes_at: form.minutes, opens_at: form.opens };
    const field = /^options/.test(error.field) ? form.options : at[error.field];
    return complain(field, explain(error));
  }
  event.target.reset();
  ends();
  $("create-said").className = "said good";
  write($("create-said"), `“${nameOf(value.poll)}” is created and ${timing(value.poll)}.`);
  await refresh();
}

function ends() {
  const at = $("create").elements.end.value === "at";
  $("minutes-field").hidden = at;
  $("at-field").hidden = !at;
}

$("create").addEventListener("submit", create);
$("create").addEventListener("change", ends);
$("create").elements.options.addEventListener("input", ({ target }) => {
  const number = optionsOf(target.value).length;
  $("options-count").textContent = number ? `${plural(number, "option", "options")} so far.` : "";
});
setInterval(() => cards.forEach((card) => card.tick()), 1000);
repeat(POLLS_EVERY_MS, refresh);
repeat(STATUS_EVERY_MS, status);
