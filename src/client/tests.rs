//! The client against a server of the test's own in memory, in virtual time.
use super::{transport::Io, *};
use crate::wire::Version;
use futures_util::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::VecDeque, io, sync::atomic::AtomicU32, sync::atomic::Ordering};
use tokio::{
    io::DuplexStream,
    time::{Instant, advance, sleep},
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message};

/// The other end of each connection, and how many are refused before one comes about.
struct World {
    ends: tokio::sync::mpsc::Receiver<DuplexStream>,
    dials: Arc<Mutex<VecDeque<Instant>>>,
    refuse: Arc<AtomicU32>,
}

struct Server(WebSocketStream<DuplexStream>);

fn world() -> (World, Builder) {
    let (sender, ends) = mpsc::channel(10);
    let (dials, refuse) = (Arc::new(Mutex::new(VecDeque::new())), Arc::new(AtomicU32::new(0)));
    let world = World { ends, dials: dials.clone(), refuse: refuse.clone() };
    let dial = move || -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        dials.lock().push_back(Instant::now());
        let (sender, refuse) = (sender.clone(), refuse.clone());
        async move {
            let fewer = |left: u32| left.checked_sub(1);
            if refuse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            sender.send(theirs).await.map_err(io::Error::other)?;
            Ok(Box::new(ours) as Box<dyn Io>)
        }
        .boxed()
    };
    let mut builder = Client::builder("ws://memory", "key").unwrap();
    builder.dial = Some(Arc::new(dial));
    (world, builder)
}

impl World {
    async fn server(&mut self) -> Server {
        Server(accept_async(self.ends.recv().await.unwrap()).await.unwrap())
    }
}

impl Server {
    /// The next frame: join_ref, ref, topic, event, payload.
    async fn next(&mut self) -> (Value, Value, String, String, Value) {
        loop {
            match self.0.next().await.expect("the client went").expect("the client broke") {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(_) => panic!("the client closed"),
                _ => {}
            }
        }
    }
    async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }
    /// Takes the next frame, which must be a join, and says yes to it; gives its ref and payload.
    async fn join(&mut self) -> (Value, Value) {
        let (join_ref, reference, topic, event, payload) = self.next().await;
        assert_eq!(event, "phx_join");
        let changes = payload["config"]["postgres_changes"].clone();
        let reply = json!({"status": "ok", "response": {"postgres_changes": changes}});
        self.say(json!([join_ref, reference, topic, "phx_reply", reply])).await;
        (join_ref, payload)
    }
    async fn ok(&mut self, join_ref: &Value, reference: &Value, topic: &str) {
        let reply = json!({"status": "ok", "response": {}});
        self.say(json!([join_ref, reference, topic, "phx_reply", reply])).await;
    }
    async fn closed(mut self) {
        while let Some(Ok(message)) = self.0.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
        }
    }
}

