// How the page is served: its policy, its size, what it is made of, and frames.
import { createServer } from "node:http";
import { equal, expect, open, poll, says, server, settled, someone } from "./world.mjs";

const SIZE_MAX = 50_000;

/** A page of another origin with the vote page in a frame. */
async function foreign(path) {
  const html = `<!doctype html><title>Elsewhere</title><iframe src="${server}${path}" width="400" height="600"></iframe>`;
  const host = createServer((_, response) => response.setHeader("content-type", "text/html").end(html));
  await new Promise((listening, failed) => host.once("error", failed).listen(0, "127.0.0.1", listening));
  return { url: `http://127.0.0.1:${host.address().port}/`, stop: () => host.close() };
}

export const checks = {
  async "every view has a policy that lets nothing in, and needs nothing from elsewhere"() {
    const id = await poll("policy");
    for (const path of ["/", `/p/${id}`, `/p/${id}/screen`, "/operate"]) {
      const response = await fetch(server + path);
      const policy = response.headers.get("content-security-policy") ?? "";
      expect(`the policy of ${path} is too weak`, policy.includes("default-src 'none'") && !/unsafe|\*|data:|https?:/.test(policy), policy);
      const context = await someone();
      const hosts = new Set();
      context.on("request", (request) => hosts.add(new URL(request.url()).origin));
      const page = await open(context, path);
      await page.locator("h1").waitFor();
      equal("servers that are asked", [...hosts], [server]);
    }
  },

  async "each view has less than 50 kB, and all files together have less than that on the wire"() {
    const id = await poll("size");
    const sizes = new Map();
    for (const path of ["/", `/p/${id}`, `/p/${id}/screen`, "/operate"]) {
      const context = await someone();
      const page = await context.newPage();
      const requests = [];
      page.on("request", (request) => requests.push(request));
      await page.goto(server + path, { waitUntil: "load" });
      let whole = 0;
      for (const request of requests) {
        const { pathname } = new URL(request.url());
        if (pathname !== path && !pathname.startsWith("/assets/")) continue;
        const response = await request.response();
        sizes.set(pathname, (await request.sizes()).responseBodySize);
        whole += (await response.body()).length;
      }
      console.log(`    ${path}: ${whole} bytes`);
      expect(`${path} is too large`, whole < SIZE_MAX, whole);
    }
    const total = [...sizes.values()].reduce((sum, size) => sum + size, 0);
    console.log(`    ${sizes.size} files, ${total} bytes`);
    expect("too large", sizes.size >= 10 && total < SIZE_MAX, { total, ...Object.fromEntries(sizes) });
  },

  async "a frame elsewhere is refused by default, and works where the policy allows it"() {
    const id = await poll("frame");
    const elsewhere = await foreign(`/p/${id}`);
    try {
      const policy = (await fetch(`${server}/p/${id}`)).headers.get("content-security-policy") ?? "";
      expect("the policy does not speak of frames", policy.includes("frame-ancestors"), policy);
      const refusing = await someone();
      const page = await refusing.newPage();
      await page.goto(elsewhere.url);
      await page.waitForFunction(() => frames.length === 1);
      expect("the frame shows the poll", page.frames()[1].url().startsWith("chrome-error:"), page.frames()[1].url());
      // Chromium logs that it has refused the frame, which is what is wanted.
      refusing.complaints.length = 0;

      const allowing = await someone();
      await allowing.route(`**/p/${id}`, async (route) => {
        const response = await route.fetch();
        const headers = { ...response.headers(), "content-security-policy": policy.replace(/frame-ancestors [^;]*/, `frame-ancestors ${elsewhere.url}`) };
        delete headers["x-frame-options"];
        await route.fulfill({ response, headers });
      });
      const framed = await allowing.newPage();
      await framed.goto(elsewhere.url);
      const frame = framed.frameLocator("iframe");
      await frame.getByRole("radio", { name: "Apple" }).check();
      await frame.locator("#cast").click();
      await frame.locator("#outcome.good").waitFor();
    } finally {
      elsewhere.stop();
    }
  },
};
