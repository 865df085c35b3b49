// The list of polls: open ones first, then those to come, those being counted, and those that are final.

import { refreshPolls, repeat } from "./api.js";
import { $, arrange, copy, write } from "./dom.js";
import { moment, nameOf, plural, sentence, stateOf, timing } from "./format.js";

const EVERY_MS = 5000;
const items = new Map();
let polls = [];

function itemOf(poll) {
  if (!items.has(poll.poll_id)) {
    const item = copy("poll");
    item.querySelector("a").href = `/p/${poll.poll_id}`;
    item.querySelector("bdi").textContent = nameOf(poll);
    items.set(poll.poll_id, item);
  }
  return items.get(poll.poll_id);
}

function tick() {
  for (const poll of polls) {
    const when = timing(poll) || `closed ${moment(poll.closes_at)}`;
    write(itemOf(poll).lastElementChild, `${sentence(when)} ${plural(poll.options.length, "option")}.`);
  }
}

function show(all) {
  polls = all;
  for (const state of ["OPEN", "SCHEDULED", "CLOSED", "FINAL"]) {
    const group = polls.filter((poll) => stateOf(poll) === state);
    arrange($(state).lastElementChild, group.map(itemOf));
    $(state).hidden = !group.length;
  }
  tick();
}

setInterval(tick, 1000);
repeat(EVERY_MS, () => refreshPolls(show));
