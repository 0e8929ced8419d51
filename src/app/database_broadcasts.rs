//! Rows of `realtime.messages` as broadcasts (`docs/spec/postgres-changes.md` §5.3).
//!
//! They arrive in commit order. Each is published once while the daemon runs, after its position in that order is
//! stored, so that a replay after a cursor finds everything that subscribers have received. A malformed row is
//! dropped and counted, and stops no other. Failed sends of the database are counted too.
use crate::{
    access::{self, Access, Recorded},
    hub::{Hub, Message, Room},
    id::{Lsn, Topic},
    remote::{Coordination, is_digest_room},
    telemetry::Registry,
    wal::{Op, RowChange},
    wire::Encoding,
};
use bytes::Bytes;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use serde::Deserialize;
use tokio::sync::watch;

/// Prefix of the logical messages of failed sends.
pub(super) const NOT_SENT_PREFIX: &str = "convoke.not_sent";
/// Bytes that the envelope of a message may add to the payload limit.
const ENVELOPE_BYTES: usize = 500;
/// Rows whose positions are stored in one statement.
const RECORDED_MAX: usize = 500;

/// Turns rows into broadcasts.
pub(super) struct DatabaseBroadcasts {
    hub: Hub,
    access: Access,
    payload_bytes_max: usize,
    /// The last change: one that is read again is not published twice.
    seen: Option<(Lsn, u32)>,
    streaming: watch::Sender<bool>,
    rows: Family<Outcome, Counter>,
    not_sent: Family<Code, Counter>,
}

/// A broadcast, and its position in the order of commits if it can be replayed.
pub(super) struct DatabaseBroadcast {
    room: Room,
    message: Message,
    recorded: Option<Recorded>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    sqlstate: &'static str,
}

#[derive(Deserialize)]
struct NotSent {
    #[serde(default)]
    topic: Option<String>,
    code: String,
}

impl DatabaseBroadcasts {
    /// Returns with it whether the WAL streams.
    pub(super) fn new(
        hub: Hub,
        access: Access,
        payload_bytes_max: usize,
        registry: &Registry,
    ) -> (Self, watch::Receiver<bool>) {
        let (streaming, ready) = watch::channel(false);
        let (rows, not_sent) = (Family::default(), Family::default());
        registry.register(
            "database_messages",
            "Rows of realtime.messages, by what became of them",
            rows.clone(),
        );
        registry.register(
            "database_messages_not_sent",
            "Calls of realtime.send that failed, by SQLSTATE",
            not_sent.clone(),
        );
        (Self { hub, access, payload_bytes_max, seen: None, streaming, rows, not_sent }, ready)
    }

    /// Sets whether the WAL streams.
    pub(super) fn streams(&self, streams: bool) {
        self.streaming.send_replace(streams);
    }

    /// After an interruption: the WAL may be another one, in which lower positions are new.
    pub(super) fn begin_anew(&mut self) {
        self.seen = None;
        self.access.set_published(Lsn(0), 0);
    }

    /// The broadcast of a row change. `None` if it is not a broadcast, is malformed or was read before.
    pub(super) fn read_change(
        &mut self,
        commit_lsn: Lsn,
        index: u32,
        row: &RowChange,
    ) -> Option<DatabaseBroadcast> {
        let relation = &row.relation;
        let is_message = relation.schema == "realtime"
            && (relation.name == "messages" || relation.name.starts_with("messages_"))
            && row.op == Op::Insert;
        if !is_message || self.seen.is_some_and(|seen| (commit_lsn, index) <= seen) {
            return None;
        }
        self.seen = Some((commit_lsn, index));
        let outcome = self.read(commit_lsn, index, row);
        let outcome_name = match &outcome {
            Ok(_) => "said",
            Err(why) => why,
        };
        self.rows.get_or_create(&Outcome { outcome: outcome_name }).inc();
        outcome.ok()
    }

