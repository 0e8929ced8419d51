//! How the values of a column compare: what this process can decide, and what only Postgres can.
//!
//! Decided here: every comparison of numbers, booleans, uuids, dates and times, bytes and enums;
//! equality of texts under a deterministic collation, and their order if it is
//! bytewise; equality of addresses and bits, because Postgres formats equal ones identically.
//! Postgres is asked for every other operator of a type.
use super::Operator;
use std::sync::Arc;

/// Why a filter cannot be bound to a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbindable {
    /// No such column.
    #[error("invalid column for filter {column}")]
    NoColumn {
        /// The column that the filter names.
        column: String,
    },
    /// The value is not of the column's type.
    #[error("{value:?} is not a value for column {column} of type {type_name}")]
    NoValue {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The value of the filter.
        value: String,
    },
    /// A pattern for a type that is not text.
    #[error("operator {operator} requires a text-compatible column type, got {type_name}")]
    NotTextual {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The operator.
        operator: &'static str,
    },
    /// A boolean keyword for a column that is not boolean.
    #[error("is {keyword} filter requires a boolean column, got {type_name}")]
    NotBoolean {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The keyword.
        keyword: &'static str,
    },
    /// Values of the type cannot be compared.
    #[error("operator {operator} cannot compare values of type {type_name}")]
    Incomparable {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The operator.
        operator: &'static str,
    },
}

/// How values are parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Integers, `numeric`, floats, `oid`.
    Number,
    /// `bool`.
    Bool,
    /// Texts, compared by characters.
    Text,
    /// `char(n)`: trailing blanks are ignored.
    Padded,
    /// `uuid`.
    Uuid,
    /// Timestamps with and without time zone, and dates.
    Timestamp,
    /// Times without time zone.
    Time,
    /// `bytea`.
    Bytes,
    /// The labels in their order.
    Enum(Arc<[Box<str>]>),
    /// Equal values have the same text. Only Postgres knows their order.
    Alike,
    /// Only Postgres can compare them.
    Asked,
    /// They cannot be compared.
    Incomparable,
}

/// How the values of one column compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// How values are parsed.
    pub class: Class,
    /// Whether the order of the parsed values is the column's order.
    pub ordered: bool,
    /// Whether patterns can be matched.
    pub textual: bool,
    /// The quoted type for SQL statements; for a domain its base type.
    pub sql_type: String,
    /// The quoted schema of the type's operators. Statements name it, so that the search path does not matter.
    pub operators: String,
    /// The quoted collation for SQL statements, if it is not the type's own.
    pub collation: Option<String>,
    /// The type's display name, like `integer`.
    pub type_name: String,
}

impl Kind {
    /// The kind of a column of a built-in type, by the type's name in `pg_type`.
    ///
    /// Assumes a deterministic collation with an order unknown here. A user-defined type
    /// (`user_type`) is treated as an enum whose order of labels is unknown here.
    #[must_use]
    pub fn builtin(name: &str, user_type: bool) -> Self {
        let (class, ordered) = match name {
            "int2" | "int4" | "int8" | "oid" | "float4" | "float8" | "numeric" => (Class::Number, true),
            "bool" => (Class::Bool, true),
            // `"char"` is one byte, and `name` has the collation C.
            "name" | "char" => (Class::Text, true),
            "text" | "varchar" => (Class::Text, false),
            "bpchar" => (Class::Padded, false),
            "uuid" => (Class::Uuid, true),
            "timestamp" | "timestamptz" | "date" => (Class::Timestamp, true),
            "time" => (Class::Time, true),
            "bytea" => (Class::Bytes, true),
            "inet" | "cidr" | "macaddr" | "macaddr8" | "bit" | "varbit" => (Class::Alike, false),
            "json" | "xml" | "point" | "line" | "lseg" | "box" | "path" | "polygon" | "circle" => {
                (Class::Incomparable, false)
            }
            _ if user_type && !name.starts_with('_') => (Class::Alike, false),
            _ => (Class::Asked, false),
        };
        let textual = matches!(name, "text" | "varchar" | "bpchar" | "name" | "char" | "bytea" | "citext");
        let sql_type = format!("pg_catalog.\"{name}\"");
        let operators = "pg_catalog".to_owned();
        Self { class, ordered, textual, sql_type, operators, collation: None, type_name: name.to_owned() }
    }

    /// Whether parsed values are equal exactly if Postgres considers them equal.
    pub(super) fn knows_equality(&self) -> bool {
        !matches!(self.class, Class::Asked | Class::Incomparable)
    }

    /// Whether `operator` is decided here.
    pub(super) fn knows(&self, operator: Operator) -> bool {
        match operator {
            Operator::Equal | Operator::NotEqual | Operator::IsDistinct => self.knows_equality(),
            Operator::Like => matches!(self.class, Class::Text | Class::Padded),
            Operator::ILike | Operator::Match | Operator::IMatch => false,
            _ => self.ordered && self.knows_equality(),
        }
    }

    /// Refuses an operator that the type cannot have.
    ///
    /// # Errors
    /// [`Unbindable::NotTextual`] and [`Unbindable::Incomparable`].
    pub fn check(&self, column: &str, operator: &'static str, pattern: bool) -> Result<(), Unbindable> {
        let (column, type_name) = (column.to_owned(), self.type_name.clone());
        if pattern && !self.textual {
            return Err(Unbindable::NotTextual { column, type_name, operator });
        }
        if self.class == Class::Incomparable {
            return Err(Unbindable::Incomparable { column, type_name, operator });
        }
        Ok(())
    }

    /// The SQL statement that formats the text `$1` as a value of this type.
    #[must_use]
    pub fn output_sql(&self) -> String {
        // By the output function, as in the WAL: a cast to text would add a mask to an `inet`.
        format!("select pg_catalog.format('%s', $1::text::{})", self.sql_type)
    }

    /// The SQL expression of `operator` over `p.v`, the value of a row, and `p.l`, the literal: both texts.
    #[must_use]
    pub fn expression(&self, operator: Operator) -> String {
        let Self { sql_type, operators, collation, .. } = self;
        let collate = collation.as_ref().map(|name| format!(" collate {name}")).unwrap_or_default();
        let right = match operator.is_pattern() && !sql_type.ends_with(".\"bytea\"") {
            true => "pg_catalog.text",
            false => sql_type,
        };
        // Neither side is NULL, so "distinct" means "not equal". Not every type has a `<>` operator.
        let (not, sign) = match operator {
            Operator::IsDistinct | Operator::NotEqual => ("not ", "="),
            other => ("", other.sign()),
        };
        format!("{not}((p.v::{sql_type}){collate} operator({operators}.{sign}) (p.l::{right}))")
    }
}
