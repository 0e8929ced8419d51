//! Term after term, with a pause between them that fits what ended the last.
use super::{
    error::{Class, Error},
    leader::{Idle, Office},
};
use std::{error::Error as _, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tracing::{error, warn};

/// The first and the longest pause when it will pass by itself.
const PASSING: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same when somebody must change a setting.
const SETTING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// A term of this length makes the next pause short again.
const GOOD_TERM: Duration = Duration::from_secs(30);
/// So many terms in a row that ended without progress, because the server cannot decode what comes next, make
/// the slot useless. A missing publication is certain after few, an internal error only after half a minute.
const UNPUBLISHED_MAX: u32 = 2;
const UNDECODABLE_MAX: u32 = 10;

/// Works until the scope stops.
pub(super) async fn run(mut office: Office) {
    let mut troubles = Troubles::default();
    loop {
        let (began, delivered) = (Instant::now(), office.delivered());
        let error = match office.term().await {
            Ok(()) | Err(Error::Stopped) => return,
            Err(error) => error,
        };
        if began.elapsed() >= GOOD_TERM {
            troubles = Troubles::default();
            office.in_blocks = true;
        }
        if office.delivered() > delivered {
            troubles.undecodable = 0;
        }
        let said = explain(&error);
        troubles.log(&error, &said);
        troubles.look_for_a_way(&error, &said, &mut office);
        if office.idle(Idle::Broken, &said).await.is_err() {
            return;
        }
        let pause = pause(error.class(), troubles.failures);
        troubles.failures = troubles.failures.saturating_add(1);
        troubles.said = said;
        tokio::select! {
            biased;
            () = office.stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// What went wrong since the last good term.
#[derive(Default)]
struct Troubles {
    failures: u32,
    undecodable: u32,
    said: String,
}

impl Troubles {
    /// One line for each new trouble: a server that is away for an hour says so once.
    fn log(&self, error: &Error, said: &str) {
        if said == self.said {
            return;
        }
        match error.class() {
            Class::Passing => warn!(error = said, "the stream of the log broke, it will be tried again"),
            Class::Setting => error!(error = said, "the log cannot be read until this is mended"),
        }
    }

    /// What the server cannot decode it will not be able to decode the next time.
    fn look_for_a_way(&mut self, error: &Error, said: &str, office: &mut Office) {
        let (limit, why) = match error.sqlstate() {
            Some(code) if *code == SqlState::UNDEFINED_OBJECT => {
                (UNPUBLISHED_MAX, "changes from before a publication existed cannot be read")
            }
            // PostgreSQL fails so where a running transaction took back a change of a table. Decoded at its
            // commit, when it is known what was taken back, the same transaction is read without fault.
            Some(code) if *code == SqlState::INTERNAL_ERROR && office.in_blocks => {
                warn!(
                    "transactions are read whole at their commit for now, because the server failed to stream them"
                );
                office.in_blocks = false;
                return;
            }
            Some(code) if *code == SqlState::INTERNAL_ERROR => (UNDECODABLE_MAX, "the log cannot be decoded"),
            _ => return,
        };
        self.undecodable += 1;
        if self.undecodable >= limit {
            office.broken = Some(format!("{why}: {said}"));
            self.undecodable = 0;
        }
    }
}

fn pause(class: Class, failures: u32) -> Duration {
    let (first, longest) = match class {
        Class::Passing => PASSING,
        Class::Setting => SETTING,
    };
    let full = first.saturating_mul(1 << failures.min(16)).min(longest);
    full.mul_f64(rand::random_range(0.75..1.0))
}

/// The error and what caused it, in one line.
fn explain(error: &Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        said = format!("{said}: {cause}");
        source = cause.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        assert!(pause(Class::Passing, 0) <= Duration::from_millis(100));
        assert!(pause(Class::Passing, 40) <= Duration::from_secs(5));
        assert!(pause(Class::Passing, 40) >= Duration::from_secs(3));
        assert!(pause(Class::Setting, 0) >= Duration::from_secs(1));
    }
}
