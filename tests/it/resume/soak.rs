//! Random disconnects of resuming clients under load: no message is lost, and the order is kept.
//!
//! A few hundred disconnects in the suite. By hand: `CONVOKE_SOAK=10000 cargo nextest run --run-ignored all -E
//! 'test(soak)' --no-capture`; `CONVOKE_SOAK_SEED` repeats a run.
use super::{SECRET, token};
use crate::support::{example, from_environment};
use convoke::auth::Role;
use futures_util::{SinkExt, StreamExt};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const CLIENTS: u64 = 16;
const RATE: u64 = 1000;
const TOPIC: &str = "realtime:chat:soak";
const PATIENCE: Duration = Duration::from_secs(120);

type Ws = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The daemon's channels in a process that can be killed.
struct Daemon(Child);

impl Daemon {
    async fn start(dir: &Path, port: u16) -> Self {
        std::fs::write(
            dir.join("convoke.toml"),
            "[[channels]]\ntopic = 'chat:*'\nhistory = '3h'\nresume = true\n",
        )
        .unwrap();
        let mut command = Command::new(example("channels"));
        command
            .current_dir(dir)
            .env("CONVOKE_AUTH__JWT_SECRET", SECRET)
            .env("CONVOKE_DATABASE__DATA_DIR", dir.join("data"))
            .env("CONVOKE_SERVER__LISTEN", format!("127.0.0.1:{port}"))
            .env("CONVOKE_GATEWAY__IDLE_TIMEOUT", "5s")
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let link = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        assert!(link.expect("it is up").contains("addr"));
        Self(child)
    }

    async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}

struct Soak {
    url: String,
    disconnects: AtomicU64,
    wanted: u64,
    over: AtomicBool,
    /// The number of published messages, once the run is over.
    published: AtomicU64,
    duplicates: AtomicU64,
    replayed: AtomicU64,
}

impl Soak {
    fn url(&self, client: &str, vsn: &str) -> String {
        format!("{}?apikey={}&vsn={vsn}&client_id={client}", self.url, token(Role::Anon, None))
    }

