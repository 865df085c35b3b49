// Small helpers for the document.
// Must never make markup of a text.

export const $ = (id) => document.getElementById(id);

/** Writes a text if it is another one, since screen readers and layout notice every write. Hides what is empty. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = text === "";
}

/** A copy of the content of a `<template>`. */
export const copy = (id) => $(id).content.firstElementChild.cloneNode(true);
