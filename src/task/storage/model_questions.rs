//! The statements that record questions to models and what they used.
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::{run, sql, to_i64};
use crate::task::storage::transaction::Transaction;
use crate::task::{AgentId, AssignmentKey, DayLimit, Error, InsufficientBudget, ModelQuestion, ModelUsage};
use std::time::Duration;
use tokio_postgres::types::ToSql;
use tracing::warn;
use uuid::Uuid;

/// Records a question before it is sent, and holds its most of the limits of the day. `step`: the run and the number of
/// the step that asks. If it does not fit, the caller must roll back.
///
/// # Errors
/// `Fenced` when the assignment is over. The inner error when a limit of the day has no room.
pub(in crate::task) async fn ask(
    tx: &Transaction<'_>,
    key: AssignmentKey,
    agent: &AgentId,
    step: Option<(i32, i32)>,
    question: &ModelQuestion,
) -> Result<Result<(), InsufficientBudget>, Error> {
    let ModelQuestion { id, provider, model, most, price_from, limits } = question;
    let (assignment, task) = (key.assignment_id.as_uuid(), key.task_id.as_uuid());
    let (run_number, seq) = (step.map(|(run, _)| run), step.map(|(_, seq)| seq));
    let most = most.limited();
    let (tokens, money) = (to_i64(most.tokens), to_i64(most.microdollars));
    let params: [&(dyn ToSql + Sync); 12] = [
        &assignment,
        &task,
        &key.epoch.0,
        &agent.as_str(),
        id,
        &run_number,
        &seq,
        provider,
        &tokens,
        &money,
        model,
        price_from,
    ];
    run(tx, sql!("question_ask"), &params).await?.first().ok_or(Error::Fenced)?;
    for limit in limits {
        if let Some(left) = hold(tx, *id, limit).await? {
            let limit = format!("{} {}", limit.scope.as_str(), limit.name);
            return Ok(Err(InsufficientBudget::Day { limit, left }));
        }
    }
    Ok(Ok(()))
}

/// Holds the most of a question of a limit. Returns how long the day lasts if it does not fit.
async fn hold(tx: &Transaction<'_>, question: Uuid, limit: &DayLimit) -> Result<Option<Duration>, Error> {
    let (scope, name, max) = (limit.scope.as_str(), &limit.name, to_i64(limit.microdollars));
    run(tx, sql!("allowance_begin"), &[&scope, name, &question]).await?;
    let held = run(tx, sql!("allowance_hold"), &[&scope, name, &question, &max]).await?;
    let row = held.first().ok_or(Error::Fenced)?;
    if row.read("is_near")? {
        warn!(scope, name, limit = max, "four fifths of the limit of a day are spent or held");
    }
    let left = Duration::from_secs(u64::try_from(row.read::<i64>("left_seconds")?).unwrap_or(0));
    Ok((!row.read::<bool>("fits")?).then_some(left))
}

/// Ends a question with what it used. A question that has ended stays as it is, unless its usage was presumed.
pub(in crate::task) async fn end(
    tx: &Transaction<'_>,
    question: Uuid,
    used: &ModelUsage,
) -> Result<(), Error> {
    end_if(tx, question, used, false).await
}

/// Like [`end`]; if `answered`, only if the step of the question has its answer.
pub(in crate::task) async fn end_if(
    tx: &Transaction<'_>,
    question: Uuid,
    used: &ModelUsage,
    answered: bool,
) -> Result<(), Error> {
    let ModelUsage { usage, said, parts, named, priced, price_from } = used;
    let usage = usage.limited();
    let state = if usage.presumed { "presumed" } else { "exact" };
    let (tokens, money) = (to_i64(usage.tokens), to_i64(usage.microdollars));
    let [input, cached, written, output, reasoning] = match parts {
        Some(parts) => {
            [parts.input, parts.cached, parts.written, parts.output, parts.reasoning].map(|n| Some(to_i64(n)))
        }
        None => [None; 5],
    };
    let (named, priced) = (named.map(to_i64), priced.map(to_i64));
    let params: [&(dyn ToSql + Sync); 14] = [
        &question, &state, &tokens, &money, said, &input, &cached, &written, &output, &reasoning, &named,
        &priced, price_from, &answered,
    ];
    run(tx, sql!("question_end"), &params).await.map(drop)
}
