//! The websocket over TCP or TLS, and the HTTP client.
use super::{Endpoint, Error, error::one_line};
use futures_util::future::BoxFuture;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, protocol::WebSocketConfig},
};

/// The byte stream of a websocket.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(super) type Socket = WebSocketStream<Box<dyn Io>>;
/// Opens the byte stream of a websocket, instead of TCP.
pub(super) type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Io>>> + Send + Sync>;

/// Connects and performs the handshake. `url` is the websocket's with all its parameters, which are secret.
pub(super) async fn connect(
    endpoint: &Endpoint,
    url: &str,
    message_bytes_max: usize,
    dial: Option<&Dial>,
    within: Duration,
) -> Result<Box<Socket>, Error> {
    let (host, port, _) = endpoint.address();
    let address = format!("{host}:{port}");
    let cannot = |why: String| Error::Connect { address: address.clone(), why: one_line(&why) };
    let attempt = async {
        let io = match dial {
            Some(dial) => dial().await.map_err(|e| cannot(e.to_string()))?,
            None => open_stream(endpoint).await.map_err(|e| cannot(e.to_string()))?,
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        match client_async_with_config(url, io, Some(config)).await {
            Ok((socket, _)) => Ok(Box::new(socket)),
            Err(tungstenite::Error::Http(response)) => Err(Error::Handshake {
                status: response.status().as_u16(),
                why: error_text(response.body().as_deref().unwrap_or_default()),
            }),
            // The text of this error contains the address, and with it the key.
            Err(tungstenite::Error::Url(_)) => Err(cannot("the address is not that of a websocket".into())),
            Err(error) => Err(cannot(error.to_string())),
        }
    };
    let timed_out = |_| cannot(format!("no answer within {within:?}"));
    tokio::time::timeout(within, attempt).await.map_err(timed_out)?
}

async fn open_stream(endpoint: &Endpoint) -> io::Result<Box<dyn Io>> {
    let (host, port, secure) = endpoint.address();
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    if !secure {
        return Ok(Box::new(socket));
    }
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let tls = tls().map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(Arc::new(tls)).connect(name, socket).await?))
}

/// TLS that trusts the operating system's root certificates.
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The HTTP client for broadcasts. It bypasses a configured proxy for a server on this machine.
pub(super) fn http(endpoint: &Endpoint, timeout: Duration) -> Result<reqwest::Client, Error> {
    let cannot = |why: String| Error::Http { status: None, why: one_line(&why) };
    let (host, ..) = endpoint.address();
    let address = host.parse::<std::net::IpAddr>();
    let local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls().map_err(|e| cannot(e.to_string()))?)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout);
    let builder = if local { builder.no_proxy() } else { builder };
    builder.build().map_err(|e| cannot(e.to_string()))
}

/// The error text of a response body: its member `error`, `message` or `errors`, else its first line.
pub(super) fn error_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let text_member = ["error", "message", "errors"].iter().find_map(|member| json.get(member));
    one_line(&text_member.map_or_else(
        || text.into_owned(),
        |text_member| text_member.as_str().map_or_else(|| text_member.to_string(), str::to_owned),
    ))
}
