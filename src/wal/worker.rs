//! Term after term, with a pause between them that fits what ended the last.
use super::{
    error::{Class, Error},
    leader::Office,
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
/// So many terms ended by changes that cannot be decoded make the slot useless.
const UNDECODABLE_MAX: u32 = 2;

/// Works until the scope stops.
pub(super) async fn run(mut office: Office) {
    let (mut failures, mut undecodable, mut last_said) = (0_u32, 0_u32, String::new());
    loop {
        let began = Instant::now();
        let error = match office.term().await {
            Ok(()) | Err(Error::Stopped) => return,
            Err(error) => error,
        };
        if began.elapsed() >= GOOD_TERM {
            (failures, undecodable) = (0, 0);
            last_said.clear();
        }
        let said = explain(&error);
        // One line for each new trouble: a server that is away for an hour says so once.
        if said != last_said {
            match error.class() {
                Class::Passing => warn!(error = said, "the stream of the log broke, it will be tried again"),
                Class::Setting => error!(error = said, "the log cannot be read until this is mended"),
            }
        }
        if error.sqlstate() == Some(&SqlState::UNDEFINED_OBJECT) {
            undecodable += 1;
            if undecodable >= UNDECODABLE_MAX {
                office.broken = Some(format!("changes before a publication existed cannot be read: {said}"));
                undecodable = 0;
            }
        }
        if office.stand_by(&said).await.is_err() {
            return;
        }
        let pause = pause(error.class(), failures);
        failures = failures.saturating_add(1);
        last_said = said;
        tokio::select! {
            biased;
            () = office.stop.cancelled() => return,
            () = sleep(pause) => {}
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
