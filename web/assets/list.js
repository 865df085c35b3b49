// The list of polls: open ones first, then those to come, those being counted, and those that are final.

import { allPolls, explain, repeat } from "./api.js";
import { $, arrange, copy, write } from "./dom.js";
import { clock, count, moment, nameOf, plural, stateOf, timing } from "./format.js";

const EVERY_MS = 5000;

const items = new Map();
let polls = [];
let answeredAt;

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
    write(itemOf(poll).querySelector(".about"), `${when[0].toUpperCase()}${when.slice(1)} · ${plural(poll.options.length, "option")}`);
  }
}

function show() {
  for (const state of ["OPEN", "SCHEDULED", "CLOSED", "FINAL"]) {
    const time = (poll) => Date.parse(state === "SCHEDULED" ? poll.opens_at : poll.closes_at);
    // What happens next is first, and so is what happened last.
    const sign = state === "OPEN" || state === "SCHEDULED" ? 1 : -1;
    const group = polls.filter((poll) => stateOf(poll) === state).sort((one, other) => sign * (time(one) - time(other)));
    arrange($(state).querySelector("ul"), group.map(itemOf));
    $(state).hidden = !group.length;
  }
  $("empty").hidden = polls.length > 0;
  tick();
}

async function refresh() {
  const { polls: all, more, error } = await allPolls();
  $("face").hidden = true;
  if (error) {
    write($("problem"), error.refused || !answeredAt ? explain(error) : `Connection lost. The list is of ${clock(answeredAt)}. Trying again…`);
    return;
  }
  polls = all;
  answeredAt = Date.now();
  write($("problem"), more ? `Only the first ${count(polls.length)} polls are shown.` : "");
  show();
}

setInterval(tick, 1000);
repeat(EVERY_MS, refresh);
