//! Runs one term of leadership after another, with a backoff that depends on what ended the last.
use super::{
    error::{Class, Error},
    leader::{Idle, LeaderSession},
};
use std::{error::Error as _, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tracing::{error, warn};

/// The first and the longest backoff for errors that pass by themselves.
const PASSING: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same for errors that last until an operator changes a setting.
const SETTING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// A term of this length makes the next pause short again.
const GOOD_TERM: Duration = Duration::from_secs(30);
/// So many terms in a row that ended without progress, because the server cannot decode what comes next, make
/// the slot useless. A missing publication is certain after few, an internal error only after half a minute.
const UNPUBLISHED_MAX: u32 = 2;
const UNDECODABLE_MAX: u32 = 10;

/// Works until the scope stops.
pub(super) async fn run(mut session: LeaderSession) {
    let mut troubles = Troubles::default();
    loop {
        let (began, delivered) = (Instant::now(), session.delivered());
        let error = match session.term().await {
            Ok(()) | Err(Error::Stopped) => return,
            Err(Error::Renew) => continue,
            Err(error) => error,
        };
        if session.goes_on_without(&error) {
            continue;
        }
        if began.elapsed() >= GOOD_TERM {
            troubles = Troubles::default();
            session.in_blocks = true;
        }
        if session.delivered() > delivered {
            troubles.undecodable = 0;
        }
        let text = explain(&error);
        troubles.log(&error, &text);
        troubles.find_remedy(&error, &text, &mut session);
        if session.idle(Idle::Broken, &text).await.is_err() {
            return;
        }
        let pause = pause(error.class(), troubles.failures);
        troubles.failures = troubles.failures.saturating_add(1);
        troubles.last_error = text;
        tokio::select! {
            biased;
            () = session.stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

impl LeaderSession {
    /// Whether the stream can go on at once without what it failed on: a publication that does not exist at the
    /// position that is read, publications that do not agree on the columns of a table, or the conversion of text.
    /// Nothing else that is read is given up for these.
    fn goes_on_without(&mut self, error: &Error) -> bool {
        let Error::Server { code, message } = error else { return false };
        if *code == SqlState::UNDEFINED_OBJECT {
            let read = self.publications.iter().filter(|name| !self.left_out.contains(*name));
            let read: Vec<&String> = read.collect();
            // The longest name in the text: one may be a part of another.
            let named = read.iter().filter(|name| message.contains(name.as_str()));
            let Some(name) = named.max_by_key(|name| name.len()).filter(|_| read.len() > 1) else {
                return false;
            };
            warn!(publication = name.as_str(), "publication does not exist: the WAL is read without it");
            self.left_out.insert((*name).clone());
            return true;
        }
        if *code == SqlState::FEATURE_NOT_SUPPORTED {
            // The first is ours: without it no agent wakes. It leaves out such tables as soon as it sees them.
            let last = self.publications.iter().skip(1).rfind(|name| !self.left_out.contains(*name));
            let Some(name) = last else { return false };
            warn!(
                publication = name.as_str(),
                error = message,
                "publication is not read until it agrees with the others"
            );
            self.left_out.insert(name.clone());
            return true;
        }
        let unconvertible = error.leaves_the_session();
        let newly = unconvertible && !self.raw;
        self.raw |= unconvertible;
        newly
    }
}

/// What went wrong since the last good term.
#[derive(Default)]
struct Troubles {
    failures: u32,
    undecodable: u32,
    last_error: String,
}

impl Troubles {
    /// Logs one line for each new error: a server that is away for an hour is one line.
    fn log(&self, error: &Error, text: &str) {
        if text == self.last_error {
            return;
        }
        match error.class() {
            Class::Passing => warn!(error = text, "replication stream failed, will retry"),
            Class::Setting => error!(error = text, "replication blocked by server configuration"),
        }
    }

    /// Looks for another way where a retry would fail the same: what the server cannot decode now it cannot decode later.
    fn find_remedy(&mut self, error: &Error, text: &str, session: &mut LeaderSession) {
        let (limit, why) = match error.sqlstate() {
            Some(code) if *code == SqlState::UNDEFINED_OBJECT => {
                (UNPUBLISHED_MAX, "changes from before a publication existed cannot be read")
            }
            // PostgreSQL fails so where a running transaction took back a change of a table. Decoded at its
            // commit, when it is known what was taken back, the same transaction is read without fault.
            Some(code) if *code == SqlState::INTERNAL_ERROR && session.in_blocks => {
                warn!(
                    "transactions are read whole at their commit for now, because the server failed to stream them"
                );
                session.in_blocks = false;
                return;
            }
            Some(code) if *code == SqlState::INTERNAL_ERROR => (UNDECODABLE_MAX, "the WAL cannot be decoded"),
            _ => return,
        };
        self.undecodable += 1;
        if self.undecodable >= limit {
            session.broken = Some(format!("{why}: {text}"));
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
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
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
