//! A connection that is lost, receives invalid frames, is blocked, or is unused.
use super::*;

#[tokio::test(start_paused = true)]
async fn lost_connection_is_retried_with_backoff_and_channels_rejoin() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let channel = client.channel("den").presence_key("ada").build();
    let (mut server, ..) = harness.joined(&channel).await;
    let tracked = tokio::join!(channel.track(json!({"n": 1})), async {
        let (join_ref, reference, topic, event, payload) = server.next().await;
        assert_eq!((event.as_str(), &payload["payload"]["n"]), ("presence", &json!(1)));
        server.ok(&join_ref, &reference, &topic).await;
    });
    tracked.0.unwrap();

    harness.dials.lock().clear();
    harness.refuse.store(4, Ordering::Relaxed);
    let lost = Instant::now();
    drop(server);
    let Status::Failed(error) = status(&channel, failed).await else { panic!() };
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    let mut server = harness.server().await;
    let (mut before, mut waits) = (lost, Vec::new());
    for dial in harness.dials.lock().iter() {
        waits.push(dial.duration_since(before).as_secs_f64());
        before = *dial;
    }
    for (wait, whole) in waits.iter().zip([1.0, 2.0, 5.0, 10.0, 10.0]) {
        assert!((whole / 2.0..=whole + 0.01).contains(wait), "{waits:?}");
    }
    assert_eq!(waits.len(), 5);
    server.join().await;
    status(&channel, subscribed).await;
    let (_, _, _, event, payload) = server.next().await;
    assert_eq!(
        (event.as_str(), &payload["event"]),
        ("presence", &json!("track")),
        "the tracked meta is sent again"
    );
    assert_eq!(client.stats().connects, 2);
}

#[tokio::test(start_paused = true)]
async fn unanswered_heartbeat_ends_the_connection() {
    let (mut harness, builder) = harness();
    let client = builder.heartbeat(Duration::from_secs(25)).start();
    let channel = client.channel("den").build();
    let (mut server, ..) = harness.joined(&channel).await;
    let began = Instant::now();
    for _ in 0..2 {
        let (join_ref, reference, topic, event, _) = server.next().await;
        assert_eq!((topic.as_str(), event.as_str(), &join_ref), ("phoenix", "heartbeat", &Value::Null));
        server.ok(&Value::Null, &reference, "phoenix").await;
    }
    assert_eq!(began.elapsed().as_secs(), 50);
    let Status::Failed(error) = status(&channel, failed).await else { panic!() };
    assert_eq!(error.to_string(), "the connection was lost: no heartbeat came back within 25s");
    assert_eq!(began.elapsed().as_secs(), 100);
}

#[tokio::test(start_paused = true)]
async fn invalid_server_frames_are_counted_and_ignored() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let filter = ChangeFilter::table("public", "orders");
    let channel = client.channel("den").presence().changes(filter.clone()).build();
    channel.start().await.unwrap();
    let mut server = harness.server().await;
    let (join_ref, _, topic, _, payload) = server.next().await;
    let mut echo = payload["config"]["postgres_changes"].clone();
    echo[0]["id"] = json!(5);
    let reply = json!({"status": "ok", "response": {"postgres_changes": echo}});
    server.send(json!([join_ref, join_ref, topic, "phx_reply", reply])).await;
    let mut events = channel.events();
    let deep = format!("[null,null,\"{topic}\",\"broadcast\",{}{}]", "[".repeat(5000), "]".repeat(5000));
    for text in ["", "{}", "[", "[1,2,3]", "nonsense", &deep] {
        server.0.send(Message::text(text.to_owned())).await.unwrap();
    }
    for bytes in
        [&b""[..], b"\x00", b"\x03\x00\x00\x00\x00\x00\x00", b"\x04\xff\xff\xff\x01", b"\x04\0\0\0\x01{"]
    {
        server.0.send(Message::binary(bytes.to_vec())).await.unwrap();
    }
    for (event, payload) in [
        ("broadcast", json!([])),
        ("broadcast", json!(7)),
        ("presence_state", json!({"ada": 1})),
        ("presence_diff", json!({"joins": []})),
        ("postgres_changes", json!({"ids": [5], "data": {}})),
        ("postgres_changes", json!({"ids": [6], "data": {"schema": "s", "table": "t", "type": "INSERT"}})),
        ("system", json!("x")),
        ("phx_reply", json!({"status": "ok"})),
        ("phx_reply", json!(null)),
    ] {
        server.send(json!([null, null, topic, event, payload])).await;
    }
    // Replies that were not requested, for unknown topics, and of earlier joins.
    server.send(json!([join_ref, "999", topic, "phx_reply", {"status": "ok", "response": {}}])).await;
    server.send(json!([null, null, "realtime:elsewhere", "broadcast", {}])).await;
    server.send(json!(["77", null, topic, "broadcast", {"event": "stale", "payload": 1}])).await;
    server.send(json!(["77", "77", topic, "phx_close", {}])).await;
    server.send(json!([null, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}])).await;
    server.send(json!([null, null, topic, "broadcast", {"event": "good", "payload": {"n": 1}}])).await;
    let good = loop {
        match events.next().await.unwrap().unwrap() {
            Event::Broadcast(said) => break said,
            Event::Status(Status::Subscribed) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((&*good.event, good.json::<Value>().unwrap()), ("good", json!({"n": 1})));
    assert_eq!(client.stats().garbage, 20);
    // A message over the size limit ends the connection.
    let _cut = server.0.send(Message::binary(vec![0; 17 << 20])).await;
    status(&channel, failed).await;
    harness.server().await.join().await;
}

#[tokio::test(start_paused = true)]
async fn dropped_channel_is_left_and_the_last_drop_closes_the_connection() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let channel = client.channel("den").build();
    let listener = channel.events();
    let (mut server, join_ref, _) = harness.joined(&channel).await;
    drop(channel);
    let (_, reference, topic, ..) = server.next().await;
    assert_eq!(topic, "phoenix", "a listener keeps the channel");
    server.ok(&Value::Null, &reference, "phoenix").await;
    drop(listener);
    let (left, _, _, event, _) = server.next().await;
    assert_eq!((event.as_str(), left), ("phx_leave", join_ref));
    let began = Instant::now();
    server.closed().await;
    assert!(
        began.elapsed() >= Duration::from_secs(49),
        "a page that changes joins again: {:?}",
        began.elapsed()
    );

    let channel = client.channel("den").build();
    let (server, ..) = harness.joined(&channel).await;
    drop(client);
    drop(channel);
    server.closed().await;
}

#[tokio::test(start_paused = true)]
async fn blocked_socket_applies_backpressure_to_callers() {
    let (mut harness, builder) = harness();
    let client = builder.heartbeat(Duration::from_secs(3600)).start();
    let channel = client.channel("den").build();
    let (mut server, ..) = harness.joined(&channel).await;
    let sent = Arc::new(AtomicU32::new(0));
    let flood = async {
        let big = "x".repeat(8 << 10);
        loop {
            channel.broadcast("e", &big).await.unwrap();
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    let _stuck = tokio::time::timeout(Duration::from_secs(60), flood).await;
    let before = sent.load(Ordering::Relaxed);
    assert!((8..600).contains(&before), "{before}");
    advance(Duration::from_secs(1)).await;
    // Writes continue when the server reads again.
    let read = async { while server.0.next().await.is_some() {} };
    let more = async {
        for _ in 0..1000 {
            channel.broadcast("e", &1).await.unwrap();
        }
    };
    tokio::select! {
        () = read => panic!("closed"),
        () = more => {}
    }
}
