//! What agents did over time: lanes of assignments, spending by hour, and what triggers did. Bounded reads for pages.
use crate::task::read::lines::first_id;
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::sql;
use crate::task::{AgentId, Error, OrgId, TaskReader};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

/// Most bars of lanes, as in `lanes.sql` without the one that says that there are more.
const BARS_MAX: usize = 5000;
/// Most rows of spending, as in `spend.sql` without the one that says that there are more.
const SPEND_ROWS_MAX: usize = 10_000;

/// What a trigger or a burst did last.
#[derive(Clone, Debug)]
pub struct TriggerState {
    /// `wake`, `schedule` or `burst`.
    pub kind: String,
    /// The name of the trigger, like `triage#0`.
    pub trigger: String,
    /// `{last_at, last_task, …}`.
    pub shown: Value,
}

impl TaskReader {
    /// Assignments of an org that touch a range of time, the newest first, and whether there are more than 5,000.
    /// Finds those of tasks that were requested up to an hour before the range, and all that have not ended.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn lanes(
        &self,
        org: &OrgId,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        agents: &[AgentId],
    ) -> Result<(Vec<Value>, bool), Error> {
        let lowest = first_id(from - TimeDelta::hours(1));
        let agents: Vec<&str> = agents.iter().map(AgentId::as_str).collect();
        let agents = (!agents.is_empty()).then_some(agents);
        let rows = self.query(sql!("lanes"), &[&org.as_str(), &from, &to, &lowest, &agents]).await?;
        let mut bars: Vec<Value> = rows.iter().map(|row| rows::json(row, "bar")).collect();
        let more = bars.len() > BARS_MAX;
        bars.truncate(BARS_MAX);
        Ok((bars, more))
    }

    /// What attempts used since `from`, by hour, agent and kind, and whether that is not all: of the newest 100,000
    /// tasks that were requested since then, at most 10,000 rows.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn spend(&self, org: &OrgId, from: DateTime<Utc>) -> Result<(Vec<Value>, bool), Error> {
        let rows = self.query(sql!("spend"), &[&org.as_str(), &from, &first_id(from)]).await?;
        let partial = rows.first().map_or(Ok(false), |row| row.read("partial"))?;
        let mut spent: Vec<Value> = rows.iter().map(|row| rows::json(row, "row")).collect();
        let more = spent.len() > SPEND_ROWS_MAX;
        spent.truncate(SPEND_ROWS_MAX);
        Ok((spent, partial || more))
    }

    /// What these wakes, and the schedules and pending bursts of an org did last.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn triggers(&self, org: &OrgId, wakes: &[String]) -> Result<Vec<TriggerState>, Error> {
        let rows = self.query(sql!("triggers"), &[&org.as_str(), &wakes]).await?;
        rows.iter()
            .map(|row| {
                let (kind, trigger) = (row.read("kind")?, row.read("trigger")?);
                Ok(TriggerState { kind, trigger, shown: rows::json(row, "shown") })
            })
            .collect()
    }
}
