//! The statements that write budgets and their charges.
//!
//! When an assignment ends, its use replaces its reservation. An assignment that ended without a report counts as if
//! it had used all of its reservation, until a late report corrects it. What was used is counted in `convoke.spend` in
//! the same commit. Of an assignment that asked models, the sum of its questions is the use, whatever it reports.
use crate::task::storage::columns::columns;
use crate::task::storage::statement::to_i64;
use crate::task::storage::transaction::Transaction;
use crate::task::{Budget, Error, TaskId, Usage, model::budget::Amount};
use uuid::Uuid;

/// Writes the budgets of tasks that this transaction has inserted.
pub(in crate::task) async fn set(tx: &Transaction<'_>, made: &[(TaskId, Budget)]) -> Result<(), Error> {
    let limits: Vec<(Uuid, bool, Amount)> = made
        .iter()
        .flat_map(|(task, budget)| {
            budget.limits().into_iter().map(|(tree, amount)| (task.as_uuid(), tree, amount))
        })
        .collect();
    if limits.is_empty() {
        return Ok(());
    }
    let columns = columns!("set_budgets", &limits, |(task, of_tree, amount)| {
        task_id: Uuid = *task,
        tree: bool = *of_tree,
        tokens_max: Option<i64> = amount.tokens.map(to_i64),
        microdollars_max: Option<i64> = amount.microdollars.map(to_i64),
    });
    columns.run(tx, &[]).await.map(drop)
}

/// The use of an assignment that ends.
#[derive(Clone, Copy, Debug)]
pub(in crate::task) struct Charge {
    pub(in crate::task) assignment: Uuid,
    /// Whether the amounts are reported; otherwise its reservation counts as used.
    pub(in crate::task) known: bool,
    pub(in crate::task) tokens: i64,
    pub(in crate::task) microdollars: i64,
    /// Whether it counts as an attempt: it held a slot until now.
    pub(in crate::task) counts: bool,
}

impl Charge {
    /// The whole reservation of an assignment that ends without a report.
    pub(in crate::task) fn presumed(assignment: Uuid, counts: bool) -> Self {
        Self { assignment, known: false, tokens: 0, microdollars: 0, counts }
    }
}

/// Settles the use of assignments that end.
pub(in crate::task) async fn settle(tx: &Transaction<'_>, charges: &[Charge]) -> Result<(), Error> {
    if charges.is_empty() {
        return Ok(());
    }
    let columns = columns!("settle_charges", charges, |charge| {
        assignment_id: Uuid = charge.assignment,
        known: bool = charge.known,
        tokens: i64 = charge.tokens,
        microdollars: i64 = charge.microdollars,
        counts: bool = charge.counts,
    });
    columns.run(tx, &[]).await.map(drop)
}

/// Corrects the presumed use of an assignment with its late report.
pub(in crate::task) async fn settle_late(
    tx: &Transaction<'_>,
    assignment: Uuid,
    usage: Usage,
) -> Result<(), Error> {
    if usage.presumed {
        // The report has no figures, so the presumption stands.
        return Ok(());
    }
    let usage = usage.limited();
    let columns = columns!("settle_late_charges", [usage], |used| {
        assignment_id: Uuid = assignment,
        known: bool = true,
        tokens: i64 = to_i64(used.tokens),
        microdollars: i64 = to_i64(used.microdollars),
    });
    columns.run(tx, &[]).await.map(drop)
}
