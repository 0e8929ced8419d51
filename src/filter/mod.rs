//! Filters on rows: `priority=gte.3,state=in.(new,open)`, read from text and asked of rows.
//!
//! For clients' subscriptions and for agents' wakes alike: [`Filter`] is the grammar
//! (`reference/postgres-changes.md` §3.1, with `or=(…)` and `and=(…)` groups on top),
//! [`Kind`] how values of a column compare, [`Bound`] a filter with the columns and
//! values of one table. What Postgres alone can say (the order of texts in a collation,
//! `ilike`, regular expressions) is a [`Probe`]: it is asked of an [`Oracle`], never
//! guessed. All that is pure; [`Kinds`] and [`Answers`] are the two that ask Postgres,
//! over a connection that the caller lends: how the columns of tables compare, and many
//! probes at once. Knows no subscription; fails with a sentence that names the part.
mod answers;
mod bound;
mod catalog;
mod grammar;
mod kind;
mod list;
mod value;

pub use answers::{Answers, Refused};
pub use bound::{Bound, Found, Key, Oracle, Probe, Truth, Unbindable};
pub use catalog::Kinds;
pub use grammar::{BadFilter, Condition, Filter, Keyword, Operator, Segment, Test};
pub use kind::{Class, Kind};
