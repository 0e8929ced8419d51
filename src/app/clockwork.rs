//! Fires the schedules of the agents' files, on the node that leads.
//!
//! Sleeps until the next time of any of them, and looks now and then besides, since the database's clock
//! decides and this machine's may run otherwise. What came while nobody looked is made up for as each
//! schedule says. A firing that fails because the database is away is tried again; nothing is fired twice.
use crate::{
    agent::Clockwork,
    scope::{OnExit, Scope},
    task::{Error, Schedule, Tasks},
};
use chrono::{DateTime, Utc};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Longest time without a look.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Pause after a look that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Fires these schedules until `scope` stops.
pub(super) fn start(scope: &Scope, tasks: Tasks, clockworks: Arc<Vec<Clockwork>>) {
    if clockworks.is_empty() {
        return;
    }
    scope.spawn("schedules", OnExit::StopDaemon, |stop| async move {
        while !stop.is_cancelled() {
            if let Err(error) = run(&tasks, &clockworks, &stop).await {
                tracing::warn!(%error, "the schedules cannot be looked at now");
                let _ = tokio::time::timeout(RETRY_PAUSE, stop.cancelled()).await;
            }
        }
        Ok(())
    });
}

/// A schedule, and up to where its times have been decided about.
struct Hand<'a> {
    clockwork: &'a Clockwork,
    schedule: Schedule,
    fired: DateTime<Utc>,
}

async fn run(tasks: &Tasks, clockworks: &[Clockwork], stop: &CancellationToken) -> Result<(), Error> {
    let mut hands = Vec::new();
    for clockwork in clockworks {
        let schedule = Schedule {
            trigger: clockwork.trigger.clone(),
            agent: clockwork.agent.clone(),
            org: clockwork.org.clone(),
            times: clockwork.times(),
        };
        let fired = tasks.schedule(&schedule).await?;
        hands.push(Hand { clockwork, schedule, fired });
    }
    while !stop.is_cancelled() {
        let now = tasks.now().await?;
        for hand in &mut hands {
            hand.fire(tasks, now).await?;
        }
        let next = hands.iter().filter_map(|hand| hand.clockwork.next(now)).min();
        let wait = next.and_then(|next| (next - now).to_std().ok()).unwrap_or(LOOK_EVERY);
        let _ = tokio::time::timeout(wait.min(LOOK_EVERY), stop.cancelled()).await;
    }
    Ok(())
}

impl Hand<'_> {
    async fn fire(&mut self, tasks: &Tasks, now: DateTime<Utc>) -> Result<(), Error> {
        for at in self.clockwork.due(self.fired, now) {
            let trigger = &self.schedule.trigger;
            match self.clockwork.request(at) {
                Err(reason) => tracing::error!(trigger, reason, "a schedule's request cannot be made"),
                Ok(request) => match tasks.fire(&self.schedule, at, request).await {
                    Ok(task) => tracing::debug!(trigger, ?task, %at, "fired"),
                    Err(error @ (Error::Unavailable(_) | Error::Internal(_))) => return Err(error),
                    Err(error) => tracing::error!(trigger, %error, "a schedule's request is refused"),
                },
            }
            self.fired = at;
        }
        self.fired = self.fired.max(now);
        Ok(())
    }
}
