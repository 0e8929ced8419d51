//! Approvals of calls, as rows: that a call waits for one, and what a person decided.
use super::{Fence, RunKey};
use crate::db;
use crate::task::storage::statement::{millis, sql};
use crate::task::{CallDecision, Decision, Error, TaskCommands};
use serde_json::Value;

impl TaskCommands {
    /// Records that calls that have not begun wait for an approval. `answers` is how many answers the task has, so that
    /// only a later one decides.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or one of them has begun.
    pub async fn hold_calls(&self, at: &RunKey, seqs: &[i32], answers: i32) -> Result<(), Error> {
        let fence = Fence::of(at);
        let rows = self.query(sql!("step_hold"), &fence.with(&[&seqs, &answers])).await?;
        if rows.len() == seqs.len() { Ok(()) } else { Err(Error::Fenced) }
    }

    /// Records what a person decided about calls that wait for an approval: all of it, or nothing. `by` is the person,
    /// `answered_at` the time of the answer (RFC 3339).
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or one of the calls does not wait.
    pub async fn decide_calls(
        &self,
        at: &RunKey,
        by: &str,
        answered_at: &str,
        decided: &[CallDecision],
    ) -> Result<(), Error> {
        let seqs: Vec<i32> = decided.iter().map(|one| one.seq).collect();
        let approved: Vec<bool> =
            decided.iter().map(|one| !matches!(one.decision, Decision::Deny(_))).collect();
        let edited: Vec<Option<&Value>> = decided
            .iter()
            .map(|one| match &one.decision {
                Decision::Edit(args) => Some(args),
                _ => None,
            })
            .collect();
        let hashes: Vec<Option<&str>> = decided.iter().map(|one| one.edited_sha256.as_deref()).collect();
        let results: Vec<Option<&str>> = decided.iter().map(|one| one.result.as_deref()).collect();
        let expires: Vec<i64> = decided.iter().map(|one| millis(one.expires)).collect();
        let fence = Fence::of(at);
        let params = fence.with(&[&by, &answered_at, &seqs, &approved, &edited, &hashes, &results, &expires]);
        let mut client = self.context.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let statement = tx.prepare_cached(sql!("step_decide")).await.map_err(db::Error::from)?;
        if tx.query(&statement, &params).await.map_err(db::Error::from)?.len() != decided.len() {
            return Err(Error::Fenced);
        }
        Ok(tx.commit().await.map_err(db::Error::from)?)
    }
}
