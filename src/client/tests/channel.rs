//! Joins, pushes, events and presence of a channel.
use super::*;

#[tokio::test(start_paused = true)]
async fn refused_join_is_reported_and_retried_unless_awaited() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let (stays, asks) = (client.channel("stays").build(), client.channel("asks").build());
    stays.start().await.unwrap();
    let mut server = harness.server().await;
    server.join().await;
    let refuse = json!({"status": "error", "response": {"reason": "Unauthorized: no"}});
    let (outcome, ()) = tokio::join!(asks.subscribe(), async {
        let (join_ref, reference, topic, ..) = server.next().await;
        server.send(json!([join_ref, reference, topic, "phx_reply", refuse])).await;
    });
    assert_eq!(outcome.unwrap_err().to_string(), "channel asks was refused: Unauthorized: no");
    // The refused channel is left all the same: its topic is free.
    asks.start().await.unwrap();
    for tries in 0..3 {
        let began = Instant::now();
        let (join_ref, reference, topic, event, _) = server.next().await;
        if event == "heartbeat" {
            server.ok(&Value::Null, &reference, "phoenix").await;
            continue;
        }
        assert_eq!((topic.as_str(), event.as_str()), ("realtime:asks", "phx_join"), "try {tries}");
        assert!(tries == 0 || began.elapsed() >= Duration::from_millis(499), "{:?}", began.elapsed());
        server.send(json!([join_ref, reference, topic, "phx_reply", refuse])).await;
        status(&asks, failed).await;
    }
    assert!(subscribed(&stays.status().borrow()));
    assert!(matches!(client.channel("asks").subscribe().await, Err(Error::TopicInUse { .. })));
}

#[tokio::test(start_paused = true)]
async fn join_without_reply_is_left_and_retried_and_its_late_reply_ignored() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let channel = client.channel("den").build();
    channel.start().await.unwrap();
    let mut server = harness.server().await;
    let (old, ..) = server.next().await;
    let Status::Failed(Error::TimedOut { .. }) = status(&channel, failed).await else {
        panic!("no time-out")
    };
    let (join_ref, _, _, event, _) = server.next().await;
    assert_eq!((event.as_str(), &join_ref), ("phx_leave", &old));
    let (new, reference, topic, event, _) = server.next().await;
    assert_eq!(event, "phx_join");
    server.send(json!([old, old, topic, "phx_reply", {"status": "ok", "response": {}}])).await;
    server.send(json!([old, old, topic, "phx_close", {}])).await;
    server.send(json!([null, null, topic, "broadcast", {"event": "early", "payload": 1}])).await;
    let mut events = channel.events();
    server.send(json!([new, reference, topic, "phx_reply", {"status": "ok", "response": {}}])).await;
    let first = events.next().await.unwrap().unwrap();
    assert!(matches!(first, Event::Status(Status::Subscribed)), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn pushes_wait_for_the_subscription_with_timeout_and_limit() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let channel = client.channel("den").build();
    let never = channel.broadcast("e", &1).await.unwrap_err();
    assert!(matches!(never, Error::ChannelClosed { .. }), "{never}");
    channel.start().await.unwrap();
    let mut server = harness.server().await;
    server.next().await;
    let pushes = (0..101).map(|n| {
        let channel = channel.clone();
        async move { channel.broadcast("e", &n).await }
    });
    let outcomes = futures_util::future::join_all(pushes).await;
    let timed_out = |outcome: &&Result<(), Error>| matches!(outcome, Err(Error::TimedOut { .. }));
    assert_eq!(outcomes.iter().filter(timed_out).count(), 100);
    assert!(matches!(outcomes[100], Err(Error::Full { max: 100, .. })));

    let (sent, ()) = tokio::join!(channel.broadcast("late", json!({})), async {
        loop {
            let (join_ref, reference, topic, event, _) = server.next().await;
            match event.as_str() {
                "phx_join" => break server.ok(&join_ref, &reference, &topic).await,
                "phx_leave" => {}
                other => panic!("{other}"),
            }
        }
    });
    sent.unwrap();
}

