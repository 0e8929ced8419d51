//! What a tool says about calls that were under way when the daemon died, and about unknown outcomes.
use serde::{Deserialize, Serialize};

/// What happens to a program that runs when the daemon dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDaemonDeath {
    /// It goes on to its end, within its time limit, and its outcome is used.
    Finish,
    /// It is killed.
    Kill,
}

/// What happens to a call whose outcome is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// A person says whether it happened.
    #[default]
    Ask,
    /// The model is told that it is unknown. The same call needs an approval from then on.
    Tell,
    /// It runs again with the same key, or is probed again, until the time of the attempt is over.
    Retry,
    /// The attempt fails.
    Fail,
}
