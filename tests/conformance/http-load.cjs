// Load by autocannon, an HTTP load tool, on POST /vote. Arguments: where autocannon is, the URL of ingest, the poll.
//
// Prints the acknowledged votes as CSV (poll_id,user_id,option_id), those of each user in their order: a user votes over one
// connection only, and the next request of a connection is sent after the answer. Anything but a 200 is a failure.
'use strict';
const [autocannonPath, url, poll] = process.argv.slice(2);
const autocannon = require(autocannonPath);

const VOTES = 20_000;
const VOTES_PER_SECOND = 1_000;
const CONNECTIONS = 100;
const USERS_PER_CONNECTION = 120;
const OPTIONS = ['red', 'green', 'grün'];
// Time limit of one request, in seconds: longer than the slowest answer of the service.
const TIMEOUT = 30;

// The same for each connection in each run: multiplication and addition modulo 2^32.
const chooser = (seed) => {
  let state = seed;
  return (bound) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
};

const votes = [];
let connections = 0;
const setupClient = (client) => {
  const connection = connections++;
  const below = chooser(connection);
  let sent;
  client.setRequests([
    {
      setupRequest(request) {
        sent = { user: `${connection} ✓ ${below(USERS_PER_CONNECTION)}`, option: OPTIONS[below(OPTIONS.length)] };
        const body = { cognitoid: sent.user, voteid: poll, option: sent.option };
        return { ...request, body: JSON.stringify(body) };
      },
      onResponse(status) {
        if (status === 200) votes.push(sent);
      },
    },
  ]);
};

autocannon({
  url: `${url}/vote`,
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  connections: CONNECTIONS,
  overallRate: VOTES_PER_SECOND,
  amount: VOTES,
  timeout: TIMEOUT,
  setupClient,
}).then((result) => {
  const { errors, timeouts, non2xx, latency, duration } = result;
  const rate = Math.round(votes.length / duration);
  console.error(
    `${votes.length} of ${VOTES} votes acknowledged, ${errors} errors, ${timeouts} timeouts, ${non2xx} refusals; ` +
      `${rate} requests/s, latency p50 ${latency.p50} ms, p99 ${latency.p99} ms`,
  );
  process.stdout.write(votes.map(({ user, option }) => `${poll},${user},${option}\n`).join(''));
  process.exitCode = votes.length === VOTES && errors + timeouts + non2xx === 0 ? 0 : 1;
});
