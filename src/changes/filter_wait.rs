//! The timeouts of filters that only Postgres can evaluate.
use std::time::Duration;

/// Timeout of the second lane, for the filters of all changes of one read.
const SHORT: Duration = Duration::from_millis(300);
/// Timeout of a channel with a task of its own, without the time that it waits for its turn. A change whose filter has no
/// answer by then is not delivered, and the channel gets an error.
const OWN: Duration = Duration::from_secs(10);
/// Most rows whose answers a channel with a task of its own keeps in memory at once.
const OWN_ROWS_MAX: usize = 64;

/// How long delivery waits for filters that only Postgres can evaluate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FilterWait {
    /// Channels that need such filters are moved to the next lane.
    #[default]
    Never,
    /// A short timeout, shared by the channels of the lane.
    Short,
    /// A long timeout for one channel; the number identifies its connection in the fair queue.
    Own(u64),
}

impl FilterWait {
    /// Most rows that are evaluated together, within one timeout.
    pub(super) fn rows_max(self) -> usize {
        match self {
            Self::Never | Self::Short => usize::MAX,
            Self::Own(_) => OWN_ROWS_MAX,
        }
    }

    /// The timeout; `None` if delivery does not wait.
    pub(super) fn within(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Short => Some(SHORT),
            Self::Own(_) => Some(OWN),
        }
    }
}
