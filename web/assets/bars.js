// The options with their shares. Rows are made once; an update writes only what looks different afterwards, so that a thousand
// options cost as much as the few that changed.
// Must never put what the server sent into the document other than as text.

import { arrange, copy } from "./dom.js";
import { level, nameOf, percent, plural } from "./format.js";

// With many options even the first has a small share. Then a full bar is less than 100%: one of these, in tenths of a percent.
const SCALES = [1000, 500, 250, 100, 50, 20, 10];
const FULL_SCALE_OPTIONS = 8;
// It shrinks to a scale only with room to spare, so that it does not flicker.
const SPARE = 0.85;

export class Bars {
  /** Makes a row for each option, of the template `row`. */
  constructor(list, options) {
    this.list = list;
    this.scale = SCALES[0];
    this.rows = options.map((option, index) => {
      const item = copy("row");
      const part = (name) => item.querySelector(`.${name}`);
      item.querySelector("bdi").textContent = nameOf(option);
      return { option, index, item, name: part("name"), badge: part("badge"), share: part("share"), count: part("count"), fill: part("fill") };
    });
    this.byId = new Map(this.rows.map((row) => [row.option.option_id, row]));
    list.classList.toggle("many", options.length > 50);
    this.arrange(this.rows);
  }

  /** Shows votes: `[option_id, votes]` of each option, and their sum. */
  show(votes, total) {
    const most = Math.max(0, ...votes.map(([, number]) => number));
    this.rescale(level(most, total), `${plural(most, "vote").length}ch`);
    for (const [option, number] of votes) {
      const row = this.byId.get(option);
      if (row) this.update(row, number, level(number, total), most > 0 && number === most);
    }
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

  rescale(most, width) {
    const fits = (scale) => most <= scale * (scale < this.scale ? SPARE : 1);
    if (this.rows.length > FULL_SCALE_OPTIONS && most > 0) this.scale = SCALES.filter(fits).pop();
    const { classList, style } = this.list;
    if (style.getPropertyValue("--scale") !== `${1000 / this.scale}`) style.setProperty("--scale", `${1000 / this.scale}`);
    if (style.getPropertyValue("--count") !== width) style.setProperty("--count", width);
    classList.add("counted");
  }

  /** What the length of a bar means, unless it is plain. */
  legend() {
    return this.scale < 1000 ? `A full bar is ${this.scale / 10}%.` : "";
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
