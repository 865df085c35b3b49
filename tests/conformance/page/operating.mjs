// Whoever runs polls: creating by keyboard alone, closing and releasing after a question, recounting, and what they see.
import { accessible, api, equal, expect, idOf, open, overflow, NARROW, poll, same, says, shows, someone, tabTo, vote } from "./world.mjs";

/** A part of a poll's card, which shows its id. */
const part = (id, selector) => `.card:has-text("${id} ·") ${selector}`;
const button = (page, id, name) => page.locator(part(id, "button")).filter({ hasText: name });

export const checks = {
  async "a poll is created by keyboard alone, and the list shows it without loading again"() {
    const list = await open(await someone(), "/");
    const page = await open(await someone(), "/operate");
    const type = async (field, keys) => {
      await tabTo(page, field);
      await page.keyboard.type(keys);
    };
    await type("#id", idOf("typed"));
    await type("#title", "Typed by hand");
    await tabTo(page, "#lines");
    await page.keyboard.type("tea\ncoffee = Coffee, black\n");
    await tabTo(page, "#minutes");
    await page.keyboard.press("Control+A");
    await page.keyboard.type("20");
    await type("#visibility", "when you");
    await tabTo(page, "#create .main");
    await page.keyboard.press("Enter");
    await says(page, "#create-said.good", "is created");
    await says(page, ".card", "Typed by hand");
    await says(list, "#OPEN li", "Typed by hand");
    expect("the list was loaded again", await same(list));
    const { poll: stored } = await api("GET", `/v1/polls/${idOf("typed")}`);
    equal("the options", stored.options, [{ option_id: "tea", title: "tea" }, { option_id: "coffee", title: "Coffee, black" }]);
    equal("the visibility", stored.visibility, "POLL_VISIBILITY_ON_RELEASE");
    const minutes = (Date.parse(stored.closes_at) - Date.now()) / 60_000;
    expect("it does not close in 20 minutes", minutes > 18 && minutes <= 20.1, minutes);
    await accessible(page, "the view to operate");
  },

  async "a poll that is refused says why, and where"() {
    const context = await someone();
    context.mayFail = true;
    const page = await open(context, "/operate");
    await page.getByLabel("Id", { exact: true }).fill("no blanks please");
    await page.getByLabel("Options").fill("tea");
    await page.getByRole("button", { name: "Create poll" }).click();
    await says(page, "#create-said.bad", /\w/);
    equal("the field", await page.evaluate(() => [document.activeElement.id, document.activeElement.getAttribute("aria-invalid")]), ["id", "true"]);
    await page.getByLabel("Closes after minutes").fill("");
    await page.getByRole("button", { name: "Create poll" }).click();
    await accessible(page, "a form with a mistake");
  },

  async "closing asks first; Escape leaves the poll open; the voter sees the end, and a recount agrees"() {
    const id = await poll("ended", { title: "Ended by hand" });
    await vote(id, "ada", "a");
    const voter = await open(await someone(), `/p/${id}`);
    await shows(voter, "Apple", 1);
    const page = await open(await someone(), "/operate");
    const closing = button(page, id, "Close");
    await closing.focus();
    await page.keyboard.press("Enter");
    await says(page, "dialog", "cannot be opened again");
    equal("what has the focus", await page.evaluate(() => document.activeElement.textContent), "Cancel");
    await accessible(page, "the question before closing");
    await page.keyboard.press("Escape");
    await page.locator("dialog").waitFor({ state: "hidden" });
    equal("the state", (await api("GET", `/v1/polls/${id}`)).poll.state, "POLL_STATE_OPEN");
    await closing.focus();
    await page.keyboard.press("Enter");
    await tabTo(page, "#confirm-yes");
    await page.keyboard.press("Enter");
    await says(page, part(id, ".said"), "Closed.");
    await says(voter, "#verdict", "Apple");
    await button(page, id, "Recount").click();
    await says(page, part(id, ".said.good"), "The recount matches: 1 stored vote");
    expect("a page was loaded again", (await same(page)) && (await same(voter)));
  },

  async "a recount that differs says where"() {
    const id = await poll("differs", { title: "A wrong count" });
    const page = await open(await someone(), "/operate");
    const options = [{ option_id: "a", counted: 3, recounted: 4 }, { option_id: "b", counted: 1, recounted: 1 }];
    await page.route("**/recount", (route) => route.fulfill({ json: { poll_id: id, options, matches: false, final: true, progress: "" } }));
    await button(page, id, "Recount").click();
    await says(page, part(id, ".said.bad"), "“a” was counted 3 and recounted 4");
  },

  async "releasing asks first, and readers see the results"() {
    const id = await poll("given", { title: "Released by hand", visibility: "POLL_VISIBILITY_ON_RELEASE" });
    await vote(id, "ada", "b");
    const reader = await open(await someone(), `/p/${id}`);
    const page = await open(await someone(), "/operate");
    await button(page, id, "Release").click();
    await page.getByRole("button", { name: "Release results" }).click();
    await says(page, part(id, ".said.good"), "Released.");
    await shows(reader, "Banana", 1);
    await button(page, id, "Release").waitFor({ state: "hidden" });
  },

  async "the operator sees votes a second, how far the groups are, and what was refused"() {
    const id = await poll("rates", { title: "Counted a second" });
    const page = await open(await someone({ viewport: NARROW }), "/operate");
    await says(page, "#groups", "Votes are stored");
    await says(page, "#groups", "Votes are counted");
    await says(page, part(id, ".submitted-rate"), "0.0/s");
    let user = 0;
    const moving = page.locator(part(id, ".counted-rate")).filter({ hasText: /^(?!0\.0)[\d.,]+\/s$/ });
    // Votes come in until their rate is seen.
    await expectSoon("a rate", async () => {
      await vote(id, `user-${(user += 1)}`, "a");
      return (await moving.count()) > 0;
    });
    await says(page, part(id, ".submitted"), /^[1-9]/);
    await overflow(page, "the view to operate");
  },
};

async function expectSoon(what, good) {
  const end = Date.now() + 60_000;
  while (!(await good())) expect(`${what} is not seen`, Date.now() < end);
}
