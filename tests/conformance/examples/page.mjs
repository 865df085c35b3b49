// The page of `examples/typescript/browser` in Chromium. Arguments: where Chromium is, the folder of the page, the port of its
// origin, the URL of the service, a poll and one of its options. Packages are looked for beside this file.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const [executablePath, folder, port, server, poll, option] = process.argv.slice(2);
const TYPES = { html: "text/html", js: "text/javascript" };
const PATIENCE = 60_000;

const pages = createServer(async ({ url }, response) => {
  const name = new URL(url, "http://page").pathname.slice(1);
  const content = await readFile(`${folder}/${name}`).catch(() => undefined);
  response.writeHead(content ? 200 : 404, { "content-type": TYPES[name.split(".").at(-1)] ?? "text/plain" }).end(content);
});
await new Promise((listening) => pages.listen(Number(port), "127.0.0.1", listening));
const browser = await chromium.launch({
  executablePath,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on("pageerror", (error) => console.error(`page: ${error}`));
  const query = new URLSearchParams({ server, poll, user: "chromium" });
  await page.goto(`http://127.0.0.1:${port}/index.html?${query}`);
  const shows = (id, text) =>
    page.waitForFunction(([id, text]) => document.getElementById(id).textContent.includes(text), [id, text]);
  await shows("counts", `${option} 0`);
  const button = page.getByRole("button", { name: option, exact: true });

  // The connection breaks before an answer comes.
  const path = "**/votestream.v1.IngestService/CastVote";
  await page.route(path, (route) => route.abort("connectionreset"));
  await button.click();
  await shows("status", "unknown");
  await page.unroute(path);
  await button.click();
  await shows("status", "is stored");
  await shows("counts", `${option} 1`);
  console.log("ok: the page in Chromium casts a vote, says when its outcome is unknown, and sees it counted");
} finally {
  await browser.close();
  pages.close();
}
