// All calls from pages in Chromium. Arguments: the URLs of both services, where Chromium is, the page's script, and the port of
// an origin that the services allow, if they allow one.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const [ingest, polls, executablePath, script, allowedPort] = process.argv.slice(2);
const source = await readFile(script, "utf8");
const html = `<!doctype html><meta charset="utf-8"><title>votestream</title><script type="module">${source.replaceAll("</script", "<\\/script")}</script>`;

/** Serves the page on a port of its own, so that its origin is not one of the services. */
async function foreign(port) {
  const server = createServer((_, response) => response.setHeader("content-type", "text/html").end(html));
  await new Promise((listening, failed) => server.once("error", failed).listen(port, "127.0.0.1", listening));
  return { url: `http://127.0.0.1:${server.address().port}/`, stop: () => server.close() };
}

const browser = await chromium.launch({
  executablePath,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
try {
  const open = async (url) => {
    const page = await browser.newPage();
    page.on("pageerror", (error) => console.error(`page: ${error}`));
    await page.goto(url);
    await page.waitForFunction(() => globalThis.votestream);
    return page;
  };
  /** A page of the service's own origin, which the service itself does not serve. */
  const own = async (url) => {
    const context = await browser.newContext();
    await context.route(`${url}/page`, (route) => route.fulfill({ contentType: "text/html", body: html }));
    const page = await context.newPage();
    await page.goto(`${url}/page`);
    await page.waitForFunction(() => globalThis.votestream);
    return page;
  };
  const call = (page, name, ...parameters) =>
    page.evaluate(([name, parameters]) => globalThis.votestream[name](...parameters).then(() => {}), [name, parameters]);

  const [voting, results] = [await own(ingest), await own(polls)];
  await call(results, "create", polls, "chromium");
  await call(voting, "votes", ingest, "chromium");
  const other = await foreign(0);
  await call(await open(other.url), "nothing", ingest, "chromium");
  other.stop();
  await call(results, "results", polls, "chromium");
  console.log("ok: every RPC from Chromium, from pages of the services' own origins; a page of another origin gets nothing");

  if (allowedPort) {
    const allowed = await foreign(Number(allowedPort));
    const page = await open(allowed.url);
    await call(page, "create", polls, "allowed");
    await call(page, "votes", ingest, "allowed");
    await call(page, "results", polls, "allowed");
    allowed.stop();
    console.log("ok: every RPC from Chromium, from a page of another origin that the services allow");
  } else {
    console.log("skipped: pages of another origin that are allowed: `votestream up` has no --cors-allow-origins");
  }
} finally {
  await browser.close();
}
