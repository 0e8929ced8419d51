//! Failover along `run.models`: which model is asked next when one cannot answer (`docs/spec/thinking-agents.md`, A12).
//!
//! A question goes to another model after an outage, an open breaker, a refused key, a model that the endpoint does not
//! have, a context that is too small, a limit of the day, or a wait for the account of more than `run.failover.after`. A
//! shorter pause after a 429 is waited for. What one model refuses as wrong, all others would refuse as well.
use super::{
    Definition, Finished, Job, ModelChoice,
    job::{outage, permanent, retryable},
    kind::RunnerDeps,
};
use crate::{
    llm::{Caller, Error, Provider},
    task::{AskedModel, Failure, Usage},
};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;
use tracing::warn;

/// A model of an agent, and where it is asked.
#[derive(Clone)]
pub(crate) struct Choice {
    pub(in crate::agent) model: ModelChoice,
    pub(in crate::agent) provider: Provider,
}

impl Choice {
    /// As it is in the rows of questions.
    pub(in crate::agent) fn asked(&self) -> AskedModel {
        AskedModel { provider: self.provider.name().to_owned(), model: self.model.model.clone() }
    }
}

/// The models of an agent, first to last.
#[derive(Clone)]
pub(crate) struct Choices {
    list: Vec<Choice>,
    after: Duration,
}

impl Choices {
    /// # Errors
    /// One line: a missing variable, or no HTTP client.
    pub(in crate::agent) fn new(definition: &Definition, parts: &RunnerDeps) -> Result<Self, String> {
        let run = &definition.run;
        let choice = |model: ModelChoice| {
            let endpoint = model.endpoint(&parts.env)?;
            let provider =
                parts.models.at(&endpoint.base_url, endpoint.api_key).map_err(|e| e.to_string())?;
            Ok(Choice { model, provider })
        };
        let list = run.choices().into_iter().map(choice).collect::<Result<_, String>>()?;
        Ok(Self { list, after: run.failover.unwrap_or_default().after })
    }

    /// The models of a run that began with another definition: those that its definition has too, at the endpoints of
    /// the present one. All of the present ones, if none is left.
    pub(in crate::agent) fn of_run(&self, pinned: &Definition) -> Self {
        let names: Vec<String> = pinned.run.choices().into_iter().map(|choice| choice.model).collect();
        let kept: Vec<Choice> =
            self.list.iter().filter(|choice| names.contains(&choice.model.model)).cloned().collect();
        Self { list: if kept.is_empty() { self.list.clone() } else { kept }, after: self.after }
    }

    /// The model that a question begins with.
    pub(in crate::agent) fn first(&self, last: Option<&AskedModel>) -> Option<&Choice> {
        self.list.get(self.position(last))
    }

    fn position(&self, last: Option<&AskedModel>) -> usize {
        self.list.iter().position(|choice| Some(&choice.asked()) == last).unwrap_or(0)
    }

    /// The turns of a question of a job. It begins with the model that was asked last, so that a run stays with its
    /// model.
    pub(in crate::agent) fn turns<'a>(&'a self, job: &'a Job, last: Option<&AskedModel>) -> Turns<'a> {
        let (before, after) = self.list.split_at(self.position(last));
        let left = after.iter().chain(before).collect();
        Turns { job, left, first: self.list.first(), after: self.after, ended: Vec::new() }
    }
}

/// How a model ended without an answer.
enum End {
    Failed(Error),
    Deferred(Finished),
}

/// The models that one question goes to, until one answers.
pub(in crate::agent) struct Turns<'a> {
    job: &'a Job,
    left: VecDeque<&'a Choice>,
    first: Option<&'a Choice>,
    after: Duration,
    ended: Vec<(&'a Choice, String, End)>,
}

