//! The smallest server that the clients of `fanout` can use: the bound that machine and clients set, whatever the
//! daemon costs. Accepts every handshake and every join without reading them.
use super::frames::{self, Frames};
use anyhow::{Context, ensure};
use parking_lot::Mutex;
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Sockets in the order of their joins.
type Sockets = Arc<Mutex<Vec<OwnedWriteHalf>>>;

const UPGRADE: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
const JOINED: &[u8] = br#"["1","1","realtime:bench-0","phx_reply",{"status":"ok","response":{}}]"#;

/// Serves until this process ends. The last socket that joins is the publisher and receives nothing.
pub(super) async fn start(bytes: usize) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
    let addr = listener.local_addr()?;
    let sockets = Sockets::default();
    let accept = async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            let (reader, writer) = socket.into_split();
            #[expect(
                clippy::disallowed_methods,
                reason = "ends with its client, at the end of the benchmark"
            )]
            tokio::spawn(serve(reader, writer, sockets.clone(), bytes));
        }
    };
    #[expect(clippy::disallowed_methods, reason = "ends with the process")]
    tokio::spawn(accept);
    Ok(addr)
}

async fn serve(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    sockets: Sockets,
    bytes: usize,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    ensure!(reader.read(&mut buffer).await? > 0, "closed");
    writer.write_all(UPGRADE).await?;
    ensure!(reader.read(&mut buffer).await? > 0, "closed");
    {
        // Answers inside the lock: a client that has read its answer is in the list before the client that it opens
        // next, so the publisher is the last of the list and misses no subscriber.
        let mut sockets = sockets.lock();
        let joined = frames::unmasked(1, JOINED);
        ensure!(writer.try_write(&joined)? == joined.len(), "no room for the answer to a join");
        sockets.push(writer);
    }
    let mut inbound = Frames::default();
    let mut out = Vec::new();
    loop {
        let size = reader.read(&mut buffer).await?;
        if size == 0 {
            return Ok(());
        }
        out.clear();
        inbound.feed(buffer.get(..size).unwrap_or_default(), |frame| {
            let payload = frame.len().checked_sub(bytes).and_then(|at| frame.get(at..));
            let relayed = frames::relayed(payload.unwrap_or_default());
            out.extend_from_slice(&frames::unmasked(2, &relayed));
        });
        let sockets = sockets.lock();
        for writer in sockets.iter().take(sockets.len().saturating_sub(1)) {
            // Never blocks: so few messages are in flight that the socket's buffer always has room.
            let _ = writer.try_write(&out);
        }
    }
}
