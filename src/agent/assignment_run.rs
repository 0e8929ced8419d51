//! One award, from accept to its outcome.
//!
//! Accepts, runs the job, renews the lease at a third of its time, reports progress, and delivers the outcome. Ends
//! early if the assignment is fenced (the result is dropped), canceled or out of time, or if the daemon stops (the
//! task is released with its last checkpoint). While the database is away, an outcome is delivered again until it
//! answers.
use super::{
    Agent, Definition, Finished, Job, Kind, Reporter,
    command::ActorCommand,
    hosted::{HostedAgent, Shared},
    job::{BudgetHandle, one_line, permanent, retryable},
    metrics::{Ended, JobOutcome},
    retry::again,
};
use crate::{
    fault,
    scope::OnExit,
    task::{
        Assigned, Error, Failure, InsufficientBudget, Question, Start, TaskState, Usage, budget_question,
    },
};
use futures_util::FutureExt;
use serde_json::Value;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long an accept is tried while the database is away; later the award has gone to another agent.
const ACCEPT_WITHIN: Duration = Duration::from_secs(5);
/// Time limit for a canceled job to stop.
const STOP_GRACE: Duration = Duration::from_secs(4);
/// How long an outcome is delivered again while the database is away.
const DELIVER_WITHIN: Duration = Duration::from_secs(900);
/// Time between the end of a job and the deadline of its task, so that its outcome still counts.
const DEADLINE_MARGIN: chrono::TimeDelta = chrono::TimeDelta::milliseconds(200);
/// Time that a job's token is valid beyond its limit.
const CREDENTIALS_MARGIN: Duration = Duration::from_secs(60);
/// Interval of heartbeats while an outcome is delivered.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// Least and most time between two reads of a delegated task.
const POLL_MIN: Duration = Duration::from_millis(250);
const POLL_MAX: Duration = Duration::from_secs(5);

/// One award and what its job needs.
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    pub(super) hosted: Arc<HostedAgent>,
    /// The definition of the agent when the award came.
    pub(super) definition: Arc<Definition>,
    pub(super) runner: Result<Arc<dyn Agent>, String>,
    pub(super) assigned: Assigned,
    /// The time of the award's arrival.
    pub(super) at: Instant,
    /// Cancelled with the task.
    pub(super) stop: CancellationToken,
    pub(super) commands: mpsc::Sender<ActorCommand>,
}

/// How the work on a job ended.
enum End {
    Done(Result<Finished, Failure>),
    Fenced,
    Canceled,
    TimedOut,
    Released,
}

/// Refuses an award in the background. A refusal that fails delays the task by the confirm time.
pub(super) fn refuse(shared: Arc<Shared>, assigned: Assigned, reason: &'static str) {
    let scope = shared.jobs.clone();
    scope.spawn("refusal", OnExit::Log, |_| async move {
        if let Err(error) = shared.tasks.refuse(assigned.key, &assigned.agent_id, reason).await {
            debug!(task = %assigned.key.task_id, %error, "refusal failed");
        }
        Ok(())
    });
}

impl Work {
    pub(super) async fn run(self) {
        self.shared.metrics.jobs.inc();
        let outcome = self.outcome().await;
        self.shared.metrics.jobs.dec();
        let kind = self.definition.run.kind.as_str();
        self.shared.metrics.jobs_ended.get_or_create(&Ended { kind, outcome }).inc();
        debug!(outcome = outcome.as_str(), "job ended");
        self.send(ActorCommand::Ended(self.assigned.key)).await;
    }

