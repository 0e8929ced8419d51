//! How long a delivery waits for filters that only Postgres can answer.
use std::time::Duration;

/// How long the second lane waits for the filters of what is read at once.
const SHORT: Duration = Duration::from_millis(300);
/// How long a lane of one channel waits for them. Changes without an answer by then are not delivered, and the channel gets an error.
const OWN: Duration = Duration::from_secs(10);

/// How long delivery waits for filters that only Postgres can evaluate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FilterWait {
    /// Channels that need such filters are moved to the next lane.
    #[default]
    Never,
    /// A moment, together with others.
    Short,
    /// As long as it takes within reason, alone; the connection whose turn it takes.
    Own(u64),
}

impl FilterWait {
    /// Nothing: it does not wait.
    pub(super) fn within(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Short => Some(SHORT),
            Self::Own(_) => Some(OWN),
        }
    }
}
