/**
 * Repositories of the container images, deployed before the services so that there is something to push to.
 *
 * Tags never change, so that a task that starts in the middle of the show runs the image that was tested.
 */
import { RemovalPolicy, Stack, StackProps } from 'aws-cdk-lib';
import { Repository, RepositoryEncryption, TagMutability } from 'aws-cdk-lib/aws-ecr';
import { Construct } from 'constructs';
import { Config } from './config';
import { SERVICES, ServiceName } from './permissions';

/** Untagged and older images than these are deleted. */
const IMAGES_KEPT = 20;

/** `load` is the fleet that casts votes in a rehearsal. */
export type ImageName = ServiceName | 'collector' | 'load';

export class RegistryStack extends Stack {
  readonly repositories: Readonly<Record<ImageName, Repository>>;

  constructor(scope: Construct, id: string, props: StackProps & { readonly config: Config }) {
    super(scope, id, props);
    const repository = (name: ImageName): Repository =>
      new Repository(this, `Repository-${name}`, {
        repositoryName: `${props.config.name}/${name}`,
        imageTagMutability: TagMutability.IMMUTABLE,
        imageScanOnPush: true,
        encryption: RepositoryEncryption.AES_256,
        lifecycleRules: [{ maxImageCount: IMAGES_KEPT }],
        removalPolicy: RemovalPolicy.RETAIN,
      });
    const [ingest, persist, tally] = SERVICES.map(repository) as [Repository, Repository, Repository];
    this.repositories = { ingest, persist, tally, collector: repository('collector'), load: repository('load') };
  }
}