impl<'a> Turns<'a> {
    /// The next model. `None` if there is none, or the time of the job is over.
    pub(in crate::agent) fn next(&mut self) -> Option<&'a Choice> {
        let Some((failed, reason, _)) = self.ended.last() else { return self.left.pop_front() };
        let next = self.left.pop_front().filter(|_| Instant::now() < self.job.deadline)?;
        failed.provider.pass_over();
        let (task, from, to) = (self.job.start.key.task_id, &failed.model.model, &next.model.model);
        let provider = next.provider.name();
        warn!(%task, from, to, provider, reason, "the model of the agent cannot answer, the next one is asked");
        Some(next)
    }

    /// The caller of the model under way: with another model in reserve it waits less.
    pub(in crate::agent) fn caller<'b>(&self, caller: Caller<'b>) -> Caller<'b> {
        if self.left.is_empty() {
            return caller;
        }
        let patience = caller.patience.map_or(self.after, |patience| patience.min(self.after));
        Caller { moves_on: true, patience: Some(patience), ..caller }
    }

    /// What presence shows while a model is asked.
    pub(in crate::agent) fn shown(&self, choice: &Choice) -> String {
        let is_first = self.first.is_none_or(|first| first.asked() == choice.asked());
        if is_first { "thinking".to_owned() } else { format!("thinking with {}", choice.model.model) }
    }

    /// A model could not answer. `deferred`: how the job could go on later with it.
    pub(in crate::agent) fn failed(&mut self, choice: &'a Choice, error: Error, deferred: Option<Finished>) {
        self.left.retain(|next| may_help(&error, &choice.model, &next.model));
        let reason = error.to_string();
        let end = deferred.map_or(End::Failed(error), End::Deferred);
        self.ended.push((choice, reason, end));
    }

    /// A model may not be asked before a later time.
    pub(in crate::agent) fn deferred(&mut self, choice: &'a Choice, deferred: Finished) {
        let reason = match &deferred {
            Finished::Deferred { reason, .. } => reason.clone(),
            _ => String::new(),
        };
        self.ended.push((choice, reason, End::Deferred(deferred)));
    }

    /// Why the models so far could not answer, one line. `None` before the first failure.
    pub(in crate::agent) fn passed_over(&self) -> Option<String> {
        let one = |(choice, reason, _): &(&Choice, String, End)| {
            format!("{} at {}: {reason}", choice.model.model, choice.provider.name())
        };
        let all: Vec<String> = self.ended.iter().map(one).collect();
        (!all.is_empty()).then(|| all.join("; ").chars().take(1_000).collect())
    }

    /// How the job ends when no model has answered: with the most hopeful end of all.
    ///
    /// # Errors
    /// The failure of the job.
    pub(in crate::agent) fn end(self, usage: Usage) -> Result<Finished, Failure> {
        let (mut hopeful, mut later, mut last) = (None, None, None);
        for (_, _, end) in self.ended {
            match end {
                End::Failed(error) if !error.is_permanent() => hopeful = hopeful.or(Some(error)),
                End::Failed(error) => last = Some(error),
                End::Deferred(finished) => later = later.or(Some(finished)),
            }
        }
        let error = match (hopeful, later) {
            (Some(error), _) => Some(error),
            (None, Some(Finished::Deferred { reason, after, .. })) => {
                return Ok(Finished::Deferred { reason, after, usage });
            }
            (None, _) => last,
        };
        let failure = error.as_ref().map_or_else(|| retryable("no model was asked"), failure);
        Err(Failure { usage, ..failure })
    }
}

fn failure(error: &Error) -> Failure {
    match error {
        error if error.is_permanent() => permanent(error.to_string()),
        error if error.is_outage() => outage(error.to_string()),
        error => retryable(error.to_string()),
    }
}

/// Whether the next model may answer what one could not.
fn may_help(error: &Error, failed: &ModelChoice, next: &ModelChoice) -> bool {
    match error {
        Error::TooLarge { .. } => {
            let (had, has) = (failed.context_tokens, next.context_tokens);
            had.zip(has).is_some_and(|(had, has)| has > had)
        }
        Error::Rejected { status } => *status == 404,
        // The model did answer.
        Error::InvalidAnswer(_) => false,
        Error::Refused { .. }
        | Error::Quota { .. }
        | Error::BadCall
        | Error::RateLimited { .. }
        | Error::Failed { .. }
        | Error::Unreachable { .. }
        | Error::Broken { .. }
        | Error::Held { .. }
        | Error::Timeout(_) => true,
    }
}