    async fn outcome(&self) -> JobOutcome {
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        if let Some(limit) = self.definition.limits.microdollars_per_hour
            && self.hosted.spend.lock().last_hour(Instant::now()) >= limit
        {
            warn!(limit, "award refused: limits.microdollars_per_hour is used up");
            let _ = self.shared.tasks.refuse(key, agent, "the agent's budget for this hour is used up").await;
            return JobOutcome::Refused;
        }
        fault::point(fault::Point::AgentAssigned);
        let Some(start) = self.accept().await else { return JobOutcome::Lost };
        fault::point(fault::Point::AgentStarted);
        self.shared.metrics.start_seconds.observe(self.at.elapsed().as_secs_f64());
        self.send(ActorCommand::Started(key)).await;
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
                warn!(%error, "failed to accept award");
                None
            }
        }
    }

    async fn job(&self, start: Start) -> JobOutcome {
        let runner = match &self.runner {
            Ok(runner) => runner,
            Err(reason) => return self.failed(permanent(reason.clone())).await,
        };
        let budgeted = start.budgeted;
        let limit = start.attempt_timeout.min(self.definition.limits.timeout);
        // A failure counts only if it is reported before the deadline of the task.
        let left = start.deadline.map(|deadline| deadline - self.shared.clock.now());
        let limit =
            left.map_or(limit, |left| limit.min((left - DEADLINE_MARGIN).to_std().unwrap_or_default()));
        let credentials =
            self.shared.credentials.issue(&self.assigned.agent_id, &start.org, limit + CREDENTIALS_MARGIN);
        let lease = start.lease;
        let job_stop = CancellationToken::new();
        let messages = self.hosted.mail.lock().take();
        let job = Job::new(start, self.assigned.agent_id.clone(), limit, job_stop.clone());
        let per_hour = self.definition.limits.microdollars_per_hour;
        let (tasks, key, agent) = (&self.shared.tasks, self.assigned.key, &self.assigned.agent_id);
        let budget = (budgeted || per_hour.is_some())
            .then(|| BudgetHandle::new(tasks.clone(), key, agent.clone(), per_hour));
        // A model reserves for each question; the other kinds reserve the cost of their definition once.
        if let Some(budget) = budget.as_ref().filter(|_| self.definition.run.kind != Kind::Llm) {
            let most =
                Usage { tokens: 0, microdollars: self.definition.offer.cost_microdollars, presumed: false };
            if budget.reserve(most).await.is_err()
                && let Some(short) = budget.short()
            {
                return self.unpaid(&short, None, Usage::default()).await;
            }
        }
        let job = job
            .with_messages(messages)
            .with_budget(budget.clone())
            .in_daemon(self.shared.tasks.clone(), credentials);
        let (reporter, deadline) = (job.reporter(), job.deadline);
        let run = AssertUnwindSafe(runner.run(job)).catch_unwind();
        tokio::pin!(run);
        let end = tokio::select! {
            done = &mut run => End::Done(done.unwrap_or_else(|_| Err(retryable("the agent's code panicked")))),
            () = self.renew_lease_until_lost(lease, &reporter) => End::Fenced,
            () = self.stop.cancelled() => End::Canceled,
            () = sleep_until(deadline) => End::TimedOut,
            () = self.shared.release_jobs.cancelled() => End::Released,
        };
        let mut late = None;
        if matches!(end, End::Fenced) {
            self.send(ActorCommand::Fenced(self.assigned.key)).await;
        }
        if !matches!(end, End::Done(_)) {
            job_stop.cancel();
            late = timeout(STOP_GRACE, &mut run).await.ok().and_then(Result::ok);
        }
        fault::point(fault::Point::AgentWorked);
        if let (End::Done(Err(failure)), Some(short)) = (&end, budget.and_then(|budget| budget.short())) {
            // What earlier steps of the job used is charged; the step that did not fit was not begun.
            return self.unpaid(&short, reporter.last_checkpoint(), failure.usage).await;
        }
        self.end(end, late, limit, deadline, &reporter).await
    }

    /// Lets the task wait for budget, or releases it to an agent that has money left.
    async fn unpaid(
        &self,
        short: &InsufficientBudget,
        checkpoint: Option<Value>,
        usage: Usage,
    ) -> JobOutcome {
        self.spent(usage);
        let (tasks, key, agent) = (&self.shared.tasks, self.assigned.key, &self.assigned.agent_id);
        let until = Instant::now() + DELIVER_WITHIN;
        let delivered = match short {
            InsufficientBudget::Task(..) => {
                let question = Question { usage, ..budget_question(short, checkpoint.clone()) };
                again(until, || tasks.ask(key, agent, question.clone())).await
            }
            InsufficientBudget::Agent | InsufficientBudget::Day { .. } => {
                let reason = short.to_string();
                again(until, || tasks.postpone(key, agent, &reason, checkpoint.clone())).await
            }
        };
        match delivered {
            Ok(_) => JobOutcome::Unpaid,
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
    ) -> JobOutcome {
        let usage = late.map(|late| match late {
            Ok(Finished::Result { usage, .. }) => usage,
            Ok(Finished::Waits(question)) => question.usage,
            Ok(Finished::Deferred { usage, .. }) => usage,
            Ok(Finished::Delegated) => Usage::default(),
            Err(failure) => failure.usage,
        });
        let usage = usage.unwrap_or_default();
        match end {
            End::Done(Ok(Finished::Result { result, usage })) => self.finished(result, usage).await,
            End::Done(Ok(Finished::Waits(question))) => self.waits(question).await,
            End::Done(Ok(Finished::Delegated)) => self.delegated(limit, deadline).await,
            End::Done(Ok(Finished::Deferred { reason, after, usage })) => {
                self.deferred(&reason, after, usage).await
            }
            End::Done(Err(failure)) => self.failed(failure).await,
            End::Fenced => {
                self.spent(usage);
                JobOutcome::Fenced
            }
            End::Canceled => {
                self.failed(Failure { usage, ..permanent("canceled") }).await;
                JobOutcome::Canceled
            }
            End::TimedOut => self.timed_out(limit, usage).await,
            End::Released => {
                self.spent(usage);
                let checkpoint = reporter.last_checkpoint();
                let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
                let release = self.shared.tasks.postpone(key, agent, "the daemon is stopping", checkpoint);
                if let Err(error) = release.await {
                    warn!(%error, "failed to release job; its lease will expire");
                }
                JobOutcome::Released
            }
        }
    }

    /// Renews the lease and reports progress; returns when the assignment is lost.
    async fn renew_lease_until_lost(&self, lease: Duration, reporter: &Reporter) {
        let (tasks, key, agent) = (&self.shared.tasks, self.assigned.key, &self.assigned.agent_id);
        let period = (lease / 3).max(Duration::from_millis(20));
        let pause = self.definition.limits.progress_interval.min(period);
        let mut beat = interval_at(Instant::now() + period, period);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reported = tokio::select! {
                _ = beat.tick() => tasks.heartbeat(key, agent).await,
                progress = reporter.next() => {
                    let reported = tasks.progress(key, agent, progress.clone()).await;
                    self.send(ActorCommand::Progressed(key, progress)).await;
                    beat.reset();
                    sleep(pause).await;
                    reported
                }
            };
            match reported {
                Ok(()) => {}
                Err(Error::Fenced | Error::Conflict { .. } | Error::UnknownTask(_)) => return,
                Err(error) => debug!(%error, "report failed"),
            }
        }
    }

    async fn finished(&self, result: Value, usage: Usage) -> JobOutcome {
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        let bytes_max = self.definition.limits.output_bytes;
        // The store checks its own limit: serialize only to check a smaller one.
        if bytes_max < crate::task::INPUT_BYTES_MAX && result.to_string().len() > bytes_max {
            let message = format!("the result is over limits.output_bytes, {bytes_max} bytes");
            return self.failed(Failure { usage, ..permanent(message) }).await;
        }
        self.spent(usage);
        let tasks = &self.shared.tasks;
        let until = Instant::now() + DELIVER_WITHIN;
        let delivered = tokio::select! {
            delivered = again(until, || tasks.finish(key, agent, result.clone(), usage)) => delivered,
            () = self.heartbeat_while_delivering() => return JobOutcome::Lost,
        };
        match delivered {
            Ok(_) => JobOutcome::Finished,
            Err(error @ (Error::BadRequest(_) | Error::TooLarge { .. })) => {
                self.report(Failure { usage, ..retryable(error.to_string()) }).await
            }
            // The work has been paid for, and the same result would be refused again.
            Err(error @ Error::Unstorable(_)) => {
                self.report(Failure { usage, ..permanent(error.to_string()) }).await
            }
            Err(Error::ResultRefused(_)) => JobOutcome::RefusedByDatabase,
            Err(error) => undelivered(&error),
        }
    }

    /// Gives the task back for a time; then this agent goes on with it.
    async fn deferred(&self, reason: &str, after: Duration, usage: Usage) -> JobOutcome {
        self.spent(usage);
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        let until = Instant::now() + DELIVER_WITHIN;
        match again(until, || self.shared.tasks.defer(key, agent, reason, after)).await {
            Ok(_) => JobOutcome::Released,
            Err(error) => undelivered(&error),
        }
    }

    /// Delivers a question; its answer makes a new award.
    async fn waits(&self, question: Question) -> JobOutcome {
        self.spent(question.usage);
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        let until = Instant::now() + DELIVER_WITHIN;
        match again(until, || self.shared.tasks.ask(key, agent, question.clone())).await {
            Ok(_) => JobOutcome::Waiting,
            Err(error @ (Error::BadRequest(_) | Error::TooLarge { .. } | Error::Unstorable(_))) => {
                self.report(permanent(error.to_string())).await
            }
            Err(error) => undelivered(&error),
        }
    }

    /// Sends heartbeats while an outcome is delivered. Never returns.
    async fn heartbeat_while_delivering(&self) {
        let mut beat = interval_at(Instant::now() + BEAT_EVERY, BEAT_EVERY);
        loop {
            beat.tick().await;
            let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
            let _ = self.shared.tasks.heartbeat(key, agent).await;
        }
    }

    async fn failed(&self, failure: Failure) -> JobOutcome {
        self.spent(failure.usage);
        self.report(failure).await
    }

    async fn timed_out(&self, limit: Duration, usage: Usage) -> JobOutcome {
        let message = format!("no result within {}", humantime::format_duration(limit));
        self.failed(Failure { usage, ..retryable(message) }).await;
        JobOutcome::Timeout
    }

    async fn report(&self, failure: Failure) -> JobOutcome {
        let failure = Failure { message: one_line(&failure.message), ..failure };
        let (key, agent) = (self.assigned.key, &self.assigned.agent_id);
        self.shared.metrics.jobs_failed.inc();
        if let Some(held_back) = self.shared.failed_lines.pass() {
            let (task, reason, retryable) = (key.task_id, &failure.message, failure.retryable);
            warn!(%task, %agent, reason, retryable, outage = failure.outage, held_back, "job failed");
        }
        let until = Instant::now() + DELIVER_WITHIN;
        match again(until, || self.shared.tasks.fail(key, agent, failure.clone())).await {
            Ok(_) => JobOutcome::Failed,
            Err(error) => undelivered(&error),
        }
    }

    /// Waits until the delegated job has ended. Its holder renews the lease.
    async fn delegated(&self, limit: Duration, deadline: Instant) -> JobOutcome {
        let key = self.assigned.key;
        self.send(ActorCommand::Delegated(key)).await;
        let mut changed = self.shared.tasks.changed();
        loop {
            match self.shared.tasks.get(key.task_id).await {
                Ok(task) if task.epoch != key.epoch => return JobOutcome::Fenced,
                Ok(task) => match task.state {
                    TaskState::Running | TaskState::Canceling => {}
                    TaskState::Waiting => return JobOutcome::Waiting,
                    TaskState::Verifying | TaskState::Completed => return JobOutcome::Finished,
                    TaskState::Blocked
                    | TaskState::Scheduled
                    | TaskState::Open
                    | TaskState::Awarded
                    | TaskState::Failed
                    | TaskState::Canceled => return JobOutcome::Failed,
                },
                Err(Error::UnknownTask(_)) => return JobOutcome::Fenced,
                Err(error) => debug!(%error, "failed to read task state"),
            }
            let poll = async {
                sleep(POLL_MIN).await;
                let _ = timeout(POLL_MAX, changed.changed()).await;
            };
            tokio::select! {
                () = poll => {}
                () = self.stop.cancelled() => {
                    self.report(permanent("canceled")).await;
                    return JobOutcome::Canceled;
                }
                () = sleep_until(deadline) => return self.timed_out(limit, Usage::default()).await,
                // The holder continues, and may report to the next daemon.
                () = self.shared.release_jobs.cancelled() => return JobOutcome::Released,
            }
        }
    }

    fn spent(&self, usage: Usage) {
        self.shared.metrics.tokens.inc_by(usage.tokens);
        self.shared.metrics.microdollars.inc_by(usage.microdollars);
        if self.definition.limits.microdollars_per_hour.is_some() {
            self.hosted.spend.lock().add(usage.microdollars, Instant::now());
        }
    }

    async fn send(&self, command: ActorCommand) {
        // The queue is closed only when the daemon stops.
        let _ = self.commands.send(command).await;
    }
}

fn undelivered(error: &Error) -> JobOutcome {
    match error {
        Error::Fenced | Error::Conflict { .. } | Error::UnknownTask(_) => JobOutcome::Fenced,
        error => {
            warn!(%error, "outcome not delivered; the lease will expire");
            JobOutcome::Lost
        }
    }
}
