//! The delivery task of each lane, and the tasks of channels that catch up with their lane.
use super::{
    Inner,
    delivery_lane::Lane,
    filter_wait::FilterWait,
    log::{Entry, ReadOutcome},
    registry::{Moved, Registry},
    subscriber::ChangeSubscriber,
    subscription::expired,
};
use crate::{fault, scope::WorkerProgress};
use parking_lot::Mutex;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Most reads with which the lane's task lets a channel catch up. A channel that needs more gets a task of its own.
const READS_INLINE_MAX: usize = 2;

/// A delivery that takes longer counts as stalled on `/health`. Slow policies cannot cause it: each has a timeout, and
/// then a backoff.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(30);

/// Delivers to the channels of a lane until `stop`.
pub(super) async fn run(inner: Arc<Inner>, nth: usize, progress: WorkerProgress, stop: CancellationToken) {
    let Some(lane) = inner.lanes.get(nth) else { return };
    let mut at = lane.at();
    loop {
        progress.idle();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = lane.wake.notified() => {}
            () = inner.log.grown(at) => {}
        }
        progress.step();
        let worked = async {
            inner.let_in(lane, at).await;
            progress.step();
            at = inner.deliver(lane, at).await;
            progress.step();
            // A channel whose number has just been reached must not wait for the next change.
            inner.let_in(lane, at).await;
            lane.set_at(at);
            if nth == 0 {
                inner.log.set_delivered(at);
                inner.dispatcher.metrics.look(&inner.log);
            }
        };
        // A delivery that waits for the database must not delay the stop.
        if stop.run_until_cancelled(worked).await.is_none() {
            return;
        }
    }
}

/// The outcome of catching up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caught {
    Up,
    NotYet,
    /// It has moved to the next lane.
    Moved,
}

impl Inner {
    /// Registers a channel, or registers it again with its next spec.
    pub(super) fn admit(self: &Arc<Self>, member: Arc<ChangeSubscriber>) {
        let (lane, apart) = {
            let at = member.at.lock();
            (at.lane, at.apart)
        };
        match self.lanes.get(lane) {
            // Its own task applies the next spec.
            _ if apart => {}
            Some(lane) => {
                lane.pending.lock().push(member);
                lane.wake.notify_one();
            }
            None => self.catch_up_apart(member),
        }
    }

    async fn deliver(self: &Arc<Self>, lane: &Lane, at: u64) -> u64 {
        if lane.registry.lock().is_empty() && lane.pending.lock().is_empty() {
            return self.log.head();
        }
        match self.log.read(at, u64::MAX).await {
            ReadOutcome::Missing(until) => {
                self.report_gap(&lane.registry, at, until);
                until
            }
            ReadOutcome::Entries(entries) => {
                let number = self.pass_on(&lane.registry, &entries, (at, 0, 0)).await;
                fault::point(fault::Point::ChangesPublished);
                number
            }
        }
    }