    fn read(&self, commit_lsn: Lsn, index: u32, row: &RowChange) -> Result<DatabaseBroadcast, &'static str> {
        let text = |name: &str| row.cell(name).and_then(|cell| cell.text());
        let incomplete = "incomplete";
        let topic = text("topic").and_then(Topic::new).ok_or(incomplete)?;
        let event = text("event").ok_or(incomplete)?;
        let id: uuid::Uuid = text("id").and_then(|id| id.parse().ok()).ok_or(incomplete)?;
        let inserted_at = text("inserted_at").ok_or(incomplete)?;
        let private = match text("private") {
            Some("t") => true,
            Some("f") => false,
            _ => return Err(incomplete),
        };
        let (encoding, data) = match (text("binary_payload"), text("payload")) {
            (Some(hex), _) => (Encoding::Binary, bytes(hex).ok_or(incomplete)?),
            (None, Some(json)) => (Encoding::Json, Bytes::copy_from_slice(json.as_bytes())),
            (None, None) => return Err(incomplete),
        };
        if data.len() > self.payload_bytes_max + ENVELOPE_BYTES {
            return Err("oversized");
        }
        let room = Room { topic, private };
        // A row does not name its sender, so it may not pass for a message of an agent or the daemon.
        let names_a_sender = Coordination::is_agents_room(&room) && Coordination::event(event).is_some();
        if names_a_sender || is_digest_room(&room) {
            return Err("reserved");
        }
        let recorded = private && text("extension") == Some("broadcast");
        let meta = if recorded {
            format!("{{\"id\":\"{id}\",\"cursor\":\"{commit_lsn}:{index}\"}}")
        } else {
            format!("{{\"id\":\"{id}\"}}")
        };
        let recorded = recorded.then(|| {
            let (topic, inserted_at) = (room.topic.to_string(), inserted_at.to_owned());
            Recorded { commit_lsn, index, topic, id, inserted_at }
        });
        let message = Message::user(event, encoding, data, Some(meta.into()));
        Ok(DatabaseBroadcast { room, message, recorded })
    }

    /// Stores the positions of broadcasts.
    ///
    /// # Errors
    /// If a retry may succeed.
    pub(super) async fn record(&self, broadcasts: &[DatabaseBroadcast]) -> Result<(), access::Error> {
        let recorded: Vec<Recorded> =
            broadcasts.iter().filter_map(|broadcast| broadcast.recorded.clone()).collect();
        for some in recorded.chunks(RECORDED_MAX) {
            match self.access.record(some).await {
                Ok(()) => {}
                // Better to publish them without a position than never: only replays miss them.
                Err(error @ (access::Error::Policy | access::Error::MissingPartition)) => {
                    tracing::error!(%error, messages = some.len(), "failed to store positions of database broadcasts, replays miss them");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Publishes broadcasts.
    pub(super) fn publish(&self, broadcasts: Vec<DatabaseBroadcast>) {
        let mut last = None;
        for DatabaseBroadcast { room, message, recorded } in broadcasts {
            self.hub.publish(&room, message, None);
            last = recorded.or(last);
        }
        if let Some(Recorded { commit_lsn, index, .. }) = last {
            self.access.set_published(commit_lsn, index);
        }
    }

    /// Counts a failed send.
    pub(super) fn not_sent(&self, content: &[u8]) {
        // Any database user can write such a message, so the content is not trusted.
        let Ok(NotSent { topic, code }) = serde_json::from_slice(content) else { return };
        let known = ["42501", "22023", "23502", "23514"].into_iter().find(|known| *known == code);
        let sqlstate = known.unwrap_or("other");
        tracing::debug!(topic, sqlstate, "realtime.send failed");
        self.not_sent.get_or_create(&Code { sqlstate }).inc();
    }
}

/// The bytes of `\x…`.
fn bytes(hex: &str) -> Option<Bytes> {
    let digits = hex.strip_prefix("\\x")?.as_bytes();
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    rest.is_empty().then_some(bytes?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_bytes_are_parsed_and_invalid_text_is_none() {
        assert_eq!(bytes("\\xdeAD00").unwrap(), Bytes::from_static(b"\xde\xad\0"));
        assert_eq!(bytes("\\x").unwrap(), Bytes::new());
        for bad in ["", "dead", "\\xd", "\\xzz"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
