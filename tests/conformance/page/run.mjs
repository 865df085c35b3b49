// Runs all checks and prints a line for each. Arguments: the server's URL, and where Chromium is. A third one, if given, selects
// the checks whose names contain it.
import { api, accessible, browser, end, open, says, someone } from "./world.mjs";
import { checks as operating } from "./operating.mjs";
import { checks as serving } from "./serving.mjs";
import { checks as showing } from "./showing.mjs";
import { checks as voting } from "./voting.mjs";

const empty = (await api("GET", "/v1/polls")).polls.length === 0;
const first = {
  async "an empty list says how to create a poll"() {
    const page = await open(await someone(), "/");
    await says(page, "#empty", "votestream poll create");
    await accessible(page, "the empty list");
  },
};
if (!empty) console.log("skipped: an empty list: the server has polls");

const all = { ...(empty ? first : {}), ...operating, ...voting, ...showing, ...serving };
let failed = 0;
for (const [name, check] of Object.entries(all)) {
  if (!name.includes(process.argv[4] ?? "")) continue;
  try {
    await check();
    await end();
    console.log(`ok: ${name}`);
  } catch (problem) {
    failed += 1;
    console.error(`FAILED: ${name}\n    ${problem.stack}`);
    await end().catch((also) => console.error(`    ${also.message}`));
  }
}
await browser.close();
if (failed) {
  console.error(`${failed} checks failed`);
  process.exit(1);
}
