//! The payload of a join (`docs/spec/realtime-protocol.md` §3.1). Pure.
use crate::access::Replay;
use serde_json::{Map, Value};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// The configuration of a join, with all defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Join {
    pub(super) private: bool,
    /// Whether own broadcasts are delivered to the sender.
    pub(super) to_self: bool,
    pub(super) ack: bool,
    /// The request for stored messages.
    pub(super) replay: AskedReplay,
    /// Whether the client wants a notice when broadcasts of the database are streamed.
    pub(super) when_ready: bool,
    pub(super) presence: bool,
    /// Empty: the server generates one.
    pub(super) presence_key: String,
    /// The row changes, each with its `id`, in request order.
    pub(super) changes: Arc<[Map<String, Value>]>,
    /// A client without `config`: row changes are sent to it without an envelope.
    pub(super) plain: bool,
    /// The channel's own token; `None`: the socket's.
    pub(super) token: Option<String>,
}

impl Join {
    /// Parses a join payload. A member of the wrong type counts as missing, except `private`, which must not be
    /// guessed, and except members that must be objects. More than `changes_max` row changes are refused before they are
    /// looked at.
    ///
    /// # Errors
    /// The reason text.
    pub(super) fn parse(payload: &[u8], sub_topic: &str, changes_max: usize) -> Result<Self, String> {
        let payload = object(serde_json::from_slice(payload).unwrap_or_default(), "payload")?;
        let token = token(&payload);
        let Some(config) = payload.get("config") else {
            let changes = numbered(vec![legacy(sub_topic)]);
            return Ok(Self { changes, plain: true, token, ..Self::default() });
        };
        let config = object(config.clone(), "config")?;
        let member = |name: &str| config.get(name).cloned().unwrap_or_default();
        let broadcast = object(member("broadcast"), "config.broadcast")?;
        let presence = member("presence");
        let private = match config.get("private") {
            None | Some(Value::Null) => false,
            Some(value) => boolean(value).ok_or_else(|| unknown("config.private must be true or false"))?,
        };
        let flag = |value: Option<&Value>| value.and_then(boolean).unwrap_or(false);
        Ok(Self {
            private,
            to_self: flag(broadcast.get("self")),
            ack: flag(broadcast.get("ack")),
            replay: AskedReplay::of(broadcast.get("replay"), private),
            when_ready: broadcast.get("replication_ready").is_some_and(|v| !v.is_null() && *v != false),
            presence: flag(presence.get("enabled")),
            presence_key: match presence.get("key") {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(key)) => key.clone(),
                Some(other) => other.to_string(),
            },
            changes: changes(member("postgres_changes"), changes_max)?,
            plain: false,
            token,
        })
    }

    /// The `response` of the ok reply.
    pub(super) fn response(&self) -> String {
        serde_json::json!({ "postgres_changes": &*self.changes }).to_string()
    }
}

/// The request for stored messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum AskedReplay {
    #[default]
    No,
    /// Refused, with this reason.
    Bad(&'static str),
    Yes(Replay),
}

impl AskedReplay {
    fn of(value: Option<&Value>, private: bool) -> Self {
        match value {
            None => Self::No,
            Some(_) if !private => {
                Self::Bad("UnableToReplayMessages: Replay is not allowed for public channels")
            }
            Some(value @ Value::Object(_)) => {
                let bad = Self::Bad("UnableToReplayMessages: Replay params are not valid");
                Replay::parse(value).map_or(bad, Self::Yes)
            }
            Some(_) => Self::No,
        }
    }
}

fn unknown(text: &str) -> String {
    format!("UnknownErrorOnChannel: {text}")
}

fn object(value: Value, what: &str) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(unknown(&format!("{what} must be an object"))),
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// The channel's own token. An opaque key (`sb_…`) means the socket's.
fn token(payload: &Map<String, Value>) -> Option<String> {
    let text = |name: &str| payload.get(name).and_then(Value::as_str);
    let (access, user) = (text("access_token"), text("user_token"));
    let opaque = access.or(user).is_some_and(|token| token.starts_with("sb_"));
    if opaque { None } else { user.or(access).map(str::to_owned) }
}

fn changes(value: Value, max: usize) -> Result<Arc<[Map<String, Value>]>, String> {
    let Value::Array(items) = value else { return Ok(Arc::default()) };
    if items.len() > max {
        return Err(unknown(&format!("Too many subscriptions on one channel: at most {max}")));
    }
    let items = items.into_iter().filter(|item| !item.is_null());
    let items = items.map(|item| match item {
        Value::Object(item) => Ok(item),
        _ => Err(unknown("an item of config.postgres_changes must be an object")),
    });
    items.collect::<Result<_, _>>().map(numbered)
}

