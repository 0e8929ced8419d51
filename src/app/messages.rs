//! Rows of `realtime.messages` as broadcasts (`reference/postgres-changes.md` §5.3).
//!
//! The log hands them over in commit order; each is said in its room once in a life
//! of the daemon, after its place in that order is kept, so that a replay after a cursor
//! finds everything that was heard. Nothing that is wrong with one row stops the others:
//! it is dropped and counted. What the database could not send is counted too.
use crate::{
    access::{self, Access, Recorded},
    hub::{Hub, Message, Room},
    id::{Lsn, Topic},
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

/// What logical messages of failed sends are marked with.
pub(super) const NOT_SENT_PREFIX: &str = "convoke.not_sent";
/// What an envelope may add to the payload limit.
const ENVELOPE_BYTES: usize = 500;
/// Rows whose order is kept at once.
const RECORDED_MAX: usize = 500;

/// Makes broadcasts of rows.
pub(super) struct Messages {
    hub: Hub,
    access: Access,
    payload_bytes_max: usize,
    /// The last change that was seen: a transaction that comes again says nothing twice.
    seen: Option<(Lsn, u32)>,
    streaming: watch::Sender<bool>,
    rows: Family<Outcome, Counter>,
    not_sent: Family<Code, Counter>,
}

/// A broadcast, and its place in the order of commits when it can be replayed.
pub(super) struct Said {
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

impl Messages {
    /// With it, who is told whether the log streams.
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

    /// Whether changes come.
    pub(super) fn streams(&self, streams: bool) {
        self.streaming.send_replace(streams);
    }

    /// The broadcast that a change is, if it is one.
    pub(super) fn said(&mut self, commit_lsn: Lsn, index: u32, row: &RowChange) -> Option<Said> {
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

    fn read(&self, commit_lsn: Lsn, index: u32, row: &RowChange) -> Result<Said, &'static str> {
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
        let recorded = private && text("extension") == Some("broadcast");
        let meta = if recorded {
            format!("{{\"id\":\"{id}\",\"cursor\":\"{commit_lsn}:{index}\"}}")
        } else {
            format!("{{\"id\":\"{id}\"}}")
        };
        let recorded = recorded.then(|| {
            let (topic, inserted_at) = (topic.to_string(), inserted_at.to_owned());
            Recorded { commit_lsn, index, topic, id, inserted_at }
        });
        let message = Message::user(event, encoding, data, Some(meta.into()));
        Ok(Said { room: Room { topic, private }, message, recorded })
    }

    /// Keeps the order of what is to be said.
    ///
    /// # Errors
    /// When it is worth trying again.
    pub(super) async fn record(&self, said: &[Said]) -> Result<(), access::Error> {
        let recorded: Vec<Recorded> = said.iter().filter_map(|said| said.recorded.clone()).collect();
        for some in recorded.chunks(RECORDED_MAX) {
            match self.access.record(some).await {
                Ok(()) => {}
                // Heard without being found by cursors is better than never heard.
                Err(error @ (access::Error::Policy | access::Error::MissingPartition)) => {
                    tracing::error!(%error, messages = some.len(), "the order of messages is not kept");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says it.
    pub(super) fn publish(&self, said: Vec<Said>) {
        let mut last = None;
        for Said { room, message, recorded } in said {
            self.hub.publish(&room, message, None);
            last = recorded.or(last);
        }
        if let Some(Recorded { commit_lsn, index, .. }) = last {
            self.access.heard(commit_lsn, index);
        }
    }

    /// Counts a send that failed.
    pub(super) fn not_sent(&self, content: &[u8]) {
        // Anybody who may write to the database can write such a message.
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
    fn bytes_are_read_and_rubbish_is_none() {
        assert_eq!(bytes("\\xdeAD00").unwrap(), Bytes::from_static(b"\xde\xad\0"));
        assert_eq!(bytes("\\x").unwrap(), Bytes::new());
        for bad in ["", "dead", "\\xd", "\\xzz"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
