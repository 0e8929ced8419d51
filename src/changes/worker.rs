//! The one task that delivers what is committed to all who listen, and those that catch up with it.
use super::{
    Inner,
    follow::expired,
    log::{Entry, Found},
    member::Member,
    registry::Registry,
};
use crate::fault;
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What may be read for a channel before it listens, without a task of its own.
const READS_INLINE_MAX: usize = 2;

/// Delivers until it is stopped.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let mut at = inner.log.delivered();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = inner.wake.notified() => {}
            () = inner.log.grown(at) => {}
        }
        let worked = async {
            inner.let_in(at).await;
            at = inner.deliver(at).await;
            // Whoever came with a number that was not reached yet must not wait for yet another change.
            inner.let_in(at).await;
            inner.log.set_delivered(at);
            inner.courier.metrics.look(&inner.log);
        };
        // A change that waits for the database must not hold up the end.
        if stop.run_until_cancelled(worked).await.is_none() {
            return;
        }
    }
}

impl Inner {
    /// The channel shall listen, or do so otherwise.
    pub(super) fn admit(&self, member: Arc<Member>) {
        self.pending.lock().push(member);
        self.wake.notify_one();
    }

    async fn deliver(&self, at: u64) -> u64 {
        if self.registry.lock().is_empty() && self.pending.lock().is_empty() {
            return self.log.head();
        }
        match self.log.read(at, u64::MAX).await {
            Found::Missing(until) => {
                self.tell_gap(&self.registry, at, until);
                until
            }
            Found::Entries(entries) => {
                let number = self.pass_on(&self.registry, &entries, (at, 0, 0)).await;
                fault::point("changes.published");
                number
            }
        }
    }

    /// Delivers entries to a registry; gives the number of the last.
    async fn pass_on(
        &self,
        registry: &Mutex<Registry>,
        entries: &[Arc<Entry>],
        (at, missed_upto, told_upto): (u64, u64, u64),
    ) -> u64 {
        let mut number = at;
        // What was missed is marked, what is live is not, and a gap stands between.
        let same = |a: &Arc<Entry>, b: &Arc<Entry>| {
            let kind = |entry: &Entry| (entry.part.is_some(), entry.number <= missed_upto);
            kind(a) == kind(b)
        };
        for run in entries.chunk_by(same) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            if first.part.is_some() {
                self.courier.deliver(registry, run, first.number <= missed_upto).await;
            } else if last.number > told_upto {
                self.tell_gap(registry, number, last.number);
            }
            number = last.number;
        }
        number
    }

    fn tell_gap(&self, registry: &Mutex<Registry>, after: u64, until: u64) {
        for member in registry.lock().members() {
            self.courier.metrics.gaps.inc();
            member.system(&json!({
                "extension": "postgres_changes",
                "status": "error",
                "message": "Row changes may be missing: the database's log was interrupted",
                "channel": member.channel,
                "meta": { "gap": expired(after, until) },
            }));
        }
    }

    /// Those who wait to listen do, once they have what was before `at`.
    async fn let_in(self: &Arc<Self>, at: u64) {
        let pending = std::mem::take(&mut *self.pending.lock());
        for member in pending {
            if member.is_gone() {
                continue;
            }
            let (live, apart, number) = {
                let at = member.at.lock();
                (at.live, at.apart, at.number)
            };
            if apart {
                // Its task sees what it shall do otherwise.
            } else if live {
                self.move_over(&member);
            } else if number > at {
                // What is before it is not for it.
                self.pending.lock().push(member);
            } else if self.catch_up(&member, at, READS_INLINE_MAX).await {
                self.enter(&member, at);
            } else {
                self.catch_up_apart(member);
            }
        }
    }

    fn enter(&self, member: &Arc<Member>, number: u64) {
        let spec = {
            let mut at = member.at.lock();
            at.take_next();
            (at.number, at.live) = (number, true);
            at.spec.clone()
        };
        let broken = {
            let mut registry = self.registry.lock();
            if member.is_gone() {
                return;
            }
            registry.enter(spec, member.clone())
        };
        self.courier.tell_broken(broken);
    }

    /// A channel that listens has another spec.
    fn move_over(&self, member: &Arc<Member>) {
        let (old, new) = {
            let mut at = member.at.lock();
            let old = at.spec.clone();
            if !at.take_next() {
                return;
            }
            (old, at.spec.clone())
        };
        let broken = {
            let mut registry = self.registry.lock();
            registry.leave(&old, member);
            if member.is_gone() {
                return;
            }
            registry.enter(new, member.clone())
        };
        self.courier.tell_broken(broken);
    }

    /// Says to one channel what it has not got up to `upto`; false when that takes more than so many reads.
    async fn catch_up(&self, member: &Arc<Member>, upto: u64, reads_max: usize) -> bool {
        let mut own: Option<Mutex<Registry>> = None;
        for _ in 0..reads_max {
            let (number, missed_upto, told_upto, spec) = {
                let mut at = member.at.lock();
                if at.take_next() {
                    own = None;
                }
                (at.number, at.missed_upto, at.told_upto, at.spec.clone())
            };
            if number >= upto || member.is_gone() {
                return true;
            }
            let reached = match self.log.read(number, upto).await {
                Found::Missing(until) if until <= told_upto => until,
                Found::Missing(until) => {
                    self.tell_position(member, until, Some(expired(number, until)));
                    until
                }
                Found::Entries(entries) if entries.is_empty() => upto,
                Found::Entries(entries) => {
                    let registry = own.get_or_insert_with(|| {
                        let mut registry = Registry::default();
                        registry.enter(spec, member.clone());
                        Mutex::new(registry)
                    });
                    self.courier.metrics.replayed.inc_by(entries.len() as u64);
                    self.pass_on(registry, &entries, (number, missed_upto, told_upto)).await
                }
            };
            member.at.lock().number = reached;
        }
        member.at.lock().number >= upto
    }

    /// In a task of its own, at the pace of the socket.
    fn catch_up_apart(self: &Arc<Self>, member: Arc<Member>) {
        let inner = self.clone();
        member.at.lock().apart = true;
        self.scope.spawn("changes catch up", crate::scope::OnExit::Log, |stop| async move {
            let caught_up = async {
                loop {
                    if member.outbox.emptied().await.is_err() || member.is_gone() {
                        return;
                    }
                    if inner.catch_up(&member, inner.log.delivered(), 1).await {
                        member.at.lock().apart = false;
                        inner.admit(member.clone());
                        return;
                    }
                }
            };
            // The daemon stops: the position is kept, and what is missing comes the next time.
            let _stopped = stop.run_until_cancelled(caught_up).await;
            Ok(())
        });
    }
}
