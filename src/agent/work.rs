//! One award, from accept to the end.
//!
//! Accepts, runs the job, renews the lease at a third of it, reports progress,
//! and hands in what came of it. Ends early when the assignment is fenced (the
//! result is dropped), canceled, out of time, or when the daemon lets go (the
//! task is released with its last checkpoint). A result that the database does
//! not take because it is away is handed in again until it answers.
use super::{
    Agent, Finished, Job, Kind, Reporter,
    actor::Command,
    job::{Purse, one_line, permanent, retryable},
    metrics::Ended,
    supervisor::{Desk, Shared},
};
use crate::{
    fault,
    scope::OnExit,
    task::{Assigned, Error, Failure, Question, Short, Start, TaskState, Usage, wanting},
};
use futures_util::FutureExt;
use serde_json::Value;
use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long an accept is tried while the database is away; later the award has gone to another.
const ACCEPT_WITHIN: Duration = Duration::from_secs(5);
/// How long a job that was told to stop may take over it.
const STOP_GRACE: Duration = Duration::from_secs(4);
/// How long an outcome is handed in again while the database is away.
const DELIVER_WITHIN: Duration = Duration::from_secs(900);
const INTERNAL_WITHIN: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long before the deadline of its task a job must be over, so that what it says still counts.
const DEADLINE_MARGIN: chrono::TimeDelta = chrono::TimeDelta::milliseconds(200);
/// How long a job's token is good beyond its time.
const PASS_MARGIN: Duration = Duration::from_secs(60);
/// Between two signs of life while an outcome is handed in.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at a task that is done elsewhere.
const LOOK_MIN: Duration = Duration::from_millis(250);
const LOOK_MAX: Duration = Duration::from_secs(5);

/// One award, and what it takes to work on it.
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<Desk>,
    pub(super) runner: Result<Arc<dyn Agent>, String>,
    pub(super) assigned: Assigned,
    /// When the award came.
    pub(super) at: Instant,
    /// Cancelled when the task is.
    pub(super) stop: CancellationToken,
    pub(super) tell: mpsc::Sender<Command>,
}

/// How the work on a job came to its end.
enum End {
    Done(Result<Finished, Failure>),
    Fenced,
    Canceled,
    TimedOut,
    LetGo,
}

/// Refuses an award without waiting; a lost refusal costs the confirm time.
pub(super) fn refuse(shared: Arc<Shared>, assigned: Assigned, reason: &'static str) {
    let scope = shared.jobs.clone();
    scope.spawn("refusal", OnExit::Log, |_| async move {
        if let Err(error) = shared.tasks.refuse(assigned.key, &assigned.agent_id, reason).await {
            debug!(task = %assigned.key.task_id, %error, "refusal not taken");
        }
        Ok(())
    });
}

impl Work {
    pub(super) async fn run(self) {
        self.shared.metrics.jobs.inc();
        let outcome = self.outcome().await;
        self.shared.metrics.jobs.dec();
        let kind = self.desk.definition.run.kind.as_str();
        self.shared.metrics.jobs_ended.get_or_create(&Ended { kind, outcome }).inc();
        debug!(outcome, "job ended");
        self.tell(Command::Ended(self.assigned.key)).await;
    }

