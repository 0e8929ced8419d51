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

    /// Writes all of `pieces`, in order, and removes what is written. Waits while the socket's buffer is full. Only
    /// one task may write at a time. Cancel safe: a partly written piece keeps its unwritten rest.
    ///
    /// # Errors
    /// An error of the connection.
    pub async fn write_all(&self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        while !pieces.is_empty() {
            let mut written = poll_fn(|cx| self.poll_write(pieces, cx)).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
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

    /// Writes as much of `bytes` as fits into the socket's buffer now, and returns how much that was.
    ///
    /// # Errors
    /// `WouldBlock` if the buffer is full, or an error of the connection.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.count(self.socket.try_write(bytes))
    }

    fn poll_write(&self, pieces: &VecDeque<Bytes>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let socket: &TcpStream = self.socket.as_ref();
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let written = if let (1, Some(bytes)) = (pieces.len(), pieces.front()) {
                socket.try_write(bytes)
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                slices.iter_mut().zip(pieces).for_each(|(slice, bytes)| *slice = IoSlice::new(bytes));
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
