/**
 * Every call that there is, and which of them the public load balancer lets through: votes and reading. The internal one has all.
 *
 * A call that is in no list is reached from outside by nobody; test/contract.test.ts compares the lists with proto/, with the
 * JSON routes, and with the rights that the services ask for. Must never have a wildcard in a public path.
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

/** JSON routes with votes, as the services write them. */
export const VOTE_ROUTES = ['/vote', '/v1/polls/{poll}/votes'];
/** JSON routes that read. */
export const READ_ROUTES = ['/v1/polls/{poll}', '/v1/polls/{poll}/results/interim', '/v1/polls/{poll}/results/final'];
/** JSON routes of administrators. */
export const MANAGE_ROUTES = ['/v1/polls/{poll}/release'];

/** What the internal load balancer lets through: whatever the services have, be it in a list above or not. */
export const ALL_INGEST = '/votestream.v1.IngestService/*';
export const ALL_TALLY = ['/votestream.v1.PollService/*', '/votestream.v1.ResultsService/*'];
/** Asked by tools for the names of calls. */
export const REFLECTION = '/grpc.reflection.*';
export const ALL_POLLS_JSON = ['/v1/polls', '/v1/polls/*'];

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
  static ofRoutes(...routes: readonly string[]): Paths {
    return new Paths('regexValues', routes.map((route) => `^${route.replaceAll(/\{\w+\}/g, '[^/]+')}$`));
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