    async fn connect(&self, client: &str) -> Ws {
        let trying = async {
            loop {
                if let Ok((ws, _)) = connect_async(self.url(client, "2.0.0")).await {
                    return ws;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, trying).await.expect("the daemon comes back")
    }

    /// Publishes 0, 1, 2 … and repeats what was not acknowledged.
    async fn publish_all(self: Arc<Self>) {
        let (mut acked, mut started, mut answered_at) = (0, None, Instant::now());
        'connection: loop {
            let mut ws = self.connect("speaker").await;
            let join = json!(["1", "1", TOPIC, "phx_join", {"config": {"broadcast": {"ack": true}}}]);
            if ws.send(Message::text(join.to_string())).await.is_err() {
                continue;
            }
            let begun = *started.get_or_insert_with(Instant::now);
            let mut next = acked;
            loop {
                let due = u64::try_from(begun.elapsed().as_millis()).unwrap() * RATE / 1000;
                // The backlog of a downtime is published in pieces, to stay below the rate limits.
                let upto = due.min(acked + 500);
                if !self.over.load(SeqCst) {
                    for n in next..upto {
                        let payload = json!({"type": "broadcast", "event": "m", "payload": {"n": n}});
                        let frame = json!(["1", format!("a{n}"), TOPIC, "broadcast", payload]);
                        if ws.feed(Message::text(frame.to_string())).await.is_err() {
                            continue 'connection;
                        }
                    }
                    next = next.max(upto);
                    if ws.flush().await.is_err() {
                        continue 'connection;
                    }
                } else if acked == next {
                    self.published.store(acked, SeqCst);
                    return;
                }
                assert!(answered_at.elapsed() < PATIENCE, "{acked} of {next} are acknowledged");
                match timeout(Duration::from_millis(5), ws.next()).await {
                    Ok(Some(Ok(Message::Text(text)))) => {
                        let frame: Value = serde_json::from_str(&text).unwrap();
                        let reference = frame[1].as_str().unwrap_or_default();
                        if let Some(n) = reference.strip_prefix('a') {
                            assert_eq!(frame[4]["status"], "ok", "{text}");
                            assert_eq!(n.parse::<u64>().unwrap(), acked, "acks come in order");
                            acked += 1;
                            answered_at = Instant::now();
                        }
                    }
                    Ok(Some(Ok(_))) | Err(_) => {}
                    Ok(_) => continue 'connection,
                }
            }
        }
    }

    /// Receives everything, with random disconnects.
    async fn next_message(self: Arc<Self>, which: u64, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let client = format!("client-{which}");
        let (mut expected, mut known, mut moved_at) = (0, false, Instant::now());
        let mut half_open: Vec<Ws> = Vec::new();
        loop {
            let mut ws = self.connect(&client).await;
            let ends = Instant::now() + Duration::from_millis(rng.random_range(20..700));
            let join = json!(["1", "1", TOPIC, "phx_join", {"config": {}}]);
            let _ = ws.send(Message::text(join.to_string())).await;
            let (mut beats, mut live, mut answered) = (0_u64, false, true);
            let mut beat_at = Instant::now();
            // The latest frames of this connection, the newest first.
            let mut recent = VecDeque::new();
            loop {
                let over = self.over.load(SeqCst);
                // A killed daemon may have kept messages that it did not acknowledge.
                let published = self.published.load(SeqCst);
                if over && known && expected >= published && published > 0 {
                    return;
                }
                if !over {
                    moved_at = Instant::now();
                }
                assert!(
                    moved_at.elapsed() < PATIENCE,
                    "client {which}, seed {seed}: waits for {expected} of {published}, joined: {known}, \
                     {beats} heartbeats, the last one answered: {answered}, {recent:#?}"
                );
                if !over && Instant::now() >= ends {
                    break;
                }
                if answered && Instant::now() >= beat_at {
                    beats += 1;
                    answered = false;
                    let beat = json!([null, format!("h{beats}"), "phoenix", "heartbeat", {}]);
                    if ws.send(Message::text(beat.to_string())).await.is_err() {
                        break;
                    }
                }
                let frame = match timeout(Duration::from_millis(20), ws.next()).await {
                    Err(_) => continue,
                    Ok(Some(Ok(Message::Text(text)))) => serde_json::from_str::<Value>(&text).unwrap(),
                    Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => break,
                    Ok(Some(Ok(_))) => continue,
                };
                recent.truncate(49);
                recent.push_front(frame.to_string());
                match frame[3].as_str().unwrap() {
                    "phx_reply" if frame[2] == "phoenix" => {
                        answered = true;
                        beat_at = Instant::now() + Duration::from_millis(rng.random_range(5..150));
                    }
                    "system" if frame[4]["extension"] == "resume" => {
                        let gap = &frame[4]["meta"]["gap"];
                        assert!(gap.is_null() || !known, "seed {seed}: {frame}");
                        known = true;
                    }
                    "broadcast" => {
                        let n = frame[4]["payload"]["n"].as_u64().unwrap();
                        let replayed = frame[4]["meta"]["replayed"] == true;
                        assert!(!(replayed && live), "seed {seed}: replayed behind live: {frame}");
                        live |= !replayed;
                        self.replayed.fetch_add(replayed.into(), SeqCst);
                        // Messages published before this client's first join are not expected.
                        if expected == 0 {
                            expected = n;
                        }
                        assert!(
                            n <= expected,
                            "client {which}, seed {seed}: lost {expected} to {n}: {recent:#?}"
                        );
                        if n == expected {
                            expected += 1;
                            moved_at = Instant::now();
                        } else {
                            self.duplicates.fetch_add(1, SeqCst);
                        }
                    }
                    _ => {}
                }
            }
            self.disconnects.fetch_add(1, SeqCst);
            if self.disconnects.load(SeqCst) >= self.wanted {
                self.over.store(true, SeqCst);
            }
            match rng.random_range(0..10) {
                // The daemon gets no close: it notices the dead connection by its timeout.
                0..3 => half_open.push(ws),
                3 => drop(ws.close(None).await),
                _ => drop(ws),
            }
            half_open.truncate(8);
            if rng.random_bool(0.2) {
                sleep(Duration::from_millis(rng.random_range(0..500))).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_lost_over_random_disconnects_and_kills() {
    let wanted = from_environment("CONVOKE_SOAK", 200);
    let seed = from_environment("CONVOKE_SOAK_SEED", rand::random());
    println!("soak: {wanted} disconnects, seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut daemon = Daemon::start(folder.path(), port).await;
    let soak = Arc::new(Soak {
        url: format!("ws://127.0.0.1:{port}/realtime/v1/websocket"),
        disconnects: AtomicU64::new(0),
        wanted,
        over: AtomicBool::new(false),
        published: AtomicU64::new(0),
        duplicates: AtomicU64::new(0),
        replayed: AtomicU64::new(0),
    });
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for which in 0..CLIENTS {
        tasks.spawn(soak.clone().next_message(which, seed ^ which));
    }
    tasks.spawn(soak.clone().publish_all());
    let (mut rng, mut kills) = (StdRng::seed_from_u64(seed), 0);
    loop {
        let next = Duration::from_millis(rng.random_range(1000..4000));
        tokio::select! {
            () = sleep(next) => {}
            ended = tasks.join_next() => match ended {
                Some(ended) => {
                    ended.unwrap();
                    continue;
                }
                None => break,
            },
        }
        if !soak.over.load(SeqCst) {
            daemon.kill().await;
            kills += 1;
            daemon = Daemon::start(folder.path(), port).await;
        }
    }
    println!(
        "soak: {} disconnects and {kills} kills in {:?}; {} messages to {CLIENTS} clients: 0 lost, {} replayed, {} duplicates; seed {seed}",
        soak.disconnects.load(SeqCst),
        began.elapsed(),
        soak.published.load(SeqCst),
        soak.replayed.load(SeqCst),
        soak.duplicates.load(SeqCst),
    );
}
