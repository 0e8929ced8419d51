//! The websocket handshake: authentication, choice of the serializer, and refusals
//! (`docs/spec/realtime-protocol.md` §1.2 to §1.4).
use super::{
    connection,
    edge::{ConnectionSlot, Stream},
    session::{Session, SocketKey},
    shared::Shared,
};
use crate::{hub::Outbox, id::OrgId, scope::OnExit, wire::Version};
use axum::{
    extract::{ConnectInfo, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::upgrade::{OnUpgrade, Parts};
use serde::Deserialize;
use sha1::{Digest, Sha1};
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

#[derive(Deserialize)]
pub(super) struct Params {
    apikey: Option<String>,
    vsn: Option<String>,
    /// Identifies the client across connections, so that it can resume.
    client_id: Option<String>,
}

/// `GET …/websocket`.
pub(super) async fn websocket(
    State(shared): State<Arc<Shared>>,
    params: Result<Query<Params>, QueryRejection>,
    request: Request,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let Query(params) = params.unwrap_or(Query(Params { apikey: None, vsn: None, client_id: None }));
    let Some(version) = Version::from_vsn(params.vsn.as_deref()) else {
        shared.metrics.refused_handshakes.inc();
        return StatusCode::FORBIDDEN.into_response();
    };
    if shared.stopping.load(Ordering::Acquire) {
        // A refused handshake is retried later. A socket that closes right after it opened confuses clients more.
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "Realtime is restarting, please standby");
    }
    let (apikey, org) = match key(&shared, &parts.headers, params.apikey).await {
        Ok(found) => found,
        Err((status, text)) => {
            shared.metrics.refused_handshakes.inc();
            tracing::debug!(%status, text, "handshake refused");
            sleep(shared.config.handshake_error_delay).await;
            return refusal(status, &text);
        }
    };
    let headers = as_json(&parts.headers, |name| name.starts_with("x-")).into();
    let client = params.client_id.filter(|id| !id.is_empty());
    let key = SocketKey { apikey, headers, client };
    let forwarded = parts.extensions.remove::<Arc<ConnectionSlot>>();
    let (upgrade, accept) = match upgrade(&mut parts) {
        Ok(upgrade) => upgrade,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    // Assigned before the response: sockets that a client opens one after the other get ascending ids.
    let conn = shared.conn_id();
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    let scope = shared.scope.clone();
    // Boxed apart, so that its variables are freed before the socket is served.
    let opening = Box::pin(async move {
        let Ok(upgraded) = upgrade.await else { return Ok(None) };
        let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<Stream>() else {
            anyhow::bail!("a websocket came over something else than a connection of this server");
        };
        // Copied: a slice of the buffer would keep its 8 KiB as long as the socket is open.
        let early = Box::from(&*read_buf);
        // The socket counts against the connection limit while it is open.
        let (socket, slot) = io.into_parts();
        let outbox = Outbox::new(shared.config.outbox_frames_max, shared.config.outbox_bytes_max);
        let outbox = Arc::new(outbox);
        let account = shared.memory.account(org.as_ref(), &outbox);
        let session = Box::new(Session::new(shared.clone(), (conn, version), key, outbox.clone(), account));
        let span = tracing::debug_span!("conn", id = %conn, ip = tracing::field::Empty);
        if let Some(peer) = peer {
            span.record("ip", tracing::field::display(peer.ip()));
        }
        let (background, is_large) = (shared.background.clone(), session.is_large());
        let served = Box::pin(connection::serve(socket, early, session, outbox, shared).instrument(span));
        Ok(Some((served, background, is_large, (slot, forwarded))))
    });
    scope.spawn("connection", OnExit::Log, |_| async move {
        if let Some((served, background, is_large, _slots)) = opening.await? {
            background.carry(served, move || is_large.load(Ordering::Acquire)).await;
        }
        Ok(())
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// `…/longpoll`: Phoenix's transport without websockets, which is not supported. phoenix.js reads the status in
/// the body and stops polling on 403.
pub(super) async fn long_poll() -> Response {
    let text = "Long polling is not served here: connect to /realtime/v1/websocket";
    let body = serde_json::json!({ "status": 403, "token": null, "messages": [], "error": text }).to_string();
    (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

/// The upgrade of a websocket request and the `sec-websocket-accept` of its response (RFC 6455 §4.2), or the error
/// in the request.
fn upgrade(parts: &mut request::Parts) -> Result<(OnUpgrade, HeaderValue), &'static str> {
    let has = |name, token: &str| {
        let values = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    if parts.method != Method::GET {
        return Err("Request method must be `GET`");
    }
    if !has(header::CONNECTION, "upgrade") {
        return Err("Connection header did not include 'upgrade'");
    }
    if !has(header::UPGRADE, "websocket") {
        return Err("`Upgrade` header did not include 'websocket'");
    }
    if parts.headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err("`Sec-WebSocket-Version` header did not include '13'");
    }
    let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).ok_or("`Sec-WebSocket-Key` header missing")?;
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = HeaderValue::from_str(&BASE64_STANDARD.encode(hash.finalize()));
    let upgrade = parts.extensions.remove::<OnUpgrade>().ok_or("connection cannot be upgraded")?;
    Ok((upgrade, accept.map_err(|_| "`Sec-WebSocket-Key` header is invalid")?))
}

/// Verifies the key of a socket and the limits of connections. Returns the key and its org.
async fn key(
    shared: &Shared,
    headers: &HeaderMap,
    query: Option<String>,
) -> Result<(Arc<str>, Option<OrgId>), (StatusCode, String)> {
    let header = headers.get("x-api-key").map(|key| key.to_str().unwrap_or_default().to_owned());
    let unauthorized = |text: &str| (StatusCode::UNAUTHORIZED, text.to_owned());
    let apikey = header.or(query).filter(|key| !key.is_empty());
    let apikey = apikey.ok_or_else(|| unauthorized("API key is missing"))?;
    let claims = shared.verify(&apikey).await.map_err(|e| unauthorized(&e.handshake_text()))?;
    let too_many = |text: &str| Err((StatusCode::TOO_MANY_REQUESTS, text.to_owned()));
    if shared.users.load(Ordering::Acquire) >= shared.config.connections_max {
        return too_many("Too many connected users");
    }
    if shared.rates.refuses_sockets(Instant::now()) {
        return too_many("Too many joins per second");
    }
    Ok((apikey.into(), claims.org))
}

/// Headers as policies of private channels read them: `request.headers`.
pub(super) fn as_json(headers: &HeaderMap, wanted: impl Fn(&str) -> bool) -> String {
    let mut object = serde_json::Map::new();
    for (name, value) in headers.iter().filter(|(name, _)| wanted(name.as_str())) {
        object.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into());
    }
    serde_json::Value::Object(object).to_string()
}

fn refusal(status: StatusCode, text: &str) -> Response {
    let body = serde_json::json!({ "error": text }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}
