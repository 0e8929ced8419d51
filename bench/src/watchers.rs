//! The clients of `changes`, in a process of their own: sockets that are subscribed to a table, and its writer.
//!
//! Every frame is counted on its socket, and at the end each socket must have received exactly its changes. Some sockets
//! read the number of every change and check that none is missing, duplicate or out of order. Takes orders as lines of
//! JSON like [`super::client`].
use super::{
    client::orders,
    figures::Figures,
    frames::{self, Frames},
    process,
};
use anyhow::{Context, bail, ensure};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::LocalSet,
    time::Instant,
};
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

const HANDSHAKES_AT_ONCE: usize = 16;
/// Longest wait for a single step.
const PATIENCE: Duration = Duration::from_secs(60);
/// Load before the measurement begins.
const WARM_UP: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 64 << 10;
/// Text of each row.
const PAYLOAD: &str = "a row of the measurement, as long as rows usually are";

/// The variable with the URL of the database.
pub(super) const DATABASE: &str = "CONVOKE_BENCH_DATABASE";
/// The variable with the sockets' keys.
pub(super) const KEYS: &str = "CONVOKE_BENCH_KEYS";

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    addr: SocketAddr,
    /// URL of the database
    #[arg(long, env = DATABASE, hide_env_values = true)]
    database: String,
    /// The table, in schema `public`
    #[arg(long)]
    table: String,
    /// Tokens, one for each group; socket n is of group n modulo their number
    #[arg(long, value_delimiter = ',', env = KEYS, hide_env_values = true)]
    keys: Vec<String>,
    #[arg(long)]
    sockets: usize,
    /// Channels of each socket
    #[arg(long, default_value_t = 1)]
    channels: usize,
    /// Each channel filters by a number of its own
    #[arg(long)]
    filtered: bool,
    /// Each row belongs to one group; by default to all
    #[arg(long)]
    own: bool,
    /// Rows of one transaction
    #[arg(long, default_value_t = 50)]
    rows: usize,
}

/// What the parent process orders.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// As many changes as possible, `in_flight` at once.
    Saturate { seconds: f64, in_flight: usize },
    /// `rate` transactions a second, of one row each.
    Paced { seconds: f64, rate: u32 },
}

/// Sockets by their numbers, and the counters of all.
struct Seen {
    frames: Cell<usize>,
    sockets: Vec<Socket>,
    /// Channels among which the changes are divided by their numbers; 1 without filters.
    filters: usize,
    ended: Cell<usize>,
    more: Notify,
    paced: Cell<bool>,
    /// When each change of the paced part was committed; the first one is number `first`.
    committed: RefCell<Vec<Instant>>,
    first: Cell<usize>,
    /// Changes of the paced part with the times at which they were read.
    received: RefCell<Vec<(usize, Instant)>>,
    /// The first violation of order or content.
    wrong: RefCell<Option<String>>,
}

#[derive(Default)]
struct Socket {
    frames: Cell<usize>,
    /// The last change of each channel, if this socket reads them. Changes are ordered within a channel only.
    last: RefCell<HashMap<usize, usize>>,
    /// Reads the number of every change; otherwise frames are only counted.
    reads: bool,
}

/// Runs on the calling thread: one event loop without work stealing is the cheapest reader.
pub(super) fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(Rc::new(options)))
}

struct Writer {
    client: Client,
    insert: Statement,
    options: Rc<Options>,
    /// Number of the next change.
    next: usize,
}

async fn serve(options: Rc<Options>) -> anyhow::Result<()> {
    ensure!(!options.keys.is_empty() && options.sockets > 0, "sockets and keys are needed");
    process::allow_sockets(options.sockets)?;
    let opened: Vec<TcpStream> = stream::iter(0..options.sockets)
        .map(|n| open(&options, n))
        .buffered(HANDSHAKES_AT_ONCE)
        .try_collect()
        .await?;
    let groups = options.keys.len();
    // With filters every row goes to one channel only, so every socket can read without becoming the bottleneck.
    let socket = |n: usize| Socket { reads: n < groups || options.filtered, ..Socket::default() };
    let seen = Rc::new(Seen {
        frames: Cell::new(0),
        sockets: (0..options.sockets).map(socket).collect(),
        filters: if options.filtered { options.sockets * options.channels } else { 1 },
        ended: Cell::new(0),
        more: Notify::new(),
        paced: Cell::new(false),
        committed: RefCell::default(),
        first: Cell::new(0),
        received: RefCell::default(),
        wrong: RefCell::default(),
    });
    for (n, socket) in opened.into_iter().enumerate() {
        tokio::task::spawn_local(read(socket, n, seen.clone()));
    }
    let mut writer = Writer::new(options.clone()).await?;
    println!("{}", json!({ "joined": options.sockets }));
    let mut lines = orders();
    while let Some(order) = lines.recv().await {
        let end = match serde_json::from_str(&order).context("invalid order")? {
            Order::Saturate { seconds, in_flight } => {
                saturate(&mut writer, &seen, seconds, in_flight).await?
            }
            Order::Paced { seconds, rate } => paced(&mut writer, &seen, seconds, rate).await?,
        };
        seen.check(&options, writer.next)?;
        println!("{}", json!({ "end": end }));
    }
    Ok(())
}

