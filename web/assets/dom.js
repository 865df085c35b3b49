// Small helpers for the document. Must never make markup of a text.

export const $ = (id) => document.getElementById(id);
export const root = document.documentElement;

/** Writes a text if it is another one, since screen readers notice every write. Hides what is empty. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

/** A copy of the content of a `<template>`. */
export const copy = (id) => $(id).content.firstElementChild.cloneNode(true);

/** Gives a list these items, if it has not. */
export function arrange(list, items) {
  if (items.length === list.children.length && items.every((item, at) => list.children[at] === item)) return;
  const focused = document.activeElement;
  list.replaceChildren(...items);
  if (list.contains(focused)) focused.focus();
}
