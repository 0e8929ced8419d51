//! The dashboards of `dashboard`, in a process of their own: each follows the digests of its org and reads the list of
//! tasks and the overview as the page does.
//!
//! A list is read when a digest says that tasks changed, at most twice a second, and the overview every two seconds. A
//! digest that is missing, by its number, ends the run: a dashboard would read everything again. Takes orders as lines of
//! JSON like [`super::client`].
use super::{
    client::orders,
    figures::Figures,
    frames::{self, Frames},
    process,
};
use anyhow::{Context, bail, ensure};
use clap::Args;
use convoke::clock::Clock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
    time::Instant,
};

/// Longest wait for a single step.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the page reads a list, and the overview, at most.
const LIST_EVERY: Duration = Duration::from_millis(500);
const OVERVIEW_EVERY: Duration = Duration::from_secs(2);
/// The daemon closes a socket on which nothing arrives for a minute.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(25);
const LIST: &str = "/v1/tasks?view=line&limit=100";
const OVERVIEW: &str = "/v1/overview";
const READ_BYTES: usize = 64 << 10;

/// The variable with the token of the dashboards.
pub(super) const TOKEN: &str = "CONVOKE_BENCH_TOKEN";

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    addr: SocketAddr,
    #[arg(long, env = TOKEN, hide_env_values = true)]
    token: String,
    /// The org whose digests are followed
    #[arg(long)]
    org: String,
    #[arg(long)]
    dashboards: usize,
}

/// Watch for so long.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) seconds: f64,
}

/// What all dashboards have seen since the last order.
#[derive(Default)]
struct Seen {
    digests: Cell<usize>,
    reads: Cell<usize>,
    bytes: Cell<usize>,
    /// From the request of a task to the end of the reading that showed it.
    shown: RefCell<Vec<Duration>>,
    watching: Cell<bool>,
    /// The first fault.
    wrong: RefCell<Option<String>>,
}

/// Runs on the calling thread.
pub(super) fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(Rc::new(options)))
}

async fn serve(options: Rc<Options>) -> anyhow::Result<()> {
    let seen = Rc::new(Seen::default());
    for _ in 0..options.dashboards {
        let mut dashboard = Dashboard::open(&options).await?;
        let seen = seen.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = dashboard.follow(&seen).await {
                seen.wrong.replace(Some(format!("{error:#}")));
            }
        });
    }
    println!("{}", json!({ "joined": options.dashboards }));
    let mut lines = orders();
    while let Some(order) = lines.recv().await {
        let Order { seconds } = serde_json::from_str(&order).context("invalid order")?;
        println!("{}", json!({ "begin": true }));
        let (since, cpu) = (Instant::now(), process::cpu()?);
        seen.watching.set(true);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        seen.watching.set(false);
        if let Some(wrong) = seen.wrong.borrow().as_ref() {
            bail!("a dashboard failed: {wrong}");
        }
        let mut figures = Figures::default();
        figures.add_percentiles("shown", seen.shown.take());
        let end = json!({
            "digests": seen.digests.take(), "reads": seen.reads.take(), "bytes": seen.bytes.take(),
            "cpu": (process::cpu()? - cpu).as_secs_f64(), "seconds": since.elapsed().as_secs_f64(),
            "shown_p50_ms": figures.get("shown_p50_ms"), "shown_p99_ms": figures.get("shown_p99_ms"),
        });
        println!("{}", json!({ "end": end }));
    }
    Ok(())
}

struct Dashboard {
    socket: TcpStream,
    http: Http,
    known: HashSet<String>,
    /// The number of the last digest.
    last: Option<u64>,
}

