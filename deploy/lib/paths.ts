/**
 * Every call and every route that there is, and which of them the public load balancer lets through: votes, reading and the page.
 * The internal one has all. With both, one URL serves everything, so the page calls the API under its own name.
 *
 * What is in no list is reached from outside by nobody; test/contract.test.ts compares the lists with proto/, the routes of
 * the services, and with the rights that they ask for. Must never have a `*` in a public path.
 */
import { CfnListenerRule, ListenerCondition } from 'aws-cdk-lib/aws-elasticloadbalancingv2';

/** Calls with votes. */
export const VOTE_RPCS = [
  '/votestream.v1.IngestService/CastVote',
  '/votestream.v1.IngestService/CastVotes',
  '/votestream.v1.IngestService/StreamVotes',
];
/** Calls that read, as far as a poll's visibility allows. */
export const READ_RPCS = [
  '/votestream.v1.PollService/GetPoll',
  '/votestream.v1.PollService/ListPolls',
  '/votestream.v1.ResultsService/GetInterimResults',
  '/votestream.v1.ResultsService/WatchInterimResults',
  '/votestream.v1.ResultsService/GetFinalResults',
];
/** Calls that change polls, show hidden results, or read every vote: through the internal load balancer only. */
export const MANAGE_RPCS = [
  '/votestream.v1.PollService/CreatePoll',
  '/votestream.v1.PollService/ClosePoll',
  '/votestream.v1.ResultsService/ReleaseResults',
  '/votestream.v1.ResultsService/Recount',
];

/** A route over HTTP: its method, and its path as the services write it. */
export type Route = `${'GET' | 'POST'} /${string}`;

/** JSON routes with votes. */
export const VOTE_ROUTES: readonly Route[] = ['POST /vote', 'POST /v1/polls/{poll}/votes'];
/** Routes that read, as JSON, CSV and events. */
export const READ_ROUTES: readonly Route[] = [
  'GET /v1/polls',
  'GET /v1/polls/{poll}',
  'GET /v1/polls/{poll}/results/interim',
  'GET /v1/polls/{poll}/results/final',
  'GET /v1/polls/{poll}/results/events',
];
/** The page for audiences, with its files and codes, and the description of the API. None of it depends on who asks. */
export const PAGE_ROUTES: readonly Route[] = [
  'GET /',
  'GET /p/{poll}',
  'GET /p/{poll}/screen',
  'GET /p/{poll}/qr.svg',
  'GET /assets/{file}',
  'GET /openapi.json',
];
/** Routes of administrators, and their page: through the internal load balancer only. */
export const MANAGE_ROUTES: readonly Route[] = [
  'POST /v1/polls',
  'POST /v1/polls/{poll}/close',
  'POST /v1/polls/{poll}/release',
  'POST /v1/polls/{poll}/recount',
  'GET /v1/status',
  'GET /operate',
];

/** What the internal load balancer lets through: whatever the services have, be it in a list above or not. */
export const ALL_INGEST = '/votestream.v1.IngestService/*';
export const ALL_TALLY = ['/votestream.v1.PollService/*', '/votestream.v1.ResultsService/*'];
/** Asked by tools for the names of calls. */
export const REFLECTION = '/grpc.reflection.*';
/** JSON of tally. Votes are below `/v1/` too, so their rule comes first. */
export const ALL_JSON = '/v1/*';
export const ALL_PAGE = ['/', '/operate', '/openapi.json', '/p/*', '/assets/*'];

/** Most values of one condition of a listener rule, and of all its conditions together. */
export const CONDITION_VALUES_MAX = 3;
export const RULE_VALUES_MAX = 5;

/** Paths of a condition: as patterns, or as regular expressions. */
export class Paths extends ListenerCondition {
  private constructor(private readonly by: 'values' | 'regexValues', readonly all: readonly string[]) {
    super();
  }

  /** Paths as they are, or patterns with `*`. */
  static of(...patterns: readonly string[]): Paths {
    return new Paths('values', patterns);
  }

  /** Exactly the paths of these routes. In a pattern `*` would stand for slashes, too: `/v1/polls/*` is every route below. */
  static ofRoutes(...routes: readonly Route[]): Paths {
    const paths = routes.map((route) => route.slice(route.indexOf('/')).replaceAll('.', '\\.'));
    return new Paths('regexValues', paths.map((path) => `^${path.replaceAll(/\{\w+\}/g, '[^/]+')}$`));
  }

  /** The same paths in parts that fit into a rule with so many other values. */
  parts(others: number): Paths[] {
    const size = Math.min(CONDITION_VALUES_MAX, RULE_VALUES_MAX - others);
    const starts = this.all.map((_, at) => at).filter((at) => at % size === 0);
    return starts.map((at) => new Paths(this.by, this.all.slice(at, at + size)));
  }

  override renderRawCondition(): CfnListenerRule.RuleConditionProperty {
    return { field: 'path-pattern', pathPatternConfig: { [this.by]: [...this.all] } };
  }
}
