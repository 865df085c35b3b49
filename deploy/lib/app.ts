/**
 * The three stacks, in the order in which they are deployed, and the checks that synthesis makes.
 */
import { App, Aspects, Environment, Tags } from 'aws-cdk-lib';
import { AwsSolutionsChecks } from 'cdk-nag';
import { readConfig } from './config';
import { DataStack } from './data-stack';
import { acknowledge } from './nag';
import { RegistryStack } from './registry-stack';
import { ServiceStack } from './service-stack';

export interface Stacks {
  readonly data: DataStack;
  readonly registry: RegistryStack;
  readonly service: ServiceStack;
}

/** Builds everything under `app`. */
export function build(app: App, env: Environment): Stacks {
  const config = readConfig(app.node);
  const data = new DataStack(app, `${config.name}-data`, {
    env, config, description: 'Votestream: the vote stream and the tables',
  });
  const registry = new RegistryStack(app, `${config.name}-registry`, {
    env, config, description: 'Votestream: repositories of the container images',
  });
  const service = new ServiceStack(app, `${config.name}-service`, {
    env, config, data, registry, description: 'Votestream: network, load balancer and the three services',
  });
  Tags.of(app).add('application', config.name);
  acknowledge(service);
  Aspects.of(app).add(new AwsSolutionsChecks());
  return { data, registry, service };
}
