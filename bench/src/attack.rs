//! The hostile clients of `hostile`, in a process of their own. A client of each chosen kind attacks, is refused, and
//! attacks again until the input of this process ends. Each line of input is answered with what the attacks have done so
//! far. Large frames share one text, so that an attack costs this process little more than its system calls.
use super::{
    client::orders,
    frames::{handshake, masked, masked_header},
    process,
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use rustix::process::setpriority_process;
use serde::Serialize;
use serde_json::json;
use std::{borrow::Cow, cell::Cell, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::{LocalSet, yield_now},
    time::{sleep, timeout},
};

/// How long one attack lasts before it starts anew.
const ATTACK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// Connections without a request.
const IDLE: usize = 1000;
/// Sockets that read nothing.
const UNREAD: usize = 20;
/// Connections that send a large body each.
const LARGE_BODIES: usize = 4;
/// Connections that send a slow body each.
const SLOW_BODIES: usize = 100;
/// Open files of all attacks together.
const FILES: usize = 4096;
/// Bytes of one system call. The kernel copies them within the call, whatever the priority of this process: one call
/// with megabytes would take a processor from the daemon, which a client on another machine cannot.
const WRITE_BYTES: usize = 16 << 10;

/// Variables with the keys: every user of the machine can list arguments.
pub(super) const ANON: &str = "CONVOKE_BENCH_ANON_KEY";
pub(super) const SERVICE: &str = "CONVOKE_BENCH_SERVICE_KEY";

/// The nice value of this process, the lowest priority.
const NICE: i32 = 19;
/// Filler of large messages.
static FILLER: [u8; 8_000_000] = [b'x'; 8_000_000];

/// A kind of hostile client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Tasks whose schema doubles itself sixty times
    Schema,
    /// Sixty pattern filters on a table with large rows
    Filters,
    /// Sixty private channels with a slow policy at once
    Joins,
    /// Fifty channels with a large presence
    Presence,
    /// Twenty sockets that send to themselves and read nothing
    Unread,
    /// Large and slow bodies, and connections without a request
    Bodies,
    /// All kinds together
    All,
}

impl Kind {
    /// Connections that its attacks have at once.
    pub(super) fn connections(self) -> usize {
        match self {
            Self::Schema | Self::Filters | Self::Joins | Self::Presence => 1,
            Self::Unread => UNREAD,
            Self::Bodies => LARGE_BODIES + SLOW_BODIES + IDLE,
            Self::All => {
                let kinds = Self::value_variants().iter().filter(|kind| **kind != Self::All);
                kinds.map(|kind| kind.connections()).sum()
            }
        }
    }
}

#[derive(Args)]
pub(crate) struct Options {
    /// Which kind attacks
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    addr: SocketAddr,
    /// An anon key
    #[arg(long, env = ANON, hide_env_values = true)]
    anon: String,
    /// A service key
    #[arg(long, env = SERVICE, hide_env_values = true)]
    service: String,
}

/// The attacks of this process, and what they have done.
struct Attacker {
    options: Options,
    attacks: Cell<u64>,
    sent_bytes: Cell<u64>,
    received_bytes: Cell<u64>,
}

pub(super) fn run(options: Options) -> anyhow::Result<()> {
    process::allow_sockets(FILES)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (attacks, sent_bytes, received_bytes) = Default::default();
    let attacker = Attacker { options, attacks, sent_bytes, received_bytes };
    LocalSet::new().block_on(&runtime, attack(Rc::new(attacker)))
}

/// Starts `attack` again whenever it ends. An error is the expected end: the daemon refuses it.
fn repeat<F: Future<Output = anyhow::Result<()>> + 'static>(
    attacker: &Rc<Attacker>,
    attack: impl Fn(Rc<Attacker>) -> F + 'static,
) {
    let attacker = attacker.clone();
    tokio::task::spawn_local(async move {
        loop {
            add(&attacker.attacks, 1);
            let _refused = timeout(ATTACK * 2, attack(attacker.clone())).await;
            sleep(PAUSE).await;
        }
    });
}

