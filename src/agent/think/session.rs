//! The loop around the machine: reads the rows, asks for the next action, performs it, and reads the rows again.
use super::thinker::Pinned;
pub(super) use super::thinker::{Thinker, unwritten};
use super::{
    catalog::Catalog,
    guards,
    machine::{self, Action, Rules, Why},
    servers,
    thinker::FENCED,
};
use crate::{
    agent::{
        Definition, Finished, Job,
        asking::{added, record_usage},
        failover::Choices,
        job::{permanent, retryable},
        retry::again,
        tool::Permits,
    },
    id::TraceContext,
    task::{
        EarlierEffect, Failure, LatestRun, ModelEnd, NoteKind, PinnedDefinition, RunKey, Step, StepState,
        TaskCommands, Usage,
    },
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use tracing::warn;

/// The work of one assignment on its run.
pub(crate) struct Session<'a> {
    pub(super) thinker: &'a Thinker,
    pub(super) job: &'a Job,
    pub(super) tasks: &'a TaskCommands,
    pub(super) at: RunKey,
    /// The definition that the run was begun with. What is permitted comes from the agent's own.
    pub(super) pinned: Arc<Definition>,
    /// The models that it may ask.
    pub(super) choices: Choices,
    pub(super) catalog: Arc<Catalog>,
    /// What its questions have in common with those of other runs of the same definition.
    pub(super) cache_key: Arc<str>,
    pub(super) earlier: Vec<EarlierEffect>,
    /// What this assignment has used.
    pub(super) used: Usage,
    /// What calls of tools in the present action cost. It is part of `used` from the next action on.
    pub(super) calls_used: Mutex<Usage>,
    /// The permits of the calls that are about to begin.
    pub(super) permits: Mutex<Permits>,
    /// What the run had used before.
    pub(super) tokens_before: u64,
    /// Tokens and microdollars of the run, as in its row.
    pub(super) spent: (u64, u64),
    /// The run as it was behind the last commit, until the next step reads it.
    pub(super) after: Mutex<Option<LatestRun>>,
    /// Messages that came since the last job, until they are in a note.
    messages: Option<String>,
    /// The last answer and its step, until the next question: a crash of Postgres may lose its commit.
    pub(super) answered: Option<(i32, ModelEnd)>,
}

impl<'a> Session<'a> {
    /// Goes on with the run of the task, or begins one with `input` as its first note.
    ///
    /// # Errors
    /// The failure of the attempt.
    pub(crate) async fn open(
        thinker: &'a Thinker,
        job: &'a Job,
        input: impl FnOnce() -> Result<String, Failure>,
    ) -> Result<Self, Failure> {
        let tasks = job.tasks().ok_or_else(|| permanent("an agent with tools works only in a daemon"))?;
        let key = job.start.key;
        let found = again(job.deadline, || tasks.latest_run(key.task_id)).await.map_err(|e| unwritten(&e))?;
        let resumed = found.and_then(|found| resumable(thinker, job, found));
        let (at, pinned, tokens_before, is_new) = match resumed {
            Some((number, pinned, tokens)) => {
                (RunKey { key, agent: job.agent_id.clone(), run: number }, pinned, tokens, false)
            }
            None => {
                let (at, pinned) = begin(thinker, job, tasks, &input()?).await?;
                (at, pinned, 0, true)
            }
        };
        let Pinned { definition: pinned, catalog, cache_key } = pinned;
        let choices = thinker.choices.of_run(&pinned);
        let earlier = again(job.deadline, || tasks.earlier_effects(key.task_id, at.run)).await;
        let earlier = earlier.map_err(|e| unwritten(&e))?;
        // The first note of a new run has the messages already.
        let messages = (!is_new && !job.messages().is_empty()).then(|| json!(job.messages()).to_string());
        Ok(Self {
            thinker,
            job,
            tasks,
            at,
            pinned,
            choices,
            catalog,
            cache_key,
            earlier,
            used: Usage::default(),
            calls_used: Mutex::default(),
            permits: Mutex::default(),
            tokens_before,
            spent: (tokens_before, 0),
            after: Mutex::default(),
            messages,
            answered: None,
        })
    }

    /// The span of a step. `None` if the task belongs to no trace.
    pub(super) fn span(&self, seq: i32) -> Option<TraceContext> {
        let RunKey { key, run, .. } = self.at;
        self.job.start.traceparent.map(|trace| trace.step(key.task_id, run, seq))
    }

    pub(super) fn rules(&self) -> Rules {
        let limits = &self.thinker.definition.limits;
        let count = |limit| usize::try_from(limit).unwrap_or(usize::MAX);
        Rules { steps_max: count(limits.steps()), calls_max: count(limits.calls()) }
    }