impl Writer {
    async fn new(options: Rc<Options>) -> anyhow::Result<Self> {
        let (client, connection) = tokio_postgres::connect(&options.database, NoTls).await?;
        tokio::task::spawn_local(connection);
        let insert = format!(
            "insert into public.{} select i, i % $3, case when $4 then 'g' || (i % $5) else 'all' end, $6 \
             from generate_series($1::bigint, $1 + $2 - 1) i",
            options.table
        );
        let insert = client.prepare(&insert).await?;
        Ok(Self { client, insert, options, next: 0 })
    }

    /// Commits so many rows in one transaction.
    async fn write(&mut self, rows: usize) -> anyhow::Result<()> {
        let Options { sockets, channels, keys, own, .. } = &*self.options;
        let big = |number: usize| i64::try_from(number);
        let (first, rows_asked) = (big(self.next)?, big(rows)?);
        let (all, groups) = (big(sockets * channels)?, big(keys.len())?);
        self.client.execute(&self.insert, &[&first, &rows_asked, &all, own, &groups, &PAYLOAD]).await?;
        self.next += rows;
        Ok(())
    }

    /// Frames that the first `changes` changes cause.
    fn frames(&self, changes: usize) -> usize {
        let Options { sockets, keys, filtered, own, .. } = &*self.options;
        match (filtered, own) {
            (true, _) => changes,
            (_, true) => (0..keys.len())
                .map(|group| of_group(changes, group, keys.len()) * members(*sockets, group, keys.len()))
                .sum(),
            _ => changes * sockets,
        }
    }
}

/// How many of the numbers below `count` have the remainder `group`.
fn of_group(count: usize, group: usize, groups: usize) -> usize {
    count / groups + usize::from(count % groups > group)
}

fn members(sockets: usize, group: usize, groups: usize) -> usize {
    of_group(sockets, group, groups)
}

impl Seen {
    fn take(&self, n: usize, frame: &[u8], now: Instant) {
        // Text frames of a joined socket are row changes.
        if frame.first() != Some(&0x81) {
            return;
        }
        let Some(socket) = self.sockets.get(n) else { return };
        socket.frames.set(socket.frames.get() + 1);
        self.frames.set(self.frames.get() + 1);
        if socket.reads {
            match number(frame) {
                Some(number) => {
                    let last = socket.last.borrow_mut().insert(number % self.filters, number);
                    if let Some(last) = last.filter(|last| *last >= number) {
                        self.wrong.replace(Some(format!("socket {n} received change {number} after {last}")));
                    }
                    if self.paced.get() {
                        self.received.borrow_mut().push((number, now));
                    }
                }
                None => {
                    let text = String::from_utf8_lossy(frame).into_owned();
                    self.wrong.replace(Some(format!("socket {n} received something else: {text}")));
                }
            }
        }
    }

    async fn until(&self, frames: usize) -> anyhow::Result<()> {
        while self.frames.get() < frames {
            self.ensure_sound()?;
            let more = tokio::time::timeout(PATIENCE, self.more.notified()).await;
            more.with_context(|| {
                format!("{} of {frames} deliveries are missing", frames - self.frames.get())
            })?;
        }
        self.ensure_sound()
    }

    fn ensure_sound(&self) -> anyhow::Result<()> {
        ensure!(self.ended.get() == 0, "{} sockets were closed", self.ended.get());
        self.wrong.borrow().as_ref().map_or(Ok(()), |wrong| bail!("{wrong}"))
    }