impl Dashboard {
    /// Enters the room of digests, and reads the list for the first time.
    async fn open(options: &Options) -> anyhow::Result<Self> {
        let step = async {
            let mut socket = TcpStream::connect(options.addr).await?;
            socket.set_nodelay(true)?;
            socket.write_all(frames::handshake(&options.token).as_bytes()).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.context("closed in the handshake")?);
            }
            ensure!(
                head.starts_with(b"HTTP/1.1 101"),
                "websocket refused: {}",
                String::from_utf8_lossy(&head)
            );
            let topic = format!("realtime:convoke:{}", options.org);
            let join = json!(["1", "1", topic, "phx_join", { "config": {} }]);
            socket.write_all(&frames::masked(1, join.to_string().as_bytes())).await?;
            let http = Http::open(options.addr, &options.token).await?;
            let mut dashboard = Self { socket, http, known: HashSet::new(), last: None };
            dashboard.read_list(&Seen::default()).await?;
            anyhow::Ok(dashboard)
        };
        tokio::time::timeout(PATIENCE, step).await.context("no answer to a dashboard")?
    }

    async fn follow(&mut self, seen: &Seen) -> anyhow::Result<()> {
        let (mut frames, mut part) = (Frames::default(), vec![0; READ_BYTES]);
        let (mut is_stale, mut list_at, mut overview_at) = (false, Instant::now(), Instant::now());
        let mut heartbeat_at = Instant::now();
        loop {
            // A list that is stale is read when its time has come; otherwise the next digest is awaited.
            let due = if is_stale { list_at + LIST_EVERY } else { overview_at + OVERVIEW_EVERY };
            let size = tokio::select! {
                size = self.socket.read(&mut part) => Some(size?),
                () = tokio::time::sleep_until(due) => None,
            };
            let mut digests = Vec::new();
            if let Some(size) = size {
                ensure!(size > 0, "the socket was closed");
                frames.feed(part.get(..size).unwrap_or_default(), |frame| digests.extend(digest(frame)));
            }
            for digest in digests {
                let n = digest.get("n").and_then(Value::as_u64).context("a digest without number")?;
                ensure!(self.last.is_none_or(|last| n == last + 1), "digest {n} follows {:?}", self.last);
                self.last = Some(n);
                let tasks = digest.get("tasks").and_then(Value::as_array);
                is_stale |= tasks.is_some_and(|tasks| !tasks.is_empty());
                is_stale |= digest.get("more").and_then(Value::as_bool) == Some(true);
                seen.digests.set(seen.digests.get() + 1);
            }
            if heartbeat_at.elapsed() >= HEARTBEAT_EVERY {
                heartbeat_at = Instant::now();
                let heartbeat = json!([null, "0", "phoenix", "heartbeat", {}]);
                self.socket.write_all(&frames::masked(1, heartbeat.to_string().as_bytes())).await?;
            }
            if is_stale && list_at.elapsed() >= LIST_EVERY {
                (is_stale, list_at) = (false, Instant::now());
                self.read_list(seen).await?;
            }
            if overview_at.elapsed() >= OVERVIEW_EVERY {
                overview_at = Instant::now();
                let body = self.http.get(OVERVIEW).await?;
                seen.read(body.len());
            }
        }
    }

    async fn read_list(&mut self, seen: &Seen) -> anyhow::Result<()> {
        let body = self.http.get(LIST).await?;
        seen.read(body.len());
        let now = Duration::from_millis(u64::try_from(Clock::System.now().timestamp_millis())?);
        let lines: Value = serde_json::from_slice(&body)?;
        let shown = lines.get("tasks").and_then(Value::as_array).context("a list without tasks")?;
        let ids = shown.iter().filter_map(|line| line.get("id")?.as_str());
        for id in ids.map(str::to_owned).collect::<Vec<_>>() {
            let requested = requested_at(&id).context("an id without time")?;
            if self.known.insert(id) && seen.watching.get() {
                seen.shown.borrow_mut().push(now.saturating_sub(requested));
            }
        }
        Ok(())
    }
}

impl Seen {
    fn read(&self, bytes: usize) {
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }
}

/// The payload of a frame that is a digest.
fn digest(frame: &[u8]) -> Option<Value> {
    let mut message: Value = serde_json::from_slice(frames::payload(frame)).ok()?;
    let payload = message.get_mut(4)?;
    (payload["event"] == "digest").then(|| payload["payload"].take())
}

/// When a task was requested: its id begins with the milliseconds.
fn requested_at(id: &str) -> Option<Duration> {
    let digits = id.get(..8)?.to_owned() + id.get(9..13)?;
    u64::from_str_radix(&digits, 16).ok().map(Duration::from_millis)
}

/// A connection that is kept, with one request at a time.
pub(super) struct Http {
    socket: TcpStream,
    token: String,
}

impl Http {
    pub(super) async fn open(addr: SocketAddr, token: &str) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(addr).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, token: token.to_owned() })
    }

    /// The body of an answer; any status but 200 is an error.
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        let token = &self.token;
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n\r\n");
        let step = async {
            self.socket.write_all(request.as_bytes()).await?;
            let (mut got, mut part) = (Vec::new(), vec![0; READ_BYTES]);
            let end = loop {
                if let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") {
                    break end + 4;
                }
                let size = self.socket.read(&mut part).await?;
                ensure!(size > 0, "the daemon closed the connection");
                got.extend_from_slice(part.get(..size).unwrap_or_default());
            };
            let head = String::from_utf8_lossy(got.get(..end).unwrap_or_default()).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.context("an answer without length")?.trim().parse()?;
            let mut body = got.split_off(end);
            while body.len() < length {
                let size = self.socket.read(&mut part).await?;
                ensure!(size > 0, "the daemon closed the connection");
                body.extend_from_slice(part.get(..size).unwrap_or_default());
            }
            ensure!(head.starts_with("http/1.1 200"), "{path}: {}", String::from_utf8_lossy(&body));
            anyhow::Ok(body)
        };
        tokio::time::timeout(PATIENCE, step).await.with_context(|| format!("no answer to {path}"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_found_in_a_frame() {
        let text = r#"[null,null,"realtime:convoke:bench","broadcast",{"event":"digest","payload":{"n":7}}]"#;
        assert_eq!(digest(&frames::unmasked(1, text.as_bytes())), Some(json!({ "n": 7 })));
        let reply = br#"["1","1","realtime:convoke:bench","phx_reply",{"status":"ok","response":{}}]"#;
        assert_eq!(digest(&frames::unmasked(1, reply)), None);
    }

    #[test]
    fn id_says_when_a_task_was_requested() {
        let at = requested_at("01234567-89ab-7000-8000-000000000000");
        assert_eq!(at, Some(Duration::from_millis(0x0123_4567_89ab)));
    }
}
