//! The client against an in-memory server of the test, in virtual time.
mod channel;
mod connection;
mod helpers;

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

/// The server's end of each connection, and the number of attempts to refuse first.
struct Harness {
    ends: tokio::sync::mpsc::Receiver<DuplexStream>,
    dials: Arc<Mutex<VecDeque<Instant>>>,
    refuse: Arc<AtomicU32>,
}

struct Server(WebSocketStream<DuplexStream>);

fn harness() -> (Harness, Builder) {
    let (sender, ends) = mpsc::channel(10);
    let (dials, refuse) = (Arc::new(Mutex::new(VecDeque::new())), Arc::new(AtomicU32::new(0)));
    let harness = Harness { ends, dials: dials.clone(), refuse: refuse.clone() };
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
    (harness, builder)
}

impl Harness {
    async fn server(&mut self) -> Server {
        Server(accept_async(self.ends.recv().await.unwrap()).await.unwrap())
    }
    /// Subscribes the first channel of a connection. Returns the server, and the ref and payload of the join.
    async fn joined(&mut self, channel: &Channel) -> (Server, Value, Value) {
        channel.start().await.unwrap();
        let mut server = self.server().await;
        let (join_ref, payload) = server.join().await;
        status(channel, subscribed).await;
        (server, join_ref, payload)
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
    async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }
    /// Accepts the next frame, which must be a join. Returns its ref and payload.
    async fn join(&mut self) -> (Value, Value) {
        let (join_ref, reference, topic, event, payload) = self.next().await;
        assert_eq!(event, "phx_join");
        let changes = payload["config"]["postgres_changes"].clone();
        let reply = json!({"status": "ok", "response": {"postgres_changes": changes}});
        self.send(json!([join_ref, reference, topic, "phx_reply", reply])).await;
        (join_ref, payload)
    }
    async fn ok(&mut self, join_ref: &Value, reference: &Value, topic: &str) {
        let reply = json!({"status": "ok", "response": {}});
        self.send(json!([join_ref, reference, topic, "phx_reply", reply])).await;
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
async fn debug_output_contains_no_secret() {
    let (_world, builder) = harness();
    let client = builder.token("hush-token").start();
    let channel = client.channel("den").build();
    let printed = format!("{client:?} {channel:?} {:?}", client.channel("x"));
    assert!(!printed.contains("hush") && !printed.contains("\"key\""), "{printed}");
}

proptest::proptest! {
    #[test]
    fn session_survives_any_frames_in_any_state(data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        super::fuzz::fuzz(&data);
    }
}