    /// Checks that each socket has received exactly its changes.
    fn check(&self, options: &Options, changes: usize) -> anyhow::Result<()> {
        let Options { sockets, channels, keys, filtered, own, .. } = options;
        for (n, socket) in self.sockets.iter().enumerate() {
            let expected = match (filtered, own) {
                (true, _) => (n * channels..(n + 1) * channels)
                    .map(|at| of_group(changes, at, sockets * channels))
                    .sum(),
                (_, true) => of_group(changes, n % keys.len(), keys.len()),
                _ => changes,
            };
            let received = socket.frames.get();
            ensure!(received == expected, "socket {n} received {received} changes of {expected}");
        }
        Ok(())
    }
}

/// The number of the change in a frame: the member `id` of its record.
fn number(frame: &[u8]) -> Option<usize> {
    let after = |text: &[u8], mark: &[u8]| -> Option<usize> {
        text.windows(mark.len()).position(|window| window == mark).map(|at| at + mark.len())
    };
    let record = frame.get(after(frame, br#""record":{"#)?..)?;
    let digits = record.get(after(record, br#""id":"#)?..)?;
    let end = digits.iter().position(|c| !c.is_ascii_digit())?;
    std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
}

/// Opens a socket and subscribes its channels.
async fn open(options: &Options, n: usize) -> anyhow::Result<TcpStream> {
    let key = options.keys.get(n % options.keys.len()).context("no key")?;
    let step = async {
        let mut socket = TcpStream::connect(options.addr).await?;
        socket.set_nodelay(true)?;
        socket.write_all(frames::handshake(key).as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.context("closed in the handshake")?);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101"), "websocket refused: {}", String::from_utf8_lossy(&head));
        let mut joins = Vec::new();
        for channel in n * options.channels..(n + 1) * options.channels {
            // The daemon reads `null` as no filter.
            let filter = options.filtered.then(|| format!("n=eq.{channel}"));
            let item =
                json!({ "event": "INSERT", "schema": "public", "table": options.table, "filter": filter });
            let config = json!({ "config": { "postgres_changes": [item] } });
            let join = json!(["1", "1", format!("realtime:{}-{channel}", frames::TOPIC), "phx_join", config]);
            joins.extend(frames::masked(1, join.to_string().as_bytes()));
        }
        socket.write_all(&joins).await?;
        let (mut left, mut refused) = (options.channels, None);
        let (mut frames, mut part) = (Frames::default(), vec![0; READ_BYTES]);
        while left > 0 {
            let size = socket.read(&mut part).await?;
            ensure!(size > 0, "closed before the subscription");
            frames.feed(part.get(..size).unwrap_or_default(), |frame| {
                let text = String::from_utf8_lossy(frame);
                if text.contains(r#""status":"error""#) {
                    refused = Some(text.into_owned());
                } else if text.contains("Subscribed to PostgreSQL") {
                    left -= 1;
                }
            });
            if let Some(refused) = refused {
                bail!("subscription refused: {refused}");
            }
        }
        anyhow::Ok(socket)
    };
    tokio::time::timeout(PATIENCE, step).await.context("no answer to a join")?
}

thread_local! {
    /// One buffer for all readers: no reader keeps it across an await.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

async fn read(socket: TcpStream, n: usize, seen: Rc<Seen>) {
    let mut frames = Frames::default();
    while socket.readable().await.is_ok() {
        let read = BUFFER.with_borrow_mut(|buffer| {
            let size = socket.try_read(buffer)?;
            let now = Instant::now();
            frames.feed(buffer.get(..size).unwrap_or_default(), |frame| seen.take(n, frame, now));
            std::io::Result::Ok(size)
        });
        match read {
            Ok(0) => break,
            Ok(_) => seen.more.notify_one(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    seen.ended.set(seen.ended.get() + 1);
    seen.more.notify_one();
}

async fn saturate(writer: &mut Writer, seen: &Seen, seconds: f64, in_flight: usize) -> anyhow::Result<Value> {
    let started = Instant::now();
    let mut measured: Option<(Instant, usize, usize, Duration)> = None;
    let rows = writer.options.rows;
    let end = loop {
        let now = Instant::now();
        match measured {
            None if now >= started + WARM_UP => {
                println!("{}", json!({ "begin": true }));
                measured = Some((now, seen.frames.get(), writer.next, process::cpu()?));
            }
            Some((since, frames, changes, cpu)) if now >= since + Duration::from_secs_f64(seconds) => {
                break json!({
                    "deliveries": seen.frames.get() - frames,
                    "changes": writer.next - changes,
                    "seconds": since.elapsed().as_secs_f64(),
                    "cpu": (process::cpu()? - cpu).as_secs_f64(),
                });
            }
            _ => {}
        }
        writer.write(rows).await?;
        seen.until(writer.frames(writer.next.saturating_sub(in_flight))).await?;
    };
    seen.until(writer.frames(writer.next)).await?;
    Ok(end)
}

async fn paced(writer: &mut Writer, seen: &Rc<Seen>, seconds: f64, rate: u32) -> anyhow::Result<Value> {
    let notified = listen(&writer.options.database).await?;
    let period = Duration::from_secs(1) / rate.max(1);
    let mut tick = tokio::time::interval(period);
    seen.first.set(writer.next);
    seen.paced.set(true);
    seen.received.borrow_mut().clear();
    seen.committed.borrow_mut().clear();
    println!("{}", json!({ "begin": true }));
    let (since, cpu) = (Instant::now(), process::cpu()?);
    let mut took = Vec::new();
    while since.elapsed().as_secs_f64() < seconds {
        tick.tick().await;
        let number = writer.next;
        let notify = format!("notify bench, '{number}'");
        writer.client.batch_execute("begin").await?;
        writer.write(1).await?;
        writer.client.batch_execute(&notify).await?;
        let commit = Instant::now();
        writer.client.batch_execute("commit").await?;
        took.push(commit.elapsed());
        seen.committed.borrow_mut().push(Instant::now());
    }
    seen.until(writer.frames(writer.next)).await?;
    let spent = process::cpu()? - cpu;
    seen.paced.set(false);
    let first = seen.first.get();
    let committed = seen.committed.borrow();
    let since_commit = |received: &[(usize, Instant)]| -> Vec<Duration> {
        let late = |(number, at): &(usize, Instant)| {
            Some(at.saturating_duration_since(*committed.get(number.checked_sub(first)?)?))
        };
        received.iter().filter_map(late).collect()
    };
    let late = since_commit(&seen.received.borrow());
    ensure!(late.len() >= committed.len(), "{} changes were not received", committed.len() - late.len());
    let mut figures = Figures::default();
    figures.add_percentiles("change", late);
    figures.add_percentiles("notify", since_commit(&notified.borrow()));
    figures.add_percentiles("commit", took);
    figures.add("seconds", since.elapsed().as_secs_f64());
    figures.add("cpu", spent.as_secs_f64());
    Ok(serde_json::to_value(figures.values())?)
}

/// Numbers of changes with the times at which they were notified.
type Notified = Rc<RefCell<Vec<(usize, Instant)>>>;

/// Records the notifications of channel `bench` until this process ends.
async fn listen(database: &str) -> anyhow::Result<Notified> {
    let notified = Notified::default();
    let (listener, mut connection) = tokio_postgres::connect(database, NoTls).await?;
    let notes = notified.clone();
    tokio::task::spawn_local(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message
                && let Ok(number) = notification.payload().parse()
            {
                notes.borrow_mut().push((number, Instant::now()));
            }
        }
    });
    let listening = listener.batch_execute("listen bench").await;
    // The connection ends with its client: keep the client until the process ends.
    tokio::task::spawn_local(async move {
        std::future::pending::<()>().await;
        drop(listener);
    });
    listening?;
    Ok(notified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_a_change_is_found_in_its_frame() {
        let data = r#"{"ids":[7],"data":{"columns":[{"name":"id","type":"int8"}],"record":{"n":3,"id":412,"org":"all"}}}"#;
        let text = format!(r#"[null,null,"realtime:bench-0","postgres_changes",{data}]"#);
        assert_eq!(number(&frames::unmasked(1, text.as_bytes())), Some(412));
        assert_eq!(number(b"[null,null,\"x\",\"system\",{}]"), None);
    }

    #[test]
    fn numbers_are_divided_among_groups() {
        for count in [0, 1, 19, 20, 21, 500] {
            let shares: Vec<_> = (0..20).map(|group| of_group(count, group, 20)).collect();
            let counted: Vec<_> =
                (0..20).map(|group| (0..count).filter(|n| n % 20 == group).count()).collect();
            assert_eq!(shares, counted);
        }
    }
}
