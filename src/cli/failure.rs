//! Why a command did not do what it was asked, and the exit code that says so.
use crate::config::Problems;
use std::process::ExitCode;

/// `EX_USAGE`: the command line is wrong.
pub(super) const USAGE: u8 = 64;
/// `EX_CONFIG`: the settings or an agent's file are wrong.
const CONFIG: u8 = 78;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// An argument cannot be used; what is wrong with it.
    Usage(String),
    /// The settings or the agents' files have problems.
    Config(Problems),
    /// It was told already; only the exit code is left to say.
    Told { code: u8 },
    /// Anything else.
    Failed(anyhow::Error),
}

impl Failure {
    /// Tells it on standard error, and gives the exit code.
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
            Self::Told { code } => code,
            Self::Failed(error) => {
                eprintln!("convoke: {error:#}");
                1
            }
        };
        ExitCode::from(code)
    }

    /// Problems that standard output has told already.
    pub(super) fn problems_told() -> Self {
        Self::Told { code: CONFIG }
    }

    /// The command ran, and what it looked at is not as it should be.
    pub(super) fn not_well() -> Self {
        Self::Told { code: 1 }
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
