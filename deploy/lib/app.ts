/**
 * The stacks, in the order in which they are deployed, and the checks that synthesis makes.
 */
import { App, Aspects, Environment, Tags } from 'aws-cdk-lib';
import { AwsSolutionsChecks } from 'cdk-nag';
import { readConfig } from './config';
import { DataStack } from './data-stack';
import { LoadStack } from './load-stack';
import { acknowledge, acknowledgeData, acknowledgeLoad } from './nag';
import { RegistryStack } from './registry-stack';
import { ServiceStack } from './service-stack';

export interface Stacks {
  readonly data: DataStack;
  readonly registry: RegistryStack;
  readonly service: ServiceStack;
  /** Only if there is to be a fleet for rehearsals. */
  readonly load?: LoadStack;
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
  const load = config.loadTasks === 0 ? undefined : new LoadStack(app, `${config.name}-load`, {
    env, config, registry, description: 'Votestream: a fleet that votes, for rehearsals',
  });
  Tags.of(app).add('application', config.name);
  acknowledge(service);
  if (config.customerKeys) acknowledgeData(data);
  if (load !== undefined) acknowledgeLoad(load);
  Aspects.of(app).add(new AwsSolutionsChecks());
  return { data, registry, service, ...(load !== undefined && { load }) };
}
