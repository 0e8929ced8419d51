//! The clients of the channel benchmarks, in a process of their own, so that their processor time and memory are not
//! the daemon's.
//!
//! Sockets are read without decoding messages: a frame costs its header and a counter. Takes orders as lines of JSON on
//! standard input and answers each with a `begin` and an `end` line on standard output; ends with its input.
use super::{
    frames::{self, Frames},
    process,
};
use anyhow::{Context, bail, ensure};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::BufRead,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{self, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::Notify,
    task::LocalSet,
    time::Instant,
};

const HANDSHAKES_AT_ONCE: usize = 32;
/// Longest wait for a single step.
const PATIENCE: Duration = Duration::from_secs(30);
/// Load before the measurement begins.
const WARM_UP: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 64 << 10;
/// Where the number of a message is in its payload, after `{"n":"`.
const NUMBER: std::ops::Range<usize> = 6..16;

/// The variable with the sockets' key.
pub(super) const KEY: &str = "CONVOKE_BENCH_KEY";

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    addr: SocketAddr,
    #[arg(long, env = KEY, hide_env_values = true)]
    key: String,
    #[arg(long)]
    sockets: usize,
    /// Sockets on one topic
    #[arg(long)]
    room: usize,
    /// Size of a payload in bytes
    #[arg(long, default_value_t = 128)]
    bytes: usize,
}

/// What the parent process orders.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// As many messages as possible, `in_flight` at once.
    Saturate { seconds: f64, in_flight: u64 },
    /// `rate` messages a second.
    Paced { seconds: f64, rate: u32 },
}

/// Counters of all readers.
struct Seen {
    sockets: u64,
    frames: Cell<u64>,
    ended: Cell<u64>,
    more: Notify,
    /// When each paced message was sent; empty while latency is not measured.
    sent: RefCell<Vec<Instant>>,
    late_us: RefCell<Vec<u32>>,
}

/// Runs on the calling thread: one event loop without work stealing is the cheapest reader.
pub(super) fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(options))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    process::allow_sockets(options.sockets)?;
    let opened: Vec<_> = stream::iter(0..options.sockets)
        .map(|n| open(&options, n / options.room.max(1)))
        .buffer_unordered(HANDSHAKES_AT_ONCE)
        .try_collect()
        .await?;
    let mut publisher = open(&options, 0).await?;
    let seen = Rc::new(Seen {
        sockets: u64::try_from(options.sockets)?,
        frames: Cell::new(0),
        ended: Cell::new(0),
        more: Notify::new(),
        sent: RefCell::default(),
        late_us: RefCell::default(),
    });
    for socket in opened {
        tokio::task::spawn_local(read(socket, seen.clone(), options.bytes));
    }
    println!("{}", json!({ "joined": options.sockets }));
    let mut lines = orders();
    while let Some(order) = lines.recv().await {
        match serde_json::from_str(&order).context("invalid order")? {
            Order::Saturate { seconds, in_flight } => {
                saturate(&mut publisher, &seen, &options, seconds, in_flight).await?;
            }
            Order::Paced { seconds, rate } => paced(&mut publisher, &seen, &options, seconds, rate).await?,
        }
        ensure!(seen.ended.get() == 0, "{} sockets were closed", seen.ended.get());
    }
    Ok(())
}

/// Lines of standard input, read by a thread of its own: a blocking read would stop the event loop. Ends with the
/// input.
pub(super) fn orders() -> tokio::sync::mpsc::Receiver<String> {
    let (sender, lines) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Opens a socket and joins its topic.
async fn open(options: &Options, room: usize) -> anyhow::Result<TcpStream> {
    let step = async {
        let mut socket = TcpStream::connect(options.addr).await?;
        socket.set_nodelay(true)?;
        socket.write_all(frames::handshake(&options.key).as_bytes()).await?;
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            fill(&mut socket, &mut got).await?;
        }
        ensure!(got.starts_with(b"HTTP/1.1 101"), "websocket refused: {}", String::from_utf8_lossy(&got));
        got.clear();
        let join = format!(r#"["1","1","realtime:{}-{room}","phx_join",{{"config":{{}}}}]"#, frames::TOPIC);
        socket.write_all(&frames::masked(1, join.as_bytes())).await?;
        let ok = br#""status":"ok""#;
        while !got.windows(ok.len()).any(|window| window == ok) {
            fill(&mut socket, &mut got).await?;
        }
        anyhow::Ok(socket)
    };
    tokio::time::timeout(PATIENCE, step).await.context("no answer to the handshake or the join")?
}

async fn fill(socket: &mut TcpStream, got: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut part = [0; 1024];
    let size = socket.read(&mut part).await?;
    if size == 0 {
        bail!("closed after {:?}", String::from_utf8_lossy(got));
    }
    got.extend_from_slice(part.get(..size).unwrap_or_default());
    Ok(())
}

thread_local! {
    /// One buffer for all readers: no reader keeps it across an await.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

async fn read(mut socket: TcpStream, seen: Rc<Seen>, bytes: usize) {
    let mut frames = Frames::default();
    // `poll_read` saves a system call: tokio knows that a read that did not fill the buffer emptied the socket.
    let mut next = |cx: &mut task::Context<'_>| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut socket).poll_read(cx, &mut buffer))?;
            let (now, mut count) = (Instant::now(), 0);
            frames.feed(buffer.filled(), |frame| {
                if frame.first() == Some(&0x82) {
                    count += 1;
                    seen.timed(frame, bytes, now);
                }
            });
            seen.count(count);
            Poll::Ready(std::io::Result::Ok(!buffer.filled().is_empty()))
        })
    };
    while matches!(poll_fn(&mut next).await, Ok(true)) {}
    seen.ended.set(seen.ended.get() + 1);
    seen.more.notify_one();
}

