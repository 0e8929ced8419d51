//! A replication connection: the few commands that the stream needs, on `postgres-protocol`.
//!
//! The driver of the rest of the daemon does not know the copy-both mode. Owns
//! one socket and its buffers. Lengths that the server claims are checked
//! before anything is allocated for them. Whether a broken connection is tried
//! again is decided elsewhere.
mod certificate;
mod login;
mod transport;

use super::error::Error;
use crate::{
    clock::Clock,
    db::{
        Target,
        session::{self, Adjusted},
    },
    id::Lsn,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use postgres_protocol::message::{
    backend::{ErrorResponseBody, Header, Message},
    frontend,
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_postgres::{error::SqlState, fallible_iterator::FallibleIterator};
use transport::Io;

/// Room that a read finds at least, and how much is made at once.
const READ_BYTES_MIN: usize = 32 << 10;
const READ_BYTES: usize = 256 << 10;
/// Postgres sends no message longer than a gigabyte and its header.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + (1 << 16);
/// Limit of a message before the server is authenticated.
const GREETING_BYTES_MAX: usize = 1 << 16;
/// How long a command or the whole log-in may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server sends while it streams.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message of the plugin, and where the server's WAL ends.
    Data { wal_end: Lsn, message: Bytes },
    /// Everything up to `wal_end` was sent; the server may want an answer at once.
    Keepalive { wal_end: Lsn, reply: bool },
}

/// One logged-in session.
pub(super) struct Connection {
    io: Box<dyn Io>,
    read: BytesMut,
    write: BytesMut,
    message_bytes_max: usize,
    /// How the database stores text, like `UTF8`.
    server_encoding: String,
    /// Text comes as it is stored.
    as_stored: bool,
}

/// The encoding of a database that knows nothing of its texts, which are bytes.
const NO_ENCODING: &str = "SQL_ASCII";

/// The rows of a simple query as text.
pub(super) type Rows = Vec<Vec<Option<String>>>;

impl Connection {
    /// Connects and logs in for logical replication in the target's database.
    pub(super) async fn connect(target: &Target) -> Result<Self, Error> {
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
        let attempt = async {
            let (io, binding) = transport::connect(target).await?;
            let mut new = Self {
                io,
                read: BytesMut::with_capacity(READ_BYTES),
                write: BytesMut::new(),
                message_bytes_max: GREETING_BYTES_MAX,
                server_encoding: String::new(),
                as_stored: false,
            };
            new.log_in(target, binding).await?;
            new.message_bytes_max = MESSAGE_BYTES_MAX;
            new.set_up(target).await?;
            Ok(new)
        };
        let timed_out = |_| Error::Unreachable { at: target.address(), source: late() };
        timeout(CONNECT_TIMEOUT, attempt).await.map_err(timed_out)?
    }

    async fn set_up(&mut self, target: &Target) -> Result<(), Error> {
        let rows = self.query(session::ADJUST).await?;
        let last = rows.iter().rev().find(|row| row.len() == 2).map(Vec::as_slice);
        let [holds, read_only] = last.unwrap_or_default() else {
            return Err(Error::Unexpected("an answer to the settings of the session without its row".into()));
        };
        if !Adjusted::read(holds.as_deref(), read_only.as_deref()).holds {
            return Err(Error::Login(format!("{} drops the settings of a session", target.address())));
        }
        // Postgres would check such text as if it were ours, and end the stream at the first byte that is not.
        if self.server_encoding == NO_ENCODING { self.take_text_as_stored().await } else { Ok(()) }
    }

    /// From now on text is neither converted nor checked by the server.
    pub(super) async fn take_text_as_stored(&mut self) -> Result<(), Error> {
        self.query(&format!("set client_encoding = '{NO_ENCODING}'")).await?;
        self.as_stored = true;
        Ok(())
    }

    /// Whether the server stores text in an encoding that it has to convert.
    pub(super) fn converts(&self) -> bool {
        !["UTF8", NO_ENCODING].contains(&self.server_encoding.as_str())
    }

    /// Whether values may come that are not UTF-8.
    pub(super) fn may_have_other_text(&self) -> bool {
        self.as_stored
    }

    /// Runs statements; the session must not be streaming.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Rows, Error> {
        timeout(COMMAND_TIMEOUT, self.query_unlimited(sql))
            .await
            .map_err(|_| Error::Silent(COMMAND_TIMEOUT))?
    }

    /// Like [`Self::query`] without a limit: creating a slot waits for running transactions.
    pub(super) async fn query_unlimited(&mut self, sql: &str) -> Result<Rows, Error> {
        frontend::query(sql, &mut self.write)?;
        self.flush().await?;
        let (mut rows, mut failed) = (Rows::new(), None);
        loop {
            match self.message().await? {
                Message::DataRow(row) => {
                    let text = |range: Option<std::ops::Range<usize>>| {
                        let bytes = row.buffer().get(range?)?;
                        Some(String::from_utf8_lossy(bytes).into_owned())
                    };
                    rows.push(row.ranges().map(|range| Ok(text(range))).collect()?);
                }
                Message::ErrorResponse(body) => failed = Some(refused(&body)),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Begins to stream from `from`; after this there are only frames. With `in_blocks`, big transactions
    /// come while they still run.
    pub(super) async fn start_replication(
        &mut self,
        slot: &str,
        publications: &[String],
        from: Lsn,
        in_blocks: bool,
    ) -> Result<(), Error> {
        let names: Vec<_> = publications.iter().map(|name| super::publication::quoted(name)).collect();
        let names = names.join(",").replace('\'', "''");
        let streaming = if in_blocks { "on" } else { "off" };
        let sql = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} (proto_version '2', streaming '{streaming}', \
             messages 'true', publication_names '{names}')"
        );
        frontend::query(&sql, &mut self.write)?;
        self.flush().await?;
        timeout(COMMAND_TIMEOUT, self.copy_both()).await.map_err(|_| Error::Silent(COMMAND_TIMEOUT))?
    }

    async fn copy_both(&mut self) -> Result<(), Error> {
        loop {
            let length = self.whole_message().await?;
            // The library does not know this one answer.
            if self.read.first() == Some(&b'W') {
                self.read.advance(length);
                return Ok(());
            }
            if let Message::ErrorResponse(body) = self.message().await? {
                return Err(refused(&body));
            }
        }
    }

    /// The next frame that is already here.
    pub(super) fn try_frame(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            let Some(length) = self.buffered()? else { return Ok(None) };
            if self.read.first() == Some(&b'd') {
                let mut body = self.read.split_to(length).freeze();
                body.advance(HEADER_BYTES);
                return frame(body).map(Some);
            }
            match Message::parse(&mut self.read)? {
                Some(Message::ErrorResponse(body)) => return Err(refused(&body)),
                Some(Message::CopyDone | Message::CommandComplete(_)) => return Err(Error::Closed),
                _ => {}
            }
        }
    }

    /// Reads what there is. Cancel safe: what was read is kept.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        if self.read.capacity() - self.read.len() < READ_BYTES_MIN {
            self.read.reserve(READ_BYTES);
        }
        match self.io.read_buf(&mut self.read).await? {
            0 => Err(Error::Closed),
            _ => Ok(()),
        }
    }

    /// Tells the server what was received and what is done; `ping` asks for an answer.
    pub(super) async fn status(&mut self, received: Lsn, done: Lsn, ping: bool) -> Result<(), Error> {
        let mut body = BytesMut::with_capacity(34);
        let now = Clock::System.now().timestamp_micros() - super::pgoutput::POSTGRES_EPOCH_MICROS;
        body.put_u8(b'r');
        body.put_u64(received.0.max(done.0));
        body.put_u64(done.0);
        body.put_u64(done.0);
        body.put_i64(now);
        body.put_u8(u8::from(ping));
        frontend::CopyData::new(body.freeze())?.write(&mut self.write);
        self.flush().await
    }

    /// Ends the stream and the session in order. When it returns, the server has released the slot.
    pub(super) async fn finish(mut self) -> Result<(), Error> {
        frontend::copy_done(&mut self.write);
        frontend::terminate(&mut self.write);
        self.flush().await?;
        // What was still on its way is of no use; the server closes last.
        loop {
            self.read.clear();
            self.read.reserve(READ_BYTES_MIN);
            match self.io.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.io.write_all(&self.write).await?;
        self.write.clear();
        Ok(self.io.flush().await?)
    }

    async fn message(&mut self) -> Result<Message, Error> {
        loop {
            self.whole_message().await?;
            if let Some(message) = Message::parse(&mut self.read)? {
                return Ok(message);
            }
        }
    }

    async fn whole_message(&mut self) -> Result<usize, Error> {
        loop {
            if let Some(length) = self.buffered()? {
                return Ok(length);
            }
            self.fill().await?;
        }
    }

    /// The length of the message at the front of the buffer, once all of it is there.
    fn buffered(&self) -> Result<Option<usize>, Error> {
        let Some(header) = Header::parse(&self.read)? else { return Ok(None) };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
        if length > self.message_bytes_max {
            let tag = char::from(header.tag());
            return Err(Error::Unexpected(format!("{tag:?} claims {length} bytes")));
        }
        Ok((self.read.len() >= length).then_some(length))
    }
}