    /// Works until the run has a result, waits, or fails.
    ///
    /// # Errors
    /// The failure of the attempt, with what was used.
    pub(crate) async fn run(mut self) -> Result<Finished, Failure> {
        let mut was_fenced = false;
        loop {
            let failure = match self.step().await {
                Ok(None) => {
                    was_fenced = false;
                    continue;
                }
                Ok(Some(finished)) => return Ok(finished),
                Err(failure) => failure,
            };
            // If the connection was lost during a commit, the write may be there already, and its repetition is
            // refused. The rows tell; an assignment that is over is refused again.
            if failure.message == FENCED && !was_fenced {
                was_fenced = true;
                continue;
            }
            if failure.usage == Usage::default() {
                return Err(Failure { usage: self.used, ..failure });
            }
            return Err(failure);
        }
    }

    /// One action.
    async fn step(&mut self) -> Result<Option<Finished>, Failure> {
        self.used = added(self.used, std::mem::take(self.calls_used.get_mut()));
        let task = self.at.key.task_id;
        let found = match self.after.get_mut().take() {
            Some(found) => Some(found),
            None => {
                again(self.job.deadline, || self.tasks.latest_steps(task)).await.map_err(|e| unwritten(&e))?
            }
        };
        let run = found.map(|found| found.run).filter(|run| run.number == self.at.run);
        let run = run.ok_or_else(|| retryable("another run of the task has begun"))?;
        self.spent = (run.tokens, run.microdollars);
        let steps = run.steps;
        if let Some((seq, end)) = self.lost_answer(&steps) {
            warn!(%task, seq, "the database has lost an answer that was not on its disk; it is recorded again");
            return self.write_answer(*seq, end).await.map(|()| None);
        }
        let action = machine::next(&steps, self.rules());
        if !matches!(action, Action::Run(_)) {
            *self.permits.get_mut() = Permits::default();
        }
        // Between the results of an answer and the next question, never between a call and its result.
        if matches!(action, Action::Ask { again: None, .. })
            && let Some(messages) = self.messages.take()
        {
            let text = format!("Messages from others:\n{messages}");
            self.note(&steps, NoteKind::Messages, &text).await?;
            return Ok(None);
        }
        if let Action::Ask { again: None, last } = action
            && self.compact(&steps, last).await?
        {
            return Ok(None);
        }
        self.perform(&steps, action).await
    }

    /// The last answer, if its step has none.
    fn lost_answer(&self, steps: &[Step]) -> Option<&(i32, ModelEnd)> {
        let is_open = |seq| steps.iter().any(|step| step.seq == seq && step.state == StepState::Started);
        self.answered.as_ref().filter(|(seq, _)| is_open(*seq))
    }

    /// Records the answer of the question `seq`.
    pub(super) async fn write_answer(&self, seq: i32, end: &ModelEnd) -> Result<(), Failure> {
        // The head is the question itself.
        let written = again(self.job.deadline, || self.tasks.end_question(&self.at, seq, seq, end)).await;
        if written.is_err() {
            // The usage is known, even if the answer is not recorded because the assignment is over.
            record_usage(self.job, end.question, &end.used).await;
        }
        *self.after.lock() = written.map_err(|e| unwritten(&e))?;
        Ok(())
    }

    async fn perform(&mut self, steps: &[Step], action: Action) -> Result<Option<Finished>, Failure> {
        // Boxed: a run waits for its model most of the time, and takes no room for the other actions then.
        match action {
            Action::Note(_) => Box::pin(self.note_or_end(steps, action)).await.map(|()| None),
            Action::Ask { again, last } => self.ask(steps, again, last).await,
            Action::TryText(seq) => Box::pin(self.try_text(steps, seq)).await,
            Action::Run(seqs) => Box::pin(self.run_calls(steps, &seqs)).await,
            Action::Doubt(seq) => Box::pin(self.doubt_step(steps, seq)).await.map(|()| None),
            Action::Probe(seq) => Box::pin(self.probe(steps, seq)).await.map(|()| None),
            Action::AskPerson(seq) => Box::pin(self.ask_person(steps, seq)).await,
            Action::AskApproval(seqs) => Box::pin(self.ask_approval(steps, &seqs)).await,
            Action::RefuseFinish(seq) => Box::pin(self.refuse_finish(seq)).await.map(|()| None),
            Action::Finish(seq) => Box::pin(self.finish(steps, seq)).await,
            Action::GiveUp(seq) => Err(Box::pin(self.give_up(steps, seq)).await?),
            Action::End(why) => Err(Box::pin(self.end(why)).await?),
        }
    }

    /// A note, or the end of the run.
    pub(super) async fn note_or_end(&self, steps: &[Step], action: Action) -> Result<(), Failure> {
        match action {
            Action::Note(kind) => self.note(steps, kind, &self.text_of(kind, steps)).await,
            _ => Err(self.end(Why::NoResult).await?),
        }
    }

    pub(super) async fn note(&self, steps: &[Step], kind: NoteKind, text: &str) -> Result<(), Failure> {
        let head = head(steps);
        let noted = again(self.job.deadline, || self.tasks.append_note(&self.at, head, kind, text)).await;
        noted.map_err(|e| unwritten(&e))
    }

