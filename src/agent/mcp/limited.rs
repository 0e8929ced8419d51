//! What a server may send: lines and events of a limited length, and no more bytes and messages than its requests
//! allow.
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Longest line or event, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 4 << 20;
/// Bytes that a server may write for its start, and for each request.
const BYTES_A_REQUEST: i64 = 8 << 20;
/// Most bytes that it may have left to write.
const BYTES_MAX: i64 = 64 << 20;
/// What a message counts at least: each one costs a task, however short it is.
const MESSAGE_BYTES_MIN: usize = 1 << 10;

/// What a server may still send, and whether it has sent more: its connection then ends. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    left: Arc<AtomicI64>,
    broken: CancellationToken,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { left: Arc::new(AtomicI64::new(BYTES_A_REQUEST)), broken: CancellationToken::new() }
    }
}

impl Allowance {
    /// A request is sent.
    pub(super) fn request(&self) {
        let more = |left: i64| Some(left.saturating_add(BYTES_A_REQUEST).min(BYTES_MAX));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// A message or a part of one has come. False if that is too much.
    pub(super) fn take(&self, bytes: usize, messages: usize) -> bool {
        let bytes = i64::try_from(bytes.max(messages.saturating_mul(MESSAGE_BYTES_MIN))).unwrap_or(i64::MAX);
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        let fits = before.is_ok_and(|before| before >= bytes);
        if !fits {
            self.broken.cancel();
        }
        fits
    }

    /// Ends the connection: the server does not keep to the protocol.
    pub(super) fn end(&self) {
        self.broken.cancel();
    }

    /// Resolves when the connection must end.
    pub(super) async fn broken(&self) {
        self.broken.cancelled().await;
    }
}

/// A reader that fails when the server writes too much. The connection then ends.
pub(super) struct Limited<R> {
    inner: R,
    allowance: Allowance,
    /// Bytes since the last end of a line.
    line: usize,
}

impl<R> Limited<R> {
    pub(super) fn new(inner: R, allowance: Allowance) -> Self {
        Self { inner, allowance, line: 0 }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Limited<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        let (first, last) = (read.iter().position(is_end), read.iter().rposition(is_end));
        let longest = self.line + first.unwrap_or(read.len());
        self.line = last.map_or(longest, |last| read.len() - last - 1);
        let (bytes, lines) = (read.len(), read.iter().filter(|byte| is_end(byte)).count());
        // A line behind the first one of a read is as short as the read.
        let broken = if longest > LINE_BYTES_MAX {
            self.allowance.end();
            "the server wrote a line that is too long"
        } else if !self.allowance.take(bytes, lines) {
            "the server wrote more than it was asked for"
        } else {
            return Poll::Ready(Ok(()));
        };
        // A reader that fails has read nothing.
        buffer.set_filled(before);
        Poll::Ready(Err(io::Error::other(broken)))
    }
}

fn is_end(byte: &u8) -> bool {
    *byte == b'\n'
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    async fn read(text: Vec<u8>, allowance: Allowance) -> io::Result<usize> {
        let mut all = Vec::new();
        Limited::new(text.as_slice(), allowance).read_to_end(&mut all).await
    }

    #[tokio::test]
    async fn line_that_is_too_long_ends_the_connection() {
        let lines = [vec![b'a'; LINE_BYTES_MAX], vec![b'b'; 100]].join(&b'\n');
        assert_eq!(read(lines, Allowance::default()).await.unwrap(), LINE_BYTES_MAX + 101);
        let error = read(vec![b'a'; LINE_BYTES_MAX + 1], Allowance::default()).await.unwrap_err();
        assert!(error.to_string().contains("a line that is too long"), "{error}");
    }

    #[tokio::test]
    async fn server_may_write_what_its_requests_allow() {
        let bytes = usize::try_from(BYTES_A_REQUEST).unwrap();
        let flood = [vec![b'x'; 1 << 20], vec![b'\n']].concat().repeat(bytes / (1 << 20) + 1);
        let error = read(flood.clone(), Allowance::default()).await.unwrap_err();
        assert!(error.to_string().contains("more than it was asked for"), "{error}");
        let allowance = Allowance::default();
        allowance.request();
        assert_eq!(read(flood.clone(), allowance).await.unwrap(), flood.len());
    }

    #[tokio::test]
    async fn short_messages_count_more_than_their_bytes() {
        let most = usize::try_from(BYTES_A_REQUEST).unwrap() / MESSAGE_BYTES_MIN;
        assert_eq!(read(b"{}\n".repeat(most), Allowance::default()).await.unwrap(), most * 3);
        let allowance = Allowance::default();
        let error = read(b"{}\n".repeat(most + 1), allowance.clone()).await.unwrap_err();
        assert!(error.to_string().contains("more than it was asked for"), "{error}");
        // Whoever holds the connection is told.
        allowance.broken().await;
    }
}
