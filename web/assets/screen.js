// A poll on a screen in a hall, or over a video: large bars, as many options as fit, the total, and a code to vote by.
// Nobody touches it: it must recover from everything by itself.

import { pollOfAddress, pollPath } from "./api.js";
import { Bars } from "./bars.js";
import { $, write } from "./dom.js";
import { follow } from "./events.js";
import { clock, count, duration, nameOf, now, percent, plural, sentence, stateName, stateOf, timing } from "./format.js";

// If not all options fit, those with the most votes are shown. They change places no more often than this.
const MOVE_EVERY_MS = 2500;
const MOVE_MS = 600;
const ASK_AGAIN_MS = 10_000;

const id = pollOfAddress();
const overlay = new URLSearchParams(location.search).has("overlay");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let poll;
let bars;
let shown = [];
let moved = 0;
let results;
let asOf;
let hidden = "";

/** How many rows fit, and how high each is. */
function room() {
  const height = $("options").clientHeight;
  const lowest = Math.max(44, Math.min(innerHeight * 0.085, innerWidth * 0.11));
  const rows = Math.max(1, Math.min(bars.rows.length, Math.floor(height / lowest)));
  return { rows, height: Math.min(height / rows, innerHeight * 0.19, innerWidth * 0.24) };
}

/** Puts the rows that fit into the list; those that stay move to their new places. */
function place() {
  const { rows, height } = room();
  $("options").style.setProperty("--row", `${height}px`);
  const wanted = (rows < bars.rows.length && results ? bars.ranked() : bars.rows).slice(0, rows);
  if (wanted.length === shown.length && wanted.every((row, index) => row === shown[index])) return;
  const places = new Map(shown.map((row) => [row, row.item.offsetTop]));
  bars.arrange(wanted);
  shown = wanted;
  moved = Date.now();
  const more = bars.rows.length - rows;
  write($("more"), more ? `and ${plural(more, "other option", "other options")}` : "");
  if (still.matches) return;
  for (const row of wanted) {
    const way = (places.get(row) ?? row.item.offsetTop) - row.item.offsetTop;
    if (way) row.item.animate([{ transform: `translateY(${way}px)` }, { transform: "none" }], { duration: MOVE_MS, easing: "ease-in-out" });
  }
}

let waiting;
function placeSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(place, Math.max(0, moved + MOVE_EVERY_MS - Date.now()));
}

function tick() {
  if (!poll) return;
  const state = stateOf(poll);
  write($("when"), timing(poll));
  const opens = Date.parse(poll.opens_at) - now();
  write($("countdown"), state === "SCHEDULED" && opens < 48 * 3_600_000 ? duration(opens) : "");
}

function showPoll() {
  const state = stateOf(poll);
  document.documentElement.dataset.state = state;
  document.title = `${nameOf(poll)} – Votestream`;
  $("title").firstElementChild.textContent = nameOf(poll);
  write($("pill"), state === "FINAL" && results?.final ? "Final result" : stateName(poll));
  const counting = state === "CLOSED" ? "Voting has ended. The last votes are being counted." : "";
  write($("note"), hidden ? sentence(hidden) : counting);
  $("join").hidden = overlay || !(state === "OPEN" || state === "SCHEDULED") || poll.source === "POLL_SOURCE_STREAM";
  tick();
}

function showResults() {
  const { counts, total, submitted, final } = results;
  bars.show(counts, total);
  if (final) place();
  else placeSoon();
  write($("totals"), final
    ? `${plural(total, "person", "people")} voted`
    : `${plural(total, "person has", "people have")} voted · ${plural(submitted, "vote", "votes")} came in`);
  write($("scale"), bars.scale < 1000 ? `A full bar is ${percent(bars.scale)}` : "");
  if (!final) return;
  const first = bars.leaders();
  $("options").classList.add("final");
  for (const row of first) row.item.querySelector(".badge").textContent = first.length > 1 ? "Tie" : "Winner";
  write($("note"), first.length > 1 ? `A tie of ${count(first.length)} options.` : "");
}

const handlers = {
  poll(data) {
    ({ poll, hidden } = data);
    if (!bars) {
      bars = new Bars($("options"), poll.options);
      new ResizeObserver(place).observe($("options"));
    }
    showPoll();
  },
  interim(data) {
    asOf = new Date(data.as_of);
    results = { counts: data.options.map((option) => [option.option_id, option.counted]), total: data.total_counted, submitted: data.total_submitted };
    showResults();
  },
  final(data) {
    results = { counts: data.options.map((option) => [option.option_id, option.votes]), total: data.total_votes, final: true };
    poll = { ...poll, state: "POLL_STATE_FINAL" };
    hidden = "";
    showPoll();
    showResults();
  },
};

function start() {
  follow(pollPath(id, "/results/events"), {
    always: true,
    event: (type, data) => handlers[type]?.(data),
    connected(yes) {
      document.documentElement.classList.toggle("lost", !yes);
      write($("lost"), yes ? "" : `Connection lost.${results ? ` The numbers are of ${clock(asOf)}.` : ""}`);
    },
    refused(error) {
      $("title").firstElementChild.textContent = error.status === 404 ? "There is no such poll" : "This poll cannot be shown";
      write($("note"), sentence(error.message));
      // Somebody may be about to create it.
      setTimeout(start, ASK_AGAIN_MS);
    },
  });
}

document.documentElement.classList.toggle("overlay", overlay);
if (!overlay) {
  $("code").src = `/p/${encodeURIComponent(id)}/qr.svg?origin=${encodeURIComponent(location.origin)}`;
  $("address").textContent = `${location.host}/p/${id}`;
}
setInterval(tick, 1000);
start();
