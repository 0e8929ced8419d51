//! Old messages for whoever joins: statements 101 to 107.
use super::{MessagesDaemon, next_broadcast, next_json, private};
use crate::realtime::{Got, Message, Socket};
use serde_json::{Value, json};

fn since(ms: i64, limit: Value) -> Value {
    let mut replay = json!({ "since": ms });
    if !limit.is_null() {
        replay["limit"] = limit;
    }
    json!({"private": true, "broadcast": {"replay": replay}})
}

fn after(cursor: &Value, limit: u32) -> Value {
    json!({"private": true, "broadcast": {"replay": {"cursor": cursor, "limit": limit}}})
}

/// The numbers that a join replays.
async fn replayed(socket: &mut Socket) -> Vec<i64> {
    let frames = socket.so_far().await;
    frames.iter().map(|got| got.payload["payload"]["n"].as_i64().unwrap()).collect()
}

/// 101, 102, 105
#[tokio::test]
async fn newest_messages_of_the_room_are_replayed_in_order() {
    let rig = MessagesDaemon::new().await;
    let mut live = rig.joined(true, "t", private()).await;
    for n in 1..=30 {
        rig.send(json!({ "n": n }), "new", "t", true).await;
    }
    rig.send(json!({"n": 0}), "public", "t", false).await;
    rig.send(json!({"n": 0}), "elsewhere", "u", true).await;
    let presence = "insert into realtime.messages (topic, extension, event, payload, private)
                    values ('t', 'presence', 'e', '{\"n\": 0}', true)";
    rig.sql.batch_execute(presence).await.unwrap();
    // What is live has been said: only what is said again follows.
    while next_json(&mut live).await.1 != "e" {}

    let mut socket = rig.joined(true, "t", since(0, json!(2))).await;
    let first = socket.next().await;
    assert_eq!(
        (first.event.as_str(), &first.join_ref, &first.reference),
        ("broadcast", &json!("1"), &Value::Null)
    );
    assert_eq!((&first.payload["type"], &first.payload["event"]), (&json!("broadcast"), &json!("new")));
    assert_eq!(
        (&first.payload["payload"]["n"], &first.payload["meta"]["replayed"]),
        (&json!(29), &json!(true))
    );
    assert_eq!(first.payload["meta"]["id"], first.payload["payload"]["id"]);
    assert_eq!(replayed(&mut socket).await, [30]);

    for (limit, expected) in [(json!(0), 1), (json!(100), 25), (Value::Null, 25)] {
        let mut socket = rig.joined(false, "t", since(0, limit)).await;
        let numbers: Vec<i64> = (31 - expected..=30).collect();
        assert_eq!(replayed(&mut socket).await, numbers);
    }
    let future = convoke::clock::Clock::System.now().timestamp_millis() + 3_600_000;
    let mut socket = rig.joined(true, "t", since(future, Value::Null)).await;
    assert!(replayed(&mut socket).await.is_empty());
}

/// 103, 104
#[tokio::test]
async fn invalid_replay_is_refused_with_its_member() {
    let rig = MessagesDaemon::new().await;
    let reason = async |config: Value| rig.join(true, "t", config).await.1.reason().to_owned();
    let invalid = "UnableToReplayMessages: Replay params are not valid";
    for replay in [json!({}), json!({"since": "0"}), json!({"since": 1.5}), json!({"since": 0, "limit": "x"})]
    {
        assert_eq!(reason(json!({"private": true, "broadcast": {"replay": replay}})).await, invalid);
    }
    let public = "UnableToReplayMessages: Replay is not allowed for public channels";
    for replay in [json!({"since": 0}), Value::Null] {
        assert_eq!(reason(json!({"broadcast": {"replay": replay}})).await, public);
    }
    rig.joined(true, "t", json!({"private": true, "broadcast": {"replay": 3}})).await;
    rig.sql
        .batch_execute(
            "drop policy r on realtime.messages;
        create policy r on realtime.messages for select to authenticated using (extension = 'presence')",
        )
        .await
        .unwrap();
    let mut config = since(0, Value::Null);
    config["presence"] = json!({"enabled": true});
    let denied = "Unauthorized: You do not have permissions to read from this Channel topic: t";
    assert_eq!(reason(config).await, denied);
}

/// 107
#[tokio::test]
async fn bytes_are_replayed_as_bytes() {
    let rig = MessagesDaemon::new().await;
    rig.sql.batch_execute("select realtime.send_binary('\\xff00', 'raw', 't')").await.unwrap();
    let mut new = rig.joined(true, "t", since(0, Value::Null)).await;
    let (meta, event, payload) = next_broadcast(&mut new).await;
    assert_eq!((event.as_str(), &payload[..], &meta["replayed"]), ("raw", &b"\xff\x00"[..], &json!(true)));
    let mut old = rig.joined(false, "t", since(0, Value::Null)).await;
    assert!(old.so_far().await.is_empty());
}

