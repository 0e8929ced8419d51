//! What a server may send over a pipe: lines of a limited length, and no more bytes than its requests allow.
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

/// Longest line, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 4 << 20;
/// Bytes that a server may write for its start, and for each request.
const BYTES_A_REQUEST: i64 = 8 << 20;
/// Most bytes that it may have left to write.
const BYTES_MAX: i64 = 64 << 20;

/// How many bytes a server may still write. Each request allows more.
#[derive(Clone, Debug)]
pub(super) struct Allowance(Arc<AtomicI64>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(BYTES_A_REQUEST)))
    }
}

impl Allowance {
    /// A request is sent.
    pub(super) fn request(&self) {
        let more = |left: i64| Some(left.saturating_add(BYTES_A_REQUEST).min(BYTES_MAX));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn take(&self, bytes: usize) -> bool {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.0.fetch_sub(bytes, Ordering::Relaxed) >= bytes
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
        if longest > LINE_BYTES_MAX {
            return Poll::Ready(Err(io::Error::other("the server wrote a line that is too long")));
        }
        if !self.allowance.take(read.len()) {
            return Poll::Ready(Err(io::Error::other("the server wrote more than it was asked for")));
        }
        Poll::Ready(Ok(()))
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
        let flood = b"{}\n".repeat(bytes / 3 + 2);
        let error = read(flood.clone(), Allowance::default()).await.unwrap_err();
        assert!(error.to_string().contains("more than it was asked for"), "{error}");
        let allowance = Allowance::default();
        allowance.request();
        assert_eq!(read(flood.clone(), allowance).await.unwrap(), flood.len());
    }
}
