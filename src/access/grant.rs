//! The rights of a token in one room, as far as they are known.

/// One right for each extension of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The right to messages.
    pub broadcast: bool,
    /// The right to presence.
    pub presence: bool,
}

impl Rights {
    /// Both rights.
    pub const ALL: Self = Self { broadcast: true, presence: true };
    /// Neither right.
    pub const NONE: Self = Self { broadcast: false, presence: false };
}

/// The rights of a token in one room.
///
/// Policies are evaluated only for the rights that are needed, so some stay unknown until then
/// (`docs/spec/realtime-protocol.md` §7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// May receive broadcasts.
    pub broadcast_read: bool,
    /// May receive presence; `None` until the policies are evaluated for it.
    pub presence_read: Option<bool>,
    /// May send broadcasts and track presence; `None` until the policies are evaluated for it.
    pub write: Option<Rights>,
}

impl Grant {
    /// Every right.
    pub const ALL: Self = Self { broadcast_read: true, presence_read: Some(true), write: Some(Rights::ALL) };
    /// No right.
    pub const NONE: Self =
        Self { broadcast_read: false, presence_read: Some(false), write: Some(Rights::NONE) };

    /// Whether the token may join the room at all.
    #[must_use]
    pub fn may_enter(self) -> bool {
        self.broadcast_read || self.sees_presence()
    }

    /// Whether the right to receive presence is known and granted.
    #[must_use]
    pub fn sees_presence(self) -> bool {
        self.presence_read == Some(true)
    }
}
