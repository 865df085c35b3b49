/**
 * What an Application Load Balancer does with a request, by the rules of a synthesized template: rules in the order of their
 * priorities, all conditions of a rule, one of the values of a condition, else the default action.
 *
 * Must never guess: a condition, an action or a pattern that it does not know is a failure.
 */
import assert from 'node:assert/strict';
import { Template } from 'aws-cdk-lib/assertions';
import { Resource, resources } from './stacks';

/** Rules of a load balancer by the default quota, and values with wildcards of one rule. */
const RULES_MAX = 100;
const WILDCARDS_MAX = 5;

export interface Request {
  readonly method: string;
  /** Without a query, which no path condition looks at. */
  readonly path: string;
  readonly contentType?: string;
}

interface Rule {
  readonly priority: number;
  readonly matches: ((request: Request) => boolean)[];
  /** Such as `ingest web`. */
  readonly target: string;
}

/** A pattern as a condition has it: `*` stands for any characters, slashes among them, and `?` for one. */
function wildcards(pattern: string, flags: string): RegExp {
  const parts = [...pattern].map((one) => (one === '*' ? '.*' : one === '?' ? '.' : one.replace(/[^\w/]/, '\\$&')));
  return new RegExp(`^${parts.join('')}$`, flags);
}

/** An expression of a condition. Of what AWS takes, only what reads the same everywhere: anchors, classes, `+`, escaped dots. */
function expression(text: string): RegExp {
  assert.match(text, /^\^(?:[\w/-]|\\\.|\[\^\/\]\+)+\$$/, 'an expression for a whole path');
  return new RegExp(text);
}

function condition(found: Record<string, any>): (request: Request) => boolean {
  const only = (config: Record<string, any>, ...keys: string[]): string[] => {
    assert.deepEqual(Object.keys(config).filter((key) => !keys.includes(key)), []);
    return (config.Values ?? []) as string[];
  };
  switch (found.Field) {
    case 'path-pattern': {
      const patterns = only(found.PathPatternConfig, 'Values', 'RegexValues').map((one) => wildcards(one, ''));
      const expressions = ((found.PathPatternConfig.RegexValues ?? []) as string[]).map(expression);
      return ({ path }) => [...patterns, ...expressions].some((one) => one.test(path));
    }
    case 'http-request-method': {
      const methods = only(found.HttpRequestMethodConfig, 'Values');
      return ({ method }) => methods.includes(method);
    }
    case 'http-header': {
      const values = only(found.HttpHeaderConfig, 'Values', 'HttpHeaderName').map((one) => wildcards(one, 'i'));
      assert.equal(found.HttpHeaderConfig.HttpHeaderName.toLowerCase(), 'content-type');
      return ({ contentType }) => contentType !== undefined && values.some((one) => one.test(contentType));
    }
    default:
      return assert.fail(`a condition about ${found.Field}`);
  }
}

/** The load balancer of the service stack whose parts have logical ids with this prefix. */
export class Router {
  readonly rules: readonly Rule[];

  constructor(template: Template, prefix: 'Balancer' | `Balancer${number}` | 'RelayBalancer' | 'Internal') {
    const of = (type: string): [string, Resource][] => resources(template, `AWS::ElasticLoadBalancingV2::${type}`);
    const listeners = of('Listener').filter(([id]) => id.startsWith(`${prefix}Https`));
    assert.equal(listeners.length, 1);
    const [listener, { Properties }] = listeners[0] ?? assert.fail();
    assert.deepEqual(Properties.DefaultActions.map((one: any) => one.FixedResponseConfig?.StatusCode), ['404']);
    // A target group belongs to one load balancer.
    const ids = prefix === 'Internal' ? 'InternalTarget' : prefix.replace('Balancer', 'Target');
    const name = new RegExp(`^${ids}(ingest|tally)(grpc|web)[0-9A-F]{8}$`);
    const targets = new Map(of('TargetGroup').flatMap(([id]) => {
      const [, service, kind] = name.exec(id) ?? [];
      return service === undefined ? [] : [[id, `${service} ${kind}`]];
    }));
    this.rules = of('ListenerRule').filter(([, one]) => one.Properties.ListenerArn.Ref === listener).map(([id, one]) => {
      const { Priority, Conditions, Actions } = one.Properties;
      assert.deepEqual(Actions.map((action: any) => action.Type), ['forward'], id);
      const wild = JSON.stringify(Conditions).match(/"[^"]*[*?][^"]*"/g) ?? [];
      assert.ok(wild.length <= WILDCARDS_MAX, `${id}: ${wild}`);
      return {
        priority: Priority as number,
        matches: (Conditions as Record<string, any>[]).map(condition),
        target: targets.get(Actions[0].TargetGroupArn.Ref) ?? assert.fail(id),
      };
    }).sort((a, b) => a.priority - b.priority);
    assert.ok(this.rules.length > 0 && this.rules.length < RULES_MAX, `${this.rules.length} rules`);
    assert.equal(new Set(this.rules.map((rule) => rule.priority)).size, this.rules.length, 'each priority once');
  }

  /** Where a request goes: to a service, by gRPC or by HTTP/1.1 (`web`), or nowhere. */
  route(request: Request): string {
    return this.rules.find((rule) => rule.matches.every((matches) => matches(request)))?.target ?? '404';
  }
}
