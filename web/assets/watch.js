// What is known of one poll, for the vote page and for the screen: kept up to date by its events, and drawn at most once a frame.
// Must never make a number up.

import { pollOfAddress } from "./api.js";
import { root } from "./dom.js";
import { follow } from "./events.js";
import { clock, nameOf, stateOf } from "./format.js";

/**
 * Calls `draw(known, before)` after changes. `known` has the `poll`, `hidden` (until when results are hidden, or empty),
 * `results` (`votes` of each option by id, `total`, `submitted`, `final`), `lost` (what to say about the connection) and `error`.
 */
export function watch(draw, always) {
  let known = { hidden: "", lost: "" };
  let drawn = {};
  let asked = false;
  const show = () => {
    const before = drawn;
    asked = false;
    drawn = known;
    root.classList.toggle("lost", Boolean(known.lost));
    if (known.poll) {
      root.dataset.state = stateOf(known.poll);
      document.title = `${nameOf(known.poll)} – Votestream`;
    }
    draw(known, before);
  };
  const change = (news) => {
    known = { ...known, ...news };
    if (!asked) requestAnimationFrame(show);
    asked = true;
  };
  const take = {
    poll: (data) => data,
    interim: ({ options, total_counted: total, total_submitted: submitted, as_of: time }) => ({
      results: { votes: options.map((option) => [option.option_id, option.counted]), total, submitted, time },
    }),
    final: ({ options, total_votes: total, finalized_at: time }) => ({
      poll: { ...known.poll, state: "POLL_STATE_FINAL" },
      hidden: "",
      results: { votes: options.map((option) => [option.option_id, option.votes]), total, time, final: true },
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
