//! Clients that come back: who they are, and what their heartbeats prove.
//!
//! A client is the `client_id` of its socket together with the role and `sub` of its token, so
//! that nobody resumes what is another's. Only a hash is kept. Clients of this protocol send a
//! heartbeat only after the reply to the last one, so the next heartbeat proves that everything
//! before that reply was processed. A client whose heartbeats have no ref (Python's) sends them
//! by the clock and proves nothing: it is pinged, and a heartbeat well after the pong counts.
use crate::{
    auth::Claims,
    hub::{Room, history::Client},
    id::ConnId,
};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::time::Instant;

/// The pong is sent when bytes arrive; by then what came before the ping is being processed.
const AFTER_PONG: Duration = Duration::from_secs(1);

/// What a socket that lost its place is told.
pub(super) const NOT_RESUMED: &str =
    "This connection is not resumed any more: another one has this client_id, or there are too many clients";

/// Who a client is in a room, for a token; on which connection.
pub(super) fn client(client_id: &str, conn: ConnId, claims: &Claims, room: &Room) -> Client {
    let owner = hash(&[claims.role.as_bytes(), claims.sub.as_deref().unwrap_or_default().as_bytes()]);
    let id = hash(&[&owner, client_id.as_bytes()]);
    let key = hash(&[&id, &[room.private.into()], room.topic.as_str().as_bytes()]);
    let owner = owner.first_chunk().copied().map(u64::from_le_bytes).unwrap_or_default();
    Client { key, owner, id, conn }
}

/// The same client as its row changes know it: they have positions of their own.
pub(super) fn of_changes(client: Client) -> Client {
    Client { key: hash(&[&client.key, b"postgres_changes"]), ..client }
}

fn hash(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().first_chunk().copied().unwrap_or_default()
}

/// What is known of a socket's heartbeats.
#[derive(Debug, Default)]
pub(super) enum Proof {
    /// The last one was answered, or there was none.
    #[default]
    None,
    /// A ping was sent behind the reply to one without a ref.
    Pinged,
    /// The pong came.
    Ponged(Instant),
}

/// What a heartbeat is good for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// It proves what the last one marked, and is a mark itself.
    Proves,
    /// As above, and a ping must follow the reply.
    ProvesWithPing,
    /// Nothing: the mark of an earlier one is not proved yet.
    Nothing,
}

impl Proof {
    /// A heartbeat came; `waits` when its client waits for replies.
    pub(super) fn beat(&mut self, waits: bool, now: Instant) -> Beat {
        if waits {
            return Beat::Proves;
        }
        match self {
            Self::Pinged => Beat::Nothing,
            Self::Ponged(at) if now < *at + AFTER_PONG => Beat::Nothing,
            Self::None | Self::Ponged(_) => {
                *self = Self::Pinged;
                Beat::ProvesWithPing
            }
        }
    }

    pub(super) fn pong(&mut self, now: Instant) {
        if matches!(self, Self::Pinged) {
            *self = Self::Ponged(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Topic;
    use serde_json::json;

    fn claims(role: &str, sub: Option<&str>) -> Claims {
        Claims {
            role: role.into(),
            org: None,
            agent_id: None,
            exp: chrono::DateTime::from_timestamp(0, 0).unwrap(),
            sub: sub.map(str::to_owned),
            raw: json!({}).as_object().cloned().unwrap(),
        }
    }

    #[test]
    fn a_client_is_bound_to_its_token_and_room() {
        let room = |private| Room { topic: Topic::new("den").unwrap(), private };
        let of = |id: &str, role: &str, sub: Option<&str>, private| {
            client(id, ConnId(1), &claims(role, sub), &room(private))
        };
        let one = of("a", "authenticated", Some("u"), false);
        assert_eq!(one, of("a", "authenticated", Some("u"), false));
        for other in [
            of("b", "authenticated", Some("u"), false),
            of("a", "anon", Some("u"), false),
            of("a", "authenticated", Some("v"), false),
            of("a", "authenticated", None, false),
            of("a", "authenticated", Some("u"), true),
        ] {
            assert_ne!(one.key, other.key);
        }
        assert_eq!(one.id, of("a", "authenticated", Some("u"), true).id);
        assert_eq!(one.owner, of("b", "authenticated", Some("u"), false).owner);
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_by_the_clock_prove_only_well_after_a_pong() {
        let now = Instant::now();
        let mut proof = Proof::default();
        proof.pong(now);
        assert_eq!(proof.beat(false, now), Beat::ProvesWithPing, "the first one marks");
        assert_eq!(proof.beat(false, now + AFTER_PONG * 30), Beat::Nothing, "no pong yet");
        let ponged = now + AFTER_PONG * 40;
        proof.pong(ponged);
        assert_eq!(proof.beat(false, ponged), Beat::Nothing, "too close behind it");
        assert_eq!(proof.beat(false, ponged + AFTER_PONG), Beat::ProvesWithPing);
        assert_eq!(proof.beat(false, ponged + AFTER_PONG * 30), Beat::Nothing);
        assert_eq!(Proof::default().beat(true, now), Beat::Proves);
    }
}
