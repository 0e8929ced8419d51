//! What agents did over time: lanes of assignments, spending by hour, and what triggers did. Bounded reads for pages.
use crate::task::read::lines::first_id;
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::sql;
use crate::task::{AgentId, Error, OrgId, TaskReader};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Row;

/// Most bars of lanes, as in `lanes.sql` without the one that says that there are more.
const BARS_MAX: usize = 5000;
/// Most rows of spending, as in `spend.sql` and `spend_by.sql` without the one that says that there are more.
const SPEND_ROWS_MAX: usize = 10_000;

/// A dimension of what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpendBy {
    /// The day, in UTC.
    Day,
    /// The hour.
    Hour,
    /// The org.
    Org,
    /// The agent.
    Agent,
    /// The kind of the task.
    Kind,
    /// The task.
    Task,
    /// The task at the root of the tree.
    Tree,
    /// The provider of the model.
    Provider,
    /// The model.
    Model,
}

impl SpendBy {
    /// Every dimension.
    pub const ALL: [Self; 9] = [
        Self::Day,
        Self::Hour,
        Self::Org,
        Self::Agent,
        Self::Kind,
        Self::Task,
        Self::Tree,
        Self::Provider,
        Self::Model,
    ];

    /// Its name, like `agent`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Hour => "hour",
            Self::Org => "org",
            Self::Agent => "agent",
            Self::Kind => "kind",
            Self::Task => "task",
            Self::Tree => "tree",
            Self::Provider => "provider",
            Self::Model => "model",
        }
    }
}

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

    /// What was used since the hour of `from`, by hour, agent and kind, and what is reserved now; and whether there are
    /// more than 10,000 rows.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn spend(&self, org: &OrgId, from: DateTime<Utc>) -> Result<(Vec<Value>, bool), Error> {
        Ok(spent(&self.query(sql!("spend"), &[&org.as_str(), &from]).await?))
    }

    /// What was used since the hour of `from` by one org, or by all, by these dimensions: the most money first; and
    /// whether there are more than 10,000 rows.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn spend_by(
        &self,
        org: Option<&OrgId>,
        from: DateTime<Utc>,
        by: &[SpendBy],
    ) -> Result<(Vec<Value>, bool), Error> {
        let org = org.map(OrgId::as_str);
        let by: Vec<&str> = by.iter().copied().map(SpendBy::as_str).collect();
        Ok(spent(&self.query(sql!("spend_by"), &[&org, &from, &by]).await?))
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

fn spent(rows: &[Row]) -> (Vec<Value>, bool) {
    let mut spent: Vec<Value> = rows.iter().map(|row| rows::json(row, "row")).collect();
    let more = spent.len() > SPEND_ROWS_MAX;
    spent.truncate(SPEND_ROWS_MAX);
    (spent, more)
}
