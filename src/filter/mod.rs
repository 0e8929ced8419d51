//! Filters on rows: `priority=gte.3,state=in.(new,open)`, parsed from text and evaluated on rows.
//!
//! Used by clients' subscriptions and agents' wakes. [`Filter`] is the grammar
//! (`docs/spec/postgres-changes.md` §3.1, extended by `or=(…)` and `and=(…)` groups),
//! [`Kind`] how values of a column compare, [`Bound`] a filter with the columns and
//! values of one table. What only Postgres can decide (the order of texts in a collation,
//! `ilike`, regular expressions) is a [`Probe`] for an [`Oracle`]; it is never
//! guessed. All that is pure. [`Kinds`] and [`Answers`] query Postgres
//! over a connection of the caller: how the columns of tables compare, and many
//! probes at once. Errors name the faulty part of the filter.
mod answers;
mod bound;
mod catalog;
mod grammar;
mod kind;
mod list;
mod value;

pub use answers::{Answers, ProbeError};
pub use bound::{Bound, ColumnValue, Key, Oracle, Probe, Truth};
pub use catalog::Kinds;
pub use grammar::{BadFilter, Condition, Filter, Keyword, Operator, Segment, Test};
pub use kind::{Class, Kind, Unbindable};
