// For whoever runs polls: create, close, release and recount them, and see how fast votes come in.
// Must never do what cannot be undone without asking.

import { allPolls, call, explain, pollPath, repeat } from "./api.js";
import { $, arrange, copy, write } from "./dom.js";
import { follow } from "./events.js";
import { clock, count, decimal, moment, nameOf, plural, sentence, stateName, stateOf, timing } from "./format.js";

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
  return new Promise((answer) => dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true }));
}

class Card {
  samples = [];

  constructor(id) {
    this.id = id;
    this.item = copy("card");
    this.part("name").id = `name-${id}`;
    for (const button of this.item.querySelectorAll("button")) {
      button.setAttribute("aria-describedby", `name-${id}`);
      button.addEventListener("click", () => this[button.className.split(" ")[0]]());
    }
    this.part("vote").href = `/p/${id}`;
    this.part("screen").href = `/p/${id}/screen`;
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
    this.part("release").hidden = poll.visibility !== "POLL_VISIBILITY_ON_RELEASE" || poll.released_at !== null;
    const until = { POLL_VISIBILITY_WHEN_FINAL: "results hidden until final", POLL_VISIBILITY_ON_RELEASE: "results hidden until released" };
    const isHidden = state !== "FINAL" || poll.visibility === "POLL_VISIBILITY_ON_RELEASE";
    const facts = [poll.poll_id, plural(poll.options.length, "option"), isHidden && !poll.released_at && until[poll.visibility], poll.needs_recount && "needs a recount"];
    write(this.part("facts"), facts.filter(Boolean).join(" · "));
    this.tick();
    // What came last, before the end.
    if (state === "FINAL" && !this.finished) {
      this.finished = true;
      this.ask();
    }
  }

  tick() {
    write(this.part("when"), timing(this.poll) || `closed ${moment(this.poll.closes_at)}`);
    for (const field of FIELDS) write(this.part(`${field}-rate`), stateOf(this.poll) === "OPEN" ? `${decimal(this.rate(field))}/s` : "–");
  }

  counted({ total_submitted: submitted, total_counted: counted }) {
    const sample = { time: Date.now(), submitted, counted };
    this.samples.push(sample);
    while (this.samples[1]?.time < sample.time - RATE_OVER_MS) this.samples.shift();
    for (const field of FIELDS) write(this.part(field), count(sample[field]));
  }

  /** How much a number grew a second. Events come when something changes: silence means that nothing does. */
  rate(field) {
    const first = this.samples[0];
    const last = this.samples[this.samples.length - 1];
    const now = Date.now();
    if (first === last || last.time < now - RATE_OVER_MS) return 0;
    return (last[field] - first[field]) / Math.max(1, (now - first.time) / 1000);
  }

  async ask() {
    const { value } = await call("GET", pollPath(this.id, "/results/interim"));
    if (value) this.counted(value);
  }

  follow(yes) {
    if (!yes) this.unfollow?.();
    if (!yes) this.unfollow = undefined;
    else this.unfollow ??= follow(this.id, { event: (type, data) => this.take(type, data), connected() {}, refused() {} });
  }

  take(type, data) {
    if (type === "poll") this.show(data.poll);
    if (type === "interim") this.counted(data);
  }

  say(kind, text) {
    this.part("said").className = `said ${kind}`;
    write(this.part("said"), text);
  }

  /** Does something, and says what came of it. `done` makes that of the answer: whether it is good, and a sentence. */
  async act(name, doing, done) {
    this.say("busy", doing);
    const { value, error } = await call("POST", pollPath(this.id, `/${name}`), {});
    if (error) return this.say("bad", `${explain(error)} ${error.refused ? "" : "Look at the poll before you try again."}`);
    if (value.poll) this.show(value.poll);
    return this.say(...done(value));
  }

  async close() {
    const text = `Nobody can vote in “${nameOf(this.poll)}” any more, and it cannot be opened again.`;
    if (!(await confirmed("Close this poll?", text, "Close poll"))) return;
    await this.act("close", "Closing…", () => ["good", "Closed. The final result comes in a few seconds."]);
  }

  async release() {
    const text = `Readers of “${nameOf(this.poll)}” see its results from now on. They cannot be hidden again.`;
    if (!(await confirmed("Release the results?", text, "Release results"))) return;
    await this.act("release", "Releasing…", () => ["good", "Released."]);
  }

  recount() {
    return this.act("recount", "Counting the stored votes again…", ({ matches, final, progress, options }) => {
      const votes = options.reduce((sum, option) => sum + option.recounted, 0);
      if (matches) return ["good", `The recount matches: ${plural(votes, "stored vote")}${final ? "" : " so far"}.`];
      const [first, ...others] = options.filter((option) => option.counted !== option.recounted);
      const text = `“${first.option_id}” was counted ${count(first.counted)} and recounted ${count(first.recounted)}; ${plural(others.length, "other option")} differ.`;
      return final ? ["bad", text] : ["unknown", `${text} Votes are still being counted. ${sentence(progress)}`];
    });
  }
}

