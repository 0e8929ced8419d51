//! Decodes columns without a panic.
//!
//! `tokio_postgres::Row::get` panics on every value that the driver cannot decode: JSON that is nested too
//! deeply, a number outside the range of a float, a time outside the range of chrono, a null in a list.
//! Clippy denies it; use [`Columns::read`].
use std::{error::Error as _, fmt};
use tokio_postgres::{Row, types::FromSql};

/// A column whose value cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Unreadable {
    /// The column's name in the result.
    pub column: String,
    /// The reason, in the decoder's words; contains no value.
    pub cause: String,
}

impl Unreadable {
    /// A value of `column` that decodes, but is not valid for the column.
    pub fn new(column: &str, cause: impl Into<String>) -> Self {
        Self { column: column.to_owned(), cause: cause.into() }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be read: {}", self.column, self.cause)
    }
}

/// Reads columns of a row with an error instead of a panic.
pub trait Columns {
    /// Returns the value of a column.
    ///
    /// # Errors
    /// [`Unreadable`] if the column is missing, has another type, is null for a type that is not nullable, or
    /// has a value outside the range of the type.
    fn read<'a, T: FromSql<'a>>(&'a self, column: &str) -> Result<T, Unreadable>;
}

impl Columns for Row {
    fn read<'a, T: FromSql<'a>>(&'a self, column: &str) -> Result<T, Unreadable> {
        self.try_get(column).map_err(|error| {
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Unreadable::new(column, cause)
        })
    }
}