#[tokio::test(start_paused = true)]
async fn acknowledged_push_reports_refusal_timeout_and_loss() {
    let (mut harness, builder) = harness();
    let client = builder.serializer(Version::V1).start();
    let channel = client.channel("den").acknowledged().build();
    channel.start().await.unwrap();
    let mut server = Server(accept_async(harness.ends.recv().await.unwrap()).await.unwrap());
    async fn object(server: &mut Server) -> Value {
        match server.0.next().await.unwrap().unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    let reply = |frame: &Value, payload: Value| json!({"topic": frame["topic"], "event": "phx_reply", "ref": frame["ref"], "payload": payload});
    let join = object(&mut server).await;
    assert_eq!(join["join_ref"], join["ref"]);
    server.send(reply(&join, json!({"status": "ok", "response": {"postgres_changes": []}}))).await;
    let (outcome, ()) = tokio::join!(channel.broadcast("e", &1), async {
        let push = object(&mut server).await;
        assert_eq!(push["payload"], json!({"type": "broadcast", "event": "e", "payload": 1}));
        server.send(reply(&push, json!({"status": "error", "response": "payload_size_exceeded"}))).await;
    });
    assert_eq!(outcome.unwrap_err().to_string(), "the server refused it: payload_size_exceeded");
    assert!(matches!(channel.broadcast("e", &1).await, Err(Error::TimedOut { .. })));
    assert!(matches!(channel.broadcast_bytes("e", "x").await, Err(Error::Payload(_))));
    object(&mut server).await;
    let (outcome, ()) = tokio::join!(channel.broadcast("e", &1), async {
        object(&mut server).await;
        drop(server);
    });
    assert!(matches!(outcome, Err(Error::Lost { .. })), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn channel_dropped_by_the_server_is_rejoined() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let channel = client.channel("den").acknowledged().build();
    let (mut server, join_ref, _) = harness.joined(&channel).await;
    server.send(json!([join_ref, join_ref, "realtime:den", "phx_error", {"reason": "channel_crash"}])).await;
    status(&channel, failed).await;
    server.join().await;
    status(&channel, subscribed).await;
    let (outcome, ()) = tokio::join!(channel.broadcast_bytes("e", "x"), async {
        let Some(Ok(Message::Binary(frame))) = server.0.next().await else { panic!("no bytes") };
        let reference = frame[8] - b'0';
        let reply = json!({"status": "error", "response": {"reason": "unmatched topic"}});
        server.send(json!([null, reference.to_string(), "realtime:den", "phx_reply", reply])).await;
    });
    assert!(matches!(outcome, Err(Error::Rejected { .. })), "{outcome:?}");
    server.join().await;
    status(&channel, subscribed).await;
}

#[tokio::test(start_paused = true)]
async fn closed_channel_reports_the_reason_and_is_rejoined_with_a_token_source() {
    for renews in [false, true] {
        let (mut harness, builder) = harness();
        let asked = Arc::new(AtomicU32::new(0));
        let source = {
            let asked = asked.clone();
            move || {
                let n = asked.fetch_add(1, Ordering::Relaxed);
                async move { Ok::<_, Error>(Some(format!("token-{n}"))) }
            }
        };
        let builder = if renews { builder.token_source(source) } else { builder.token("fixed") };
        let client = builder.start();
        let channel = client.channel("den").build();
        let (mut server, join_ref, payload) = harness.joined(&channel).await;
        assert_eq!(payload["access_token"], if renews { "token-0" } else { "fixed" });
        let mut events = channel.events();
        let system =
            json!({"extension": "system", "status": "error", "message": "Token has expired 0 seconds ago"});
        server.send(json!([join_ref, null, "realtime:den", "system", system])).await;
        server.send(json!([join_ref, join_ref, "realtime:den", "phx_close", {}])).await;
        if renews {
            let (_, payload) = server.join().await;
            assert_eq!(payload["access_token"], "token-1");
            status(&channel, subscribed).await;
        } else {
            let Status::Closed(error) = status(&channel, |s| matches!(s, Status::Closed(_))).await else {
                panic!()
            };
            assert_eq!(error.to_string(), "channel den is closed: Token has expired 0 seconds ago");
            assert!(matches!(events.next().await, Some(Ok(Event::System(_)))));
            assert!(matches!(events.next().await, Some(Ok(Event::Status(Status::Closed(_))))));
            assert!(events.next().await.is_none());
            let (again, ()) = tokio::join!(channel.subscribe(), async {
                server.join().await;
            });
            again.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn new_token_is_sent_to_channels_after_the_next_heartbeat() {
    let (mut harness, builder) = harness();
    let asked = Arc::new(AtomicU32::new(0));
    let client = builder
        .token_source(move || {
            let n = asked.fetch_add(1, Ordering::Relaxed);
            async move { if n == 1 { Err("the issuer is away") } else { Ok(Some(format!("token-{n}"))) } }
        })
        .start();
    let channel = client.channel("den").build();
    let (mut server, ..) = harness.joined(&channel).await;
    for _ in 0..2 {
        let (_, reference, topic, ..) = server.next().await;
        assert_eq!(topic, "phoenix");
        server.ok(&Value::Null, &reference, "phoenix").await;
    }
    let (_, _, topic, event, payload) = server.next().await;
    let pushed = (topic.as_str(), event.as_str(), &payload["access_token"]);
    assert_eq!(pushed, ("realtime:den", "access_token", &json!("token-2")));
    assert_eq!(client.stats().token_failures, 1);
    client.set_token(Some("by-hand")).await.unwrap();
    assert_eq!(server.next().await.4["access_token"], "by-hand");
}

#[tokio::test(start_paused = true)]
async fn slow_listener_loses_the_oldest_events_and_gets_their_number() {
    let (mut harness, builder) = harness();
    let client = builder.queue(4).start();
    let channel = client.channel("den").build();
    let (mut server, ..) = harness.joined(&channel).await;
    let (mut slow, mut quick) = (channel.broadcasts("n"), channel.broadcasts("N"));
    for n in 0..10 {
        server.send(json!([null, null, "realtime:den", "broadcast", {"event": "n", "payload": n}])).await;
        assert_eq!(quick.next().await.unwrap().unwrap().json::<u32>().unwrap(), n);
    }
    assert_eq!(slow.next().await.unwrap(), Err(Missed(6)));
    assert_eq!(slow.next().await.unwrap().unwrap().json::<u32>().unwrap(), 6);
}

#[tokio::test(start_paused = true)]
async fn presence_differences_wait_for_the_state() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let channel = client.channel("den").presence().build();
    let mut presences = channel.presences();
    let (mut server, ..) = harness.joined(&channel).await;
    let meta = |n: u32| json!({"metas": [{"phx_ref": n.to_string()}]});
    server.send(json!([null, null, "realtime:den", "presence_diff", {"joins": {"c": meta(3)}, "leaves": {"a": meta(1)}}])).await;
    server.send(json!([null, null, "realtime:den", "presence_state", {"a": meta(1), "b": meta(2)}])).await;
    presences.next().await.unwrap().unwrap();
    let present = channel.present();
    assert_eq!(present.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["b", "c"]);
}
