//! Performs the actions of the machine: questions to the model and calls.
//!
//! The order within an action is fixed: first the intent as a row, then the effect, then its result as a row. A fault
//! point lies between any two of them.
use super::{
    calls::{self, Call, Verdict, error},
    costs::{Costs, Paid},
    machine,
    messages::{ToolsBy, messages},
    session::{Session, Thinker, head, ids, unwritten},
    turn::Turn,
};
use crate::{
    agent::{
        Finished,
        asking::{Asking, Pricing},
        failover::{Choice, Turns},
        hex,
        job::{permanent, retryable},
        kind::llm,
        retry::again,
        tool::{self, Callable, Outcome, ToolCall, callable, shown},
    },
    fault,
    llm::{Caller, ChatAnswer, ChatRequest, Error, Format, Streaming},
    task::{
        CallEnd, DatabaseResult, Effect, Failure, ModelEnd, ModelUsage, NewQuestion, Step, StepBody,
        StepState, ToolStep, Usage, check_json,
    },
};
use futures_util::future::join_all;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Tries of a call with a key whose outcome is unknown, before a person is asked.
const KEYED_TRIES: u32 = 3;
/// Pause before such a try; it doubles.
const KEYED_PAUSE: Duration = Duration::from_millis(500);
/// How often the parts of a streamed answer are reported.
const PARTS_INTERVAL: Duration = Duration::from_secs(2);
/// A longer wait for the account gives the agent's slot back: the rows are the checkpoint.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a question to one model ended.
enum Asked {
    /// Its answer is recorded.
    Answered,
    /// The model could not answer. The step, and how the job could go on later with this model.
    Failed(i32, Error, Option<Finished>),
    /// The model may not be asked before a later time. Nothing was begun.
    Deferred(Finished),
}

