//! May this token enter this private room?
//!
//! Until row security on `realtime.messages` is asked (`reference/realtime-protocol.md`
//! §7.4), the answer is the safe one: the service role may do everything, anybody else
//! is denied with the text of a missing policy, on HTTP as on a socket. Public rooms
//! need no more than a valid token and are never asked about here. Owns nothing, caches
//! nothing; who asks keeps the [`Grant`] for as long as §7.5 says.
pub mod rows;

use crate::{auth::Claims, id::Topic};

/// What a token may do in one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Hear broadcasts.
    pub broadcast_read: bool,
    /// Broadcast.
    pub broadcast_write: bool,
    /// See who is there.
    pub presence_read: bool,
    /// Be seen.
    pub presence_write: bool,
}

impl Grant {
    /// Everything.
    pub const ALL: Self =
        Self { broadcast_read: true, broadcast_write: true, presence_read: true, presence_write: true };
    /// Nothing.
    pub const NONE: Self =
        Self { broadcast_read: false, broadcast_write: false, presence_read: false, presence_write: false };

    /// Whether the room may be entered at all.
    #[must_use]
    pub fn may_enter(self) -> bool {
        self.broadcast_read || self.presence_read
    }
}

/// Decides about rooms. Clones decide alike.
#[derive(Clone, Debug, Default)]
pub struct Access;

impl Access {
    /// What `claims` may do in the public or private room of a topic. Private rooms are denied alike, whatever
    /// the topic, until policies are asked about it.
    #[must_use]
    pub fn grant(&self, claims: &Claims, _topic: &Topic, private: bool) -> Grant {
        if !private || claims.is_service() { Grant::ALL } else { Grant::NONE }
    }
}
