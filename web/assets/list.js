// The list of polls: open ones first, then those to come, those being counted, and those that are final.

import { advice, allPolls, repeat } from "./api.js";
import { $, copy, write } from "./dom.js";
import { clock, count, moment, nameOf, plural, sentence, stateOf, timing } from "./format.js";
import { hasToken } from "./identity.js";

const EVERY_MS = 5000;

/** The item of each poll by id, with what it shows. */
const items = new Map();
let answered;

/** How a group of polls is sorted: what happens next is first, and so is what happened last. */
const orders = {
  OPEN: (one, other) => Date.parse(one.closes_at) - Date.parse(other.closes_at),
  SCHEDULED: (one, other) => Date.parse(one.opens_at) - Date.parse(other.opens_at),
  CLOSED: (one, other) => Date.parse(other.closes_at) - Date.parse(one.closes_at),
  FINAL: (one, other) => Date.parse(other.closes_at) - Date.parse(one.closes_at),
};

function itemOf(poll) {
  let entry = items.get(poll.poll_id);
  if (!entry) {
    const item = copy("poll");
    item.querySelector("a").href = `/p/${encodeURIComponent(poll.poll_id)}`;
    item.querySelector("bdi").textContent = nameOf(poll);
    entry = { item };
    items.set(poll.poll_id, entry);
  }
  entry.poll = poll;
  return entry.item;
}

function about(poll) {
  const when = timing(poll) || `closed ${moment(poll.closes_at)}`;
  return `${when[0].toUpperCase()}${when.slice(1)} · ${plural(poll.options.length, "option", "options")}`;
}

function tick() {
  for (const { item, poll } of items.values()) write(item.querySelector(".about"), about(poll));
}

function show(polls) {
  const ids = new Set(polls.map((poll) => poll.poll_id));
  for (const id of items.keys()) if (!ids.has(id)) items.delete(id);
  for (const [state, order] of Object.entries(orders)) {
    const group = $(state);
    const wanted = polls.filter((poll) => stateOf(poll) === state).sort(order).map(itemOf);
    const list = group.querySelector("ul");
    // Moving an item would take the focus from it.
    if (wanted.length !== list.children.length || wanted.some((item, index) => list.children[index] !== item)) {
      list.replaceChildren(...wanted);
    }
    group.hidden = !wanted.length;
  }
  tick();
}

async function refresh() {
  const { polls, more, error } = await allPolls();
  $("face").hidden = true;
  if (error) {
    const first = answered === undefined || error.refused;
    write($("problem"), first
      ? `${sentence(error.message)} ${advice(error, hasToken())}`.trim()
      : `Connection lost. The list is of ${clock(answered)}. Trying again…`);
    return;
  }
  answered = new Date();
  write($("problem"), more ? `Only the first ${count(polls.length)} polls are shown.` : "");
  show(polls);
  $("empty").hidden = polls.length > 0;
}

setInterval(tick, 1000);
repeat(EVERY_MS, refresh);
