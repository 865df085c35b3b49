// A poll on a screen in a hall, or over a video: large bars, as many options as fit, the total, and a code to vote by.
// Nobody touches it: it must recover from everything by itself.

import { pause, pollOfAddress } from "./api.js";
import { Bars } from "./bars.js";
import { $, write } from "./dom.js";
import { duration, isSoon, nameOf, plural, sentence, stateName, stateOf, timing, until } from "./format.js";
import { isVotable, showBars, watch } from "./watch.js";

// If not all options fit, those with the most votes are shown. They change places no more often than this.
const MOVE_EVERY_MS = 2500;
const ASK_AGAIN_MS = 10_000;

const overlay = new URLSearchParams(location.search).has("overlay");
let poll;
let bars;
let rows;
let shown = [];
let movedAt = 0;
let waiting;

/** How many rows fit, and how high they are. */
function measure() {
  const height = $("options").clientHeight;
  const lowest = Math.max(44, Math.min(innerHeight * 0.085, innerWidth * 0.11));
  rows = Math.max(1, Math.min(bars.rows.length, Math.floor(height / lowest)));
  $("options").style.setProperty("--row", `${Math.min(height / rows, innerHeight * 0.2, innerWidth * 0.24)}px`);
  const more = bars.rows.length - rows;
  write($("more"), more ? `and ${plural(more, "other option")}` : "");
  place();
}

/** Shows the rows that fit. Those that stay move to their new places. */
function place() {
  const first = rows < bars.rows.length && bars.rows[0].level !== undefined ? bars.ranked() : bars.rows;
  const places = new Map(shown.map(({ item }) => [item, item.offsetTop]));
  shown = first.slice(0, rows);
  bars.arrange(shown);
  movedAt = Date.now();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const { item } of shown) {
    const way = places.get(item) - item.offsetTop;
    if (way) item.animate([{ transform: `translateY(${way}px)` }, {}], { duration: 600, easing: "ease-in-out" });
  }
}

function tick() {
  if (!poll) return;
  write($("when"), timing(poll));
  const counting = stateOf(poll) === "SCHEDULED" && isSoon(poll.opens_at);
  write($("countdown"), counting ? duration(until(poll.opens_at)) : "");
}

function showResults({ total, submitted, final }) {
  const people = plural(total, "person", "people");
  write($("totals"), final ? `${people} voted` : `${people} voted so far · ${plural(submitted, "vote")} came in`);
  write($("scale"), bars.legend());
  clearTimeout(waiting);
  waiting = setTimeout(place, final ? 0 : movedAt + MOVE_EVERY_MS - Date.now());
  if (!final) return;
  const first = bars.leaders();
  $("options").classList.add("final");
  for (const row of first) row.badge.textContent = first.length > 1 ? "Tie" : "Winner";
}

function draw({ poll: now, hidden, results, lost, error }) {
  write($("lost"), lost);
  document.documentElement.classList.toggle("lost", Boolean(lost));
  if (error) {
    $("title").firstElementChild.textContent = error.status === 404 ? "There is no such poll" : "This poll cannot be shown";
    write($("note"), sentence(error.message));
    return pause(ASK_AGAIN_MS).then(() => location.reload());
  }
  if (!now) return;
  poll = now;
  const state = stateOf(poll);
  document.documentElement.dataset.state = state;
  document.title = `${nameOf(poll)} – Votestream`;
  write($("title").firstElementChild, nameOf(poll));
  write($("pill"), results?.final ? "Final result" : stateName(poll));
  write($("note"), hidden ? sentence(hidden) : state === "CLOSED" ? "Voting has ended. The last votes are being counted." : "");
  $("join").hidden = overlay || !(isVotable(poll) || state === "SCHEDULED");
  tick();
  if (!bars) {
    bars = new Bars($("options"), poll.options);
    new ResizeObserver(measure).observe($("options"));
    measure();
  }
  showBars(bars, { poll, results });
  if (results && state !== "SCHEDULED") showResults(results);
}

document.documentElement.classList.toggle("overlay", overlay);
if (!overlay) {
  $("code").src = `/p/${pollOfAddress()}/qr.svg?origin=${encodeURIComponent(location.origin)}`;
  $("address").textContent = `${location.host}/p/${pollOfAddress()}`;
}
setInterval(tick, 1000);
watch(draw, true);
