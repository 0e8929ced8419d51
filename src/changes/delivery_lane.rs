//! Which channels are delivered to together.
//!
//! Everybody begins in the first lane, which never waits for a filter. A channel whose filter only Postgres can answer
//! goes on in the second one, where such questions are asked together and may take a moment; one whose filter takes
//! longer than that goes on in a task of its own, where it waits for itself alone. It is never moved back: nothing is
//! said twice, nothing is missed, and the order of a channel stays that of the change log.
use super::{filter_wait::FilterWait, registry::Registry, subscriber::ChangeSubscriber};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// Lanes that many share.
pub(super) const SHARED: usize = 2;

/// The names of the delivering tasks in `/health`.
pub(super) const NAMES: [&str; SHARED] = ["change_delivery", "filtered_change_delivery"];

impl FilterWait {
    /// Of the channels in a lane.
    pub(super) fn of(lane: usize, member: &ChangeSubscriber) -> Self {
        match lane {
            0 => Self::Never,
            1 => Self::Short,
            _ => Self::Own(Arc::as_ptr(&member.outbox).addr() as u64),
        }
    }
}

/// Channels that one task delivers to.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) registry: Mutex<Registry>,
    /// Channels that shall listen, or listen otherwise.
    pub(super) pending: Mutex<Vec<Arc<ChangeSubscriber>>>,
    pub(super) wake: Notify,
    at: AtomicU64,
}

impl Lane {
    pub(super) fn new(patience: FilterWait, at: u64) -> Self {
        let registry = Mutex::new(Registry::with(patience, (0, 0)));
        Self { registry, at: AtomicU64::new(at), ..Self::default() }
    }

    /// Up to which number everything was put out.
    pub(super) fn at(&self) -> u64 {
        self.at.load(Ordering::Acquire)
    }

    pub(super) fn set_at(&self, number: u64) {
        self.at.store(number, Ordering::Release);
    }
}
