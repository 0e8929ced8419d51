//! Who is in a room and what they say about themselves.
//!
//! A pure state ([`State`]: an add-wins set of metas by dot, whose merge is
//! commutative, associative and idempotent) and one actor that owns the states of
//! all rooms and tells the hub each difference in the order in which it happened.
//! Because only the actor tells differences, a `presence_state` that it sends is
//! exact: every later difference applies to it. A large room hears its differences
//! together, a few times a second, so that ten thousand who come at once cost their
//! number and not its square. Hosted agents' presence is set by
//! the daemon and coalesced. Nothing is stored; a room without members is forgotten.
//! Anybody admitted to a room may add a meta under any key, so a client can join
//! under a hosted agent's id: it becomes a second meta, never a replacement.
//! Follows `reference/realtime-protocol.md` §6.
mod state;
mod tracker;

pub use state::{Diff, Dot, Owner, State};
pub use tracker::{HOSTED_PERIOD, Member, StateRequest, Tracker};
