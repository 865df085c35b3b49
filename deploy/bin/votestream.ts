#!/usr/bin/env node
import { App } from 'aws-cdk-lib';
import { build } from '../lib/app';

/** Without credentials there is no account to ask: templates for this one are made from cdk.context.json. */
const NO_ACCOUNT = '000000000000';
const DEFAULT_REGION = 'us-east-1';

const app = new App();
try {
  const account = process.env.CDK_DEFAULT_ACCOUNT;
  // The zones of no account are known in one region only.
  const region = account ? process.env.CDK_DEFAULT_REGION : DEFAULT_REGION;
  build(app, { account: account ?? NO_ACCOUNT, region: region ?? DEFAULT_REGION });
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