    /// Delivers entries to a registry. Returns the number of the last.
    async fn pass_on(
        self: &Arc<Self>,
        registry: &Mutex<Registry>,
        entries: &[Arc<Entry>],
        (at, missed_upto, told_upto): (u64, u64, u64),
    ) -> u64 {
        let mut number = at;
        // Runs of equal kind: gaps, missed changes, which are marked as replayed, and live changes.
        let same = |a: &Arc<Entry>, b: &Arc<Entry>| {
            let kind = |entry: &Entry| (entry.part.is_some(), entry.number <= missed_upto);
            kind(a) == kind(b)
        };
        for run in entries.chunk_by(same) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            if first.part.is_some() {
                let moved = self.dispatcher.deliver(registry, run, first.number <= missed_upto).await;
                for Moved { members, from } in moved {
                    for member in members {
                        if !member.moves_on(from) {
                            self.admit(member);
                        }
                    }
                }
            } else if last.number > told_upto {
                self.report_gap(registry, number, last.number);
            }
            number = last.number;
        }
        number
    }

    fn report_gap(&self, registry: &Mutex<Registry>, after: u64, until: u64) {
        for member in registry.lock().members() {
            self.dispatcher.metrics.gaps.inc();
            member.system(&json!({
                "extension": "postgres_changes",
                "status": "error",
                "message": "Row changes may be missing: the database's log was interrupted",
                "channel": member.channel,
                "meta": { "gap": expired(after, until) },
            }));
        }
    }

    /// Registers the pending channels that have received everything before `at`.
    async fn let_in(self: &Arc<Self>, lane: &Lane, at: u64) {
        let pending = std::mem::take(&mut *lane.pending.lock());
        for member in pending {
            if member.is_gone() {
                continue;
            }
            let (nth, live, apart, number, from) = {
                let at = member.at.lock();
                (at.lane, at.live, at.apart, at.number, at.from.0)
            };
            if apart {
                // Its own task applies the next spec.
            } else if !self.lanes.get(nth).is_some_and(|own| std::ptr::eq(own, lane)) {
                // It moved to another lane while it was pending.
                self.admit(member);
            } else if live {
                self.move_over(lane, &member);
            } else if number.max(from) > at {
                // It starts at a later number, and maybe in the middle of that part.
                lane.pending.lock().push(member);
            } else {
                match self.catch_up(&member, &mut None, (at, READS_INLINE_MAX)).await {
                    Caught::Up => self.enter(lane, &member, at),
                    Caught::NotYet => self.catch_up_apart(member),
                    // It is already pending in the next lane.
                    Caught::Moved => {}
                }
            }
        }
    }

    fn enter(&self, lane: &Lane, member: &Arc<ChangeSubscriber>, number: u64) {
        let spec = {
            let mut at = member.at.lock();
            at.take_next();
            (at.number, at.live) = (number, true);
            at.spec.clone()
        };
        let broken = {
            let mut registry = lane.registry.lock();
            if member.is_gone() {
                return;
            }
            registry.enter(spec, member.clone())
        };
        self.dispatcher.report_broken(broken);
    }

    /// Registers a live channel with its next spec.
    fn move_over(&self, lane: &Lane, member: &Arc<ChangeSubscriber>) {
        let (old, new) = {
            let mut at = member.at.lock();
            let old = at.spec.clone();
            if !at.take_next() {
                return;
            }
            (old, at.spec.clone())
        };
        let broken = {
            let mut registry = lane.registry.lock();
            registry.leave(&old, member);
            if member.is_gone() {
                return;
            }
            registry.enter(new, member.clone())
        };
        self.dispatcher.report_broken(broken);
    }

    /// Delivers to one channel what it lacks up to `upto`, with at most `reads_max` reads. `own` keeps the channel's
    /// registry between calls.
    async fn catch_up(
        self: &Arc<Self>,
        member: &Arc<ChangeSubscriber>,
        own: &mut Option<Mutex<Registry>>,
        (upto, reads_max): (u64, usize),
    ) -> Caught {
        for _ in 0..reads_max {
            let (number, missed_upto, told_upto, lane) = {
                let mut at = member.at.lock();
                if at.take_next() {
                    *own = None;
                }
                (at.number, at.missed_upto, at.told_upto, at.lane)
            };
            if number >= upto || member.is_gone() {
                return Caught::Up;
            }
            let reached = match self.log.read(number, upto).await {
                ReadOutcome::Missing(until) if until <= told_upto => until,
                ReadOutcome::Missing(until) => {
                    self.send_position(member, until, Some(expired(number, until)));
                    until
                }
                ReadOutcome::Entries(entries) if entries.is_empty() => upto,
                ReadOutcome::Entries(entries) => {
                    let registry = own.get_or_insert_with(|| Mutex::new(alone(member)));
                    self.dispatcher.metrics.replayed.inc_by(entries.len() as u64);
                    self.pass_on(registry, &entries, (number, missed_upto, told_upto)).await
                }
            };
            let mut at = member.at.lock();
            if at.lane != lane {
                return Caught::Moved;
            }
            at.number = reached;
        }
        if member.at.lock().number >= upto { Caught::Up } else { Caught::NotYet }
    }

    /// Lets a channel catch up in a task of its own, at the rate of its socket. Past the shared lanes the task stays.
    fn catch_up_apart(self: &Arc<Self>, member: Arc<ChangeSubscriber>) {
        let inner = self.clone();
        member.at.lock().apart = true;
        self.scope.spawn("changes catch up", crate::scope::OnExit::Log, |stop| async move {
            let caught_up = async {
                let mut own = None;
                loop {
                    let (lane, number) = {
                        let at = member.at.lock();
                        (at.lane, at.number)
                    };
                    let shared = inner.lanes.get(lane);
                    if shared.is_none() {
                        inner.log.grown(number).await;
                    }
                    if member.outbox.emptied().await.is_err() || member.is_gone() {
                        return;
                    }
                    let upto = shared.map_or_else(|| inner.log.head(), Lane::at);
                    match inner.catch_up(&member, &mut own, (upto, 1)).await {
                        Caught::Moved => own = None,
                        Caught::Up if shared.is_some() => {
                            member.at.lock().apart = false;
                            inner.admit(member.clone());
                            return;
                        }
                        Caught::Up | Caught::NotYet => {}
                    }
                }
            };
            tokio::select! {
                biased;
                // The daemon stops. The resume position stays, and the rest follows after the reconnect.
                () = stop.cancelled() => {}
                // A closed socket must cause no further queries.
                () = member.left() => {}
                () = caught_up => {}
            }
            Ok(())
        });
    }
}

/// A registry with one channel.
fn alone(member: &Arc<ChangeSubscriber>) -> Registry {
    let (spec, from, lane) = {
        let at = member.at.lock();
        (at.spec.clone(), at.from, at.lane)
    };
    let mut registry = Registry::with(FilterWait::of(lane, member), from);
    registry.enter(spec, member.clone());
    registry
}
