// What is shown when: states of a poll, connections that break, a thousand options, any script, the list, the screen.
import {
  HALL, NARROW, PHONE, accessible, api, close, counted, equal, expect, idOf, inMinutes, open, overflow, poll, same, says, settled, shows, someone, vote,
} from "./world.mjs";

const streams = (context) => {
  const seen = [];
  context.on("request", (request) => request.url().endsWith("/results/events") && seen.push(request));
  return seen;
};

export const checks = {
  async "hidden until they are released: the page says so, and shows them when they are"() {
    const id = await poll("released", { visibility: "POLL_VISIBILITY_ON_RELEASE" });
    await vote(id, "ada", "c");
    const page = await open(await someone(), `/p/${id}`);
    await says(page, "#note", "once somebody releases them");
    expect("a number is shown", !(await page.locator(".share").first().isVisible()));
    await accessible(page, "a poll with hidden results");
    await api("POST", `/v1/polls/${id}/release`, {});
    await shows(page, "Cherry", 1);
    await page.locator("#note").waitFor({ state: "hidden" });
    expect("the page was loaded again", await same(page));
  },

  async "hidden until they are final: closed, then final, without loading again"() {
    const id = await poll("when-final", { visibility: "POLL_VISIBILITY_WHEN_FINAL" });
    await vote(id, "ada", "a");
    await vote(id, "bob", "b");
    const page = await open(await someone(), `/p/${id}`);
    const screen = await open(await someone({ viewport: HALL }), `/p/${id}/screen`);
    await says(page, "#note", "once they are final");
    await says(screen, "#note", "once they are final");
    await close(id);
    await says(page, "#verdict", "It is a tie");
    await says(page, "#verdict", "50.0% each");
    await says(screen, "#pill", "Final result");
    await says(screen, ".leads .badge", "Tie");
    expect("a page was loaded again", (await same(page)) && (await same(screen)));
  },

  async "a poll that opens later counts down, and opens by itself"() {
    const id = await poll("later", { opens_at: new Date(Date.now() + 20_000).toISOString() });
    const page = await open(await someone({ viewport: PHONE }), `/p/${id}`);
    await says(page, "#countdown", /^0:[0-2]\d$/);
    await says(page, "#pill", "Scheduled");
    await accessible(page, "a poll that opens later");
    await says(page, "#pill", "Open");
    await page.getByRole("radio", { name: "Apple" }).check();
    await page.locator("#cast").click();
    await says(page, "#outcome.good", "is stored");
    expect("the page was loaded again", await same(page));
  },

  async "a lost connection is said, the last numbers stay, and new ones come when it is back"() {
    const id = await poll("lost");
    await vote(id, "ada", "a");
    const context = await someone();
    const seen = streams(context);
    const page = await open(context, `/p/${id}`);
    await shows(page, "Apple", 1);
    context.mayFail = true;
    await context.setOffline(true);
    await says(page, "#lost", "Connection lost. The numbers are of");
    await says(page, "#said", "Connection lost");
    await shows(page, "Apple", 1);
    await accessible(page, "the vote page without a connection");
    await vote(id, "bob", "b");
    await counted(id, 2);
    await context.setOffline(false);
    await shows(page, "Banana", 1);
    await page.locator("#lost").waitFor({ state: "hidden" });
    await says(page, "#said", /^Connected again/);
    const last = await seen[seen.length - 1].headerValue("last-event-id");
    expect("the stream is not resumed", Boolean(last), last);
    expect("the page was loaded again", await same(page));
  },

  async "a stream that fails is tried again, less and less often"() {
    const id = await poll("failing");
    const context = await someone();
    context.mayFail = true;
    const times = [];
    await context.route("**/results/events", (route) => {
      times.push(Date.now());
      return times.length < 4 ? route.fulfill({ status: 502, body: "no" }) : route.continue();
    });
    const page = await open(context, `/p/${id}`);
    await says(page, "#lost", "Connection lost. Trying again");
    await page.getByRole("radio", { name: "Apple" }).waitFor();
    await page.locator("#lost").waitFor({ state: "hidden" });
    const [first, second, third, fourth] = times;
    expect("the waits do not grow", second - first >= 900 && third - second >= 1900 && fourth - third >= 3900, times);
  },

  async "after the final result the page asks no more"() {
    const id = await poll("over", { closes_at: new Date(Date.now() + 6000).toISOString() });
    const context = await someone();
    const seen = streams(context);
    const page = await open(context, `/p/${id}`);
    await says(page, "#verdict", "Nobody voted");
    const before = seen.length;
    await page.evaluate(() => {
      dispatchEvent(new Event("online"));
      document.dispatchEvent(new Event("visibilitychange"));
    });
    // A request that is made now comes after one that the events would have caused.
    await page.evaluate(() => fetch("/v1/polls"));
    equal("streams", seen.length, before);
    await accessible(page, "a final result without votes");
  },

  async "no such poll, and polls that one may not see"() {
    const context = await someone();
    context.mayFail = true;
    const page = await open(context, `/p/${idOf("missing")}`);
    await says(page, "h1", "There is no such poll");
    await accessible(page, "a poll that does not exist");
    const refusals = { 401: ["UNAUTHENTICATED", "You need a link of your own"], 403: ["PERMISSION_DENIED", "Your link is for something else"] };
    for (const [status, [code, advice]] of Object.entries(refusals)) {
      const error = { code, message: "this needs a credential with the scope read:x" };
      await page.route("**/results/events", (route) => route.fulfill({ status: Number(status), json: { error } }));
      await page.reload();
      await says(page, "h1", "You cannot see this poll");
      await says(page, "#face", "This needs a credential");
      await says(page, "#face", advice);
      await page.unroute("**/results/events");
    }
    await accessible(page, "a poll that one may not see");
  },

  async "of a thousand options, an update touches those that look different"() {
    const options = Array.from({ length: 1000 }, (_, index) => ({ option_id: `o${index}`, title: `Option ${index}` }));
    const id = await poll("thousand", { options });
    for (let user = 0; user < 20; user += 1) await vote(id, `user-${user}`, `o${user * 40}`);
    const page = await open(await someone({ viewport: PHONE }), `/p/${id}`);
    await says(page, "#totals", "20 people have voted");
    await page.evaluate(() => {
      const rows = [...document.querySelectorAll(".option")];
      const look = (row) => `${row.className}|${row.textContent}|${row.querySelector(".fill").style.cssText}`;
      globalThis.looks = new Map(rows.map((row) => [row, look(row)]));
      globalThis.touched = new Map();
      globalThis.changed = () => rows.filter((row) => look(row) !== globalThis.looks.get(row));
      new MutationObserver((records) => {
        for (const { target } of records) {
          const row = (target.closest ? target : target.parentElement).closest(".option");
          if (row) globalThis.touched.set(row, (globalThis.touched.get(row) ?? 0) + 1);
        }
      }).observe(document.querySelector("#options"), { subtree: true, childList: true, attributes: true, characterData: true });
    });
    await vote(id, "one-more", "o5");
    await says(page, "#totals", "21 people have voted");
    const { touched, changed, most } = await page.evaluate(() => {
      const rows = globalThis.changed();
      const expected = new Set(rows);
      const writes = [...globalThis.touched];
      return { touched: writes.filter(([row]) => !expected.has(row)).length, changed: rows.length, most: Math.max(...writes.map(([, times]) => times)) };
    });
    equal("rows that were touched and look as before", touched, 0);
    expect("other rows changed than those with votes", changed === 21, changed);
    // Count, share, length of the bar, whether it leads.
    expect("a row was written too often", most <= 4, most);

    await page.getByLabel("Find an option").fill("option 77");
    await says(page, "#found", "11 of 1,000 options");
    equal("rows that are shown", await page.locator(".option:visible").count(), 11);
    await page.getByLabel("Find an option").fill("");
    await page.getByRole("radio", { name: "Option 999" }).check();
    await page.locator("#cast").click();
    await says(page, "#outcome.good", "Option 999");
    await overflow(page, "a poll of a thousand options");
    const screen = await open(await someone({ viewport: HALL }), `/p/${id}/screen`);
    await says(screen, "#more", /and 99\d other options/);
  },

  async "emoji, right-to-left and 512 bytes fit on 320 pixels, and markup is text"() {
    const attack = `<img src=x onerror="document.title='owned'">`;
    const options = [
      { option_id: "rtl", title: "بيتزا بالجبن والزيتون" },
      { option_id: "emoji", title: "👩‍🍳🍜 Ramen 🇯🇵" },
      { option_id: "long", title: "W".repeat(512) },
      { option_id: "words", title: "word ".repeat(100).trim() },
      { option_id: "x".repeat(128), title: "" },
      { option_id: "attack", title: attack },
    ];
    const id = await poll("titles", { title: `ما هو أفضل طبق؟ 🍕🥗 ${"Unbroken".repeat(50)}`, options });
    await vote(id, "ada", "long");
    const context = await someone({ viewport: NARROW });
    for (const path of [`/p/${id}`, `/p/${id}/screen`, "/", "/operate"]) {
      const page = await open(context, path);
      await says(page, "bdi", "ما هو أفضل طبق؟");
      await overflow(page, path);
      await accessible(page, `${path} with titles of every kind`);
      await page.close();
    }
    const page = await open(context, `/p/${id}`);
    await says(page, ".name", attack);
    await says(page, ".name", "x".repeat(128));
    await page.getByRole("radio", { name: "word word" }).check();
    await page.locator("#cast").click();
    await says(page, "#outcome.good", "word word");
    await overflow(page, "the vote page after a vote for a long title");
  },

  async "the list: polls by state, each with what comes next"() {
    const soon = await poll("list-soon", { closes_at: inMinutes(3), title: "Closes soon" });
    const page = await open(await someone({ viewport: PHONE }), "/");
    await says(page, "#OPEN li", "Closes soon");
    await accessible(page, "the list of polls");
    await poll("list-later", { opens_at: inMinutes(2), title: "Opens later" });
    await says(page, "#SCHEDULED li", /Opens later[^]*Opens in 1:\d\d/);
    await close(soon);
    await says(page, "#FINAL li", "Closes soon");
    expect("the page was loaded again", await same(page));
    await overflow(page, "the list of polls");
  },

  async "the screen: every row is in sight, with a code to vote by, or as an overlay without"() {
    const options = Array.from({ length: 30 }, (_, index) => ({ option_id: `o${index}`, title: `Option ${index}` }));
    const id = await poll("hall", { options });
    await vote(id, "ada", "o29");
    const page = await open(await someone({ viewport: HALL }), `/p/${id}/screen`);
    await says(page, ".option:first-child", /Option 29[^]*1 vote/);
    const rows = await page.locator(".option").evaluateAll((all) => all.map((row) => row.getBoundingClientRect().bottom));
    expect("rows do not fit", rows.length >= 4 && Math.max(...rows) <= HALL.height, rows);
    await page.waitForFunction(() => document.querySelector("#code").naturalWidth > 0);
    await accessible(page, "the screen");
    const overlay = await open(await someone({ viewport: HALL, colorScheme: "dark" }), `/p/${id}/screen?overlay`);
    await says(overlay, ".option:first-child", "Option 29");
    expect("the overlay has a code", !(await overlay.locator("#join").isVisible()));
    const papers = await overlay.evaluate(() => [document.documentElement, document.body].map((element) => getComputedStyle(element).backgroundColor));
    equal("the overlay's background", papers, ["rgba(0, 0, 0, 0)", "rgba(0, 0, 0, 0)"]);
  },

  async "whoever wants less motion gets none"() {
    const id = await poll("still");
    await vote(id, "ada", "a");
    const page = await open(await someone({ reducedMotion: "reduce" }), `/p/${id}`);
    await settled(page);
    equal("the transition", await page.locator(".fill").first().evaluate((fill) => getComputedStyle(fill).transitionDuration), "0s");
  },
};