/// The row change item of a client without `config`: its sub-topic is `schema[:table[:filter]]`.
fn legacy(sub_topic: &str) -> Map<String, Value> {
    let mut item = Map::from_iter([("event".to_owned(), Value::from("*"))]);
    let names = ["schema", "table", "filter"];
    item.extend(
        names
            .into_iter()
            .zip(sub_topic.splitn(3, ':'))
            .map(|(name, part)| (name.to_owned(), Value::from(part))),
    );
    item
}

/// Gives each item an `id` from 1 to 2^27 - 1. The id is a hash, so it is stable over rejoins; different items get
/// different ids.
fn numbered(items: Vec<Map<String, Value>>) -> Arc<[Map<String, Value>]> {
    const RANGE: u64 = (1 << 27) - 1;
    let mut taken: HashSet<u64> = HashSet::new();
    // By the text of the item, so that the work grows with the number of items, and not with its square.
    let mut ids: HashMap<String, u64> = HashMap::new();
    let number = |mut item: Map<String, Value>| {
        item.remove("id");
        let text = Value::Object(item.clone()).to_string();
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let id = *ids.entry(text).or_insert_with(|| {
            let mut id = hash % RANGE + 1;
            while !taken.insert(id) {
                id = id % RANGE + 1;
            }
            id
        });
        item.insert("id".to_owned(), id.into());
        item
    };
    items.into_iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(payload: Value) -> Result<Join, String> {
        Join::parse(payload.to_string().as_bytes(), "public:tickets", 4)
    }

    #[test]
    fn empty_config_has_all_defaults() {
        assert_eq!(parse(json!({"config": {}})), Ok(Join::default()));
        assert_eq!(parse(json!({"config": null, "version": "x"})), Ok(Join::default()));
    }

    #[test]
    fn boolean_strings_are_accepted_and_other_types_are_false() {
        let join = parse(json!({"config": {
            "private": "True", "broadcast": {"self": "TRUE", "ack": 1}, "presence": {"enabled": "true", "key": 123},
        }}));
        let join = join.unwrap();
        assert_eq!((join.private, join.to_self, join.ack, join.presence), (true, true, false, true));
        assert_eq!(join.presence_key, "123");
    }

    #[test]
    fn wrong_types_of_required_members_are_refused() {
        for bad in [
            json!([]),
            json!({"config": 1}),
            json!({"config": {"broadcast": "x"}}),
            json!({"config": {"private": "yes"}}),
        ] {
            assert!(parse(bad.clone()).unwrap_err().starts_with("UnknownErrorOnChannel: "), "{bad}");
        }
        assert!(parse(json!({"config": {"postgres_changes": [1]}})).is_err());
    }

    #[test]
    fn token_is_the_users_unless_it_is_opaque() {
        let token = |payload: Value| parse(payload).unwrap().token;
        assert_eq!(
            token(json!({"config": {}, "access_token": "a", "user_token": "u"})).as_deref(),
            Some("u")
        );
        assert_eq!(token(json!({"config": {}, "access_token": "a", "user_token": 1})).as_deref(), Some("a"));
        assert_eq!(token(json!({"config": {}, "access_token": "sb_x", "user_token": "u"})), None);
        assert_eq!(token(json!({"config": {}, "user_token": "sb_x"})), None);
    }

    #[test]
    fn changes_keep_their_order_and_get_distinct_ids() {
        let one = json!({"event": "*", "schema": "public"});
        let two = json!({"event": "INSERT", "schema": "public", "filter": null});
        let join = parse(json!({"config": {"postgres_changes": [one, null, two, one]}})).unwrap();
        let ids: Vec<u64> = join.changes.iter().map(|item| item["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), 3);
        assert!(ids[0] > 0 && ids[0] == ids[2] && ids[0] != ids[1]);
        assert_eq!(join.changes[1]["filter"], Value::Null);
        for none in [json!(null), json!([null]), json!("x")] {
            assert_eq!(parse(json!({"config": {"postgres_changes": none}})).unwrap().changes.len(), 0);
        }
    }

    #[test]
    fn too_many_changes_are_refused_before_they_are_looked_at() {
        let one = json!({"event": "*", "schema": "public"});
        assert_eq!(
            parse(json!({"config": {"postgres_changes": [one, one, one, one]}})).unwrap().changes.len(),
            4
        );
        for items in [json!([one, one, one, one, one]), json!([1, 2, 3, 4, null])] {
            let refused = parse(json!({"config": {"postgres_changes": items}})).unwrap_err();
            assert_eq!(refused, "UnknownErrorOnChannel: Too many subscriptions on one channel: at most 4");
        }
    }

    #[test]
    fn client_without_config_uses_its_topic_as_table() {
        let item = &parse(json!({})).unwrap().changes[0];
        assert_eq!((&item["schema"], &item["table"]), (&json!("public"), &json!("tickets")));
        assert!(item.get("filter").is_none());
    }
}
