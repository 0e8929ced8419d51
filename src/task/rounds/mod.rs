//! Rounds of the negotiation: the arbiter that announces and awards, offers and their scores and the roster.
pub(in crate::task) mod arbiter;
pub(in crate::task) mod awards;
pub(in crate::task) mod classes;
pub(in crate::task) mod fair_share;
pub(in crate::task) mod offer;
pub(in crate::task) mod roster;
pub(in crate::task) mod round;
pub mod score;
pub(in crate::task) mod tally;
