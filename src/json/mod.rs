//! Parsing of JSON that other programs wrote, without silent loss.
//!
//! A [`Value`] holds integers of 64 bits and doubles. `parse` refuses what it cannot hold exactly: a number
//! with more digits, and nesting deeper than `DEPTH_MAX`. Counts of usage are parsed leniently (`count`).
//! Pure.
mod count;
mod exact;

pub(crate) use count::{COUNT_MAX, count, count_text};
pub(crate) use exact::{check, check_command};

use serde_json::Value;

/// Deepest nesting of objects and lists.
pub(crate) const DEPTH_MAX: usize = 127;

/// Why a text is refused. The error texts contain no value except a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The text is not JSON.
    #[error("it is no JSON: line {line} column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1; 0 at the end of the text.
        column: usize,
    },
    /// The nesting is too deep.
    #[error("it is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// A number would be rounded.
    #[error("{place}the number {number} has more digits than can be kept: send it as a text")]
    Inexact {
        /// Path of the number, followed by a colon; empty for the outermost value.
        place: String,
        /// The number, shortened for display.
        number: String,
    },
    /// An object has a member twice.
    #[error("{place}the member is given twice")]
    Duplicate {
        /// Path of the member, followed by a colon.
        place: String,
    },
}

/// Parses a text exactly.
///
/// # Errors
/// See [`Refused`].
pub(crate) fn parse(text: &[u8]) -> Result<Value, Refused> {
    match serde_json::from_slice(text) {
        Ok(value) => check(text).map(|()| value),
        Err(e) => {
            // serde_json has no error codes for exceeded limits, only texts; any other error is about the
            // syntax.
            let message = e.to_string();
            let beyond = message.starts_with("recursion limit") || message.starts_with("number out of range");
            if beyond {
                check(text)?;
            }
            Err(Refused::Syntax { line: e.line(), column: e.column() })
        }
    }
}
