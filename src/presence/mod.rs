//! Presence: the metadata entries (metas) that clients and agents keep in a room.
//!
//! A pure state ([`State`]: an add-wins set of metas by dot, whose merge is
//! commutative, associative and idempotent) and one actor that owns the states of
//! all rooms and publishes each difference to the hub in order.
//! Because only the actor publishes differences, a `presence_state` that it sends is
//! exact: every later difference applies to it. In a large room the actor coalesces differences
//! to a few a second, so that n simultaneous joins cost each subscriber a few frames, not n. Hosted agents' presence is set by
//! the daemon and coalesced. Nothing is stored; a room without metas is dropped.
//! Any client admitted to a room may add a meta under any key, so a client can use
//! a hosted agent's id as key: that adds a second meta and never replaces the agent's.
//! Follows `docs/spec/realtime-protocol.md` §6.
mod state;
mod tracker;

pub use state::{Diff, Dot, Owner, State};
pub use tracker::{HOSTED_PERIOD, PresenceHandle, StateRequest, Tracker};