fn number(message: Message) -> Option<(i64, bool)> {
    let object = match message {
        Message::Text(text) => {
            let value: Value = serde_json::from_str(&text).unwrap();
            return value[4]["payload"]["n"].as_i64().map(|n| (n, true));
        }
        Message::Binary(bytes) => {
            let at = 5 + bytes[1] as usize + bytes[2] as usize + bytes[3] as usize;
            serde_json::from_slice::<Value>(&bytes[at..]).unwrap()
        }
        _ => return None,
    };
    object["n"].as_i64().map(|n| (n, false))
}

/// 106: joins in the middle of a stream of messages: what is replayed and what is live meet without a gap and
/// without a message twice.
#[tokio::test]
async fn no_message_is_lost_or_doubled_between_replay_and_live() {
    let rig = MessagesDaemon::new().await;
    let sending = async {
        for n in 1..=400_i64 {
            rig.send(json!({ "n": n }), "n", "t", true).await;
        }
    };
    let joining = async {
        let mut sockets = Vec::new();
        for _ in 0..20 {
            sockets.push(rig.joined(true, "t", since(0, Value::Null)).await);
        }
        sockets
    };
    let ((), sockets) = tokio::join!(sending, joining);
    for mut socket in sockets {
        let mut last = None;
        while last != Some(400) {
            let Some((n, _)) = number(socket.any().await) else { continue };
            assert!(last.is_none_or(|last| n == last + 1), "{n} after {last:?}");
            last = Some(n);
        }
    }
}

/// Our extension: after a cursor everything comes that was committed later, whenever it began.
#[tokio::test]
async fn messages_after_a_cursor_come_in_commit_order() {
    let rig = MessagesDaemon::new().await;
    let mut live = rig.joined(true, "t", private()).await;
    let late = rig.db.client().await;
    late.batch_execute("begin; select realtime.send('{\"n\": 1}', 'n', 't')").await.unwrap();
    rig.send(json!({"n": 2}), "n", "t", true).await;
    let (meta, _, payload) = next_json(&mut live).await;
    assert_eq!(payload["n"], 2);
    let cursor = meta["cursor"].clone();
    late.batch_execute("commit").await.unwrap();
    for n in 3..=6 {
        rig.send(json!({ "n": n }), "n", "t", true).await;
    }
    for n in [1, 3, 4, 5, 6] {
        assert_eq!(next_json(&mut live).await.2["n"], n);
    }
    let mut back = rig.joined(true, "t", after(&cursor, 100)).await;
    assert_eq!(replayed(&mut back).await, [1, 3, 4, 5, 6]);

    let mut page = rig.joined(true, "t", after(&cursor, 2)).await;
    let frames: Vec<Got> = page.so_far().await;
    let numbers: Vec<_> = frames.iter().map(|got| got.payload["payload"]["n"].clone()).collect();
    assert_eq!(numbers, [json!(1), json!(3), Value::Null]);
    assert_eq!(frames[2].payload["meta"], json!({"gap": true}), "{frames:?}");
    let next = &frames[1].payload["meta"]["cursor"];
    let mut rest = rig.joined(true, "t", after(next, 100)).await;
    assert_eq!(replayed(&mut rest).await, [4, 5, 6]);

    rig.sql
        .execute(
            "delete from convoke.message where commit_lsn::text || ':' || index = $1",
            &[&cursor.as_str()],
        )
        .await
        .unwrap();
    let mut late = rig.joined(true, "t", after(&cursor, 100)).await;
    let mut frames: Vec<Got> = late.so_far().await;
    let told = frames.pop().unwrap();
    assert_eq!((&*told.event, &told.payload["meta"]), ("system", &json!({"gap": true})), "{told:?}");
    let why = "Replay may be incomplete: the message of the cursor is not kept any more";
    assert_eq!((&told.payload["message"], frames.len()), (&json!(why), 5), "what is kept comes all the same");
}

/// What was sent while no daemon ran is there for replays, and the order of commits goes on.
#[tokio::test]
async fn message_sent_while_the_daemon_was_down_is_replayed() {
    let rig = MessagesDaemon::new().await;
    let mut live = rig.joined(true, "t", private()).await;
    rig.send(json!({"n": 1}), "n", "t", true).await;
    let cursor = next_json(&mut live).await.0["cursor"].clone();
    let MessagesDaemon { running, sql, db, data } = rig;
    running.stop().await;
    sql.batch_execute("select realtime.send('{\"n\": 2}', 'n', 't')").await.unwrap();
    let rig = MessagesDaemon::on(db, data).await;
    let mut live = rig.joined(true, "t", private()).await;
    rig.send(json!({"n": 3}), "n", "t", true).await;
    while next_json(&mut live).await.2["n"] != 3 {}
    let mut back = rig.joined(true, "t", after(&cursor, 100)).await;
    assert_eq!(replayed(&mut back).await, [2, 3]);
}
