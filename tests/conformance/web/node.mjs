// All calls from Node, by its own fetch. Arguments: the URLs of both services.
import { create, everyRpc, results, votes } from "./calls.mjs";

const [ingest, polls] = process.argv.slice(2);
const called = new Set();
await create(polls, "node", called);
await votes(ingest, "node", called);
await results(polls, "node", called);
console.log(`ok: ${everyRpc(called)} RPCs by gRPC-Web from Node`);