async fn status(channel: &Channel, wanted: impl FnMut(&Status) -> bool) -> Status {
    channel.status().wait_for(wanted).await.unwrap().clone()
}
fn subscribed(status: &Status) -> bool {
    matches!(status, Status::Subscribed)
}
fn failed(status: &Status) -> bool {
    matches!(status, Status::Failed(_))
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_again_with_waits_that_grow_and_the_channels_join_again() {
    let (mut world, builder) = world();
    let client = builder.start();
    let channel = client.channel("den").presence_key("ada").build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    status(&channel, subscribed).await;
    let tracked = tokio::join!(channel.track(json!({"n": 1})), async {
        let (join_ref, reference, topic, event, payload) = server.next().await;
        assert_eq!((event.as_str(), &payload["payload"]["n"]), ("presence", &json!(1)));
        server.ok(&join_ref, &reference, &topic).await;
    });
    tracked.0.unwrap();

    world.dials.lock().clear();
    world.refuse.store(4, Ordering::Relaxed);
    let lost = Instant::now();
    drop(server);
    let Status::Failed(error) = status(&channel, failed).await else { panic!() };
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    let mut server = world.server().await;
    let (mut before, mut waits) = (lost, Vec::new());
    for dial in world.dials.lock().iter() {
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
        "what was tracked is said again"
    );
    assert_eq!(client.stats().connects, 2);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_without_an_answer_ends_the_connection() {
    let (mut world, builder) = world();
    let client = builder.heartbeat(Duration::from_secs(25)).start();
    let channel = client.channel("den").build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
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
async fn a_refused_join_is_told_and_tried_again_unless_somebody_waited_for_it() {
    let (mut world, builder) = world();
    let client = builder.start();
    let (stays, asks) = (client.channel("stays").build(), client.channel("asks").build());
    stays.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    let refuse = json!({"status": "error", "response": {"reason": "Unauthorized: no"}});
    let (outcome, ()) = tokio::join!(asks.subscribe(), async {
        let (join_ref, reference, topic, ..) = server.next().await;
        server.say(json!([join_ref, reference, topic, "phx_reply", refuse])).await;
    });
    assert_eq!(outcome.unwrap_err().to_string(), "channel asks was refused: Unauthorized: no");
    // It is left, though the server had not let it in: the topic is free.
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
        server.say(json!([join_ref, reference, topic, "phx_reply", refuse])).await;
        status(&asks, failed).await;
    }
    assert!(subscribed(&stays.status().borrow()));
    assert!(matches!(client.channel("asks").subscribe().await, Err(Error::TopicInUse { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_join_without_an_answer_is_left_and_tried_again_and_its_late_reply_does_not_count() {
    let (mut world, builder) = world();
    let client = builder.start();
    let channel = client.channel("den").build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    let (old, ..) = server.next().await;
    let Status::Failed(Error::TimedOut { .. }) = status(&channel, failed).await else {
        panic!("no time-out")
    };
    let (join_ref, _, _, event, _) = server.next().await;
    assert_eq!((event.as_str(), &join_ref), ("phx_leave", &old));
    let (new, reference, topic, event, _) = server.next().await;
    assert_eq!(event, "phx_join");
    server.say(json!([old, old, topic, "phx_reply", {"status": "ok", "response": {}}])).await;
    server.say(json!([old, old, topic, "phx_close", {}])).await;
    server.say(json!([null, null, topic, "broadcast", {"event": "early", "payload": 1}])).await;
    let mut events = channel.events();
    server.say(json!([new, reference, topic, "phx_reply", {"status": "ok", "response": {}}])).await;
    let first = events.next().await.unwrap().unwrap();
    assert!(matches!(first, Event::Status(Status::Subscribed)), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn pushes_wait_for_the_subscription_but_not_for_ever_and_not_without_limit() {
    let (mut world, builder) = world();
    let client = builder.start();
    let channel = client.channel("den").build();
    let never = channel.broadcast("e", &1).await.unwrap_err();
    assert!(matches!(never, Error::ChannelClosed { .. }), "{never}");
    channel.start().await.unwrap();
    let mut server = world.server().await;
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
async fn an_acknowledged_push_hears_the_server_s_reason_or_its_silence_or_its_end() {
    let (mut world, builder) = world();
    let client = builder.serializer(Version::V1).start();
    let channel = client.channel("den").acknowledged().build();
    channel.start().await.unwrap();
    let mut server = Server(accept_async(world.ends.recv().await.unwrap()).await.unwrap());
    async fn object(server: &mut Server) -> Value {
        match server.0.next().await.unwrap().unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    let reply = |frame: &Value, payload: Value| json!({"topic": frame["topic"], "event": "phx_reply", "ref": frame["ref"], "payload": payload});
    let join = object(&mut server).await;
    assert_eq!(join["join_ref"], join["ref"]);
    server.say(reply(&join, json!({"status": "ok", "response": {"postgres_changes": []}}))).await;
    let (outcome, ()) = tokio::join!(channel.broadcast("e", &1), async {
        let push = object(&mut server).await;
        assert_eq!(push["payload"], json!({"type": "broadcast", "event": "e", "payload": 1}));
        server.say(reply(&push, json!({"status": "error", "response": "payload_size_exceeded"}))).await;
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
async fn what_a_hostile_server_says_is_counted_and_never_believed() {
    let (mut world, builder) = world();
    let client = builder.start();
    let filter = ChangeFilter::table("public", "orders");
    let channel = client.channel("den").presence().changes(filter.clone()).build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    let (join_ref, _, topic, _, payload) = server.next().await;
    let mut echo = payload["config"]["postgres_changes"].clone();
    echo[0]["id"] = json!(5);
    let reply = json!({"status": "ok", "response": {"postgres_changes": echo}});
    server.say(json!([join_ref, join_ref, topic, "phx_reply", reply])).await;
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
        server.say(json!([null, null, topic, event, payload])).await;
    }
    // Replies to what was never asked, for topics that are not there, and of joins that are over.
    server.say(json!([join_ref, "999", topic, "phx_reply", {"status": "ok", "response": {}}])).await;
    server.say(json!([null, null, "realtime:elsewhere", "broadcast", {}])).await;
    server.say(json!(["77", null, topic, "broadcast", {"event": "stale", "payload": 1}])).await;
    server.say(json!(["77", "77", topic, "phx_close", {}])).await;
    server.say(json!([null, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}])).await;
    server.say(json!([null, null, topic, "broadcast", {"event": "good", "payload": {"n": 1}}])).await;
    let good = loop {
        match events.next().await.unwrap().unwrap() {
            Event::Broadcast(said) => break said,
            Event::Status(Status::Subscribed) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((&*good.event, good.json::<Value>().unwrap()), ("good", json!({"n": 1})));
    assert_eq!(client.stats().garbage, 20);
    // More than it may say at once ends the connection, and nothing else.
    let _cut = server.0.send(Message::binary(vec![0; 17 << 20])).await;
    status(&channel, failed).await;
    world.server().await.join().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drops_the_channel_in_any_way_is_joined_again() {
    let (mut world, builder) = world();
    let client = builder.start();
    let channel = client.channel("den").acknowledged().build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    let (join_ref, _) = server.join().await;
    status(&channel, subscribed).await;
    server.say(json!([join_ref, join_ref, "realtime:den", "phx_error", {"reason": "channel_crash"}])).await;
    status(&channel, failed).await;
    server.join().await;
    status(&channel, subscribed).await;
    let (outcome, ()) = tokio::join!(channel.broadcast_bytes("e", "x"), async {
        let Some(Ok(Message::Binary(frame))) = server.0.next().await else { panic!("no bytes") };
        let reference = frame[8] - b'0';
        let reply = json!({"status": "error", "response": {"reason": "unmatched topic"}});
        server.say(json!([null, reference.to_string(), "realtime:den", "phx_reply", reply])).await;
    });
    assert!(matches!(outcome, Err(Error::Rejected { .. })), "{outcome:?}");
    server.join().await;
    status(&channel, subscribed).await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_channel_says_why_and_is_joined_again_where_there_are_new_tokens() {
    for renews in [false, true] {
        let (mut world, builder) = world();
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
        channel.start().await.unwrap();
        let mut server = world.server().await;
        let (join_ref, payload) = server.join().await;
        assert_eq!(payload["access_token"], if renews { "token-0" } else { "fixed" });
        status(&channel, subscribed).await;
        let mut events = channel.events();
        let system =
            json!({"extension": "system", "status": "error", "message": "Token has expired 0 seconds ago"});
        server.say(json!([join_ref, null, "realtime:den", "system", system])).await;
        server.say(json!([join_ref, join_ref, "realtime:den", "phx_close", {}])).await;
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
async fn a_new_token_goes_to_the_channels_with_the_next_heartbeat() {
    let (mut world, builder) = world();
    let asked = Arc::new(AtomicU32::new(0));
    let client = builder
        .token_source(move || {
            let n = asked.fetch_add(1, Ordering::Relaxed);
            async move { if n == 1 { Err("the issuer is away") } else { Ok(Some(format!("token-{n}"))) } }
        })
        .start();
    let channel = client.channel("den").build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
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
async fn whoever_lets_go_of_a_channel_leaves_it_and_of_everything_closes_the_connection() {
    let (mut world, builder) = world();
    let client = builder.start();
    let channel = client.channel("den").build();
    let listener = channel.events();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    let (join_ref, _) = server.join().await;
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
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    drop(client);
    drop(channel);
    server.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_listener_loses_the_oldest_and_is_told_how_many() {
    let (mut world, builder) = world();
    let client = builder.queue(4).start();
    let channel = client.channel("den").build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    status(&channel, subscribed).await;
    let (mut slow, mut quick) = (channel.broadcasts("n"), channel.broadcasts("N"));
    for n in 0..10 {
        server.say(json!([null, null, "realtime:den", "broadcast", {"event": "n", "payload": n}])).await;
        assert_eq!(quick.next().await.unwrap().unwrap().json::<u32>().unwrap(), n);
    }
    assert_eq!(slow.next().await.unwrap(), Err(Missed(6)));
    assert_eq!(slow.next().await.unwrap().unwrap().json::<u32>().unwrap(), 6);
}

#[tokio::test(start_paused = true)]
async fn differences_before_the_state_wait_for_it() {
    let (mut world, builder) = world();
    let client = builder.start();
    let channel = client.channel("den").presence().build();
    let mut presences = channel.presences();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    let meta = |n: u32| json!({"metas": [{"phx_ref": n.to_string()}]});
    server.say(json!([null, null, "realtime:den", "presence_diff", {"joins": {"c": meta(3)}, "leaves": {"a": meta(1)}}])).await;
    server.say(json!([null, null, "realtime:den", "presence_state", {"a": meta(1), "b": meta(2)}])).await;
    presences.next().await.unwrap().unwrap();
    let present = channel.present();
    assert_eq!(present.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn ten_messages_or_a_tenth_of_a_second_are_one_batch() {
    let (mut world, builder) = world();
    let client = builder.serializer(Version::V2).start();
    let channel = client.channel("den").acknowledged().build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    status(&channel, subscribed).await;
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
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    status(&channel, subscribed).await;
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

#[tokio::test(start_paused = true)]
async fn a_socket_that_takes_nothing_makes_callers_wait_and_not_the_memory_grow() {
    let (mut world, builder) = world();
    let client = builder.heartbeat(Duration::from_secs(3600)).start();
    let channel = client.channel("den").build();
    channel.start().await.unwrap();
    let mut server = world.server().await;
    server.join().await;
    status(&channel, subscribed).await;
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
    // It goes on when the server reads again.
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

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_what_a_program_may_print() {
    let (_world, builder) = world();
    let client = builder.token("hush-token").start();
    let channel = client.channel("den").build();
    let printed = format!("{client:?} {channel:?} {:?}", client.channel("x"));
    assert!(!printed.contains("hush") && !printed.contains("\"key\""), "{printed}");
}

proptest::proptest! {
    #[test]
    fn whatever_a_server_says_in_whatever_state_nothing_breaks(data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        super::fuzz::fuzz(&data);
    }
}
