/** Stacks for tests, as `cdk synth` makes them without credentials. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { App } from 'aws-cdk-lib';
import { Template } from 'aws-cdk-lib/assertions';
import { build, Stacks } from '../lib/app';

/** The folder deploy/. Tests run as dist/test/*.js. */
export const DEPLOY = join(__dirname, '..', '..');
export const ROOT = join(DEPLOY, '..');

const json = (name: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(DEPLOY, name), 'utf8')) as Record<string, unknown>;

/** A secret, by the ARN that its creation prints. */
export const AUTH = 'arn:aws:secretsmanager:us-east-1:000000000000:secret:votestream/auth-a1B2c3';

/** With identity, unless the context says otherwise. */
export function stacks(context: Record<string, unknown> = {}): Stacks {
  const flags = json('cdk.json').context as Record<string, unknown>;
  const app = new App({ context: { ...flags, ...json('cdk.context.json'), auth: AUTH, ...context } });
  return build(app, { account: '000000000000', region: 'us-east-1' });
}

export interface Resource {
  readonly Type: string;
  readonly Properties: Record<string, any>;
  readonly DeletionPolicy?: string;
}

export class Made {
  readonly stacks: Stacks;
  readonly data: Template;
  readonly registry: Template;
  readonly service: Template;
  readonly load: Template | undefined;

  constructor(context: Record<string, unknown> = {}) {
    this.stacks = stacks(context);
    this.data = Template.fromStack(this.stacks.data);
    this.registry = Template.fromStack(this.stacks.registry);
    this.service = Template.fromStack(this.stacks.service);
    this.load = this.stacks.load && Template.fromStack(this.stacks.load);
  }
}

export function resources(template: Template, type: string): [string, Resource][] {
  return Object.entries(template.findResources(type)) as [string, Resource][];
}

export function asArray<T>(value: T | T[] | undefined): T[] {
  return value === undefined ? [] : Array.isArray(value) ? value : [value];
}
