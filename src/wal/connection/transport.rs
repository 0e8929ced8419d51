//! The socket under a replication connection: TCP with keepalives, TLS over it, or a unix socket.
use super::{super::error::Error, certificate};
use crate::db::{Host, Target, TlsMode};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// What a connection reads and writes.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// The channel binding data, which proves in a log-in that the connection is not intercepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// No TLS, so nothing to bind to.
    Plain,
    /// TLS with a certificate that has no hash of its own (like Ed25519).
    Unbindable,
    /// The hash of the server's certificate.
    EndPoint(Vec<u8>),
}

pub(super) async fn connect(target: &Target) -> Result<(Box<dyn Io>, Binding), Error> {
    let unreachable = |source| Error::Unreachable { at: target.address(), source };
    match &target.host {
        Host::Unix(folder) => {
            let path = folder.join(format!(".s.PGSQL.{}", target.port));
            let socket = UnixStream::connect(path).await.map_err(unreachable)?;
            Ok((Box::new(socket), Binding::Plain))
        }
        Host::Tcp(host) => {
            let socket = TcpStream::connect((host.as_str(), target.port)).await.map_err(unreachable)?;
            keep_alive(&socket).map_err(unreachable)?;
            encrypt(target, host, socket).await
        }
    }
}

/// A dead host is noticed by the kernel too, not only by our own pings.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

async fn encrypt(
    target: &Target,
    host: &str,
    mut socket: TcpStream,
) -> Result<(Box<dyn Io>, Binding), Error> {
    if target.tls_mode == TlsMode::Disable {
        return Ok((Box::new(socket), Binding::Plain));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    // Exactly one byte: anything after it could not be trusted.
    match socket.read_u8().await? {
        b'S' => {}
        b'N' if target.tls_mode == TlsMode::Prefer => return Ok((Box::new(socket), Binding::Plain)),
        _ => return Err(Error::Tls(format!("the server at {} does not offer it", target.address()))),
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|e| Error::Tls(format!("{host} is no name for a certificate: {e}")))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::clone(&target.tls))
        .connect(name, socket)
        .await
        .map_err(|e| Error::Tls(format!("the server at {}: {e}", target.address())))?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let hash = certificates.first().and_then(|der| certificate::end_point_hash(der));
    let binding = hash.map_or(Binding::Unbindable, Binding::EndPoint);
    Ok((Box::new(stream), binding))
}
