//! Wall-clock time as an argument. Durations are measured with `tokio::time::Instant`, which tests can pause.
use chrono::{DateTime, TimeDelta, Utc};
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

/// The source of wall-clock time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// Milliseconds since the Unix epoch, set by tests.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stays at `at` until it is advanced.
    #[must_use]
    pub fn manual(at: DateTime<Utc>) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(at.timestamp_millis())))
    }

    /// The current time.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        match self {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
            Self::System => Utc::now(),
            Self::Manual(ms) => {
                DateTime::from_timestamp_millis(ms.load(Ordering::Relaxed)).unwrap_or_default()
            }
        }
    }

    /// Microseconds since the Unix epoch; 0 before it.
    #[must_use]
    pub fn micros(&self) -> u64 {
        u64::try_from(self.now().timestamp_micros()).unwrap_or_default()
    }

    /// Advances a manual clock; does nothing for the system's clock.
    pub fn advance(&self, by: TimeDelta) {
        if let Self::Manual(ms) = self {
            ms.fetch_add(by.num_milliseconds(), Ordering::Relaxed);
        }
    }
}
