//! What is built on channels: the batcher and the manager.
use super::*;

#[tokio::test(start_paused = true)]
async fn ten_messages_or_a_tenth_of_a_second_are_one_batch() {
    let (mut world, builder) = world();
    let client = builder.serializer(Version::V2).start();
    let channel = client.channel("den").acknowledged().build();
    let (mut server, ..) = world.joined(&channel).await;
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
async fn a_batch_that_was_refused_is_told_to_the_next_who_sends() {
    let (mut world, builder) = world();
    let client = builder.start();
    let channel = client.channel("den").acknowledged().build();
    let (_server, ..) = world.joined(&channel).await;
    let batcher = Batcher::new(channel);
    batcher.send("e", &1).await.unwrap();
    // No answer comes.
    assert!(matches!(batcher.flush().await, Err(Error::TimedOut { .. })));
    batcher.send("e", &1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn channels_are_shared_by_id_counted_limited_and_left_after_five_minutes() {
    let (mut world, builder) = world();
    let client = builder.start();
    let manager = Manager::new(&client, 2);
    let serve = async {
        let mut server = world.server().await;
        loop {
            let (join_ref, reference, topic, event, _) = server.next().await;
            if event == "phx_join" && topic == "realtime:bad" {
                let reply = json!({"status": "error", "response": {"reason": "no"}});
                server.say(json!([join_ref, reference, topic, "phx_reply", reply])).await;
            } else {
                server.ok(&join_ref, &reference, &topic).await;
            }
        }
    };
    let test = async {
        let (a, b) =
            tokio::join!(manager.channel("a", |wish| wish), manager.channel("a", |wish| wish.private()));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((manager.users("a"), manager.len()), (Some(2), 1));
        let c = manager.channel("c", |wish| wish).await.unwrap();
        let full = manager.channel("d", |wish| wish).await;
        assert!(matches!(full, Err(Error::TooManyChannels { max: 2 })));
        drop((a, b));
        assert_eq!(manager.users("a"), Some(0));
        sleep(Duration::from_secs(299)).await;
        assert_eq!(manager.len(), 2);
        let again = manager.channel("a", |wish| wish).await.unwrap();
        drop(again);
        sleep(Duration::from_secs(299)).await;
        assert_eq!(manager.len(), 2, "its use has begun anew");
        sleep(Duration::from_secs(20)).await;
        assert_eq!((manager.users("a"), manager.users("c")), (None, Some(1)), "what is used stays for ever");
        drop(c);
        let _d = manager.channel("d", |wish| wish).await.unwrap();
        let _e = manager.channel("e", |wish| wish).await.unwrap();
        assert_eq!(manager.users("c"), None, "its place was needed");
        assert!(matches!(manager.channel("bad", |wish| wish).await, Err(Error::TooManyChannels { .. })));
        drop(_e);
        let refused = manager.channel("bad", |wish| wish).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        assert_eq!(manager.users("bad"), None);
    };
    tokio::select! {
        () = serve => unreachable!(),
        () = test => {}
    }
}
