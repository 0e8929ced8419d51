//! The websocket request: who asks, in which serializer, and what a refusal looks like
//! (`reference/realtime-protocol.md` §1.2 to §1.4).
use super::{
    connection::{self, READ_BUFFER_BYTES, WRITE_BUFFER_BYTES},
    session::Session,
    shared::Shared,
};
use crate::{hub::Outbox, scope::OnExit, wire::Version};
use axum::{
    extract::{FromRequestParts, Query, Request, State, WebSocketUpgrade, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use std::sync::{Arc, atomic::Ordering};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

#[derive(Deserialize)]
pub(super) struct Params {
    apikey: Option<String>,
    vsn: Option<String>,
}

/// `GET …/websocket`.
pub(super) async fn websocket(
    State(shared): State<Arc<Shared>>,
    params: Result<Query<Params>, QueryRejection>,
    request: Request,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let Query(params) = params.unwrap_or(Query(Params { apikey: None, vsn: None }));
    let Some(version) = Version::from_vsn(params.vsn.as_deref()) else {
        shared.metrics.refused_handshakes.inc();
        return StatusCode::FORBIDDEN.into_response();
    };
    if shared.stopping.load(Ordering::Acquire) {
        // A socket that is closed as soon as it is open confuses clients more than one they do not get.
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "Realtime is restarting, please standby");
    }
    let apikey = match key(&shared, &parts.headers, params.apikey) {
        Ok(apikey) => apikey,
        Err((status, text)) => {
            shared.metrics.refused_handshakes.inc();
            tracing::debug!(%status, text, "handshake refused");
            sleep(shared.config.handshake_error_delay).await;
            return refusal(status, &text);
        }
    };
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(not_an_upgrade) => return (StatusCode::BAD_REQUEST, not_an_upgrade.body_text()).into_response(),
    };
    // Messages over our own limit are still read, so that the close frame with its code reaches the client.
    let bytes_max = shared.config.message_bytes_max.saturating_mul(2);
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(bytes_max)
        .max_frame_size(bytes_max);
    upgrade.on_upgrade(move |socket| async move {
        let scope = shared.scope.clone();
        scope.spawn("connection", OnExit::Log, |_| async move {
            let outbox = Outbox::new(shared.config.outbox_frames_max, shared.config.outbox_bytes_max);
            let outbox = Arc::new(outbox);
            let session = Session::new(shared.clone(), version, apikey, outbox.clone());
            let span = tracing::debug_span!("conn", id = %session.id());
            connection::serve(socket, session, &outbox, &shared).instrument(span).await;
            Ok(())
        });
    })
}

/// The key of a socket, when it is good and there is room for one more.
fn key(
    shared: &Shared,
    headers: &HeaderMap,
    query: Option<String>,
) -> Result<Arc<str>, (StatusCode, String)> {
    let header = headers.get("x-api-key").map(|key| key.to_str().unwrap_or_default().to_owned());
    let unauthorized = |text: &str| (StatusCode::UNAUTHORIZED, text.to_owned());
    let apikey = header.or(query).filter(|key| !key.is_empty());
    let apikey = apikey.ok_or_else(|| unauthorized("API key is missing"))?;
    shared.verify(&apikey).map_err(|e| unauthorized(&e.handshake_text()))?;
    let too_many = |text: &str| Err((StatusCode::TOO_MANY_REQUESTS, text.to_owned()));
    if shared.users.load(Ordering::Acquire) >= shared.config.connections_max {
        return too_many("Too many connected users");
    }
    if shared.joins.count(Instant::now(), 0) >= u64::from(shared.config.joins_per_second_max) {
        return too_many("Too many joins per second");
    }
    Ok(apikey.into())
}

fn refusal(status: StatusCode, text: &str) -> Response {
    let body = serde_json::json!({ "error": text }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}