    async fn outcome(&self) -> &'static str {
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        if let Some(limit) = self.desk.definition.limits.microdollars_per_hour
            && self.desk.spend.lock().last_hour(Instant::now()) >= limit
        {
            warn!(limit, "award refused: limits.microdollars_per_hour is used up");
            let _ = self.shared.tasks.refuse(key, agent, "the agent's budget for this hour is used up").await;
            return "refused";
        }
        fault::point("agent.assigned");
        let Some(start) = self.accept().await else { return "lost" };
        fault::point("agent.started");
        self.shared.metrics.start_seconds.observe(self.at.elapsed().as_secs_f64());
        self.tell(Command::Started(key)).await;
        let began = Instant::now();
        let outcome = self.job(start).await;
        self.shared.metrics.run_seconds.observe(began.elapsed().as_secs_f64());
        outcome
    }

    async fn accept(&self) -> Option<Start> {
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        let until = Instant::now() + ACCEPT_WITHIN;
        let accepted = again(until, || async {
            if self.stop.is_cancelled() {
                Err(Error::Fenced)
            } else {
                self.shared.tasks.accept(key, agent).await
            }
        });
        match accepted.await {
            Ok(start) => Some(start),
            Err(Error::Fenced | Error::Late | Error::Conflict { .. } | Error::UnknownTask(_)) => None,
            Err(error) => {
                warn!(%error, "award not accepted");
                None
            }
        }
    }

    async fn job(&self, start: Start) -> &'static str {
        let runner = match &self.runner {
            Ok(runner) => runner,
            Err(reason) => return self.failed(permanent(reason.clone())).await,
        };
        let budgeted = start.budgeted;
        let limit = start.attempt_timeout.min(self.desk.definition.limits.timeout);
        // What a job knows of its failure counts only if it says so before the task's own deadline.
        let left = start.deadline.map(|deadline| deadline - self.shared.clock.now());
        let limit =
            left.map_or(limit, |left| limit.min((left - DEADLINE_MARGIN).to_std().unwrap_or_default()));
        let pass = self.shared.passes.issue(&self.assigned.agent_id, &start.org, limit + PASS_MARGIN);
        let lease = start.lease;
        let job_stop = CancellationToken::new();
        let messages = self.desk.mail.lock().take();
        let job = Job::new(start, self.assigned.agent_id.clone(), limit, job_stop.clone());
        let per_hour = self.desk.definition.limits.microdollars_per_hour;
        let (tasks, key, agent) = (&self.shared.tasks, self.assigned.key, &self.assigned.agent_id);
        let purse =
            (budgeted || per_hour.is_some()).then(|| Purse::new(tasks.clone(), key, agent.clone(), per_hour));
        // A model reserves for each question what that may cost; all others what their file says.
        if let Some(purse) = purse.as_ref().filter(|_| self.desk.definition.run.kind != Kind::Llm) {
            let most = Usage { tokens: 0, microdollars: self.desk.definition.offer.cost_microdollars };
            if purse.reserve(most).await.is_err()
                && let Some(short) = purse.short()
            {
                return self.unpaid(&short, None).await;
            }
        }
        let job =
            job.with_messages(messages).with_purse(purse.clone()).in_daemon(self.shared.tasks.clone(), pass);
        let (reporter, deadline) = (job.reporter(), job.deadline);
        let run = AssertUnwindSafe(runner.run(job)).catch_unwind();
        tokio::pin!(run);
        let end = tokio::select! {
            done = &mut run => End::Done(done.unwrap_or_else(|_| Err(retryable("the agent's code panicked")))),
            () = self.keep(lease, &reporter) => End::Fenced,
            () = self.stop.cancelled() => End::Canceled,
            () = sleep_until(deadline) => End::TimedOut,
            () = self.shared.let_go.cancelled() => End::LetGo,
        };
        let mut late = None;
        if matches!(end, End::Fenced) {
            self.tell(Command::Fenced(self.assigned.key)).await;
        }
        if !matches!(end, End::Done(_)) {
            job_stop.cancel();
            late = timeout(STOP_GRACE, &mut run).await.ok().and_then(Result::ok);
        }
        fault::point("agent.worked");
        if let (End::Done(Err(_)), Some(short)) = (&end, purse.and_then(|purse| purse.short())) {
            return self.unpaid(&short, reporter.last_checkpoint()).await;
        }
        self.end(end, late, limit, deadline, &reporter).await
    }

    /// The task waits for more budget, or goes to an agent that may still spend.
    async fn unpaid(&self, short: &Short, checkpoint: Option<Value>) -> &'static str {
        let (tasks, key, agent) = (&self.shared.tasks, self.assigned.key, &self.assigned.agent_id);
        let until = Instant::now() + DELIVER_WITHIN;
        let told = match short {
            Short::Task(..) => {
                again(until, || tasks.ask(key, agent, wanting(short, checkpoint.clone()))).await
            }
            Short::Agent => {
                let reason = short.to_string();
                again(until, || tasks.release(key, agent, &reason, checkpoint.clone())).await
            }
        };
        match told {
            Ok(_) => "unpaid",
            Err(error) => undelivered(&error),
        }
    }

    async fn end(
        &self,
        end: End,
        late: Option<Result<Finished, Failure>>,
        limit: Duration,
        deadline: Instant,
        reporter: &Reporter,
    ) -> &'static str {
        let usage = late.map(|late| match late {
            Ok(Finished::Result { usage, .. }) => usage,
            Ok(Finished::Waits(question)) => question.usage,
            Ok(Finished::Elsewhere) => Usage::default(),
            Err(failure) => failure.usage,
        });
        let usage = usage.unwrap_or_default();
        match end {
            End::Done(Ok(Finished::Result { result, usage })) => self.finished(result, usage).await,
            End::Done(Ok(Finished::Waits(question))) => self.waits(question).await,
            End::Done(Ok(Finished::Elsewhere)) => self.elsewhere(limit, deadline).await,
            End::Done(Err(failure)) => self.failed(failure).await,
            End::Fenced => {
                self.spent(usage);
                "fenced"
            }
            End::Canceled => {
                self.failed(Failure { usage, ..permanent("canceled") }).await;
                "canceled"
            }
            End::TimedOut => self.timed_out(limit, usage).await,
            End::LetGo => {
                self.spent(usage);
                let checkpoint = reporter.last_checkpoint();
                let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
                let release = self.shared.tasks.release(key, agent, "the daemon is stopping", checkpoint);
                if let Err(error) = release.await {
                    warn!(%error, "job not released; its lease will run out");
                }
                "released"
            }
        }
    }

    /// Renews the lease and reports progress for as long as the assignment is ours.
    async fn keep(&self, lease: Duration, reporter: &Reporter) {
        let (tasks, key, agent) = (&self.shared.tasks, self.assigned.key, &self.assigned.agent_id);
        let period = (lease / 3).max(Duration::from_millis(20));
        let pause = self.desk.definition.limits.progress_interval.min(period);
        let mut beat = interval_at(Instant::now() + period, period);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reported = tokio::select! {
                _ = beat.tick() => tasks.heartbeat(key, agent).await,
                progress = reporter.next() => {
                    let reported = tasks.progress(key, agent, progress.clone()).await;
                    self.tell(Command::Progressed(key, progress)).await;
                    beat.reset();
                    sleep(pause).await;
                    reported
                }
            };
            match reported {
                Ok(()) => {}
                Err(Error::Fenced | Error::Conflict { .. } | Error::UnknownTask(_)) => return,
                Err(error) => debug!(%error, "report not taken"),
            }
        }
    }

    async fn finished(&self, result: Value, usage: Usage) -> &'static str {
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        let bytes_max = self.desk.definition.limits.output_bytes;
        // Writing it out only to measure it is not worth it below the store's own limit.
        if bytes_max < crate::task::INPUT_BYTES_MAX && result.to_string().len() > bytes_max {
            let message = format!("the result is over limits.output_bytes, {bytes_max} bytes");
            return self.failed(Failure { usage, ..permanent(message) }).await;
        }
        self.spent(usage);
        let tasks = &self.shared.tasks;
        let until = Instant::now() + DELIVER_WITHIN;
        let delivered = tokio::select! {
            delivered = again(until, || tasks.finish(key, agent, result.clone(), usage)) => delivered,
            () = self.beat() => return "lost",
        };
        match delivered {
            Ok(_) => "finished",
            Err(error @ (Error::BadRequest(_) | Error::TooLarge { .. })) => {
                self.report(Failure { usage, ..retryable(error.to_string()) }).await
            }
            Err(error) => undelivered(&error),
        }
    }

    /// Hands in what it needs; the answer brings the task again.
    async fn waits(&self, question: Question) -> &'static str {
        self.spent(question.usage);
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        let until = Instant::now() + DELIVER_WITHIN;
        match again(until, || self.shared.tasks.ask(key, agent, question.clone())).await {
            Ok(_) => "waiting",
            Err(error @ (Error::BadRequest(_) | Error::TooLarge { .. })) => {
                self.report(permanent(error.to_string())).await
            }
            Err(error) => undelivered(&error),
        }
    }

    /// Signs of life while an outcome is handed in again and again; never ends.
    async fn beat(&self) {
        let mut beat = interval_at(Instant::now() + BEAT_EVERY, BEAT_EVERY);
        loop {
            beat.tick().await;
            let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
            let _ = self.shared.tasks.heartbeat(key, agent).await;
        }
    }

    async fn failed(&self, failure: Failure) -> &'static str {
        self.spent(failure.usage);
        self.report(failure).await
    }

    async fn timed_out(&self, limit: Duration, usage: Usage) -> &'static str {
        let message = format!("no result within {}", humantime::format_duration(limit));
        self.failed(Failure { usage, ..retryable(message) }).await;
        "timeout"
    }

    async fn report(&self, failure: Failure) -> &'static str {
        let failure = Failure { message: one_line(&failure.message), ..failure };
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        debug!(message = failure.message, retryable = failure.retryable, "job failed");
        let until = Instant::now() + DELIVER_WITHIN;
        match again(until, || self.shared.tasks.fail(key, agent, failure.clone())).await {
            Ok(_) => "failed",
            Err(error) => undelivered(&error),
        }
    }

    /// Waits until whoever took the job over has ended it. The lease is theirs to renew.
    async fn elsewhere(&self, limit: Duration, deadline: Instant) -> &'static str {
        let key = self.assigned.key;
        self.tell(Command::Elsewhere(key)).await;
        let mut changed = self.shared.tasks.changed();
        loop {
            match self.shared.tasks.get(key.task_id).await {
                Ok(task) if task.epoch != key.epoch => return "fenced",
                Ok(task) => match task.state {
                    TaskState::Running | TaskState::Canceling => {}
                    TaskState::Waiting => return "waiting",
                    TaskState::Verifying => return "finished",
                    TaskState::Completed => return "finished",
                    _ => return "failed",
                },
                Err(Error::UnknownTask(_)) => return "fenced",
                Err(error) => debug!(%error, "task not seen"),
            }
            let look = async {
                sleep(LOOK_MIN).await;
                let _ = timeout(LOOK_MAX, changed.changed()).await;
            };
            tokio::select! {
                () = look => {}
                () = self.stop.cancelled() => {
                    self.report(permanent("canceled")).await;
                    return "canceled";
                }
                () = sleep_until(deadline) => return self.timed_out(limit, Usage::default()).await,
                // The other side works on without us, and may report to the next daemon.
                () = self.shared.let_go.cancelled() => return "released",
            }
        }
    }

    fn spent(&self, usage: Usage) {
        self.shared.metrics.tokens.inc_by(usage.tokens);
        self.shared.metrics.microdollars.inc_by(usage.microdollars);
        if self.desk.definition.limits.microdollars_per_hour.is_some() {
            self.desk.spend.lock().add(usage.microdollars, Instant::now());
        }
    }

    async fn tell(&self, command: Command) {
        // The actor is gone only when the daemon stops.
        let _ = self.tell.send(command).await;
    }
}

fn undelivered(error: &Error) -> &'static str {
    match error {
        Error::Fenced | Error::Conflict { .. } | Error::UnknownTask(_) => "fenced",
        error => {
            warn!(%error, "outcome not taken; the lease will run out");
            "lost"
        }
    }
}

/// Calls until the database is there to answer, with pauses that grow; at `until` its absence is the
/// answer. An error inside of it is tried for [`INTERNAL_WITHIN`] only: it may be a bug that stays.
async fn again<T, F: Future<Output = Result<T, Error>>>(
    until: Instant,
    mut call: impl FnMut() -> F,
) -> Result<T, Error> {
    let mut pause = PAUSE_FIRST;
    let internal_until = until.min(Instant::now() + INTERNAL_WITHIN);
    loop {
        let next = Instant::now() + pause;
        match call().await {
            Err(Error::Unavailable(_)) if next < until => {}
            Err(Error::Internal(_)) if next < internal_until => {}
            answer => return answer,
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
