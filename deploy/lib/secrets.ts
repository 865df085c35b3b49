/**
 * Texts that tasks get from Secrets Manager: the variable that holds each, and the setting that names this variable.
 *
 * Must never put a text itself into a template: ECS reads it when it starts a task, and the role with which ECS starts a task may
 * read these secrets and no others. Must never name a variable `VOTESTREAM_…`: the services take such a one for a mistake.
 */
import { Secret as TaskSecret } from 'aws-cdk-lib/aws-ecs';
import { Secret } from 'aws-cdk-lib/aws-secretsmanager';
import { Construct } from 'constructs';
import { Config } from './config';
import { ServiceName } from './permissions';

export interface SecretText {
  /** The context setting with the ARN. */
  readonly key: 'auth' | 'authRevoked';
  /** The variable with the text. */
  readonly variable: string;
  /** The variable of the setting that gets `env:` and the name of the other. */
  readonly setting: string;
  readonly services: readonly ServiceName[];
}

/** Services that ask who calls. Nobody but its own container reaches persist. */
export const ASKING: readonly ServiceName[] = ['ingest', 'tally'];

/** A further text is a row here, a setting in config.ts, and a row in the README; its setting must understand `env:NAME`. */
export const SECRETS: readonly SecretText[] = [
  { key: 'auth', variable: 'AUTH_FILE_TEXT', setting: 'VOTESTREAM_AUTH', services: ASKING },
  { key: 'authRevoked', variable: 'AUTH_REVOKED_TEXT', setting: 'VOTESTREAM_AUTH_REVOKED', services: ASKING },
];

/** The setting that says who may call. It is always given, so that a task never starts by chance with everybody let in. */
const AUTH = 'VOTESTREAM_AUTH';

/** What a service is told about secrets: variables that may be read by everybody, and those that ECS fills. */
export interface Told {
  readonly environment: Record<string, string>;
  readonly secrets: Record<string, TaskSecret>;
}

export function tell(scope: Construct, service: ServiceName, config: Config): Told {
  const told: Told = { environment: {}, secrets: {} };
  for (const { key, variable, setting, services } of SECRETS) {
    const arn = config[key];
    if (!services.includes(service)) continue;
    if (arn !== undefined) {
      told.secrets[variable] = TaskSecret.fromSecretsManager(Secret.fromSecretCompleteArn(scope, `Secret-${key}`, arn));
      told.environment[setting] = `env:${variable}`;
    } else if (setting === AUTH) {
      told.environment[setting] = 'none';
    }
  }
  return told;
}
