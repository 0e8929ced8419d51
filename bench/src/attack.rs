//! The hostile clients of `hostile`, in a process of their own. A client of each chosen kind attacks, is refused, and
//! attacks again until the input of this process ends. Large frames share one text, so that an attack costs this process
//! little more than its system calls.
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
use std::{borrow::Cow, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
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

pub(super) fn run(options: Options) -> anyhow::Result<()> {
    process::allow_sockets(FILES)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, attack(Rc::new(options)))
}

/// Starts `attack` again whenever it ends. An error is the expected end: the daemon refuses it.
fn repeat<F: Future<Output = anyhow::Result<()>> + 'static>(
    options: &Rc<Options>,
    attack: impl Fn(Rc<Options>) -> F + 'static,
) {
    let options = options.clone();
    tokio::task::spawn_local(async move {
        loop {
            let _refused = timeout(ATTACK * 2, attack(options.clone())).await;
            sleep(PAUSE).await;
        }
    });
}

async fn attack(options: Rc<Options>) -> anyhow::Result<()> {
    setpriority_process(None, NICE).context("cannot lower the priority")?;
    start(&options, options.kind);
    println!("{}", json!({ "joined": 0 }));
    let mut lines = orders();
    while lines.recv().await.is_some() {}
    Ok(())
}

fn start(options: &Rc<Options>, kind: Kind) {
    match kind {
        Kind::Schema => repeat(options, doubling_schemas),
        Kind::Filters => repeat(options, pattern_filters),
        Kind::Joins => repeat(options, slow_joins),
        Kind::Presence => repeat(options, large_presence),
        Kind::Unread => (0..UNREAD).for_each(|_| repeat(options, never_reading)),
        Kind::Bodies => {
            (0..LARGE_BODIES).for_each(|_| repeat(options, bodies_without_a_token));
            repeat(options, slow_bodies);
            repeat(options, idle_connections);
        }
        Kind::All => {
            let kinds = Kind::value_variants().iter().filter(|kind| **kind != Kind::All);
            kinds.for_each(|kind| start(options, *kind));
        }
    }
}

async fn websocket(options: &Options) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect(options.addr).await?;
    socket.write_all(handshake(&options.anon).as_bytes()).await?;
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
    mut socket: TcpStream,
    frames: impl IntoIterator<Item = Cow<'static, [u8]>>,
) -> anyhow::Result<()> {
    let (mut reader, mut writer) = socket.split();
    let mut buffer = vec![0; 1 << 16];
    let write = async {
        for frame in frames {
            writer.write_all(&frame).await?;
        }
        sleep(ATTACK).await;
        anyhow::Ok(())
    };
    let read = async {
        while reader.read(&mut buffer).await? > 0 {}
        anyhow::Ok(())
    };
    tokio::select! {
        outcome = write => outcome,
        outcome = read => outcome,
    }
}

/// Requests a task with a schema whose references double sixty times.
async fn doubling_schemas(options: Rc<Options>) -> anyhow::Result<()> {
    let mut definitions = serde_json::Map::new();
    for n in 0..60 {
        let next = json!({ "$ref": format!("#/$defs/d{}", n + 1) });
        definitions.insert(format!("d{n}"), json!({ "allOf": [next, next] }));
    }
    definitions.insert("d60".into(), json!({ "type": "object" }));
    let schema = json!({ "$ref": "#/$defs/d0", "$defs": definitions });
    let task = json!({ "kind": "bench", "policy": { "result_schema": schema } }).to_string();
    let head = format!("authorization: Bearer {}\r\ncontent-length: {}\r\n", options.service, task.len());
    let mut socket = TcpStream::connect(options.addr).await?;
    socket.write_all(format!("POST /v1/tasks HTTP/1.1\r\nhost: x\r\n{head}\r\n{task}").as_bytes()).await?;
    socket.read_u8().await?;
    Ok(())
}

/// Subscribes to a table with sixty regular expressions that backtrack exponentially.
async fn pattern_filters(options: Rc<Options>) -> anyhow::Result<()> {
    let items = (0..60).map(|n| json!({
        "event": "*", "schema": "public", "table": "bench_hostile", "filter": format!("body=match.(x+x+)+y{n}"),
    }));
    let config = json!({ "config": { "postgres_changes": items.collect::<Vec<_>>() } });
    send_and_stay(websocket(&options).await?, [frame("rows", "phx_join", &config).into()]).await
}

/// Joins sixty private channels at once, whose policy takes 200 ms.
async fn slow_joins(options: Rc<Options>) -> anyhow::Result<()> {
    let config = json!({ "config": { "private": true } });
    let joins = (0..60).map(|n| frame(&format!("slow-{n}"), "phx_join", &config).into());
    send_and_stay(websocket(&options).await?, joins).await
}

/// Tracks a presence of 2.9 MB on each of fifty channels.
async fn large_presence(options: Rc<Options>) -> anyhow::Result<()> {
    let config = json!({ "config": { "presence": { "enabled": true, "key": "x" } } });
    let call = json!({ "type": "presence", "event": "track", "payload": { "x": "~" } });
    let calls = (0..50).flat_map(|n| {
        let topic = format!("large-{n}");
        let join = frame(&topic, "phx_join", &config).into();
        std::iter::once(join).chain(large_frame(&topic, "presence", &call, 2_900_000))
    });
    send_and_stay(websocket(&options).await?, calls).await
}

/// Sends 13 MB to itself and reads nothing.
async fn never_reading(options: Rc<Options>) -> anyhow::Result<()> {
    let mut socket = websocket(&options).await?;
    let topic = format!("self-{}", socket.local_addr()?.port());
    let config = json!({ "config": { "broadcast": { "self": true } } });
    socket.write_all(&frame(&topic, "phx_join", &config)).await?;
    let message = large_frame(&topic, "broadcast", &json!({ "event": "e", "payload": "~" }), 1_000_000);
    for _ in 0..13 {
        for part in &message {
            socket.write_all(part).await?;
        }
    }
    sleep(ATTACK).await;
    Ok(())
}

/// Sends a body of 8 MB without a token.
async fn bodies_without_a_token(options: Rc<Options>) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(options.addr).await?;
    let head = format!("POST /api/broadcast HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", FILLER.len());
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(&FILLER).await?;
    socket.read_u8().await?;
    Ok(())
}

/// Sends a hundred bodies at one byte a second.
async fn slow_bodies(options: Rc<Options>) -> anyhow::Result<()> {
    let key = &options.anon;
    let head =
        format!("POST /api/broadcast HTTP/1.1\r\nhost: x\r\napikey: {key}\r\ncontent-length: 1000\r\n\r\n");
    let mut sockets = Vec::new();
    for _ in 0..SLOW_BODIES {
        let mut socket = TcpStream::connect(options.addr).await?;
        socket.write_all(head.as_bytes()).await?;
        sockets.push(socket);
    }
    for _ in 0..ATTACK.as_secs() {
        for socket in &mut sockets {
            socket.write_all(b"[").await?;
        }
        sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Opens connections and sends nothing.
async fn idle_connections(options: Rc<Options>) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..IDLE {
        sockets.push(TcpStream::connect(options.addr).await?);
    }
    sleep(ATTACK).await;
    drop(sockets);
    Ok(())
}
