//! The write half of one TCP socket, with vectored writes.
use bytes::{Buf, Bytes};
use prometheus_client::metrics::counter::Counter;
use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};
use tokio::net::{TcpStream, tcp::OwnedWriteHalf};

/// Pieces written with one system call.
const SLICES: usize = 64;
/// Bytes that are written before other tasks of the thread run. The kernel copies them within the system call: one call
/// with megabytes would delay the sockets of others by milliseconds.
const TURN_BYTES: usize = 128 << 10;

/// The destination of the frames of one [`Outbox`](super::Outbox). Dropping it shuts the write direction down.
#[derive(Debug)]
pub struct SocketWriter {
    socket: OwnedWriteHalf,
    pub(super) written: Counter,
}

impl SocketWriter {
    /// Adds the bytes that the kernel has accepted to `written`.
    #[must_use]
    pub fn new(socket: OwnedWriteHalf, written: Counter) -> Self {
        Self { socket, written }
    }

    /// Writes all of `pieces`, in order, and removes what is written. Waits while the socket's buffer is full, and
    /// yields after each [`TURN_BYTES`]. Only one task may write at a time. Cancel safe: a partly written piece keeps
    /// its unwritten rest.
    ///
    /// # Errors
    /// An error of the connection.
    pub async fn write_all(&self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        let mut turn = TURN_BYTES;
        while !pieces.is_empty() {
            if turn == 0 {
                tokio::task::yield_now().await;
                turn = TURN_BYTES;
            }
            let mut written = poll_fn(|cx| self.poll_write(pieces, turn, cx)).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            turn -= written;
            while let Some(first) = pieces.front_mut() {
                if written < first.len() {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                pieces.pop_front();
            }
        }
        Ok(())
    }

    /// Writes as much of `bytes` as fits into the socket's buffer now, at most [`TURN_BYTES`], and returns how much that
    /// was.
    ///
    /// # Errors
    /// `WouldBlock` if the buffer is full, or an error of the connection.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.count(self.socket.try_write(first_bytes(bytes, TURN_BYTES)))
    }

    /// Writes at most `bytes_max` bytes.
    fn poll_write(
        &self,
        pieces: &VecDeque<Bytes>,
        bytes_max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let socket: &TcpStream = self.socket.as_ref();
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let written = if let (1, Some(bytes)) = (pieces.len(), pieces.front()) {
                socket.try_write(first_bytes(bytes, bytes_max))
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut rest = bytes_max;
                for (slice, bytes) in slices.iter_mut().zip(pieces) {
                    let bytes = first_bytes(bytes, rest);
                    *slice = IoSlice::new(bytes);
                    rest -= bytes.len();
                }
                socket.try_write_vectored(slices.get(..pieces.len()).unwrap_or(&slices))
            };
            match self.count(written) {
                // The readiness was stale, for example because of an inline write in between. Polls again.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn count(&self, written: io::Result<usize>) -> io::Result<usize> {
        self.written.inc_by(*written.as_ref().unwrap_or(&0) as u64);
        written
    }
}

fn first_bytes(bytes: &[u8], bytes_max: usize) -> &[u8] {
    bytes.get(..bytes_max).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{io::AsyncReadExt, net::TcpListener};

    /// A writer on a real socket, and the other end of it.
    async fn connected() -> (SocketWriter, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_, socket) = listener.accept().await.unwrap().0.into_split();
        (SocketWriter::new(socket, Counter::default()), client)
    }

    #[tokio::test]
    async fn other_tasks_run_between_the_pieces_of_a_large_write() {
        let (writer, mut client) = connected().await;
        // One large frame, and many small ones in one vectored write.
        let frames = [vec![Bytes::from(vec![b'x'; 4 << 20])], vec![Bytes::from(vec![b'y'; 64 << 10]); 64]];
        for frames in frames {
            let mut pieces = VecDeque::from(frames.clone());
            let mut got = vec![0; frames.iter().map(Bytes::len).sum()];
            let receive = async { client.read_exact(&mut got).await.map(drop) };
            // On one thread, another task sees the bytes that were written since it ran last.
            let mut largest = 0;
            let observe = async {
                let mut seen = writer.written.get();
                loop {
                    tokio::task::yield_now().await;
                    let written = writer.written.get();
                    (largest, seen) = (largest.max(written - seen), written);
                }
            };
            let write = async { tokio::try_join!(writer.write_all(&mut pieces), receive) };
            tokio::select! {
                // In this order each time, so that the observer runs after every turn of the writer.
                biased;
                outcome = write => {
                    outcome.unwrap();
                }
                () = observe => {}
            }
            assert!(got == frames.concat(), "bytes keep their order");
            assert!((1..=TURN_BYTES as u64).contains(&largest), "{largest} bytes in one turn");
        }
    }

    #[tokio::test]
    async fn inline_write_takes_one_turn_at_most() {
        let (writer, _client) = connected().await;
        tokio::time::timeout(Duration::from_secs(60), writer.socket.writable()).await.unwrap().unwrap();
        assert!(writer.try_write(&vec![b'x'; 4 << 20]).unwrap() <= TURN_BYTES);
    }
}