    fn text_of(&self, kind: NoteKind, steps: &[Step]) -> String {
        let rules = self.rules();
        match kind {
            NoteKind::Rejected => {
                // As data: it may contain text of a verifier.
                let reason = self.job.start.rejected.as_deref().unwrap_or("no reason was given");
                format!("The result was rejected:\n{}", json!(reason))
            }
            NoteKind::Nudge => {
                "That is no result. Call finish with a result that satisfies its schema, or another tool."
                    .into()
            }
            NoteKind::Smaller => "The answer was cut off at its limit. Go on in smaller pieces.".into(),
            NoteKind::Limit => {
                let calls = steps.iter().filter(|step| machine::tool(step).is_some()).count();
                let left = rules.calls_max.saturating_sub(calls);
                format!(
                    "Most of the questions and calls of this run are used. {left} calls are left. Come to an end."
                )
            }
            NoteKind::Input | NoteKind::Messages | NoteKind::Compacted => String::new(),
        }
    }

    /// Records the end of a run without result. Returns the failure of the attempt.
    async fn end(&self, why: Why) -> Result<Failure, Failure> {
        let (word, failure) = match why {
            Why::Steps => ("steps", permanent("the run used all of its questions or calls without a result")),
            Why::Loop => ("loop", retryable("the model gave the same answer again and again")),
            Why::BadCalls => ("bad_calls", retryable("the model made no valid call in three answers")),
            Why::NoResult => ("no_result", retryable("the model gave no result")),
            Why::Length => ("length", retryable("the answers were cut off at the limit of tokens")),
            Why::Refused => ("refused", permanent("the model or its endpoint refused to answer")),
        };
        self.end_run(word).await?;
        Ok(failure)
    }

    pub(super) async fn end_run(&self, word: &str) -> Result<(), Failure> {
        let ended = again(self.job.deadline, || self.tasks.end_run(&self.at, word)).await;
        ended.map_err(|e| unwritten(&e))
    }

    /// Reports the activity: evidence of work, and what presence shows.
    pub(super) fn shows(&self, activity: String) {
        self.job.shows(activity);
    }
}

/// The ids that a program is told.
pub(super) fn ids(job: &Job) -> [(&'static str, String); 3] {
    [
        ("CONVOKE_TASK_ID", job.start.key.task_id.to_string()),
        ("CONVOKE_AGENT_ID", job.agent_id.to_string()),
        ("CONVOKE_ORG", job.start.org.to_string()),
    ]
}

/// The number of the last step.
pub(super) fn head(steps: &[Step]) -> i32 {
    steps.last().map_or(0, |step| step.seq)
}

/// The run to go on with, its definition, and the tokens that it has used. `None` if a new one must begin: it is that
/// of another agent, its attempt has failed with it, its task was canceled, or this version cannot read its definition.
fn resumable(thinker: &Thinker, job: &Job, found: LatestRun) -> Option<(i32, Pinned, u64)> {
    let LatestRun { run, agent, ended_as, ended_state } = found;
    let has_ended = ended_as.as_deref() == Some("canceled") || ended_state.as_deref() == Some("failed");
    if agent != job.agent_id.as_str() || has_ended {
        return None;
    }
    let pinned = thinker.pinned(&run.definition, run.body, job.start.result_schema.as_ref()).ok()?;
    Some((run.number, pinned, run.tokens))
}

async fn begin(
    thinker: &Thinker,
    job: &Job,
    tasks: &TaskCommands,
    input: &str,
) -> Result<(RunKey, Pinned), Failure> {
    let input = guards::judged_input(thinker, job, input.to_owned()).await?;
    let (definition, missing) = servers::with_tools(thinker, job, tasks).await?;
    let body = serde_json::to_value(&definition).map_err(|e| permanent(format!("definition: {e}")))?;
    let (key, agent) = (job.start.key, &job.agent_id);
    // Effects belong to the task: a new run is told what earlier ones did.
    let earlier = again(job.deadline, || tasks.earlier_effects(key.task_id, i32::MAX)).await;
    let earlier = earlier.map_err(|e| unwritten(&e))?;
    let mut input = with_effects(&input, &earlier);
    if !missing.is_empty() {
        input.push_str(&format!("\n\nThe tools of these servers are not available: {}.", missing.join(", ")));
    }
    let hash = definition.hash();
    let model = definition.run.first_choice().model;
    let pinned = PinnedDefinition { hash: &hash, body: &body, model: &model };
    let begun = again(job.deadline, || tasks.begin_run(key, agent, pinned, &input)).await;
    let at = begun.map_err(|e| unwritten(&e))?;
    // Read back, so that a run that was resumed and one that was not have the same definition.
    let pinned = thinker.pinned(&hash, body, job.start.result_schema.as_ref());
    Ok((at, pinned.map_err(|e| permanent(format!("definition: {e}")))?))
}

fn with_effects(input: &str, earlier: &[EarlierEffect]) -> String {
    if earlier.is_empty() {
        return input.to_owned();
    }
    let one = |effect: &EarlierEffect| json!({ "tool": effect.name, "state": effect.state, "result": effect.result });
    let effects: Vec<Value> = earlier.iter().map(one).collect();
    format!("{input}\n\nEarlier runs of this task had these effects; do not repeat them:\n{}", json!(effects))
}
