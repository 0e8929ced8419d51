//! The scheduler: fires the schedules of all agents, on the leader.
//!
//! Sleeps until the next time of any schedule, but at most 10 seconds: the database's clock decides, and the clock of
//! this machine may drift. Begins anew when the definitions change. Missed times follow the policy of their schedule. A
//! firing that fails because the database is away is tried again; nothing is fired twice.
use crate::{
    agent::{Agents, CronSchedule},
    scope::{OnExit, Scope},
    task::{Error, Schedule, TaskTriggers},
    telemetry::Outage,
};
use chrono::{DateTime, Utc};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest sleep.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Fires the schedules of these agents until `scope` stops.
pub(super) fn start(scope: &Scope, tasks: TaskTriggers, agents: Agents) {
    scope.spawn("schedules", OnExit::StopDaemon, |stop| async move {
        let mut outage = Outage::of("firing of schedules");
        let mut changed = agents.changed();
        while !stop.is_cancelled() {
            // Seen before the schedules are read, so that a change after it ends the run.
            changed.mark_unchanged();
            let cron_schedules = agents.cron_schedules();
            let ran = run(&tasks, &cron_schedules, &mut changed, &stop, &mut outage).await;
            if let Err(error) = ran {
                outage.failed(&error);
                let _ = tokio::time::timeout(RETRY_PAUSE, stop.cancelled()).await;
            }
        }
        Ok(())
    });
}

/// A schedule, and the time up to which it has fired.
struct ScheduleCursor<'a> {
    cron: &'a CronSchedule,
    schedule: Schedule,
    fired: DateTime<Utc>,
}

/// Fires these schedules until the definitions change.
async fn run(
    tasks: &TaskTriggers,
    cron_schedules: &[CronSchedule],
    changed: &mut watch::Receiver<u64>,
    stop: &CancellationToken,
    outage: &mut Outage,
) -> Result<(), Error> {
    let mut cursors = Vec::new();
    for cron in cron_schedules {
        let schedule = Schedule {
            trigger: cron.trigger.clone(),
            agent: cron.agent.clone(),
            org: cron.org.clone(),
            times: cron.times(),
        };
        let fired = tasks.schedule(&schedule).await?;
        cursors.push(ScheduleCursor { cron, schedule, fired });
    }
    if cursors.is_empty() {
        // Nothing to fire, and so no reason to ask for the time.
        let _ = stop.run_until_cancelled(changed.changed()).await;
        return Ok(());
    }
    while !stop.is_cancelled() && !changed.has_changed().unwrap_or(true) {
        let now = tasks.now().await?;
        for cursor in &mut cursors {
            cursor.fire(tasks, now).await?;
        }
        outage.succeeded();
        let next = cursors.iter().filter_map(|cursor| cursor.cron.next(now)).min();
        let wait = next.and_then(|next| (next - now).to_std().ok()).unwrap_or(LOOK_EVERY);
        tokio::select! {
            () = stop.cancelled() => {}
            _ = changed.changed() => return Ok(()),
            () = tokio::time::sleep(wait.min(LOOK_EVERY)) => {}
        }
    }
    Ok(())
}

impl ScheduleCursor<'_> {
    async fn fire(&mut self, tasks: &TaskTriggers, now: DateTime<Utc>) -> Result<(), Error> {
        for at in self.cron.due(self.fired, now) {
            let trigger = &self.schedule.trigger;
            match self.cron.request(at) {
                Err(reason) => {
                    tracing::error!(trigger, reason, "schedule request invalid: template cannot be filled in")
                }
                Ok(request) => match tasks.fire(&self.schedule, at, request).await {
                    Ok(task) => tracing::debug!(trigger, ?task, %at, "schedule fired"),
                    Err(error @ (Error::Unavailable(_) | Error::Internal(_))) => return Err(error),
                    Err(error) => tracing::error!(trigger, %error, "schedule request refused"),
                },
            }
            self.fired = at;
        }
        self.fired = self.fired.max(now);
        Ok(())
    }
}