/// Tag and length.
const HEADER_BYTES: usize = 5;

fn frame(mut body: Bytes) -> Result<Frame, Error> {
    let short = |_| Error::Unexpected("a copy message that is too short".into());
    match body.try_get_u8().map_err(short)? {
        b'w' => {
            let _begin = body.try_get_u64().map_err(short)?;
            let wal_end = Lsn(body.try_get_u64().map_err(short)?);
            let _sent_at = body.try_get_i64().map_err(short)?;
            Ok(Frame::Data { wal_end, message: body })
        }
        b'k' => {
            let wal_end = Lsn(body.try_get_u64().map_err(short)?);
            let _sent_at = body.try_get_i64().map_err(short)?;
            Ok(Frame::Keepalive { wal_end, reply: body.try_get_u8().map_err(short)? != 0 })
        }
        other => Err(Error::Unexpected(format!("a copy message of kind {other:#04x}"))),
    }
}

/// The server's error as ours.
fn refused(body: &ErrorResponseBody) -> Error {
    let (mut code, mut message, mut hint) = (String::new(), String::new(), None);
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text,
            b'M' => message = text,
            b'H' => hint = Some(text),
            _ => {}
        }
    }
    if let Some(hint) = hint {
        message = format!("{message}; {hint}");
    }
    Error::Server { code: SqlState::from_code(&code), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(server: &[u8]) -> Connection {
        let mut read = BytesMut::new();
        read.extend_from_slice(server);
        let message_bytes_max = GREETING_BYTES_MAX;
        Connection {
            io: Box::new(tokio::io::empty()),
            read,
            write: BytesMut::new(),
            message_bytes_max,
            server_encoding: String::new(),
            as_stored: false,
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut connection = over(b"d\x7f\xff\xff\xffw");
        assert!(matches!(connection.try_frame(), Err(Error::Unexpected(_))));
        assert!(over(b"d\0\0\0\0w").try_frame().is_err());
    }

    #[test]
    fn frames_are_cut_and_other_messages_passed_over() {
        let mut bytes = b"N\0\0\0\x05\0".to_vec();
        bytes.extend_from_slice(b"d\0\0\0\x16k\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\x01");
        bytes.extend_from_slice(b"d\0\0\0\x1ew\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0E");
        bytes.extend_from_slice(b"d\0\0");
        let mut connection = over(&bytes);
        let wal_end = Lsn(9);
        assert_eq!(connection.try_frame().unwrap(), Some(Frame::Keepalive { wal_end, reply: true }));
        let data = Frame::Data { wal_end: Lsn(2), message: Bytes::from_static(b"E") };
        assert_eq!(connection.try_frame().unwrap(), Some(data));
        assert_eq!(connection.try_frame().unwrap(), None);
    }

    #[test]
    fn a_cut_copy_message_is_an_error() {
        for bytes in [&b"d\0\0\0\x04"[..], b"d\0\0\0\x06w\0", b"d\0\0\0\x06k\0", b"d\0\0\0\x05?"] {
            assert!(over(bytes).try_frame().is_err(), "{bytes:?}");
        }
    }
}
