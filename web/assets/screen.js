// A poll on a screen in a hall, or over a video: large bars, as many options as fit, the total, and a code to vote by.
// Nobody touches it: it must recover from everything by itself.

import { pause, pollOfAddress } from "./api.js";
import { Bars } from "./bars.js";
import { $, root, write } from "./dom.js";
import { countdown, nameOf, plural, sentence, stateName, stateOf, timing } from "./format.js";
import { isVotable, watch } from "./watch.js";

// If not all options fit, those with the most votes are shown. They change places no more often than this.
const MOVE_EVERY_MS = 2500;
const ASK_AGAIN_MS = 10_000;

const overlay = new URLSearchParams(location.search).has("overlay");
let poll;
let bars;
let movedAt = 0;
let waiting;

/** Shows as many rows as fit, as high as they can be. */
function place() {
  const height = $("options").clientHeight;
  const lowest = Math.max(44, Math.min(innerHeight * 0.085, innerWidth * 0.11));
  const all = bars.rows.length;
  const fit = Math.max(1, Math.min(all, Math.floor(height / lowest)));
  $("options").style.setProperty("--row", `${Math.min(height / fit, innerHeight * 0.2, innerWidth * 0.24)}px`);
  write($("more"), all > fit ? `and ${plural(all - fit, "other option")}` : "");
  bars.arrange((all > fit && bars.legend !== undefined ? bars.ranked() : bars.rows).slice(0, fit));
  movedAt = Date.now();
}

function tick() {
  if (!poll) return;
  write($("when"), timing(poll));
  write($("countdown"), countdown(poll));
}

function showResults({ votes, total, submitted, final }) {
  bars.show(votes, total);
  const people = plural(total, "person", "people");
  write($("totals"), final ? `${people} voted` : `${people} voted so far, ${plural(submitted, "vote")} came in`);
  write($("scale"), bars.legend);
  clearTimeout(waiting);
  waiting = setTimeout(place, final ? 0 : movedAt + MOVE_EVERY_MS - Date.now());
  if (!final) return;
  const first = bars.leaders();
  for (const row of first) row.badge.textContent = first.length > 1 ? "Tie" : "Winner";
}

function draw({ poll: now, hidden, results, lost, error }) {
  write($("lost"), lost);
  if (error) {
    write($("title"), error.status === 404 ? "There is no such poll" : "This poll cannot be shown");
    write($("note"), sentence(error.message));
    return pause(ASK_AGAIN_MS).then(() => location.reload());
  }
  if (!now) return;
  poll = now;
  const state = stateOf(poll);
  write($("title").firstElementChild, nameOf(poll));
  write($("pill"), results?.final ? "Final result" : stateName(poll));
  write($("note"), sentence(hidden) || (state === "CLOSED" ? "Voting has ended. The last votes are being counted." : ""));
  $("join").hidden = overlay || !(isVotable(poll) || state === "SCHEDULED");
  tick();
  if (!bars) {
    bars = new Bars($("options"), poll.options);
    new ResizeObserver(place).observe($("options"));
  }
  if (results && state !== "SCHEDULED") showResults(results);
}

root.classList.toggle("overlay", overlay);
$("code").src = `/p/${pollOfAddress()}/qr.svg?origin=${encodeURIComponent(location.origin)}`;
$("address").textContent = `${location.host}/p/${pollOfAddress()}`;
setInterval(tick, 1000);
watch(draw, true);
