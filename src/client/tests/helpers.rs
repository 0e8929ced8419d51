//! The batcher and the manager.
use super::*;

#[tokio::test(start_paused = true)]
async fn ten_messages_or_100_ms_make_one_batch() {
    let (mut harness, builder) = harness();
    let client = builder.serializer(Version::V2).start();
    let channel = client.channel("den").acknowledged().build();
    let (mut server, ..) = harness.joined(&channel).await;
    let batcher = Batcher::new(channel);
    for n in 0..13 {
        batcher.send("tick", json!({ "n": n })).await.unwrap();
    }
    async fn batch(server: &mut Server) -> Vec<Value> {
        let Some(Ok(Message::Binary(frame))) = server.0.next().await else { panic!("no broadcast") };
        let Ok(crate::wire::Inbound { reference, payload, .. }) = crate::wire::decode_binary(&frame) else {
            panic!()
        };
        let crate::wire::Payload::User { event, data, .. } = payload else { panic!() };
        let count = reference.unwrap().count().unwrap().to_string();
        server.ok(&Value::Null, &json!(count), "realtime:den").await;
        let said = Broadcast { event: event.into(), payload: Payload::Json(data), meta: None };
        said.batch().unwrap().iter().map(|one| one.json::<Value>().unwrap()["n"].clone()).collect()
    }
    let began = Instant::now();
    assert_eq!(batch(&mut server).await, (0..10).map(Value::from).collect::<Vec<_>>());
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(batch(&mut server).await, (10..13).map(Value::from).collect::<Vec<_>>());
    assert_eq!(began.elapsed().as_millis() / 10, 10, "{:?}", began.elapsed());
    batcher.send("tick", json!({"n": 13})).await.unwrap();
    let (flushed, numbers) = tokio::join!(batcher.flush(), batch(&mut server));
    flushed.unwrap();
    assert_eq!(numbers, [13]);
    batcher.send("tick", json!({"n": 14})).await.unwrap();
    drop(batcher);
    assert_eq!(batch(&mut server).await, [14]);
}

#[tokio::test(start_paused = true)]
async fn failed_batch_is_reported_by_the_next_send() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let channel = client.channel("den").acknowledged().build();
    let (_server, ..) = harness.joined(&channel).await;
    let batcher = Batcher::new(channel);
    batcher.send("e", &1).await.unwrap();
    // No reply arrives.
    assert!(matches!(batcher.flush().await, Err(Error::TimedOut { .. })));
    batcher.send("e", &1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn channels_are_shared_counted_limited_and_left_after_five_minutes() {
    let (mut harness, builder) = harness();
    let client = builder.start();
    let manager = Manager::new(&client, 2);
    let serve = async {
        let mut server = harness.server().await;
        loop {
            let (join_ref, reference, topic, event, _) = server.next().await;
            if event == "phx_join" && topic == "realtime:bad" {
                let reply = json!({"status": "error", "response": {"reason": "no"}});
                server.send(json!([join_ref, reference, topic, "phx_reply", reply])).await;
            } else {
                server.ok(&join_ref, &reference, &topic).await;
            }
        }
    };
    let test = async {
        let (a, b) = tokio::join!(
            manager.channel("a", |join_config| join_config),
            manager.channel("a", |join_config| join_config.private())
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((manager.users("a"), manager.len()), (Some(2), 1));
        let c = manager.channel("c", |join_config| join_config).await.unwrap();
        let full = manager.channel("d", |join_config| join_config).await;
        assert!(matches!(full, Err(Error::TooManyChannels { max: 2 })));
        drop((a, b));
        assert_eq!(manager.users("a"), Some(0));
        sleep(Duration::from_secs(299)).await;
        assert_eq!(manager.len(), 2);
        let again = manager.channel("a", |join_config| join_config).await.unwrap();
        drop(again);
        sleep(Duration::from_secs(299)).await;
        assert_eq!(manager.len(), 2, "its lease restarted the timer");
        sleep(Duration::from_secs(20)).await;
        assert_eq!((manager.users("a"), manager.users("c")), (None, Some(1)), "a channel in use stays");
        drop(c);
        let _d = manager.channel("d", |join_config| join_config).await.unwrap();
        let _e = manager.channel("e", |join_config| join_config).await.unwrap();
        assert_eq!(manager.users("c"), None, "evicted for the limit");
        assert!(matches!(
            manager.channel("bad", |join_config| join_config).await,
            Err(Error::TooManyChannels { .. })
        ));
        drop(_e);
        let refused = manager.channel("bad", |join_config| join_config).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        assert_eq!(manager.users("bad"), None);
    };
    tokio::select! {
        () = serve => unreachable!(),
        () = test => {}
    }
}
