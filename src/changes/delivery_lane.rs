//! Delivery lanes: the channels that one task delivers to.
//!
//! Every channel starts in the first lane, which never waits for a filter. A channel with a filter that only Postgres
//! can evaluate moves to the second lane, which evaluates such filters together with a short timeout. A channel whose
//! filter exceeds that timeout moves to a task of its own and delays no other channel. A channel never moves back. A
//! move loses and repeats no change: delivery continues at the change that caused it, in the order of the change log.
use super::{filter_wait::FilterWait, registry::Registry, subscriber::ChangeSubscriber};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// Number of lanes that channels share.
pub(super) const SHARED: usize = 2;

/// The names of the delivery tasks in `/health`.
pub(super) const NAMES: [&str; SHARED] = ["change_delivery", "filtered_change_delivery"];

impl FilterWait {
    /// The wait for filters in a lane; past the shared lanes, that of `member` alone.
    pub(super) fn of(lane: usize, member: &ChangeSubscriber) -> Self {
        match lane {
            0 => Self::Never,
            1 => Self::Short,
            _ => Self::Own(Arc::as_ptr(&member.outbox).addr() as u64),
        }
    }
}

/// The channels of one delivery task.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) registry: Mutex<Registry>,
    /// Channels to be registered, or registered again with another spec.
    pub(super) pending: Mutex<Vec<Arc<ChangeSubscriber>>>,
    pub(super) wake: Notify,
    at: AtomicU64,
}

impl Lane {
    pub(super) fn new(patience: FilterWait, at: u64) -> Self {
        let registry = Mutex::new(Registry::with(patience, (0, 0)));
        Self { registry, at: AtomicU64::new(at), ..Self::default() }
    }

    /// The last number that was delivered to every channel of the lane.
    pub(super) fn at(&self) -> u64 {
        self.at.load(Ordering::Acquire)
    }

    pub(super) fn set_at(&self, number: u64) {
        self.at.store(number, Ordering::Release);
    }
}
