/**
 * A mail when the account costs more than it should. It tells of what was left running after a show, not of the show itself: AWS
 * brings costs up to date some times a day ("Managing your costs with AWS Budgets"), and by then a show is over.
 *
 * Must never stop anything: a budget that ends tasks would end a vote.
 */
import { CfnBudget } from 'aws-cdk-lib/aws-budgets';
import { Construct } from 'constructs';
import { Config } from './config';

/** Percent of the budget, of what was spent and of what AWS expects for the month, at which a mail is sent. */
export const BUDGET_NOTICES = [['ACTUAL', 50], ['ACTUAL', 100], ['FORECASTED', 100]] as const;

/** The budget of the whole account: filters by tag see nothing until somebody has activated the tag for billing. */
export function budget(scope: Construct, config: Config): void {
  if (config.budgetUsd === 0) return;
  new CfnBudget(scope, 'Budget', {
    budget: {
      budgetName: `${config.name}-month`,
      budgetType: 'COST',
      timeUnit: 'MONTHLY',
      budgetLimit: { amount: config.budgetUsd, unit: 'USD' },
    },
    notificationsWithSubscribers: BUDGET_NOTICES.map(([notificationType, threshold]) => ({
      notification: { notificationType, threshold, thresholdType: 'PERCENTAGE', comparisonOperator: 'GREATER_THAN' },
      subscribers: [{ subscriptionType: 'EMAIL', address: config.alarmEmail }],
    })),
  });
}
