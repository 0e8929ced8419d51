//! What a token may do in a room, as far as it is known.

/// A right for each extension of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// What is said.
    pub broadcast: bool,
    /// Who is there.
    pub presence: bool,
}

impl Rights {
    /// Both.
    pub const ALL: Self = Self { broadcast: true, presence: true };
    /// Neither.
    pub const NONE: Self = Self { broadcast: false, presence: false };
}

/// What a token may do in one room. Policies are asked only for what is needed, so some of it is unknown
/// until then (`reference/realtime-protocol.md` §7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Hear broadcasts.
    pub broadcast_read: bool,
    /// See who is there; nothing while nobody has asked.
    pub presence_read: Option<bool>,
    /// Broadcast and be seen; nothing while nobody has asked.
    pub write: Option<Rights>,
}

impl Grant {
    /// Everything.
    pub const ALL: Self = Self { broadcast_read: true, presence_read: Some(true), write: Some(Rights::ALL) };
    /// Nothing.
    pub const NONE: Self =
        Self { broadcast_read: false, presence_read: Some(false), write: Some(Rights::NONE) };

    /// Whether the room may be entered at all.
    #[must_use]
    pub fn may_enter(self) -> bool {
        self.broadcast_read || self.sees_presence()
    }

    /// Whether the right to see who is there is known and given.
    #[must_use]
    pub fn sees_presence(self) -> bool {
        self.presence_read == Some(true)
    }
}
