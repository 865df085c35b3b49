// The list of options with their shares, for the vote page and for the screen. Rows are made once; an update writes only what
// looks different afterwards, so that a thousand options cost as much as the few that changed.
// Must never put what the server sent into the document other than as text.

import { copy } from "./dom.js";
import { level, nameOf, percent, plural } from "./format.js";

// With many options even the first has a small share. Then a full bar is less than 100%: one of these, in tenths of a percent.
const SCALES = [1000, 500, 250, 100, 50, 20, 10];
const OPTIONS_OF_FULL_SCALE = 8;
// Above this share of a scale, the next larger one is used; below `LOW` of a scale, it shrinks to it. So it does not flicker.
const HIGH = 1;
const LOW = 0.85;

export class Bars {
  /** Makes a row for each option, of the template `row`. `each(row)` completes it. */
  constructor(list, options, each = () => {}) {
    this.list = list;
    this.scale = SCALES[0];
    this.rows = options.map((option, index) => {
      const item = copy("row");
      const part = (name) => item.querySelector(`.${name}`);
      const row = { option, index, item, share: part("share"), count: part("count"), fill: part("fill"), votes: 0, level: NaN, leads: false };
      item.querySelector("bdi").textContent = nameOf(option);
      each(row);
      return row;
    });
    this.byId = new Map(this.rows.map((row) => [row.option.option_id, row]));
    list.classList.toggle("many", this.rows.length > 50);
    list.replaceChildren(...this.rows.map((row) => row.item));
  }

  row(optionId) {
    return this.byId.get(optionId);
  }

  /** Shows votes: `[option_id, votes]` of each option, and their sum. */
  show(counts, total) {
    this.list.classList.add("counted");
    let most = 0;
    for (const [option, votes] of counts) {
      const row = this.byId.get(option);
      if (row && row.votes !== votes) {
        row.votes = votes;
        row.count.textContent = plural(votes, "vote", "votes");
      }
      most = Math.max(most, votes);
    }
    this.rescale(level(most, total));
    for (const row of this.rows) this.update(row, most, total);
  }

  update(row, most, total) {
    const now = level(row.votes, total);
    if (row.level !== now) {
      // The count of an option without votes has not been written yet.
      if (Number.isNaN(row.level)) row.count.textContent = plural(row.votes, "vote", "votes");
      row.level = now;
      row.share.textContent = percent(now);
      row.fill.style.setProperty("--share", Math.max(0, now) / 1000);
    }
    const leads = most > 0 && row.votes === most;
    if (row.leads !== leads) {
      row.leads = leads;
      row.item.classList.toggle("leads", leads);
    }
  }

  rescale(most) {
    if (this.rows.length <= OPTIONS_OF_FULL_SCALE) return;
    const fits = SCALES.filter((scale) => most <= scale * (scale < this.scale ? LOW : HIGH));
    const scale = fits.at(-1) ?? SCALES[0];
    if (scale === this.scale) return;
    this.scale = scale;
    this.list.style.setProperty("--scale", 1000 / scale);
  }

  /** The options with the most votes: more than one if it is a tie, none if nobody has voted. */
  leaders() {
    return this.rows.filter((row) => row.leads);
  }

  /** All rows, those with the most votes first; with as many votes, in the poll's order. */
  ranked() {
    return [...this.rows].sort((one, other) => other.votes - one.votes || one.index - other.index);
  }

  /** Puts the rows in an order. */
  arrange(rows) {
    this.list.replaceChildren(...rows.map((row) => row.item));
  }
}
