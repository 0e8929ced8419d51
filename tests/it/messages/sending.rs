//! Messages that SQL sends are received: statements 92 to 100, and 72 of the channels' list.
use super::{MessagesDaemon, next_broadcast, next_json, private, token};
use crate::realtime::{Message, Socket, http};
use convoke::auth::Role;
use serde_json::{Value, json};

/// 92, 93, 94, 99
#[tokio::test]
async fn message_sent_with_sql_reaches_its_room() {
    let rig = MessagesDaemon::new().await;
    let mut inside = rig.joined(true, "t", private()).await;
    let mut outside = rig.joined(true, "t", json!({})).await;
    let mut old = rig.joined(false, "t", private()).await;
    inside.push("t", "broadcast", json!({"event": "asks the policies"})).await;
    old.next().await;
    rig.send(json!({"v": 1}), "e", "t", true).await;
    rig.send(json!({"v": 2, "id": "own"}), "e", "t", true).await;
    rig.send(json!({"v": 3}), "out", "t", false).await;

    let rows = "select id::text from realtime.messages order by payload -> 'v'";
    let ids: Vec<String> = rig.sql.query(rows, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let (meta, event, payload) = next_json(&mut inside).await;
    assert_eq!((meta["id"].as_str(), event.as_str()), (Some(ids[0].as_str()), "e"));
    assert_eq!(payload, json!({"v": 1, "id": ids[0]}));
    let (meta, _, payload) = next_json(&mut inside).await;
    assert_eq!((meta["id"].as_str(), payload), (Some(ids[1].as_str()), json!({"v": 2, "id": "own"})));
    let (meta, event, payload) = next_json(&mut outside).await;
    assert_eq!((meta, event.as_str()), (json!({"id": ids[2]}), "out"));
    assert_eq!(payload["v"], 3);

    let object = old.next().await.payload;
    assert_eq!((&object["type"], &object["event"]), (&json!("broadcast"), &json!("e")));
    assert_eq!((object["payload"]["v"].clone(), object["meta"]["id"].as_str()), (json!(1), Some(&*ids[0])));
    assert_eq!(old.next().await.payload["payload"]["id"], "own");
    assert!(old.so_far().await.is_empty() && outside.so_far().await.is_empty());
}

/// 95
#[tokio::test]
async fn binary_message_reaches_only_serializer_2() {
    let rig = MessagesDaemon::new().await;
    let mut new = rig.joined(true, "t", private()).await;
    let mut old = rig.joined(false, "t", private()).await;
    rig.sql.batch_execute("select realtime.send_binary('\\x00ff10', 'raw', 't')").await.unwrap();
    rig.send(json!({}), "after", "t", true).await;
    let (meta, event, payload) = next_broadcast(&mut new).await;
    assert_eq!((event.as_str(), &payload[..]), ("raw", &b"\x00\xff\x10"[..]));
    assert!(meta["id"].is_string());
    assert_eq!(old.next().await.payload["event"], "after");
}

/// 96
#[tokio::test]
async fn trigger_broadcasts_changes_of_its_table() {
    let rig = MessagesDaemon::new().await;
    let mut socket = rig.joined(true, "orders", private()).await;
    rig
        .sql
        .batch_execute(
            "create table orders (id int primary key, note text);
             create function tell() returns trigger language plpgsql as $$
             begin
               perform realtime.broadcast_changes('orders', tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
               return null;
             end $$;
             create trigger tell after insert or update or delete on orders for each row execute function tell();
             insert into orders values (1, 'a');
             update orders set note = 'b';
             delete from orders;",
        )
        .await
        .unwrap();
    let (a, b) = (json!({"id": 1, "note": "a"}), json!({"id": 1, "note": "b"}));
    for (operation, record, old) in
        [("INSERT", a.clone(), Value::Null), ("UPDATE", b.clone(), a), ("DELETE", Value::Null, b)]
    {
        let (meta, event, payload) = next_json(&mut socket).await;
        assert_eq!(event, operation);
        assert_eq!(
            payload,
            json!({"id": meta["id"], "operation": operation, "table": "orders", "schema": "public",
                   "record": record, "old_record": old})
        );
    }
    let truncated =
        "select realtime.broadcast_changes('o', 'e', 'TRUNCATE', 't', 's', null::record, null::record)";
    let error = rig.sql.batch_execute(truncated).await.unwrap_err();
    let text = error.as_db_error().unwrap().message();
    assert_eq!(text, "Failed to process the row: Unexpected operation type: TRUNCATE");
}

/// 97, 98: and every send that failed is counted.
#[tokio::test]
async fn malformed_messages_are_skipped_and_order_is_kept() {
    let rig = MessagesDaemon::new().await;
    let mut socket = rig.joined(true, "t", private()).await;
    rig.sql
        .batch_execute(
            "begin; select realtime.send('{}', 'never', 't'); rollback;
             begin;
             select realtime.send(jsonb_build_object('n', n), 'n', 't') from generate_series(1, 50) as n;
             select realtime.send('{}', null, 't');
             select realtime.send(null, 'null', 't');
             select realtime.send(jsonb_build_object('x', repeat('y', 11000)), 'big', 't');
             insert into realtime.messages (topic, extension, event, payload, private)
               values ('t', 'broadcast', 'e', '[1]', null), ('', 'broadcast', 'e', '[1]', true);
             commit;
             select realtime.send('[1]', 'no object', 't');
             select realtime.send('{}', 'no topic', null);
             set role anon;
             select realtime.send('{}', 'not allowed', 't');
             reset role;
             select realtime.send('{\"n\": 51}', 'n', 't');",
        )
        .await
        .unwrap();
    for n in 1..=51 {
        assert_eq!(next_json(&mut socket).await.2["n"], n);
    }
    let metrics = rig.metrics().await;
    for line in [
        "convoke_database_messages_total{outcome=\"said\"} 51",
        "convoke_database_messages_total{outcome=\"oversized\"} 1",
        "convoke_database_messages_total{outcome=\"incomplete\"} 4",
        "convoke_database_messages_not_sent_total{sqlstate=\"22023\"} 1",
        "convoke_database_messages_not_sent_total{sqlstate=\"23502\"} 1",
        "convoke_database_messages_not_sent_total{sqlstate=\"42501\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

/// 100, and 72 of the channels' list.
#[tokio::test]
async fn replication_ready_is_sent_once_on_request() {
    let rig = MessagesDaemon::new().await;
    let config = json!({"broadcast": {"replication_ready": true}});
    let mut socket = rig.joined(true, "t", config).await;
    let system = socket.next().await;
    assert_eq!((system.event.as_str(), &system.join_ref), ("system", &json!("1")));
    let established = json!({"extension": "system", "status": "ok", "channel": "t",
                             "message": "Replication connection established"});
    assert_eq!(system.payload, established);
    assert!(socket.so_far().await.is_empty());
    let mut other = rig.joined(true, "u", json!({"broadcast": {"replication_ready": false}})).await;
    assert!(other.so_far().await.is_empty());
}

/// The bytes of the next frame, whatever kind it is.
async fn raw(socket: &mut Socket) -> String {
    match socket.any().await {
        Message::Text(text) => text.to_string(),
        Message::Binary(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => panic!("{other:?}"),
    }
}

/// A receiver gets the digits that the sender wrote, through every entry point; a double would round them.
#[tokio::test]
async fn every_digit_of_a_broadcast_survives() {
    const NUMBERS: [&str; 2] = ["0.1234567890123456789012345", "123456789012345678901234567890"];
    let payload = format!("{{\"n\":[{}]}}", NUMBERS.join(","));
    let rig = MessagesDaemon::new().await;
    let mut new = rig.joined(true, "t", private()).await;
    let mut old = rig.joined(false, "t", private()).await;
    let mut sender = rig.joined(true, "t", private()).await;
    let base = format!("http://{}/api/broadcast", rig.running.parts.addr);
    let batch = format!(
        "{{\"messages\":[{{\"topic\":\"t\",\"event\":\"e\",\"private\":true,\"payload\":{payload}}}]}}"
    );
    let mut doors = 0;
    for (url, body) in [(base.clone(), batch), (format!("{base}/t/events/e?private=true"), payload.clone())] {
        let request = http().post(url).bearer_auth(token(Role::Authenticated));
        let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        doors += 1;
    }
    let message = format!("{{\"type\":\"broadcast\",\"event\":\"e\",\"payload\":{payload}}}");
    sender.message(format!("[null,\"9\",\"realtime:t\",\"broadcast\",{message}]")).await;
    doors += 1;
    let sql = "select realtime.send($1::text::jsonb, 'e', 't', true)";
    for _ in 0..doors {
        for socket in [&mut new, &mut old] {
            let frame = raw(socket).await;
            assert!(NUMBERS.iter().all(|number| frame.contains(number)), "{frame}");
        }
    }
    rig.sql.execute(sql, &[&payload]).await.unwrap();
    for socket in [&mut new, &mut old] {
        let frame = raw(socket).await;
        assert!(NUMBERS.iter().all(|number| frame.contains(number)), "{frame}");
    }
    let replay = json!({"private": true, "broadcast": {"replay": {"since": 0}}});
    let mut late = rig.joined(true, "t", replay).await;
    let frame = raw(&mut late).await;
    assert!(NUMBERS.iter().all(|number| frame.contains(number)), "{frame}");
    rig.running.stop().await;
}
