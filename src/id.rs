//! Identifiers that the compiler keeps apart.
//!
//! Uuids name what the daemon makes (tasks, assignments, nodes); short names
//! are what people choose (agents, orgs) and what clients choose (topics).
//! Counters (`Epoch`, `Incarnation`, `Lsn`) only ever rise.
use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

macro_rules! uuid_id {
    ($(#[$meta:meta])* $name:ident, $generate:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// A new id.
            #[must_use]
            pub fn generate() -> Self { Self(uuid::Uuid::$generate()) }
            /// The uuid inside.
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
    /// One negotiated piece of work; ids made later sort later.
    TaskId,
    now_v7
);
uuid_id!(
    /// One award of a task to an agent; random, because knowing it is part of the right to report.
    AssignmentId,
    new_v4
);
uuid_id!(
    /// One run of the daemon.
    NodeId,
    new_v4
);

/// Longest agent id or org name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is no [`AgentId`] or [`OrgId`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: use 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit")]
pub struct BadName(String);

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
                if good { Ok(Self(text.into())) } else { Err(BadName(text.to_owned())) }
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
    /// An organisation: agents, tasks and channels of one org do not see another's.
    OrgId
);

/// Longest topic in bytes; a binary frame has one byte for its length with the `realtime:` prefix.
pub const TOPIC_BYTES_MAX: usize = 255 - "realtime:".len();

/// A channel's name without the `realtime:` prefix (a sub-topic), at least one byte.
///
/// Only [`Topic::fits_binary`] topics can be named by a binary frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The topic, or nothing for an empty text.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        (!name.is_empty()).then(|| Self(name.into()))
    }
    /// The channel on which an org's agents are present: `org:<org>`.
    #[must_use]
    pub fn org(org: &OrgId) -> Self {
        Self(format!("org:{org}").into())
    }
    /// An agent's own channel: `agent:<id>`.
    #[must_use]
    pub fn agent(agent: &AgentId) -> Self {
        Self(format!("agent:{agent}").into())
    }
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether a binary frame can carry it.
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

/// Counts a task's awards; a report with an older epoch is fenced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the lives of an agent; what an earlier life holds is fenced.
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

/// Why a text is no [`Lsn`].
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
    fn a_log_position_reads_as_it_is_written() {
        let lsn = Lsn(0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(lsn));
        assert!("16".parse::<Lsn>().is_err());
    }

    #[test]
    fn a_name_with_other_letters_is_refused() {
        assert!(AgentId::try_from("triage-1").is_ok());
        for bad in ["", "-x", "Triage", "a b", "ä", &"x".repeat(64)] {
            assert!(AgentId::try_from(bad).is_err(), "{bad:?}");
        }
    }
}