impl Seen {
    fn count(&self, frames: u64) {
        let (before, after) = (self.frames.get(), self.frames.get() + frames);
        self.frames.set(after);
        if before / self.sockets != after / self.sockets {
            self.more.notify_one();
        }
    }

    /// The payload is the last `bytes` of a frame.
    fn timed(&self, frame: &[u8], bytes: usize, now: Instant) {
        let sent = self.sent.borrow();
        if sent.is_empty() {
            return;
        }
        let payload = frame.len().checked_sub(bytes).and_then(|at| frame.get(at..));
        let number = payload.and_then(|payload| payload.get(NUMBER));
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        if let Some(at) = number.and_then(|number| sent.get(number)) {
            let late = now.saturating_duration_since(*at).as_micros();
            self.late_us.borrow_mut().push(u32::try_from(late).unwrap_or(u32::MAX));
        }
    }

    async fn until(&self, frames: u64) -> anyhow::Result<()> {
        while self.frames.get() < frames {
            ensure!(self.ended.get() == 0, "a socket was closed");
            tokio::time::timeout(PATIENCE, self.more.notified()).await.context("messages are missing")?;
        }
        Ok(())
    }
}

async fn saturate(
    publisher: &mut TcpStream,
    seen: &Seen,
    options: &Options,
    seconds: f64,
    in_flight: u64,
) -> anyhow::Result<()> {
    let base = seen.frames.get();
    let (mut sent, mut batch) = (0_u64, Vec::new());
    let started = Instant::now();
    let mut measured: Option<(Instant, u64, Duration)> = None;
    loop {
        let now = Instant::now();
        match measured {
            None if now >= started + WARM_UP => {
                println!("{}", json!({ "begin": true }));
                measured = Some((now, seen.frames.get(), process::cpu()?));
            }
            Some((since, before, cpu)) if now >= since + Duration::from_secs_f64(seconds) => {
                let deliveries = seen.frames.get() - before;
                let end = json!({
                    "deliveries": deliveries,
                    "seconds": since.elapsed().as_secs_f64(),
                    "cpu": (process::cpu()? - cpu).as_secs_f64(),
                });
                println!("{}", json!({ "end": end }));
                break;
            }
            _ => {}
        }
        let done = (seen.frames.get() - base) / seen.sockets;
        batch.clear();
        while sent < done + in_flight {
            batch.extend_from_slice(&frames::push(options.bytes, sent));
            sent += 1;
        }
        publisher.write_all(&batch).await?;
        seen.until(base + (sent.saturating_sub(in_flight) + 1) * seen.sockets).await?;
    }
    seen.until(base + sent * seen.sockets).await
}

async fn paced(
    publisher: &mut TcpStream,
    seen: &Seen,
    options: &Options,
    seconds: f64,
    rate: u32,
) -> anyhow::Result<()> {
    let base = seen.frames.get();
    let period = Duration::from_secs(1) / rate.max(1);
    let messages = (seconds / period.as_secs_f64()).ceil();
    let mut tick = tokio::time::interval(period);
    println!("{}", json!({ "begin": true }));
    let (since, cpu) = (Instant::now(), process::cpu()?);
    let mut sent = 0_u32;
    while f64::from(sent) < messages {
        tick.tick().await;
        seen.sent.borrow_mut().push(Instant::now());
        publisher.write_all(&frames::push(options.bytes, sent.into())).await?;
        sent += 1;
    }
    seen.until(base + u64::from(sent) * seen.sockets).await?;
    seen.sent.borrow_mut().clear();
    let mut late = seen.late_us.take();
    late.sort_unstable();
    let at = |percent: usize| {
        let at = (late.len().saturating_sub(1) * percent).div_ceil(100);
        late.get(at).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    };
    let end = json!({
        "p50_ms": at(50),
        "p95_ms": at(95),
        "p99_ms": at(99),
        "seconds": since.elapsed().as_secs_f64(),
        "cpu": (process::cpu()? - cpu).as_secs_f64(),
    });
    println!("{}", json!({ "end": end }));
    Ok(())
}