impl Session<'_> {
    /// The question after these steps. It depends on the rows and the definition of the run alone, except for the
    /// limit of tokens.
    pub(super) fn question(
        &self,
        steps: &[Step],
        choice: &Choice,
        last: bool,
    ) -> Result<ChatRequest, Failure> {
        let run = &self.pinned.run;
        let by = run.tools_by.unwrap_or_default();
        let instructions = run.instructions.as_deref().unwrap_or_default();
        let system = format!("{instructions}\n\n{}", self.catalog.instructions());
        let mut all = vec![json!({ "role": "system", "content": system.trim_start() })];
        all.extend(messages(self.at.run, steps, by, &choice.asked()));
        let format = match by {
            ToolsBy::Native => Format::Text,
            ToolsBy::Schema => Format::JsonSchema(self.catalog.schema(&Turn::after(steps, last))),
        };
        let mut question = ChatRequest {
            model: choice.model.model.clone(),
            messages: all,
            tools: self.catalog.native(last),
            tool_required: last,
            format,
            max_tokens: self.answer_tokens(choice),
            limit_member: run.limit_member,
            cache_key: Some(self.cache_key.clone()),
            temperature: run.temperature,
            timeout: self.job.deadline.saturating_duration_since(Instant::now()),
            streaming: Some(run.stream.unwrap_or_default()).filter(|stream| stream.enabled).map(|stream| {
                Streaming {
                    first_byte: stream.first_byte,
                    silence: stream.silence,
                    parts: watch::Sender::new(0),
                }
            }),
        };
        if let Some(limit) = self.thinker.definition.limits.tokens_per_task {
            let input = input_tokens(question.body(false).len()) / llm::BYTES_PER_TOKEN as u64;
            let used = self.tokens_before.saturating_add(self.used.tokens).saturating_add(input);
            let left = u64::from(limit).saturating_sub(used);
            if left == 0 {
                return Err(permanent(format!("the run has used limits.tokens_per_task, {limit}")));
            }
            question.max_tokens = question.max_tokens.min(u32::try_from(left).unwrap_or(u32::MAX));
        }
        Ok(question)
    }

    /// Asks the model, or the next of the list that can answer.
    pub(super) async fn ask(
        &mut self,
        steps: &[Step],
        repeats: Option<i32>,
        last: bool,
    ) -> Result<Option<Finished>, Failure> {
        let (choices, mut repeats) = (self.choices.clone(), repeats);
        let mut turns = choices.turns(self.job, machine::asked_last(steps));
        while let Some(choice) = turns.next() {
            match self.ask_one(steps, choice, &turns, repeats, last).await? {
                Asked::Answered => return Ok(None),
                Asked::Deferred(deferred) => turns.deferred(choice, deferred),
                Asked::Failed(seq, Error::TooLarge { .. }, _)
                    if self.compact_refused(steps, seq, choice, last).await? =>
                {
                    return Ok(None);
                }
                Asked::Failed(seq, error, deferred) => {
                    // The same step: what its answer calls has the same keys, whichever model gives it.
                    repeats = Some(seq);
                    turns.failed(choice, error, deferred);
                    fault::point(fault::Point::StepPassedOver);
                }
            }
        }
        turns.end(self.used).map(Some)
    }

    /// Asks one model: reserves, records the question, sends it, and records the answer with its calls.
    async fn ask_one(
        &mut self,
        steps: &[Step],
        choice: &Choice,
        turns: &Turns<'_>,
        repeats: Option<i32>,
        last: bool,
    ) -> Result<Asked, Failure> {
        let Thinker { definition, parts, .. } = self.thinker;
        let is_first = self.used == Usage::default();
        let models = &parts.models;
        let pricing = Pricing { definition, choice: &choice.model, models, is_first, day: models.today() };
        let question = self.question(steps, choice, last)?;
        let (input, sha256) = {
            let body = question.body(false);
            (input_tokens(body.len()), hex(&Sha256::digest(&body)))
        };
        let (name, context) = (&choice.model.model, choice.model.context_tokens);
        let limit = choice.provider.answer_most(name, question.max_tokens, context);
        let most = pricing.most(input, u64::from(limit));
        let asking = Asking::new(self.job, &choice.provider, pricing, most, self.used)?;
        asking.reserve().await?;
        let seq = match self.begin_question(steps, &asking, &sha256, turns, repeats, last).await? {
            Ok(seq) => seq,
            Err(deferred) => return Ok(Asked::Deferred(deferred)),
        };
        // The commit of this question has flushed it.
        self.answered = None;
        self.shows(turns.shown(choice));
        let shows = |activity| self.job.shows(activity);
        let spent = self.tokens_before.saturating_add(self.used.tokens);
        let caller = turns.caller(Caller {
            shows: &shows,
            spent,
            priority: self.job.start.priority.into(),
            meter: Some(&asking),
            patience: Some(PATIENCE),
            traceparent: self.span(seq).map(String::from),
            ..self.thinker.definition.caller()
        });
        // The future is dropped with the job: that closes the connection, and no answer is paid for that is not read.
        let answer = tokio::select! {
            answer = choice.provider.chat(&question, &caller, self.job.deadline) => answer,
            never = self.shows_parts(&question, turns.shown(choice)) => match never {},
            () = self.job.stopped() => {
                asking.stopped().await;
                self.used = asking.used();
                return Err(Failure { usage: self.used, ..retryable("the request to the model was stopped") });
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                asking.failed(&error).await;
                self.used = asking.used();
                let deferred = asking.deferral().or_else(|| long_wait(&error, self.used));
                return Ok(Asked::Failed(seq, error, deferred));
            }
        };
        fault::point(fault::Point::StepAnswered);
        let used = pricing.used(answer.counts(), answer.details, answer.model.as_deref(), most);
        asking.count(used.usage);
        self.used = asking.used();
        let question = asking.record().id;
        match self.read(steps, answer, (question, used.clone()), last).await {
            Ok(end) => self.record_answer(seq, end).await.map(|()| Asked::Answered),
            Err(failure) => {
                asking.record_end(&used).await;
                Err(failure)
            }
        }
    }

    /// Records a question that is about to be sent. Returns its step, or how the job goes on if a limit of the day has
    /// no room.
    async fn begin_question(
        &self,
        steps: &[Step],
        asking: &Asking<'_>,
        sha256: &str,
        turns: &Turns<'_>,
        again_at: Option<i32>,
        last: bool,
    ) -> Result<Result<i32, Finished>, Failure> {
        let (record, passed_over) = (asking.record(), turns.passed_over());
        let new = NewQuestion {
            again: again_at,
            request_sha256: sha256,
            last,
            passed_over: passed_over.as_deref(),
            record: &record,
        };
        // The step that is begun again is the head itself.
        let before = head(steps);
        let begin = || self.tasks.begin_question(&self.at, before, new);
        match again(self.job.deadline, begin).await.map_err(|e| unwritten(&e))? {
            Ok(seq) => {
                asking.begun(self.at.run, seq);
                fault::point(fault::Point::StepBegun);
                Ok(Ok(seq))
            }
            Err(short) => {
                asking.is_short(short);
                let none = || retryable("a limit of the day has no room");
                Ok(Err(asking.deferral().ok_or_else(none)?))
            }
        }
    }

    /// Records an answer with its calls and what it used, and keeps it until the next question is on disk.
    async fn record_answer(&mut self, seq: i32, end: ModelEnd) -> Result<(), Failure> {
        self.write_answer(seq, &end).await?;
        self.answered = Some((seq, end));
        fault::point(fault::Point::StepRecorded);
        Ok(())
    }

    /// Reports the parts of a streamed answer as evidence of work. Never returns.
    async fn shows_parts(&self, question: &ChatRequest, activity: String) -> std::convert::Infallible {
        if let Some(streaming) = &question.streaming {
            let mut parts = streaming.parts.subscribe();
            while parts.changed().await.is_ok() {
                self.shows(activity.clone());
                sleep(PARTS_INTERVAL).await;
            }
        }
        std::future::pending().await
    }

    /// Reads an answer: how it ended, and which of its calls run.
    async fn read(
        &self,
        steps: &[Step],
        answer: ChatAnswer,
        (question, used): (Uuid, ModelUsage),
        last: bool,
    ) -> Result<ModelEnd, Failure> {
        let by = self.pinned.run.tools_by.unwrap_or_default();
        let answered = calls::read(&answer.message, answer.finish.as_deref(), by);
        let mut checked: Vec<(Call, Verdict)> = Vec::with_capacity(answered.calls.len());
        let result_bytes_max = self.thinker.definition.limits.output_bytes;
        let mut turn = Turn::after(steps, last);
        for call in answered.calls {
            let schemas = &self.thinker.schemas;
            let verdict = self.catalog.check(schemas, &call, Some(&turn), result_bytes_max).await;
            let verdict = verdict.map_err(|e| retryable(e.to_string()))?;
            if let (Verdict::Valid { name, .. }, Ok(args)) = (&verdict, &call.args) {
                turn.count(name, args);
            }
            checked.push((call, verdict));
        }
        Ok(ModelEnd {
            calls: calls::plan(steps, &self.earlier, checked, self.rules()),
            answer: answer.message,
            ending: answered.ending,
            finish: answer.finish,
            request_id: answer.request_id,
            question,
            used,
        })
    }

    /// Ends with the text of an answer, if it is a result.
    pub(super) async fn try_text(&mut self, steps: &[Step], seq: i32) -> Result<Option<Finished>, Failure> {
        let text = steps.iter().find(|step| step.seq == seq).map(|step| match &step.body {
            StepBody::Model { answer: Some(answer), .. } => calls::text_of(answer),
            _ => String::new(),
        });
        let text = text.unwrap_or_default();
        let (schema, schemas) = (self.catalog.result_schema(), &self.thinker.schemas);
        let limit = self.thinker.definition.limits.output_bytes;
        let found = llm::result_in(&text, schema, schemas, limit).await;
        // Without a schema, JSON between words is more often an aside than a result.
        let may_finish = self.catalog.may_finish(&Turn::after(steps, false));
        let is_result = may_finish && (schema.is_some() || calls::is_json(&text));
        let judged = match found {
            Ok(result) if is_result && check_json("result", &result, limit).is_ok() => {
                self.judged_answer(result).await?.ok()
            }
            _ => None,
        };
        match judged {
            Some(result) => {
                self.end_run("text").await?;
                fault::point(fault::Point::RunFinishing);
                Ok(Some(Finished::Result { result, usage: self.used }))
            }
            None => {
                let next = machine::no_result(steps);
                self.note_or_end(steps, next).await.map(|()| None)
            }
        }
    }

    /// Begins the calls, runs them at the same time, and records each result as it comes.
    pub(super) async fn run_calls(&self, steps: &[Step], seqs: &[i32]) -> Result<Option<Finished>, Failure> {
        let calls: Vec<(&Step, &ToolStep)> =
            steps.iter().filter_map(machine::tool).filter(|(step, _)| seqs.contains(&step.seq)).collect();
        // What a keeper knows of a call that was begun before is used first.
        let mut is_known = false;
        for (step, call) in calls.iter().filter(|(step, _)| step.state == StepState::Started) {
            is_known |= self.use_kept(step, call).await?;
        }
        if is_known {
            return Ok(None);
        }
        // Before a person is asked: what is denied needs no approval.
        if self.deny_calls(&calls).await? {
            return Ok(None);
        }
        let held = self.calls_to_hold(steps, &calls);
        if !held.is_empty() {
            return self.hold(&held).await.map(|()| None);
        }
        let (calls, mut permits) = match self.with_permits(&calls) {
            (none, _) if none.is_empty() => return self.wait_for_permit(&calls).await.map(|()| None),
            first => first,
        };
        let names: Vec<&str> = calls.iter().map(|(_, call)| call.name.as_str()).collect();
        self.shows(format!("calling {}", names.join(", ")));
        let begun: Vec<(i32, &ToolStep)> = calls
            .iter()
            .filter(|(_, call)| !self.is_statement(call))
            .map(|(step, call)| (step.seq, *call))
            .collect();
        let costs = match begun.is_empty() {
            true => Costs::new(),
            false => match self.begin_calls(&begun).await? {
                Ok(costs) => costs,
                Err(deferred) => return Ok(Some(deferred)),
            },
        };
        let each = calls.iter().map(|(step, call)| {
            let (permit, cost) = (permits.remove(&step.seq), costs.get(&step.seq));
            async move {
                // Kept until the last try has ended.
                let _permit = permit;
                self.run_call(step.seq, step.tries, call, cost).await
            }
        });
        // All of them, so that a failure does not lose the results of the others.
        let ended = join_all(each).await;
        if ended.len() > 1 {
            // What was read behind the end of one may lack the end of another.
            *self.after.lock() = None;
        }
        ended.into_iter().collect::<Result<(), Failure>>().map(|()| None)
    }

    fn is_statement(&self, call: &ToolStep) -> bool {
        callable(&self.pinned, &call.name).is_some_and(|tool| tool.commits_with_its_step())
    }

    /// `tries` is how often the call was begun before, `cost` what it may cost.
    pub(super) async fn run_call(
        &self,
        seq: i32,
        tries: i32,
        call: &ToolStep,
        cost: Option<&Asking<'_>>,
    ) -> Result<(), Failure> {
        let pinned = callable(&self.pinned, &call.name);
        let Some(tool) = pinned.and_then(|tool| tool.permitted(&self.thinker.definition)) else {
            let text = error("denied", "the agent may not use this tool any more", false);
            return self.end_call(seq, StepState::Failed, &text, self.pinned_bytes(&call.name), None).await;
        };
        let bytes_max = tool.output_bytes();
        if let Callable::RequestTask(kinds) = tool {
            return self.request_part(seq, call, kinds, bytes_max).await;
        }
        if let Callable::Remember(settings) | Callable::Forget(settings) = tool {
            return self.change_memory(seq, call, tool, settings).await;
        }
        if self.is_statement(call) {
            return self.run_statement(seq, call).await;
        }
        let outcome = match tool {
            Callable::Tasks => self.parts(call).await,
            Callable::Recall(settings) => self.recall(call, settings).await,
            Callable::StepResult => self.step_result(call).await,
            _ => self.outcome(tool, seq, call).await,
        };
        let paid = self.paid(cost, call, &outcome);
        self.record(seq, tries, call, outcome, bytes_max, paid).await
    }

    /// Ends a command that was begun before with what its keeper knows. Returns whether it does.
    pub(super) async fn use_kept(&self, step: &Step, call: &ToolStep) -> Result<bool, Failure> {
        let Some(tool) = callable(&self.pinned, &call.name) else { return Ok(false) };
        let stop = self.job.stop_token();
        // Its program may still run.
        let _permit = self.permit_of_kept(call);
        self.shows(format!("looking for the outcome of {}", call.name));
        let found = tool::kept(tool, &call.key, &self.thinker.parts, &stop).await;
        if stop.is_cancelled() {
            return Err(retryable("the call of a tool was stopped"));
        }
        let Some(outcome) = found else { return Ok(false) };
        // What it may cost was recorded when it began, and counts as its most.
        self.record(step.seq, step.tries, call, outcome, tool.output_bytes(), None).await.map(|()| true)
    }

    /// Records the outcome of a call, or goes on without one.
    async fn record(
        &self,
        seq: i32,
        tries: i32,
        call: &ToolStep,
        outcome: Outcome,
        bytes_max: usize,
        paid: Option<Paid<'_>>,
    ) -> Result<(), Failure> {
        let paid = paid.as_ref();
        if matches!(outcome, Outcome::Stopped | Outcome::Uncertain(_))
            && let Some(paid) = paid
        {
            self.pay_unknown(paid).await;
        }
        match outcome {
            Outcome::Stopped => Err(retryable("the call of a tool was stopped")),
            Outcome::Done(output) => {
                fault::point(fault::Point::ToolDone);
                let (state, text) = match self.judged_output(call, output).await {
                    Ok(output) => (StepState::Done, output),
                    Err(why) => (StepState::Failed, error("denied", &why, false)),
                };
                self.end_call(seq, state, &text, bytes_max, paid).await?;
                self.forget(call);
                Ok(())
            }
            Outcome::Failed(code, message, again) => {
                fault::point(fault::Point::ToolDone);
                // A service chooses the words of its errors too.
                let text = match self.judged_output(call, message).await {
                    Ok(message) => error(code, &message, again),
                    Err(why) => error("denied", &why, false),
                };
                self.end_call(seq, StepState::Failed, &text, bytes_max, paid).await?;
                self.forget(call);
                Ok(())
            }
            Outcome::Uncertain(why) if call.effect == Effect::Read => {
                self.end_call(seq, StepState::Failed, &error("failed", &why, true), bytes_max, None).await
            }
            // The machine has it probed.
            Outcome::Uncertain(_) if call.effect == Effect::Checked => Ok(()),
            Outcome::Uncertain(_) => self.doubt(seq, tries, call).await,
        }
    }

    /// Removes what a keeper knows of a call whose result is recorded.
    fn forget(&self, call: &ToolStep) {
        if let Some(keeper) = &self.thinker.parts.keeper {
            keeper.forget(&call.key);
        }
    }

    /// Runs a tool whose call has its permit. Retries one with a key, with the same key, while the outcome is unknown, and
    /// one with `retries` after a failure that may pass.
    async fn outcome(&self, tool: Callable<'_>, seq: i32, call: &ToolStep) -> Outcome {
        let ids = self.ids();
        let stop = self.job.stop_token();
        let retries = tool.declared().map_or(0, |tool| tool.retries);
        let mut pause = KEYED_PAUSE;
        for tried in 1.. {
            let outcome = tool::call(ToolCall {
                tool,
                agent: &self.at.agent,
                org: &self.job.start.org,
                args: call.run_args(),
                key: &call.key,
                trace: self.span(seq),
                ids: &ids,
                folder: self.thinker.definition.folder.as_deref(),
                parts: &self.thinker.parts,
                stop: &stop,
            });
            let outcome = outcome.await;
            let repeats = match (&outcome, call.effect) {
                (Outcome::Uncertain(_), Effect::Keyed) => tried < KEYED_TRIES.max(retries.saturating_add(1)),
                (Outcome::Uncertain(_), Effect::Read) | (Outcome::Failed(_, _, true), _) => tried <= retries,
                _ => false,
            };
            if !repeats {
                return outcome;
            }
            tokio::select! {
                () = sleep(pause) => pause *= 2,
                () = stop.cancelled() => return Outcome::Stopped,
            }
        }
        Outcome::Stopped
    }

    /// The ids that a program is told.
    pub(super) fn ids(&self) -> [(&'static str, String); 3] {
        ids(self.job)
    }

    /// Runs a statement in the commit that ends its step.
    async fn run_statement(&self, seq: i32, call: &ToolStep) -> Result<(), Failure> {
        let tool = callable(&self.pinned, &call.name);
        let Some(tool) = tool.as_ref().and_then(Callable::statement) else { return Ok(()) };
        let statement = tool::statement(tool, call.run_args());
        let end = |result: &DatabaseResult| match result {
            DatabaseResult::Rows { rows, more } => {
                let text = json!({ "rows": rows, "more": more }).to_string();
                self.shown_end(StepState::Done, &text, tool.output_bytes)
            }
            DatabaseResult::Refused { sqlstate } => {
                let message = format!("the database refused the statement (SQLSTATE {sqlstate})");
                self.shown_end(StepState::Failed, &error("failed", &message, false), tool.output_bytes)
            }
        };
        let run = || self.tasks.end_call_with(&self.at, seq, &statement, end);
        *self.after.lock() = again(self.job.deadline, run).await.map_err(|e| unwritten(&e))?;
        fault::point(fault::Point::ToolRecorded);
        Ok(())
    }

    pub(super) fn pinned_bytes(&self, name: &str) -> usize {
        callable(&self.pinned, name).map_or(32 << 10, |tool| tool.output_bytes())
    }

    pub(super) fn shown_end(&self, state: StepState, text: &str, bytes_max: usize) -> CallEnd {
        let secrets = tool::secrets(&self.thinker.definition, &self.thinker.parts.env);
        let tool::Shown { text: result, cut } = shown(text, &secrets, bytes_max);
        CallEnd { state, result, bytes: u64::try_from(text.len()).unwrap_or(u64::MAX), cut }
    }
}

/// How the run goes on after a wait for its account that is too long to hold the slot: later, with the same attempt.
fn long_wait(error: &Error, usage: Usage) -> Option<Finished> {
    let Error::RateLimited { retry_after } = error else { return None };
    let after = retry_after.unwrap_or(PATIENCE);
    Some(Finished::Deferred { reason: "the wait for the account of the model is long".into(), after, usage })
}

/// The most input tokens of a question of so many bytes: no tokenizer makes more tokens than bytes.
fn input_tokens(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(llm::FRAME_TOKENS)
}