let answeredAt;

async function refresh() {
  const { polls, more, error } = await allPolls();
  if (error) {
    write($("problem"), error.refused || !answeredAt ? explain(error) : `Connection lost. The list is of ${clock(answeredAt)}. Trying again…`);
    return;
  }
  answeredAt = Date.now();
  write($("problem"), more ? `Only the first ${count(polls.length)} polls are shown.` : "");
  $("empty").hidden = polls.length > 0;
  for (const poll of polls) {
    if (!cards.has(poll.poll_id)) cards.set(poll.poll_id, new Card(poll.poll_id));
    cards.get(poll.poll_id).show(poll);
  }
  const rank = ({ poll }) => ORDER.indexOf(stateOf(poll));
  const sorted = [...cards.values()].sort((one, other) => rank(one) - rank(other) || (one.poll.opens_at < other.poll.opens_at ? 1 : -1));
  arrange($("cards"), sorted.map(({ item }) => item));
  const running = sorted.filter((card) => rank(card) < ORDER.indexOf("SCHEDULED"));
  // Those that are followed stay so.
  const followed = [...running].sort((one, other) => Boolean(other.unfollow) - Boolean(one.unfollow)).slice(0, FOLLOWED);
  for (const card of sorted) card.follow(followed.includes(card));
  for (const card of running) if (!card.unfollow) await card.ask();
}

// --- The server.

function pairs(list, entries) {
  const rows = entries.map(([name, value]) => {
    const row = copy("pair");
    row.firstElementChild.textContent = name;
    row.lastElementChild.textContent = value;
    return row;
  });
  list.replaceChildren(...rows);
  list.hidden = !rows.length;
}

async function status() {
  const { value, error } = await call("GET", "/v1/status");
  write($("status-problem"), error ? explain(error) : "");
  $("status").hidden = Boolean(error);
  if (error) return;
  const names = { persist: "Votes are stored", tally: "Votes are counted" };
  const late = (ms) => (ms === null ? "not known" : ms < 1000 ? `${count(ms)} ms behind` : `${decimal(ms / 1000)} s behind`);
  pairs($("groups"), [...value.groups.map(({ group, behind_ms }) => [names[group] ?? group, late(behind_ms)]), ["Version", value.version]]);
  const reasons = Object.entries(value.rejected ?? {}).filter(([, number]) => number > 0).sort(([, one], [, other]) => other - one);
  pairs($("rejected"), reasons.map(([reason, number]) => [reason.replaceAll("_", " "), count(number)]));
  write($("none-rejected"), value.rejected === null ? "Not known here: votes come in at other processes." : reasons.length ? "" : "None.");
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

/** The body of the request; times that are missing or wrong are undefined. */
function pollOf({ poll_id, title, options, end, minutes, at, opens, visibility }) {
  const time = (value) => (Number(new Date(value)) ? new Date(value).toISOString() : undefined);
  const start = Date.parse(opens.value) || Date.now();
  return {
    poll_id: poll_id.value.trim(),
    title: title.value.trim(),
    options: optionsOf(options.value),
    opens_at: time(opens.value),
    closes_at: end.value === "at" ? time(at.value) : time(start + minutes.value * 60_000),
    visibility: visibility.value,
  };
}

async function create(event) {
  event.preventDefault();
  const form = event.target;
  const fields = form.elements;
  for (const field of fields) field.removeAttribute("aria-invalid");
  const poll = pollOf(fields);
  const end = fields.end.value === "at" ? fields.at : fields.minutes;
  if (!poll.closes_at) return answer("bad", "Say when the poll closes.", end);
  answer("busy", "Creating…");
  const { value, error } = await call("POST", "/v1/polls", poll);
  const at = { title: fields.title, closes_at: end, opens_at: fields.opens };
  if (error) return answer("bad", explain(error), error.field.startsWith("option") ? fields.options : (at[error.field] ?? fields.poll_id));
  form.reset();
  ends();
  answer("good", `“${nameOf(value.poll)}” is created and ${timing(value.poll)}.`);
  return refresh();
}

function ends() {
  const at = $("end").value === "at";
  $("minutes-field").hidden = at;
  $("at-field").hidden = !at;
}

$("create").addEventListener("submit", create);
$("create").addEventListener("change", ends);
$("confirm-yes").addEventListener("click", () => $("confirm").close("yes"));
$("confirm-no").addEventListener("click", () => $("confirm").close());
setInterval(() => cards.forEach((card) => card.tick()), 1000);
repeat(POLLS_EVERY_MS, refresh);
repeat(STATUS_EVERY_MS, status);
