//! What an operator sees of the channels: who is there, how much is said, what was refused.
//!
//! Made for one question and kept nowhere. Never shows a payload or a token.
use super::{Gateway, directory};
use crate::hub::{Flow, Room};
use chrono::{DateTime, Utc};
use serde::Serialize;

/// Some of the topics on which somebody is.
#[derive(Clone, Debug, Serialize)]
pub struct Topics {
    /// In order.
    pub channels: Vec<TopicLine>,
    /// How many there are in all that begin as asked.
    pub total: usize,
}

/// One topic with its two rooms.
#[derive(Clone, Debug, Serialize)]
pub struct TopicLine {
    /// Without `realtime:`.
    pub topic: String,
    /// Channels in the public room.
    pub public_members: usize,
    /// Channels in the private room.
    pub private_members: usize,
    /// What is said in both, a second, over the last ten seconds or so.
    pub per_second: Flow,
}

/// One topic, seen closely.
#[derive(Clone, Debug, Serialize)]
pub struct TopicLook {
    /// Without `realtime:`.
    pub topic: String,
    /// The rooms of it in which somebody is: the public one, the private one.
    pub rooms: Vec<RoomLook>,
    /// What was refused to those who were in none of them, the last one first; at most 32.
    pub refusals: Vec<RefusalLook>,
}

/// One room of a topic.
#[derive(Clone, Debug, Serialize)]
pub struct RoomLook {
    /// Which of the two.
    pub private: bool,
    /// How many channels are in it.
    pub member_count: usize,
    /// The first of them.
    pub members: Vec<MemberLook>,
    /// What is said in it, a second, over the last ten seconds or so.
    pub per_second: Flow,
    /// What was said in it since somebody was there.
    pub total: Flow,
    /// What was refused to its members, the last one first; at most 32.
    pub refusals: Vec<RefusalLook>,
}

/// One channel of one socket.
#[derive(Clone, Debug, Serialize)]
pub struct MemberLook {
    /// The socket; refusals name it, too.
    pub connection: u64,
    /// Of its token.
    pub role: String,
    /// Of its token, if there is one.
    pub sub: Option<String>,
    /// Of its token, if it is an agent's.
    pub agent: Option<String>,
    /// When it joined.
    pub joined_at: DateTime<Utc>,
    /// Under which it would be present.
    pub presence_key: String,
}

/// Something that was not done.
#[derive(Clone, Debug, Serialize)]
pub struct RefusalLook {
    /// When.
    pub at: DateTime<Utc>,
    /// To which socket; none for HTTP.
    pub connection: Option<u64>,
    /// `phx_join`, `broadcast`, `presence`, `access_token`, `push` (another event), `channel` (it was ended) or `http`.
    pub event: &'static str,
    /// A word for the reason; the metric `convoke_gateway_refusals_total` counts by it.
    pub code: String,
    /// The reason for people.
    pub reason: String,
}

impl Gateway {
    /// At most `limit` topics after `after` that begin with `prefix`.
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
            TopicLine { topic: topic.to_string(), public_members, private_members, per_second }
        };
        Topics { channels: topics.into_iter().map(line).collect(), total }
    }

    /// One topic with at most `members_max` members of each room; nothing when nobody is there and nothing
    /// was refused lately.
    #[must_use]
    pub fn topic(&self, topic: &crate::id::Topic, members_max: usize) -> Option<TopicLook> {
        let rooms = [false, true].map(|private| Room { topic: topic.clone(), private });
        let rooms: Vec<_> = rooms.iter().filter_map(|room| self.room(room, members_max)).collect();
        let refusals =
            self.0.directory.elsewhere(topic.as_str()).into_iter().map(refusal).collect::<Vec<_>>();
        let known = !rooms.is_empty() || !refusals.is_empty();
        known.then(|| TopicLook { topic: topic.to_string(), rooms, refusals })
    }

    fn room(&self, room: &Room, members_max: usize) -> Option<RoomLook> {
        let look = self.0.directory.look(room, members_max)?;
        let traffic = self.0.hub.traffic(room).unwrap_or_default();
        Some(RoomLook {
            private: room.private,
            member_count: look.count,
            members: look.members.iter().map(|it| member(it)).collect(),
            per_second: traffic.rate,
            total: traffic.total,
            refusals: look.refusals.into_iter().map(refusal).collect(),
        })
    }
}

fn member(member: &directory::Member) -> MemberLook {
    let claims = member.claims();
    MemberLook {
        connection: member.conn.0,
        role: claims.role.clone(),
        sub: claims.sub.clone(),
        agent: claims.agent_id.as_ref().map(ToString::to_string),
        joined_at: member.joined_at,
        presence_key: member.key.to_string(),
    }
}

fn refusal(noted: directory::Noted) -> RefusalLook {
    RefusalLook {
        at: noted.at,
        connection: noted.conn.map(|conn| conn.0),
        event: noted.refused.what,
        code: noted.refused.code.into_owned(),
        reason: noted.refused.text,
    }
}