async fn attack(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    setpriority_process(None, NICE).context("cannot lower the priority")?;
    start(&attacker, attacker.options.kind);
    println!("{}", json!({ "joined": 0 }));
    let mut lines = orders();
    while lines.recv().await.is_some() {
        println!("{}", json!({ "begin": true }));
        let done = json!({
            "attacks": attacker.attacks.get(),
            "sent_bytes": attacker.sent_bytes.get(),
            "received_bytes": attacker.received_bytes.get(),
        });
        println!("{}", json!({ "end": done }));
    }
    Ok(())
}

fn add(counter: &Cell<u64>, count: usize) {
    counter.set(counter.get().saturating_add(u64::try_from(count).unwrap_or(u64::MAX)));
}

fn start(attacker: &Rc<Attacker>, kind: Kind) {
    match kind {
        Kind::Schema => repeat(attacker, doubling_schemas),
        Kind::Filters => repeat(attacker, pattern_filters),
        Kind::Joins => repeat(attacker, slow_joins),
        Kind::Presence => repeat(attacker, large_presence),
        Kind::Unread => (0..UNREAD).for_each(|_| repeat(attacker, never_reading)),
        Kind::Bodies => {
            (0..LARGE_BODIES).for_each(|_| repeat(attacker, bodies_without_a_token));
            repeat(attacker, slow_bodies);
            repeat(attacker, idle_connections);
        }
        Kind::All => {
            let kinds = Kind::value_variants().iter().filter(|kind| **kind != Kind::All);
            kinds.for_each(|kind| start(attacker, *kind));
        }
    }
}

impl Attacker {
    async fn connect(&self) -> anyhow::Result<TcpStream> {
        Ok(TcpStream::connect(self.options.addr).await?)
    }

