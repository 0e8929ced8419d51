//! An OpenTelemetry collector that takes everything and keeps nothing, in a process of its own: its processor time is
//! not the daemon's.
//!
//! Takes orders as lines of JSON like [`super::client`]; each is answered with its address and the bytes that have come.
use super::client::orders;
use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
const TAKEN: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

#[derive(Args)]
pub(crate) struct Options {}

/// Tell the address and the bytes so far.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {}

/// Runs on the calling thread.
pub(super) fn run(_: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve())
}

async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
    let (addr, bytes) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
    let received = bytes.clone();
    let accept = async move {
        while let Ok((socket, _)) = listener.accept().await {
            #[expect(clippy::disallowed_methods, reason = "ends with the process")]
            tokio::spawn(take(socket, received.clone()));
        }
    };
    #[expect(clippy::disallowed_methods, reason = "ends with the process")]
    tokio::spawn(accept);
    println!("{}", json!({ "joined": 1 }));
    let mut lines = orders();
    while let Some(order) = lines.recv().await {
        let Order {} = serde_json::from_str(&order).context("invalid order")?;
        println!("{}", json!({ "begin": true }));
        let bytes = bytes.load(Ordering::Relaxed);
        println!("{}", json!({ "end": { "endpoint": format!("http://{addr}"), "bytes": bytes } }));
    }
    Ok(())
}

/// Answers the requests of one connection with 200 until it ends.
async fn take(mut socket: TcpStream, received: Arc<AtomicU64>) -> anyhow::Result<()> {
    let mut read = Vec::with_capacity(64 << 10);
    loop {
        let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
            anyhow::ensure!(read.len() < HEAD_BYTES_MAX, "the head of a request is too large");
            anyhow::ensure!(socket.read_buf(&mut read).await? > 0, "closed");
            continue;
        };
        let lines = String::from_utf8_lossy(read.get(..head).unwrap_or_default()).to_lowercase();
        let length = lines.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.context("a request without content-length")?.trim().parse()?;
        while read.len() < head + length {
            anyhow::ensure!(socket.read_buf(&mut read).await? > 0, "closed");
        }
        read.drain(..head + length);
        received.fetch_add(u64::try_from(length)?, Ordering::Relaxed);
        socket.write_all(TAKEN).await?;
    }
}
