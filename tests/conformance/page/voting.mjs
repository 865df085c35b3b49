// Votes: by keyboard, again, refused, of unknown outcome, while the server is busy, and as whom.
import { PHONE, accessible, api, close, counted, equal, expect, open, overflow, poll, same, says, server, settled, shows, someone, tabTo, vote } from "./world.mjs";

async function cast(page, option) {
  await page.getByRole("radio", { name: option }).check();
  await page.locator("#cast").click();
}

const stored = (page, option) => says(page, "#outcome.good", `Your vote for ${option} is stored.`);

export const checks = {
  async "a vote by keyboard alone on a phone, which counts live"() {
    const id = await poll("keyboard");
    const context = await someone({ viewport: PHONE });
    const page = await open(context, `/p/${id}`);
    await settled(page);
    await tabTo(page, "input[type=radio]");
    await page.keyboard.press("ArrowDown");
    await says(page, "#choice", "Banana");
    await tabTo(page, "#cast");
    await page.keyboard.press("Enter");
    await stored(page, "Banana");
    equal("what has the focus", await page.evaluate(() => document.activeElement.id), "cast");
    await shows(page, "Banana", 1);
    await says(page, ".option:has-text('Banana') .share", "100%");
    await overflow(page, "the vote page");
    await accessible(page, "the vote page after a vote");
  },

  async "two browsers are two voters; each sees the other's vote without loading again; a mind is changed"() {
    const id = await poll("two");
    const [first, second] = [await open(await someone(), `/p/${id}`), await open(await someone(), `/p/${id}`)];
    await cast(first, "Apple");
    await stored(first, "Apple");
    await cast(second, "Cherry");
    await stored(second, "Cherry");
    await shows(first, "Cherry", 1);
    await shows(first, "Apple", 1);
    await says(first, "#cast", "Cast again");
    await first.getByRole("radio", { name: "Cherry" }).check();
    await says(first, "#cast", "Change vote");
    await first.locator("#cast").click();
    await stored(first, "Cherry");
    await shows(second, "Cherry", 2);
    await shows(second, "Apple", 0);
    await says(second, "#totals", "2 people have voted. 3 votes came in");
    expect("a page was loaded again", (await same(first)) && (await same(second)));
    // One browser stays one voter.
    await first.reload();
    await says(first, ".option:has-text('Cherry') .badge", "Your vote");
    await cast(first, "Banana");
    await stored(first, "Banana");
    await shows(second, "Banana", 1);
    await shows(second, "Cherry", 1);
  },

  async "without a choice there is no vote"() {
    const page = await open(await someone(), `/p/${await poll("nothing")}`);
    await settled(page);
    await page.locator("#cast").click();
    await says(page, "#outcome.bad", "Choose an option first.");
    equal("what has the focus", await page.evaluate(() => document.activeElement.type), "radio");
  },

  async "a refused vote says why, in the server's words"() {
    const id = await poll("refused");
    const context = await someone();
    const page = await open(context, `/p/${id}`);
    await settled(page);
    context.mayFail = true;
    await page.route("**/votes", (route) => route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), option_id: "no-such-option" }) }));
    const answer = page.waitForResponse("**/votes");
    await cast(page, "Apple");
    const { error } = await (await answer).json();
    await says(page, "#outcome.bad", `Your vote was not stored. ${error.message[0].toUpperCase()}${error.message.slice(1)}`);
    await accessible(page, "the vote page after a refusal");
  },

  async "an unknown outcome is said to be one, and casting again settles it"() {
    const id = await poll("unknown");
    const context = await someone();
    const page = await open(context, `/p/${id}`);
    await settled(page);
    context.mayFail = true;
    const late = { status: 504, json: { error: { code: "DEADLINE_EXCEEDED", message: "the vote was not settled in time" } } };
    const answers = [(route) => route.fulfill(late), (route) => route.abort(), (route) => route.fulfill({ status: 503, body: "busy" })];
    let answer;
    await page.route("**/votes", (route) => answer(route));
    for (answer of answers) {
      await cast(page, "Apple");
      await says(page, "#outcome.unknown", "may or may not count");
      await says(page, "#outcome.unknown", "only your last vote counts");
      equal("what is taken for a vote", await page.locator(".badge:visible").count(), 0);
      await cast(page, "Banana");
      await says(page, "#outcome.unknown", "Banana");
    }
    await accessible(page, "the vote page after an unknown outcome");
    answer = (route) => route.continue();
    await says(page, "#cast", "Cast again");
    await page.locator("#cast").click();
    await stored(page, "Banana");
    await counted(id, 1);
  },

  async "while the server is busy, the page tries again"() {
    const id = await poll("busy");
    const context = await someone();
    const page = await open(context, `/p/${id}`);
    await settled(page);
    context.mayFail = true;
    let refusals = 0;
    await page.route("**/votes", (route) => {
      refusals += 1;
      const busy = { status: 429, headers: { "Retry-After": "1" }, json: { error: { code: "RESOURCE_EXHAUSTED", message: "too much is waiting" } } };
      return refusals > 2 ? route.continue() : route.fulfill(busy);
    });
    await cast(page, "Apple");
    await says(page, "#outcome.busy", "Trying again in");
    await stored(page, "Apple");
    equal("tries", refusals, 3);
    await counted(id, 1);
  },

  async "a token leaves the address bar, is sent with every call, and names the voter"() {
    const id = await poll("token");
    const token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl";
    const context = await someone();
    const requests = [];
    context.on("request", (request) => requests.push(request));
    let body;
    await context.route("**/votes", (route) => {
      body = route.request().postDataJSON();
      return route.fulfill({ json: {} });
    });
    const page = await context.newPage();
    await page.goto(`${server}/p/${id}#${token}`);
    await settled(page);
    equal("the address", page.url(), `${server}/p/${id}`);
    await cast(page, "Apple");
    await stored(page, "Apple");
    equal("the vote", body, { option_id: "a" });
    await page.reload();
    await settled(page);
    await page.getByRole("link", { name: "Votestream" }).click();
    await page.getByRole("link", { name: "Poll token" }).first().click();
    await settled(page);
    await page.goto(`${server}/p/${id}#token=another.${token}`);
    await page.waitForFunction(() => location.hash === "");
    await settled(page);
    equal("votes of the token before", await page.locator(".badge:visible").count(), 0);
    const calls = requests.filter((request) => request.url().includes("/v1/"));
    const authorizations = new Set(await Promise.all(calls.map((request) => request.headerValue("authorization"))));
    equal("what calls are authorized by", [...authorizations].sort(), [`Bearer another.${token}`, `Bearer ${token}`]);
    expect("a request names the token", requests.every((request) => !request.url().includes("eyJ")));
    expect("the token outlives the tab", !JSON.stringify(await page.evaluate(() => ({ ...localStorage }))).includes("eyJ"));
  },

  async "a token that names nobody votes as this browser"() {
    const id = await poll("relay");
    const context = await someone();
    context.mayFail = true;
    const bodies = [];
    await context.route("**/votes", (route) => {
      bodies.push(route.request().postDataJSON());
      const missing = { status: 400, json: { error: { code: "INVALID_ARGUMENT", message: "user_id is missing", field: "user_id" } } };
      return bodies.length === 1 ? route.fulfill(missing) : route.continue();
    });
    const page = await open(context, `/p/${id}#token=relay-0123456789abcdef`);
    await cast(page, "Apple");
    await stored(page, "Apple");
    equal("users that were named", bodies.map(({ user_id: user }) => typeof user), ["undefined", "string"]);
  },

  async "where nothing can be stored, one can vote"() {
    const id = await poll("blocked");
    const context = await someone();
    await context.addInitScript(() => {
      for (const name of ["localStorage", "sessionStorage"]) {
        Object.defineProperty(window, name, { get: () => { throw new DOMException("blocked", "SecurityError"); } });
      }
    });
    const page = await open(context, `/p/${id}`);
    await cast(page, "Apple");
    await stored(page, "Apple");
    await cast(page, "Banana");
    await stored(page, "Banana");
    await counted(id, 1);
  },

  async "a poll that closes under the voter's hand"() {
    const id = await poll("closing");
    const page = await open(await someone({ viewport: PHONE }), `/p/${id}`);
    await settled(page);
    await vote(id, "somebody", "b");
    await shows(page, "Banana", 1);
    await close(id);
    await says(page, "#note", "Voting has ended.");
    await accessible(page, "the vote page while votes are counted");
    await says(page, "#verdict", "Banana");
    await says(page, "#pill", "Final");
    expect("one can still vote", !(await page.locator("#cast").isVisible()) && !(await page.getByRole("radio").count()));
    expect("the page was loaded again", await same(page));
    const { total_votes: votes } = await api("GET", `/v1/polls/${id}/results/final`);
    await says(page, "#verdict", `1 vote of ${votes}`);
    await accessible(page, "the final result");
  },
};
