//! What SQL sends is heard: statements 92 to 100, and 72 of the channels' list.
use super::{House, heard, heard_json, private};
use serde_json::{Value, json};

/// 92, 93, 94, 99
#[tokio::test]
async fn what_is_sent_with_sql_is_heard_in_its_room() {
    let house = House::new().await;
    let mut inside = house.joined(true, "t", private()).await;
    let mut outside = house.joined(true, "t", json!({})).await;
    let mut old = house.joined(false, "t", private()).await;
    inside.push("t", "broadcast", json!({"event": "asks the policies"})).await;
    old.next().await;
    house.send(json!({"v": 1}), "e", "t", true).await;
    house.send(json!({"v": 2, "id": "own"}), "e", "t", true).await;
    house.send(json!({"v": 3}), "out", "t", false).await;

    let rows = "select id::text from realtime.messages order by payload -> 'v'";
    let ids: Vec<String> = house.sql.query(rows, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let (meta, event, payload) = heard_json(&mut inside).await;
    assert_eq!((meta["id"].as_str(), event.as_str()), (Some(ids[0].as_str()), "e"));
    assert_eq!(payload, json!({"v": 1, "id": ids[0]}));
    let (meta, _, payload) = heard_json(&mut inside).await;
    assert_eq!((meta["id"].as_str(), payload), (Some(ids[1].as_str()), json!({"v": 2, "id": "own"})));
    let (meta, event, payload) = heard_json(&mut outside).await;
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
async fn bytes_are_heard_by_the_second_serializer_alone() {
    let house = House::new().await;
    let mut new = house.joined(true, "t", private()).await;
    let mut old = house.joined(false, "t", private()).await;
    house.sql.batch_execute("select realtime.send_binary('\\x00ff10', 'raw', 't')").await.unwrap();
    house.send(json!({}), "after", "t", true).await;
    let (meta, event, payload) = heard(&mut new).await;
    assert_eq!((event.as_str(), &payload[..]), ("raw", &b"\x00\xff\x10"[..]));
    assert!(meta["id"].is_string());
    assert_eq!(old.next().await.payload["event"], "after");
}

/// 96
#[tokio::test]
async fn a_trigger_tells_changes_of_its_table() {
    let house = House::new().await;
    let mut socket = house.joined(true, "orders", private()).await;
    house
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
        let (meta, event, payload) = heard_json(&mut socket).await;
        assert_eq!(event, operation);
        assert_eq!(
            payload,
            json!({"id": meta["id"], "operation": operation, "table": "orders", "schema": "public",
                   "record": record, "old_record": old})
        );
    }
    let truncated =
        "select realtime.broadcast_changes('o', 'e', 'TRUNCATE', 't', 's', null::record, null::record)";
    let error = house.sql.batch_execute(truncated).await.unwrap_err();
    let text = error.as_db_error().unwrap().message();
    assert_eq!(text, "Failed to process the row: Unexpected operation type: TRUNCATE");
}

/// 97, 98: and every send that failed is counted.
#[tokio::test]
async fn order_is_kept_and_what_cannot_be_said_stops_nothing() {
    let house = House::new().await;
    let mut socket = house.joined(true, "t", private()).await;
    house
        .sql
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
        assert_eq!(heard_json(&mut socket).await.2["n"], n);
    }
    let metrics = house.metrics().await;
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
async fn who_asks_is_told_once_that_messages_of_the_database_come() {
    let house = House::new().await;
    let config = json!({"broadcast": {"replication_ready": true}});
    let mut socket = house.joined(true, "t", config).await;
    let system = socket.next().await;
    assert_eq!((system.event.as_str(), &system.join_ref), ("system", &json!("1")));
    let established = json!({"extension": "system", "status": "ok", "channel": "t",
                             "message": "Replication connection established"});
    assert_eq!(system.payload, established);
    assert!(socket.so_far().await.is_empty());
    let mut other = house.joined(true, "u", json!({"broadcast": {"replication_ready": false}})).await;
    assert!(other.so_far().await.is_empty());
}
