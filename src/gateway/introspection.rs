//! The operator's view of the channels: members, traffic and rejections.
//!
//! Built for each request and not stored. Never contains a payload or a token.
use super::{Gateway, channel_registry};
use crate::hub::{Flow, Room};
use chrono::{DateTime, Utc};
use serde::Serialize;

/// A page of the topics with members.
#[derive(Clone, Debug, Serialize)]
pub struct Topics {
    /// In alphabetical order.
    pub channels: Vec<TopicSummary>,
    /// The number of all topics with the requested prefix.
    pub total: usize,
}

/// One topic with its two rooms.
#[derive(Clone, Debug, Serialize)]
pub struct TopicSummary {
    /// The topic without `realtime:`.
    pub topic: String,
    /// Channels in the public room.
    pub public_members: usize,
    /// Channels in the private room.
    pub private_members: usize,
    /// Traffic of both rooms per second, over about the last ten seconds.
    pub per_second: Flow,
}

/// One topic in detail.
#[derive(Clone, Debug, Serialize)]
pub struct TopicInfo {
    /// The topic without `realtime:`.
    pub topic: String,
    /// Its rooms with members: the public one, the private one.
    pub rooms: Vec<RoomInfo>,
    /// Rejections outside of these rooms, latest first; at most 32.
    pub refusals: Vec<RejectionInfo>,
}

/// One room of a topic.
#[derive(Clone, Debug, Serialize)]
pub struct RoomInfo {
    /// Whether it is the private room.
    pub private: bool,
    /// The number of channels in it.
    pub member_count: usize,
    /// The first members.
    pub members: Vec<MemberInfo>,
    /// Traffic per second, over about the last ten seconds.
    pub per_second: Flow,
    /// Total traffic since its first member joined.
    pub total: Flow,
    /// Rejections of its members, latest first; at most 32.
    pub refusals: Vec<RejectionInfo>,
}

/// One channel of one socket.
#[derive(Clone, Debug, Serialize)]
pub struct MemberInfo {
    /// The id of the socket, which rejections name too.
    pub connection: u64,
    /// The role of its token.
    pub role: String,
    /// The `sub` of its token, if any.
    pub sub: Option<String>,
    /// The agent of its token, if any.
    pub agent: Option<String>,
    /// The time of the join.
    pub joined_at: DateTime<Utc>,
    /// The key of its presence.
    pub presence_key: String,
}

/// A rejection.
#[derive(Clone, Debug, Serialize)]
pub struct RejectionInfo {
    /// The time.
    pub at: DateTime<Utc>,
    /// The id of the socket; `None` for HTTP.
    pub connection: Option<u64>,
    /// `phx_join`, `broadcast`, `presence`, `access_token`, `push` (another event), `channel` (it was ended) or `http`.
    pub event: &'static str,
    /// A code for the reason. The metric `convoke_gateway_refusals_total` has it as a label.
    pub code: String,
    /// The reason in words.
    pub reason: String,
}

impl Gateway {
    /// At most `limit` topics after `after` that start with `prefix`.
    #[must_use]
    pub fn topics(&self, prefix: &str, after: &str, limit: usize) -> Topics {
        let (total, topics) = self.0.directory.topics(prefix, after, limit);
        let line = |(topic, [public, private]): (crate::id::Topic, [usize; 2])| {
            let flows = [false, true].map(|private| {
                let traffic = self.0.hub.traffic(&Room { topic: topic.clone(), private });
                traffic.unwrap_or_default().rate
            });
            let (public_members, private_members) = (public, private);
            let per_second = flows[0] + flows[1];
            TopicSummary { topic: topic.to_string(), public_members, private_members, per_second }
        };
        Topics { channels: topics.into_iter().map(line).collect(), total }
    }

    /// One topic with at most `members_max` members of each room; `None` if it has neither members nor recent
    /// rejections.
    #[must_use]
    pub fn topic(&self, topic: &crate::id::Topic, members_max: usize) -> Option<TopicInfo> {
        let rooms = [false, true].map(|private| Room { topic: topic.clone(), private });
        let rooms: Vec<_> = rooms.iter().filter_map(|room| self.room(room, members_max)).collect();
        let refusals =
            self.0.directory.elsewhere(topic.as_str()).into_iter().map(refusal).collect::<Vec<_>>();
        let known = !rooms.is_empty() || !refusals.is_empty();
        known.then(|| TopicInfo { topic: topic.to_string(), rooms, refusals })
    }

    fn room(&self, room: &Room, members_max: usize) -> Option<RoomInfo> {
        let snapshot = self.0.directory.snapshot(room, members_max)?;
        let traffic = self.0.hub.traffic(room).unwrap_or_default();
        Some(RoomInfo {
            private: room.private,
            member_count: snapshot.count,
            members: snapshot.members.iter().map(|it| member(it)).collect(),
            per_second: traffic.rate,
            total: traffic.total,
            refusals: snapshot.refusals.into_iter().map(refusal).collect(),
        })
    }
}

fn member(member: &channel_registry::JoinedChannel) -> MemberInfo {
    let claims = member.claims();
    MemberInfo {
        connection: member.conn.0,
        role: claims.role.clone(),
        sub: claims.sub.clone(),
        agent: claims.agent_id.as_ref().map(ToString::to_string),
        joined_at: member.joined_at,
        presence_key: member.key.to_string(),
    }
}

fn refusal(noted: channel_registry::RejectionRecord) -> RejectionInfo {
    RejectionInfo {
        at: noted.at,
        connection: noted.conn.map(|conn| conn.0),
        event: noted.refused.what,
        code: noted.refused.code.into_owned(),
        reason: noted.refused.text,
    }
}
