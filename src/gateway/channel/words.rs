//! What a channel is told, and what it wants done.
use crate::{
    access::{self, Grant, Rights},
    auth::Claims,
    gateway::{Refused, join::Join, joined::Unknown, limits::TooMuch, refused},
    wire::{Inbound, Payload, Ref},
};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};

/// What happened to a channel.
#[derive(Debug)]
pub(in crate::gateway) enum Event {
    Frame(Inbound),
    /// A frame that came too fast and is not done; it may be tried again after so many milliseconds.
    TooFast(Inbound, u64),
    /// A presence call that would pass for an agent, and why it may not.
    Impostor(Inbound, String),
    /// So many frames came too fast that nobody was told about; the last one may be tried again after so many
    /// milliseconds.
    Slowed(u64, u64),
    /// The answer to [`Action::Check`].
    Checked(Result<Admitted, Refusal>),
    /// The answer to [`Action::Delay`].
    DelayOver,
    /// The answer to [`Action::Verify`].
    Renewed(Result<Admitted, String>),
    /// The answer to [`Action::Ask`].
    Told(Result<Told, access::Error>),
    /// The answer to [`Action::AwaitReplication`]: whether messages of the database come.
    Streams(bool),
    /// The server ends this channel with this message.
    Shutdown(String),
}

/// What a channel wants done, in this order.
#[derive(Debug, PartialEq)]
pub(in crate::gateway) enum Action {
    /// May it be joined?
    Check(Join),
    /// Wait as long as a refusal waits.
    Delay,
    /// Is this token good for this room?
    Verify {
        token: String,
        private: bool,
        /// Whether it matters who is there.
        presence: bool,
    },
    /// May it say something here, or see who is here?
    Ask(Unknown),
    /// Write a reply.
    Reply {
        join_ref: Option<Ref>,
        reference: Option<Ref>,
        ok: bool,
        response: String,
    },
    /// Write another frame.
    Push {
        join_ref: Option<Ref>,
        reference: Option<Ref>,
        event: &'static str,
        payload: String,
    },
    /// Subscribe, and check the token when it ends.
    Enter {
        private: bool,
        hears: Hearing,
    },
    /// Say what was read for it, then what was said meanwhile.
    Replay {
        join_ref: Option<Ref>,
    },
    /// Wait until messages of the database come.
    AwaitReplication,
    /// Put out the row changes that were asked for, from the position that was taken with the join or token.
    Follow,
    /// Put out no row changes any more.
    Unfollow,
    /// Check the new token when it ends.
    WatchToken,
    /// Hear otherwise from now on.
    Hear(Hearing),
    /// Unsubscribe and leave presence.
    Exit,
    /// The client goes of its own will, and does not want what it will miss.
    Forget,
    /// Say it in the room.
    Publish {
        payload: Payload,
        to_self: bool,
    },
    Track {
        key: Arc<str>,
        meta: Map<String, Value>,
    },
    Untrack,
    /// Send the presence state, and presence from then on.
    SendState {
        join_ref: Option<Ref>,
    },
    /// Note that something was not done.
    Note {
        refused: Refused,
        /// Whether the client knows.
        told: bool,
    },
    /// Close the whole socket.
    CloseSocket(u16),
}

/// What a channel hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Hearing {
    pub(in crate::gateway) broadcast: bool,
    pub(in crate::gateway) presence: bool,
}

/// A join or token that was found good.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Admitted {
    pub(in crate::gateway) token: Arc<str>,
    pub(in crate::gateway) claims: Arc<Claims>,
    pub(in crate::gateway) grant: Grant,
    /// For a channel that did not choose a presence key.
    pub(in crate::gateway) fresh_key: String,
    /// Whether the row changes that it wants can be had, or what it is told; nothing when it wants none.
    pub(in crate::gateway) changes: Option<Result<(), String>>,
}

/// What policies said about a joined channel.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Told {
    pub(in crate::gateway) write: Option<Rights>,
    pub(in crate::gateway) presence_read: Option<bool>,
}

/// A join that was not.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Refusal {
    pub(in crate::gateway) reason: String,
    /// The socket closes with this code after the reply.
    pub(in crate::gateway) close: Option<u16>,
    /// It came too fast: it is told at once, with the milliseconds after which to try again.
    pub(in crate::gateway) retry_after_ms: Option<u64>,
    /// It is told at once, because the client tries again by itself.
    pub(in crate::gateway) at_once: bool,
}

impl Refusal {
    pub(in crate::gateway) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), close: None, retry_after_ms: None, at_once: false }
    }

    pub(in crate::gateway) fn too_fast(too_much: TooMuch) -> Self {
        let retry_after_ms = Some(too_much.millis());
        Self { reason: refused::RATE_LIMITED.to_owned(), close: None, retry_after_ms, at_once: true }
    }
}

/// Limits that a channel knows.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Limits {
    pub(in crate::gateway) payload_bytes_max: usize,
    /// How many presence calls within what time; one more ends the channel.
    pub(in crate::gateway) presence_calls: Option<(u32, Duration)>,
    pub(in crate::gateway) presence_enabled: bool,
}
