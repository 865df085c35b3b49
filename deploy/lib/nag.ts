/**
 * Findings of cdk-nag that are accepted, each on the resource that it is about, with the reason.
 */
import type { Stack } from 'aws-cdk-lib';
import { NagSuppressions } from 'cdk-nag';
import { SERVICES } from './permissions';

/** Statements that AWS accepts for all resources only: the actions have no resource to name. */
export const WILDCARD_ACTIONS: Readonly<Record<string, string>> = {
  'ecr:GetAuthorizationToken': 'a token is for all repositories of the account; pulling is allowed for two of them',
  'xray:PutTelemetryRecords': 'X-Ray has no resource to name',
  'xray:PutTraceSegments': 'X-Ray has no resource to name',
};

export function acknowledgeData(data: Stack): void {
  NagSuppressions.addResourceSuppressionsByPath(data, `/${data.stackName}/Stream/Resource`, [
    { id: 'AwsSolutions-KDS3', reason: 'customerKeys: the key is one of this account, because its owner wants it to be.' },
  ]);
}

export function acknowledge(service: Stack): void {
  const root = `/${service.stackName}`;
  NagSuppressions.addResourceSuppressionsByPath(service, `${root}/AccessLogs/Resource`, [
    { id: 'AwsSolutions-S1', reason: 'This bucket holds access logs; logging the access to them would log itself.' },
  ]);
  NagSuppressions.addResourceSuppressionsByPath(service, `${root}/Edge/Resource`, [
    { id: 'AwsSolutions-EC23', reason: 'Port 443 is open to the ranges of clientCidrs, by default to none.' },
  ]);
  for (const name of SERVICES) {
    NagSuppressions.addResourceSuppressionsByPath(service, `${root}/${name}/Task/Resource`, [
      { id: 'AwsSolutions-ECS2', reason: 'Names of resources, sizes and times. There is no secret among the settings.' },
    ]);
    NagSuppressions.addResourceSuppressionsByPath(service, `${root}/${name}/Role/DefaultPolicy/Resource`, [
      {
        id: 'AwsSolutions-IAM5',
        reason: wildcard('xray:PutTelemetryRecords', 'xray:PutTraceSegments'),
        appliesTo: ['Resource::*'],
      },
    ]);
    NagSuppressions.addResourceSuppressionsByPath(service, `${root}/${name}/Task/ExecutionRole/DefaultPolicy/Resource`, [
      { id: 'AwsSolutions-IAM5', reason: wildcard('ecr:GetAuthorizationToken'), appliesTo: ['Resource::*'] },
    ]);
  }
}

export function acknowledgeLoad(load: Stack): void {
  const root = `/${load.stackName}/Task`;
  NagSuppressions.addResourceSuppressionsByPath(load, `${root}/Resource`, [
    { id: 'AwsSolutions-ECS2', reason: 'The address of the public load balancers. The token is a secret.' },
  ]);
  NagSuppressions.addResourceSuppressionsByPath(load, `${root}/ExecutionRole/DefaultPolicy/Resource`, [
    { id: 'AwsSolutions-IAM5', reason: wildcard('ecr:GetAuthorizationToken'), appliesTo: ['Resource::*'] },
  ]);
}

function wildcard(...actions: string[]): string {
  return actions.map((action) => `${action}: ${WILDCARD_ACTIONS[action]}`).join('; ');
}
