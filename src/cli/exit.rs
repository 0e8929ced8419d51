//! Why a command failed, and its exit code.
use crate::config::Problems;
use std::process::ExitCode;

/// `EX_USAGE`: the command line is wrong.
pub(super) const USAGE: u8 = 64;
/// `EX_CONFIG`: the settings or an agent's file are wrong.
const CONFIG: u8 = 78;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// An argument cannot be used, with the reason.
    Usage(String),
    /// The settings or the agents' files have problems.
    Config(Problems),
    /// The failure is on standard output already; only the exit code is left.
    AlreadyReported { code: u8 },
    /// Anything else.
    Failed(anyhow::Error),
}

impl Failure {
    /// Writes the failure to standard error and returns the exit code.
    pub(super) fn report(self) -> ExitCode {
        let code = match self {
            Self::Usage(message) => {
                eprintln!("convoke: {message}\nFor more information, try 'convoke --help'.");
                USAGE
            }
            Self::Config(problems) => {
                eprintln!("{problems}");
                CONFIG
            }
            Self::AlreadyReported { code } => code,
            Self::Failed(error) => {
                eprintln!("convoke: {error:#}");
                1
            }
        };
        ExitCode::from(code)
    }

    /// Problems of settings or agents that were written to standard output.
    pub(super) fn problems_reported() -> Self {
        Self::AlreadyReported { code: CONFIG }
    }

    /// The command ran, and its result is a failure that was written to standard output.
    pub(super) fn reported() -> Self {
        Self::AlreadyReported { code: 1 }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        match error.into().downcast() {
            Ok(problems) => Self::Config(problems),
            Err(error) => Self::Failed(error),
        }
    }
}
