// What is known of one poll, for the vote page and for the screen: kept up to date by its events, and drawn at most once a frame.
// Must never keep an older number than it was given, nor make one up.

import { pollOfAddress } from "./api.js";
import { follow } from "./events.js";
import { clock, stateOf } from "./format.js";

/**
 * Calls `draw(known, before)` after changes. `known` has the `poll`, `hidden` (until when results are hidden, or empty),
 * `results` (`votes` of each option by id, `total`, `submitted`, `final`), `lost` (what to say about a lost connection) and `error`.
 */
export function watch(draw, always) {
  const known = { hidden: "", lost: "" };
  let drawn = {};
  let asked = false;
  const change = (news) => {
    Object.assign(known, news);
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const before = drawn;
      drawn = { ...known };
      draw(known, before);
    });
  };
  const votes = (options, field) => options.map((option) => [option.option_id, option[field]]);
  const take = {
    poll: (data) => data,
    interim: (data) => ({
      results: { votes: votes(data.options, "counted"), total: data.total_counted, submitted: data.total_submitted, time: data.as_of },
    }),
    final: (data) => ({
      poll: { ...known.poll, state: "POLL_STATE_FINAL" },
      hidden: "",
      results: { votes: votes(data.options, "votes"), total: data.total_votes, time: data.finalized_at, final: true },
    }),
  };
  follow(pollOfAddress(), {
    always,
    event: (type, data) => take[type] && change(take[type](data)),
    connected(yes) {
      const old = known.results ? ` The numbers are of ${clock(known.results.time)}.` : "";
      if (yes !== !known.lost) change({ lost: yes ? "" : `Connection lost.${old} Trying again…` });
    },
    refused: (error) => change({ error }),
  });
}

/** Whether votes for it can be cast here. */
export const isVotable = (poll) => stateOf(poll) === "OPEN" && poll.source !== "POLL_SOURCE_STREAM";

/** Shows results in bars, without those of a poll that has not begun. */
export function showBars(bars, { poll, results }) {
  if (results && stateOf(poll) !== "SCHEDULED") bars.show(results.votes, results.total);
}
