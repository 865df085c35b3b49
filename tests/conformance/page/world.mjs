// The server, Chromium, and what the checks expect of both. Every wait is for a condition.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { isDeepStrictEqual } from "node:util";
import { chromium } from "playwright-core";

/** Longest wait for a condition on a busy machine, in milliseconds. */
export const PATIENCE = 60_000;
export const PHONE = { width: 360, height: 740 };
export const NARROW = { width: 320, height: 640 };
export const WIDE = { width: 1280, height: 800 };
export const HALL = { width: 1920, height: 1080 };

const [server, executablePath] = process.argv.slice(2);
// Ids of polls that no other run on the same server has.
const run = Date.now().toString(36);
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export { server };

export function expect(what, good, seen) {
  if (!good) throw new Error(`${what}: ${JSON.stringify(seen)}`);
}

export function equal(what, seen, wanted) {
  expect(`${what} is not ${JSON.stringify(wanted)}`, isDeepStrictEqual(seen, wanted), seen);
}

// --- The server.

export async function api(method, path, body) {
  const response = await fetch(server + path, {
    method,
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body && JSON.stringify(body),
  });
  const answer = await response.json();
  expect(`${method} ${path} was not answered with 200`, response.ok, answer);
  return answer;
}

export const inMinutes = (minutes) => new Date(Date.now() + minutes * 60_000).toISOString();
export const idOf = (name) => `${name}-${run}`;

/** Creates a poll with options `a`, `b` and `c`, unless `definition` has others, and returns its id. */
export async function poll(name, definition = {}) {
  const options = [{ option_id: "a", title: "Apple" }, { option_id: "b", title: "Banana" }, { option_id: "c", title: "Cherry" }];
  await api("POST", "/v1/polls", { poll_id: idOf(name), title: `Poll ${name}`, options, closes_at: inMinutes(30), ...definition });
  return idOf(name);
}

export const vote = (id, user, option) => api("POST", `/v1/polls/${id}/votes`, { user_id: user, option_id: option });
export const close = (id) => api("POST", `/v1/polls/${id}/close`, {});

/** Waits until so many users are counted. */
export async function counted(id, users) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const { total_counted: seen } = await api("GET", `/v1/polls/${id}/results/interim`);
    if (seen === users) return;
    expect(`${users} users are not counted in ${id}`, Date.now() < end, seen);
  }
}

// --- Chromium.

export const browser = await chromium.launch({
  executablePath,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});

const contexts = new Set();

/** A browser of its own: storage, network, and everything that it complains of. */
export async function someone(options = {}) {
  const context = await browser.newContext({ viewport: WIDE, ...options });
  context.setDefaultTimeout(PATIENCE);
  contexts.add(context);
  context.complaints = [];
  // A request that fails is logged by Chromium. Checks in which one must fail say so.
  context.mayFail = false;
  context.on("page", (page) => {
    page.on("pageerror", (error) => context.complaints.push(`${error}`));
    page.on("console", (message) => {
      const failed = message.text().startsWith("Failed to load resource");
      if (["error", "warning"].includes(message.type()) && !(failed && context.mayFail)) context.complaints.push(message.text());
    });
  });
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
  });
  return context;
}

/** Opens a view, and marks the page, so that `same` can tell whether it was loaded again. */
export async function open(context, path) {
  const page = await context.newPage();
  await page.goto(server + path);
  await page.evaluate(() => (globalThis.mark = true));
  return page;
}

export const same = (page) => page.evaluate(() => globalThis.mark === true);

export async function end() {
  for (const context of contexts) {
    contexts.delete(context);
    await context.close();
    equal("what Chromium complains of", context.complaints, []);
  }
}

export const settled = (page) => page.waitForSelector("#ballot:not([hidden]), #options .option");
export const text = (page, selector) => page.locator(selector).innerText();

/** Waits until an element is shown and has a text. */
export async function says(page, selector, wanted) {
  try {
    await page.locator(selector).filter({ hasText: wanted, visible: true }).first().waitFor();
  } catch {
    const seen = await page.locator(selector).allInnerTexts();
    throw new Error(`${selector} does not say ${wanted}: ${JSON.stringify(seen)}`);
  }
}

/** Waits until a row shows so many votes. */
export const shows = (page, option, votes) => says(page, `.option:has-text("${option}") .count`, new RegExp(`^${votes} votes?$`));

/** Presses Tab until the element has the focus. */
export async function tabTo(page, selector) {
  for (let presses = 0; presses < 500; presses += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
  }
  throw new Error(`Tab does not reach ${selector}`);
}

export async function overflow(page, what) {
  const { scroll, client } = await page.evaluate(() => {
    const { scrollWidth, clientWidth } = document.documentElement;
    return { scroll: scrollWidth, client: clientWidth };
  });
  expect(`${what} is wider than the screen`, scroll <= client, { scroll, client });
}

/** axe finds nothing serious, neither in light nor in dark. Transitions are off, so that colours are the final ones. */
export async function accessible(page, what) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    // As DevTools would: the page's policy lets no script of others run.
    if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(`${axe}; undefined`);
    const found = await page.evaluate(async () => {
      const { violations } = await globalThis.axe.run();
      return violations
        .filter(({ impact }) => impact === "serious" || impact === "critical")
        .map(({ id, nodes }) => `${id}: ${nodes[0].html} ${nodes[0].any.map((check) => check.message)}`);
    });
    equal(`what axe finds in ${what}, ${colorScheme}`, found, []);
  }
}
