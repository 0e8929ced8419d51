//! Typed identifiers.
//!
//! UUIDs identify what the daemon creates (tasks, assignments, nodes). Short names are chosen by people
//! (agents, orgs) and by clients (topics). [`Requester`] identifies the requester of a task. Counters
//! (`Epoch`, `Incarnation`, `Lsn`) only increase.
mod client_address;
mod requester;
mod trace;

pub use client_address::client_address;
pub use requester::Requester;
pub use trace::{BadTraceContext, TraceContext};

use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

macro_rules! uuid_id {
    ($(#[$meta:meta])* $name:ident, $generate:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// Generates a new id.
            #[must_use]
            pub fn generate() -> Self { Self(uuid::Uuid::$generate()) }
            /// The UUID.
            #[must_use]
            pub fn as_uuid(self) -> uuid::Uuid { self.0 }
        }
        impl From<uuid::Uuid> for $name { fn from(id: uuid::Uuid) -> Self { Self(id) } }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> { text.parse().map(Self) }
        }
    };
}
uuid_id!(
    /// A task. UUIDv7: later ids sort after earlier ones.
    TaskId,
    now_v7
);
uuid_id!(
    /// One award of a task to an agent. Random, because knowing it is part of the right to report.
    AssignmentId,
    new_v4
);
uuid_id!(
    /// One run of the daemon.
    NodeId,
    new_v4
);

/// Most bytes of an agent id or org name.
pub const NAME_BYTES_MAX: usize = 63;

/// A text that is not a valid [`AgentId`] or [`OrgId`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: use 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit")]
pub struct BadName(String);

impl BadName {
    /// Keeps the beginning of a long text, because it is logged and sent.
    fn new(text: &str) -> Self {
        match text.char_indices().nth(NAME_BYTES_MAX) {
            Some((end, _)) => Self(format!("{}…", text.get(..end).unwrap_or_default())),
            None => Self(text.to_owned()),
        }
    }
}

macro_rules! name_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl TryFrom<&str> for $name {
            type Error = BadName;
            fn try_from(text: &str) -> Result<Self, BadName> {
                let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
                let good = (1..=NAME_BYTES_MAX).contains(&text.len())
                    && text.bytes().enumerate().all(|(at, b)| word(b) || (at > 0 && (b == b'-' || b == b'_')));
                if good { Ok(Self(text.into())) } else { Err(BadName::new(text)) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> { Self::try_from(text.as_str()) }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> { Self::try_from(text) }
        }
        impl From<$name> for String { fn from(name: $name) -> Self { name.0.as_ref().to_owned() } }
        impl Borrow<str> for $name { fn borrow(&self) -> &str { &self.0 } }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    };
}
name_id!(
    /// An agent's id: 1 to 63 of `a-z 0-9 - _`, unique in the database.
    AgentId
);
name_id!(
    /// An org (tenant): its agents, tasks and channels are separate from those of others. Defaults to
    /// `default`.
    OrgId
);

/// The org of tokens, agents' files and SQL requests that name none.
pub const ORG_DEFAULT: &str = "default";
impl Default for OrgId {
    fn default() -> Self {
        Self(ORG_DEFAULT.into())
    }
}

/// Most bytes of a topic in a binary frame, which has one byte for its length including the prefix
/// `realtime:`.
pub const TOPIC_BYTES_MAX: usize = 255 - "realtime:".len();

/// A channel's name without the prefix `realtime:`; at least one byte.
///
/// Only topics for which [`Topic::fits_binary`] holds can be named in a binary frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Creates a topic; `None` for an empty name.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        (!name.is_empty()).then(|| Self(name.into()))
    }
    /// The channel of an org: `org:<org>`. Its agents are present there.
    #[must_use]
    pub fn org(org: &OrgId) -> Self {
        Self(format!("org:{org}").into())
    }
    /// The channel of an agent: `agent:<id>`.
    #[must_use]
    pub fn agent(agent: &AgentId) -> Self {
        Self(format!("agent:{agent}").into())
    }
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether the topic fits in a binary frame.
    #[must_use]
    pub fn fits_binary(&self) -> bool {
        self.0.len() <= TOPIC_BYTES_MAX
    }
}
impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One websocket connection of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a task's award. A report with an older epoch is fenced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of an agent's incarnation. Assignments of an earlier incarnation are fenced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub i64);

/// A byte position in the write-ahead log, written `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lsn(pub u64);
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not a valid [`Lsn`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log position: expected two hexadecimal numbers like 16/B374D848")]
pub struct BadLsn(String);
impl FromStr for Lsn {
    type Err = BadLsn;
    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let halves = text.split_once('/').and_then(|(high, low)| {
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(u64::from(high) << 32 | u64::from(low))
        });
        halves.map(Self).ok_or_else(|| BadLsn(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_parses_to_itself() {
        let lsn = Lsn(0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(lsn));
        assert!("16".parse::<Lsn>().is_err());
    }

    #[test]
    fn default_org_is_a_valid_name() {
        assert_eq!(OrgId::try_from(ORG_DEFAULT), Ok(OrgId::default()));
    }

    #[test]
    fn name_with_other_characters_is_refused() {
        assert!(AgentId::try_from("triage-1").is_ok());
        for bad in ["", "-x", "Triage", "a b", "ä", &"x".repeat(64)] {
            assert!(AgentId::try_from(bad).is_err(), "{bad:?}");
        }
        let told = OrgId::try_from("ä".repeat(70_000).as_str()).unwrap_err().to_string();
        assert!(told.starts_with(&format!("{:?} is not a name", "ä".repeat(63) + "…")), "{told}");
    }
}
