//! How the values of a column compare: what this process knows for sure, and what only Postgres does.
//!
//! Sure is: numbers, booleans, uuids, dates and times, bytes and enums in every way;
//! texts by equality under a deterministic collation, and by order where that is
//! bytes; addresses and bits by equality, because Postgres writes equal ones alike.
//! Everything else that the type can do is asked.
use super::{Operator, Unbindable};
use std::sync::Arc;

/// How values are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Integers, `numeric`, floats, `oid`.
    Number,
    /// `bool`.
    Bool,
    /// Texts, by their characters.
    Text,
    /// `char(n)`: blanks at the end do not count.
    Padded,
    /// `uuid`.
    Uuid,
    /// With and without zone, and dates.
    Timestamp,
    /// Without zone.
    Time,
    /// `bytea`.
    Bytes,
    /// The labels in their order.
    Enum(Arc<[Box<str>]>),
    /// Equal values are written alike, and their order is Postgres' to say.
    Alike,
    /// Only Postgres can compare them.
    Asked,
    /// They cannot be compared at all.
    Incomparable,
}

/// How the values of one column compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// How values are read.
    pub class: Class,
    /// Whether the order of what [`Class`] reads is the column's own.
    pub ordered: bool,
    /// Whether patterns can be asked of it.
    pub textual: bool,
    /// The type as a statement names it, quoted; the base type of a domain.
    pub sql_type: String,
    /// The schema of the type's operators, quoted: found there whatever the search path is.
    pub operators: String,
    /// A collation other than the type's own as a statement names it, quoted.
    pub collation: Option<String>,
    /// The type as people name it: `integer`.
    pub type_name: String,
}

impl Kind {
    /// The kind of a column of a built-in type, by the type's name in `pg_type`.
    ///
    /// The collation is taken for a deterministic one whose order is not known here. A type of a user's own
    /// (`user_type`) counts as an enum whose labels' order is not known here.
    #[must_use]
    pub fn builtin(name: &str, user_type: bool) -> Self {
        let (class, ordered) = match name {
            "int2" | "int4" | "int8" | "oid" | "float4" | "float8" | "numeric" => (Class::Number, true),
            "bool" => (Class::Bool, true),
            // One byte, and names have the collation C.
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

    /// Whether equality of what is read is equality in Postgres.
    pub(super) fn knows_equality(&self) -> bool {
        !matches!(self.class, Class::Asked | Class::Incomparable)
    }

    /// Whether `operator` is decided here and not asked.
    pub(super) fn knows(&self, operator: Operator) -> bool {
        match operator {
            Operator::Equal | Operator::NotEqual | Operator::IsDistinct => self.knows_equality(),
            Operator::Like => matches!(self.class, Class::Text | Class::Padded),
            Operator::ILike | Operator::Match | Operator::IMatch => false,
            _ => self.ordered && self.knows_equality(),
        }
    }

    /// Refuses what can never be asked of the type.
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

    /// The question how Postgres writes the text `$1` as a value of this type.
    #[must_use]
    pub fn written(&self) -> String {
        // By its output function, as the log has it: a cast gives an `inet` its mask.
        format!("select pg_catalog.format('%s', $1::text::{})", self.sql_type)
    }

    /// The question `operator` as SQL over `p.v`, the value of a row, and `p.l`, the literal: both texts.
    #[must_use]
    pub fn expression(&self, operator: Operator) -> String {
        let Self { sql_type, operators, collation, .. } = self;
        let collate = collation.as_ref().map(|name| format!(" collate {name}")).unwrap_or_default();
        let right = match operator.is_pattern() && !sql_type.ends_with(".\"bytea\"") {
            true => "pg_catalog.text",
            false => sql_type,
        };
        // Neither side is NULL, so that distinct is no more than unequal, which not every type has a sign for.
        let (not, sign) = match operator {
            Operator::IsDistinct | Operator::NotEqual => ("not ", "="),
            other => ("", other.sign()),
        };
        format!("{not}((p.v::{sql_type}){collate} operator({operators}.{sign}) (p.l::{right}))")
    }
}
