//! The identity of resuming clients, and what their heartbeats prove.
//!
//! A client is the `client_id` of its socket together with the role and the agent or user of its token, so
//! that no client can resume another's position. Only a hash is kept. Clients of this protocol send a
//! heartbeat only after the reply to the last one, so the next heartbeat proves that everything
//! before that reply was processed. A client whose heartbeats have no ref (Python's) sends them
//! on a timer, which proves nothing. It is pinged, and a heartbeat well after the pong counts.
use crate::{
    auth::{Claims, Principal},
    hub::{Room, history::Client},
    id::ConnId,
};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A client answers a ping as soon as its bytes arrive. After this time it has processed the frames before the ping.
const AFTER_PONG: Duration = Duration::from_secs(1);

/// The notice to a socket that lost its resume position.
pub(super) const NOT_RESUMED: &str =
    "This connection is not resumed any more: another one has this client_id, or there are too many clients";

/// The identity of a client in a room: with this token, on this connection.
pub(super) fn client(client_id: &str, conn: ConnId, claims: &Arc<Claims>, room: &Room) -> Client {
    let identity = Principal::of(claims.clone()).identity().map(|who| who.to_string()).unwrap_or_default();
    let owner = hash(&[claims.role.as_bytes(), identity.as_bytes()]);
    let id = hash(&[&owner, client_id.as_bytes()]);
    let key = hash(&[&id, &[room.private.into()], room.topic.as_str().as_bytes()]);
    let owner = owner.first_chunk().copied().map(u64::from_le_bytes).unwrap_or_default();
    Client { key, owner, id, conn }
}

/// The identity of the same client for row changes, which have positions of their own.
pub(super) fn for_row_changes(client: Client) -> Client {
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

/// The state of a socket's heartbeats.
#[derive(Debug, Default)]
pub(super) enum Proof {
    /// No ping is pending.
    #[default]
    None,
    /// A ping was sent after the reply to a heartbeat without a ref.
    Pinged,
    /// The pong arrived at this time.
    Ponged(Instant),
}

/// What a heartbeat proves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeartbeatProof {
    /// It proves receipt up to the last mark, and sets a new mark.
    Proves,
    /// As [`Beat::Proves`], and a ping must follow the reply.
    ProvesWithPing,
    /// Nothing: the last mark is not proved yet.
    Nothing,
}

impl Proof {
    /// Handles a heartbeat. `waits`: the client waits for replies.
    pub(super) fn heartbeat(&mut self, waits_for_replies: bool, now: Instant) -> HeartbeatProof {
        if waits_for_replies {
            return HeartbeatProof::Proves;
        }
        match self {
            Self::Pinged => HeartbeatProof::Nothing,
            Self::Ponged(at) if now < *at + AFTER_PONG => HeartbeatProof::Nothing,
            Self::None | Self::Ponged(_) => {
                *self = Self::Pinged;
                HeartbeatProof::ProvesWithPing
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

    fn claims(role: &str, sub: Option<&str>) -> Arc<Claims> {
        Claims { sub: sub.map(str::to_owned), ..Claims::of_role(role) }.into()
    }

    #[test]
    fn client_identity_depends_on_token_and_room() {
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
    async fn timed_heartbeats_prove_only_well_after_a_pong() {
        let now = Instant::now();
        let mut proof = Proof::default();
        proof.pong(now);
        assert_eq!(proof.heartbeat(false, now), HeartbeatProof::ProvesWithPing, "the first one marks");
        assert_eq!(proof.heartbeat(false, now + AFTER_PONG * 30), HeartbeatProof::Nothing, "no pong yet");
        let ponged = now + AFTER_PONG * 40;
        proof.pong(ponged);
        assert_eq!(proof.heartbeat(false, ponged), HeartbeatProof::Nothing, "too close behind it");
        assert_eq!(proof.heartbeat(false, ponged + AFTER_PONG), HeartbeatProof::ProvesWithPing);
        assert_eq!(proof.heartbeat(false, ponged + AFTER_PONG * 30), HeartbeatProof::Nothing);
        assert_eq!(Proof::default().heartbeat(true, now), HeartbeatProof::Proves);
    }
}
