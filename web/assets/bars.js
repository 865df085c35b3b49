// The options with their shares. Rows are made once; an update writes only what looks different afterwards, so that a thousand
// options cost as much as the few that changed.
// Must never put what the server sent into the document other than as text.

import { arrange, copy } from "./dom.js";
import { level, nameOf, percent, plural } from "./format.js";

// With more options even the first has a small share. Then its bar is the full one.
const FULL_SCALE_OPTIONS = 8;

export class Bars {
  /** Makes a row for each option, of the template `row`. */
  constructor(list, options) {
    this.list = list;
    this.rows = options.map((option, index) => {
      const row = { option, index, item: copy("row") };
      for (const part of ["name", "badge", "share", "count", "fill"]) row[part] = row.item.querySelector(`.${part}`);
      row.item.querySelector("bdi").textContent = nameOf(option);
      return row;
    });
    this.byId = new Map(this.rows.map((row) => [row.option.option_id, row]));
    list.classList.toggle("many", options.length > 50);
    this.arrange(this.rows);
  }

  /** Shows votes: `[option_id, votes]` of each option, and their sum. */
  show(votes, total) {
    const most = Math.max(0, ...votes.map(([, number]) => number));
    const full = most && this.rows.length > FULL_SCALE_OPTIONS ? level(most, total) : 1000;
    this.list.classList.add("counted");
    this.list.style.setProperty("--full", full / 1000);
    this.list.style.setProperty("--count", `${plural(most, "vote").length}ch`);
    for (const [option, number] of votes) {
      const row = this.byId.get(option);
      if (row) this.update(row, number, level(number, total), most > 0 && number === most);
    }
    this.legend = full < 1000 ? `A full bar is ${percent(full)}.` : "";
  }

  update(row, votes, level, leads) {
    if (row.votes !== votes) row.count.textContent = plural(votes, "vote");
    if (row.level !== level) {
      row.share.textContent = percent(level);
      row.fill.style.setProperty("--share", Math.max(0, level) / 1000);
    }
    if (row.leads !== leads) row.item.classList.toggle("leads", leads);
    Object.assign(row, { votes, level, leads });
  }

  /** The options with the most votes: more than one if it is a tie, none if nobody has voted. */
  leaders() {
    return this.rows.filter((row) => row.leads);
  }

  /** Those with the most votes first; with as many votes, in the poll's order. */
  ranked() {
    return [...this.rows].sort((one, other) => other.votes - one.votes || one.index - other.index);
  }

  arrange(rows) {
    arrange(this.list, rows.map((row) => row.item));
  }
}
