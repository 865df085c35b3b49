// A client whose types openapi-typescript made from the document: it creates a poll, casts, reads, closes, waits, and recounts.
// Arguments: the server's URL, and an administrator's token or nothing.

import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./types.js";

type Final = components["schemas"]["Final"];

const WAIT_MAX_MS = 120_000;
const [baseUrl = "", token] = process.argv.slice(2);
const options = { baseUrl, ...(token && { headers: { Authorization: `Bearer ${token}` } }) };
const server = createClient<paths, "application/json">(options);
const tables = createClient<paths, "text/csv">(options);
const poll = { params: { path: { poll: "generated" } } };

/** Asks again until the answer is the one that is waited for. */
async function until<T>(what: string, ask: () => Promise<T | undefined>): Promise<T> {
  const end = Date.now() + WAIT_MAX_MS;
  while (Date.now() < end) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await new Promise((resume) => setTimeout(resume, 100));
  }
  throw new Error(`FAILED: ${what} did not come`);
}

const created = await server.POST("/v1/polls", {
  body: {
    poll_id: "generated",
    title: "Which one?",
    options: [{ option_id: "a", title: "A" }, { option_id: 2 }],
    closes_at: new Date(Date.now() + 3_600_000).toISOString(),
    visibility: "POLL_VISIBILITY_LIVE",
  },
});
assert.equal(created.error, undefined);
assert.equal(created.data?.poll.state, "POLL_STATE_OPEN");
assert.deepEqual(created.data.poll.options.map((option) => option.option_id), ["a", "2"]);

for (const [user_id, option_id] of [["u", "a"], ["v", "a"], ["u", "2"], [7, 2]] as const) {
  const { data, error } = await server.POST("/v1/polls/{poll}/votes", { ...poll, body: { user_id, option_id } });
  assert.deepEqual(data, {}, error?.error.message);
}
const unknown = await server.POST("/v1/polls/{poll}/votes", { ...poll, body: { user_id: "w", option_id: "c" } });
assert.equal(unknown.error?.error.field, "option_id");

const interim = await until("the counts", async () => {
  const { data } = await server.GET("/v1/polls/{poll}/results/interim", poll);
  // Two groups count independently.
  return data?.total_counted === 3 && data.total_submitted === 4 ? data : undefined;
});
assert.deepEqual(interim.options.map((option) => [option.submitted, option.counted]), [[2, 1], [2, 2]]);
const table = await tables.GET("/v1/polls/{poll}/results/interim", { ...poll, headers: { Accept: "text/csv" }, parseAs: "text" });
assert.equal(table.data, "option_id,title,submitted,counted\r\na,A,2,1\r\n2,2,2,2\r\n");

const early = await server.GET("/v1/polls/{poll}/results/final", poll);
assert.equal(early.response.status, 409);
assert.equal(early.error?.error.code, "FAILED_PRECONDITION");

const closed = await server.POST("/v1/polls/{poll}/close", poll);
assert.equal(closed.error, undefined);
const last = await until<Final>("the final result", async () => (await server.GET("/v1/polls/{poll}/results/final", poll)).data);
assert.deepEqual(last.options.map((option) => [option.option_id, option.votes]), [["a", 1], ["2", 2]]);
assert.equal(last.total_votes, 3);

const recount = await server.POST("/v1/polls/{poll}/recount", poll);
assert.equal(recount.data?.matches, true);
assert.equal(recount.data.final, true);

const listed = await server.GET("/v1/polls", { params: { query: { page_size: 1000 } } });
assert.ok(listed.data?.polls.some((one) => one.poll_id === "generated" && one.state === "POLL_STATE_FINAL"));
const status = await server.GET("/v1/status");
assert.deepEqual(status.data?.groups.map((group) => group.group), ["persist", "tally"]);
console.log("ok: a generated client, checked by tsc, takes a poll from its creation to a recount");
