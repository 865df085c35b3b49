/** Shows the results of a poll whenever they change, and the final result at the end. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { ResultsService, type GetFinalResultsResponse } from "../gen/votestream/v1/results_pb.js";
import { Backoff, failure, notConnected } from "./outcome.js";
import { isConnected, OPTIONS, serverStream, Service, unary } from "./service.js";

/** Returns the final result. A broken connection is not the end of the poll. */
async function watch(service: Service, pollId: string): Promise<GetFinalResultsResponse> {
  const backoff = new Backoff();
  for (;;) {
    const client = service.client();
    let failed = notConnected(service.url);
    try {
      if (await isConnected(client)) {
        const { watchInterimResults, getFinalResults } = ResultsService.method;
        for await (const { options } of serverStream(client, watchInterimResults, { pollId }, service.metadata)) {
          backoff.progress();
          show("so far", options.map(({ optionId, counted }) => `${optionId} ${counted}`));
        }
        return await unary(client, getFinalResults, { pollId }, service.metadata);
      }
    } catch (error) {
      failed = failure(error);
    } finally {
      client.close();
    }
    const pause = failed.mayPass ? backoff.pause(failed.retryMillis) : undefined;
    if (pause === undefined) throw new Error(failed.text);
    await sleep(pause);
  }
}

function show(when: string, counts: string[]) {
  console.log(`${when}: ${counts.join(", ")}`);
}

const { values } = parseArgs({ options: OPTIONS });
if (values.poll === undefined) {
  console.error("usage: node build/src/watch.js [--server URL] [--results URL] --poll POLL");
  process.exit(64);
}
try {
  const final = await watch(new Service(values.results ?? values.server), values.poll);
  show("final", final.options.map(({ optionId, votes }) => `${optionId} ${votes}`));
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