    async fn send(&self, writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> anyhow::Result<()> {
        for part in bytes.chunks(WRITE_BYTES) {
            writer.write_all(part).await?;
            add(&self.sent_bytes, part.len());
            yield_now().await;
        }
        Ok(())
    }

    /// Waits for the first byte of an answer.
    async fn answered(&self, socket: &mut TcpStream) -> anyhow::Result<()> {
        socket.read_u8().await?;
        add(&self.received_bytes, 1);
        Ok(())
    }
}

async fn websocket(attacker: &Attacker) -> anyhow::Result<TcpStream> {
    let mut socket = attacker.connect().await?;
    attacker.send(&mut socket, handshake(&attacker.options.anon).as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    anyhow::ensure!(head.starts_with(b"HTTP/1.1 101"), "websocket refused");
    Ok(socket)
}

fn frame(topic: &str, event: &str, payload: &serde_json::Value) -> Vec<u8> {
    masked(1, json!(["1", "1", format!("realtime:{topic}"), event, payload]).to_string().as_bytes())
}

/// A frame whose payload has so many bytes of the filler where `payload` has a `~`, in parts to be written.
fn large_frame(
    topic: &str,
    event: &str,
    payload: &serde_json::Value,
    filler: usize,
) -> [Cow<'static, [u8]>; 3] {
    let text = json!(["1", "1", format!("realtime:{topic}"), event, payload]).to_string();
    let (before, after) = text.split_once('~').unwrap_or((&text, ""));
    let mut start = masked_header(1, before.len() + filler + after.len());
    start.extend_from_slice(before.as_bytes());
    let filler = FILLER.get(..filler).unwrap_or(&FILLER);
    [start.into(), filler.into(), after.as_bytes().to_vec().into()]
}

/// Writes the frames, reads whatever arrives, and keeps the socket open for [`ATTACK`].
async fn send_and_stay(
    attacker: &Attacker,
    mut socket: TcpStream,
    frames: impl IntoIterator<Item = Cow<'static, [u8]>>,
) -> anyhow::Result<()> {
    let (mut reader, mut writer) = socket.split();
    let mut buffer = vec![0; 1 << 16];
    let write = async {
        for frame in frames {
            attacker.send(&mut writer, &frame).await?;
        }
        sleep(ATTACK).await;
        anyhow::Ok(())
    };
    let read = async {
        loop {
            match reader.read(&mut buffer).await? {
                0 => return anyhow::Ok(()),
                read => add(&attacker.received_bytes, read),
            }
        }
    };
    tokio::select! {
        outcome = write => outcome,
        outcome = read => outcome,
    }
}

/// Requests a task with a schema whose references double sixty times.
async fn doubling_schemas(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let mut definitions = serde_json::Map::new();
    for n in 0..60 {
        let next = json!({ "$ref": format!("#/$defs/d{}", n + 1) });
        definitions.insert(format!("d{n}"), json!({ "allOf": [next, next] }));
    }
    definitions.insert("d60".into(), json!({ "type": "object" }));
    let schema = json!({ "$ref": "#/$defs/d0", "$defs": definitions });
    let task = json!({ "kind": "bench", "policy": { "result_schema": schema } }).to_string();
    let head =
        format!("authorization: Bearer {}\r\ncontent-length: {}\r\n", attacker.options.service, task.len());
    let mut socket = attacker.connect().await?;
    let request = format!("POST /v1/tasks HTTP/1.1\r\nhost: x\r\n{head}\r\n{task}");
    attacker.send(&mut socket, request.as_bytes()).await?;
    attacker.answered(&mut socket).await
}

/// Subscribes to a table with sixty regular expressions. Each backreference makes Postgres try every length of a group,
/// and compare the rest of the row each time: minutes for a row of 200 kB.
async fn pattern_filters(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let items = (0..60).map(|n| json!({
        "event": "*", "schema": "public", "table": "bench_hostile", "filter": format!(r"body=match.^(x+)(?:a{{{n}}})?\1x$"),
    }));
    let config = json!({ "config": { "postgres_changes": items.collect::<Vec<_>>() } });
    send_and_stay(&attacker, websocket(&attacker).await?, [frame("rows", "phx_join", &config).into()]).await
}

/// Joins sixty private channels at once, whose policy takes 200 ms.
async fn slow_joins(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let config = json!({ "config": { "private": true } });
    let joins = (0..60).map(|n| frame(&format!("slow-{n}"), "phx_join", &config).into());
    send_and_stay(&attacker, websocket(&attacker).await?, joins).await
}

/// Tracks a presence of 2.9 MB on each of fifty channels.
async fn large_presence(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let config = json!({ "config": { "presence": { "enabled": true, "key": "x" } } });
    let call = json!({ "type": "presence", "event": "track", "payload": { "x": "~" } });
    let calls = (0..50).flat_map(|n| {
        let topic = format!("large-{n}");
        let join = frame(&topic, "phx_join", &config).into();
        std::iter::once(join).chain(large_frame(&topic, "presence", &call, 2_900_000))
    });
    send_and_stay(&attacker, websocket(&attacker).await?, calls).await
}

/// Sends 13 MB to itself and reads nothing.
async fn never_reading(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let mut socket = websocket(&attacker).await?;
    let topic = format!("self-{}", socket.local_addr()?.port());
    let config = json!({ "config": { "broadcast": { "self": true } } });
    attacker.send(&mut socket, &frame(&topic, "phx_join", &config)).await?;
    let message = large_frame(&topic, "broadcast", &json!({ "event": "e", "payload": "~" }), 1_000_000);
    for _ in 0..13 {
        for part in &message {
            attacker.send(&mut socket, part).await?;
        }
    }
    sleep(ATTACK).await;
    Ok(())
}

/// Sends a body of 8 MB without a token.
async fn bodies_without_a_token(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let mut socket = attacker.connect().await?;
    let head = format!("POST /api/broadcast HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", FILLER.len());
    attacker.send(&mut socket, head.as_bytes()).await?;
    attacker.send(&mut socket, &FILLER).await?;
    attacker.answered(&mut socket).await
}

/// Sends a hundred bodies at one byte a second.
async fn slow_bodies(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let key = &attacker.options.anon;
    let head =
        format!("POST /api/broadcast HTTP/1.1\r\nhost: x\r\napikey: {key}\r\ncontent-length: 1000\r\n\r\n");
    let mut sockets = Vec::new();
    for _ in 0..SLOW_BODIES {
        let mut socket = attacker.connect().await?;
        attacker.send(&mut socket, head.as_bytes()).await?;
        sockets.push(socket);
    }
    for _ in 0..ATTACK.as_secs() {
        for socket in &mut sockets {
            attacker.send(socket, b"[").await?;
        }
        sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Opens connections and sends nothing.
async fn idle_connections(attacker: Rc<Attacker>) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..IDLE {
        sockets.push(attacker.connect().await?);
    }
    sleep(ATTACK).await;
    drop(sockets);
    Ok(())
}
