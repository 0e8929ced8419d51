//! The events and actions of a channel's state machine.
use crate::{
    access::{self, Grant, Rights},
    auth::Claims,
    gateway::{Rejection, join::Join, joined::Unknown, limits::TooMuch, rejection},
    hub::Interests,
    wire::{Inbound, Payload, Ref},
};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};

/// An input of a channel.
#[derive(Debug)]
pub(in crate::gateway) enum ChannelEvent {
    Frame(Inbound),
    /// A frame over its rate, which is not handled, with the milliseconds after which it may be retried.
    TooFast(Inbound, u64),
    /// A presence call that is not permitted, with the code and the reason of its refusal.
    Rejection(Inbound, &'static str, String),
    /// The number of throttled frames without a reply since the last notice, with the milliseconds after which the last
    /// one may be retried.
    ThrottleNotice(u64, u64),
    /// The result of [`Action::Check`].
    Checked(Result<Admitted, Refusal>),
    /// The end of [`Action::Delay`].
    DelayOver,
    /// The result of [`Action::Verify`].
    Renewed(Result<Admitted, String>),
    /// The result of [`Action::Ask`].
    PolicyAnswer(Result<PolicyAnswer, access::Error>),
    /// The result of [`Action::AwaitReplication`]: whether broadcasts of the database are streamed.
    Streams(bool),
    /// The server ends this channel with this message.
    Shutdown(String),
}

/// An output of a channel. Actions must be performed in order.
#[derive(Debug, PartialEq)]
pub(in crate::gateway) enum Action {
    /// Check whether the join is permitted.
    Check(Join),
    /// Wait for the delay of a refusal.
    Delay,
    /// Check a new token for this room.
    Verify {
        token: String,
        private: bool,
        /// Whether the right to read presence matters.
        presence: bool,
    },
    /// Check the rights to write or to read presence.
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
    /// Subscribe to the room, and check the token when it expires.
    Enter {
        private: bool,
        interests: Interests,
    },
    /// Deliver the stored messages, then the live messages buffered meanwhile.
    Replay {
        join_ref: Option<Ref>,
    },
    /// Wait until broadcasts of the database are streamed.
    AwaitReplication,
    /// Start the row changes of the join or token, from the position that its check took.
    StartChanges,
    /// Stop the row changes.
    StopChanges,
    /// Check the new token when it expires.
    WatchToken,
    /// Change the kinds of messages that the channel receives.
    SetInterests(Interests),
    /// Unsubscribe and leave presence.
    Exit,
    /// The client leaves by itself: delete its resume positions.
    DeletePositions,
    /// Publish to the room.
    Publish {
        payload: Payload,
        to_self: bool,
    },
    Track {
        key: Arc<str>,
        meta: Map<String, Value>,
    },
    Untrack,
    /// Send the presence state, and presence differences from then on.
    SendState {
        join_ref: Option<Ref>,
    },
    /// Record a rejection.
    RecordRejection {
        refused: Rejection,
        /// Whether the client got a reply about it.
        notified: bool,
    },
    /// Close the whole socket.
    CloseSocket(u16),
}

/// A permitted join or token.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Admitted {
    pub(in crate::gateway) token: Arc<str>,
    pub(in crate::gateway) claims: Arc<Claims>,
    pub(in crate::gateway) grant: Grant,
    /// The presence key for a channel that did not choose one.
    pub(in crate::gateway) fresh_key: String,
    /// The result of the row change subscription; `None` if none was requested.
    pub(in crate::gateway) changes: Option<Result<(), String>>,
}

/// The rights of a joined channel, as policies decided.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct PolicyAnswer {
    pub(in crate::gateway) write: Option<Rights>,
    pub(in crate::gateway) presence_read: Option<bool>,
}

/// A refused join.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Refusal {
    pub(in crate::gateway) reason: String,
    /// The close code for the socket after the reply, if it must be closed.
    pub(in crate::gateway) close: Option<u16>,
    /// For a throttled join, which is refused at once: the milliseconds after which to retry.
    pub(in crate::gateway) retry_after_ms: Option<u64>,
    /// The refusal is not delayed, because the client retries with its own backoff.
    pub(in crate::gateway) at_once: bool,
}

impl Refusal {
    pub(in crate::gateway) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), close: None, retry_after_ms: None, at_once: false }
    }

    pub(in crate::gateway) fn too_fast(too_much: TooMuch) -> Self {
        let retry_after_ms = Some(too_much.millis());
        Self { reason: rejection::RATE_LIMITED.to_owned(), close: None, retry_after_ms, at_once: true }
    }
}

/// The limits that apply in the state machine.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Limits {
    pub(in crate::gateway) payload_bytes_max: usize,
    /// The number of presence calls within a time; one more ends the channel.
    pub(in crate::gateway) presence_calls: Option<(u32, Duration)>,
    pub(in crate::gateway) presence_enabled: bool,
    /// Most row changes that one join may request.
    pub(in crate::gateway) changes_max: usize,
}
