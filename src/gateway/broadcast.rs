//! Broadcasts over HTTP: a batch, or one message (`docs/spec/realtime-protocol.md` §5).
//!
//! Topics here have no `realtime:` prefix. A body is validated as a whole before anything is
//! published. Private messages need the right to write in their room: the batch skips
//! messages without it, the single endpoint refuses them.
use super::{
    Rejection,
    connection::LARGE_MESSAGE_BYTES,
    edge::{BodyError, body_error},
    handshake::as_json,
    limits::{HttpTooMuch, TooMuch},
    shared::Shared,
};
use crate::{
    access::{self, Asker, Origin, Rights},
    auth::{self, Claims},
    hub::{Message, Room},
    id::Topic,
    remote::BroadcastSource,
    wire::{Encoding, Payload},
};
use axum::{
    extract::{FromRequest, Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::Body as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tower_http::cors::{Any, CorsLayer};

/// The largest request body.
pub(super) const BODY_BYTES_MAX: usize = 8_000_000;
/// Bytes that the envelope may add to the payload limit.
const ENVELOPE_BYTES: usize = 500;
const TOO_LARGE: &str = "Payload size exceeds tenant limit";

/// CORS for pages of any origin: tokens are sent in headers, never in cookies.
pub fn cors() -> CorsLayer {
    // `*` covers every header but `authorization`, which must be named. Old browsers do not support `*`.
    const HEADERS: [&str; 7] =
        ["*", "authorization", "apikey", "content-type", "x-client-info", "last-event-id", "x-api-key"];
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(methods)
        .allow_headers(HEADERS.map(HeaderName::from_static))
        .expose_headers(Any)
        .max_age(Duration::from_secs(3600))
}

/// `POST /api/broadcast`.
pub(super) async fn batch(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let rate = shared.rates.http_request(Instant::now());
    let is_large = is_large(&request);
    let (background, own) = (shared.background.clone(), shared.clone());
    let answered = Box::pin(async move { batch_inner(&own, request, rate).await });
    let outcome = background.carry(answered, move || is_large).await;
    // In a room with a history, 202 promises that the message is kept.
    shared.hub.wait_delivered().await;
    rated(rate, outcome)
}

/// Whether the body is handled on threads of low priority, like a large message of a websocket.
fn is_large(request: &Request) -> bool {
    request.body().size_hint().upper().is_none_or(|size| size > LARGE_MESSAGE_BYTES as u64)
}

async fn batch_inner(shared: &Shared, request: Request, rate: Requests) -> Result<(), HttpRejection> {
    let (claims, headers, body) = authenticated_body(shared, request).await?;
    let headers = &headers;
    if !crate::wire::is_json(&body) {
        return Err(message(StatusCode::BAD_REQUEST, "The body is not valid JSON"));
    }
    accepts_json(headers)?;
    check_request_rate(shared, rate)?;
    let bytes_max = shared.config.payload_bytes_max + ENVELOPE_BYTES;
    let outgoing = read_batch(&body, bytes_max).map_err(|errors| {
        refused(StatusCode::UNPROCESSABLE_ENTITY, json!({ "errors": { "messages": errors } }))
    })?;
    let size = outgoing.iter().map(|(_, payload)| payload.len()).sum();
    let count = outgoing.len() as u64;
    shared.rates.http(Instant::now(), count, size, true).map_err(too_much)?;
    let asker = asker(claims, headers);
    let mut known = HashMap::new();
    for (room, payload) in outgoing {
        let may = match known.get(&room) {
            Some(may) => *may,
            None => {
                let may = write(shared, &asker, &room).await.is_ok_and(|rights| rights.broadcast);
                known.insert(room.clone(), may);
                may
            }
        };
        if may
            && shared.may_relay(BroadcastSource::Http, &asker.claims, &room, &Payload::Json(payload.clone()))
        {
            publish(shared, &room, Message::relayed(payload));
        } else {
            denied(shared, &room);
        }
    }
    Ok(())
}

fn asker(claims: Claims, headers: &HeaderMap) -> Asker {
    // A requester has no connection. Requests with the same token share one fair-queue key.
    let mut bearer = std::hash::DefaultHasher::new();
    (&claims.role, &claims.sub).hash(&mut bearer);
    let origin = Origin { headers: as_json(headers, |_| true).into(), connection: bearer.finish() };
    Asker { claims: Arc::new(claims), origin }
}

async fn write(shared: &Shared, asker: &Asker, room: &Room) -> Result<Rights, access::Error> {
    if !shared.identity.may_observe(room, &asker.claims) {
        return Ok(Rights::NONE);
    }
    match shared.access.grant_without_policies(&asker.claims, room.private).and_then(|grant| grant.write) {
        Some(rights) => Ok(rights),
        None => shared.access.write(asker, &room.topic).await,
    }
}

#[derive(Deserialize)]
pub(super) struct SingleParams {
    private: Option<String>,
}

/// `POST /api/broadcast/{topic}/events/{event}`.
pub(super) async fn single(
    State(shared): State<Arc<Shared>>,
    Path((topic, event)): Path<(String, String)>,
    params: Result<Query<SingleParams>, QueryRejection>,
    request: Request,
) -> Response {
    let rate = shared.rates.http_request(Instant::now());
    let private = params.is_ok_and(|Query(params)| params.private.as_deref() == Some("true"));
    let outcome = match Topic::new(&topic) {
        None => Err(message(StatusCode::NOT_FOUND, "A topic must not be empty")),
        Some(topic) => {
            let is_large = is_large(&request);
            let (background, own, room) =
                (shared.background.clone(), shared.clone(), Room { topic, private });
            let answered = Box::pin(async move { single_inner(&own, request, rate, &room, &event).await });
            background.carry(answered, move || is_large).await
        }
    };
    shared.hub.wait_delivered().await;
    rated(rate, outcome)
}

async fn single_inner(
    shared: &Shared,
    request: Request,
    rate: Requests,
    room: &Room,
    event: &str,
) -> Result<(), HttpRejection> {
    let (claims, headers, body) = authenticated_body(shared, request).await?;
    let headers = &headers;
    accepts_json(headers)?;
    let (encoding, data) = single_payload(headers, body)?;
    check_request_rate(shared, rate)?;
    if data.len() > shared.config.payload_bytes_max + ENVELOPE_BYTES {
        let errors = json!({ "errors": { "payload": [TOO_LARGE] } });
        return Err(refused(StatusCode::UNPROCESSABLE_ENTITY, errors));
    }
    let asker = asker(claims, headers);
    let rights = write(shared, &asker, room).await.map_err(rights_error)?;
    if !rights.broadcast {
        denied(shared, room);
        return Err(message(StatusCode::FORBIDDEN, "Unauthorized"));
    }
    let payload = Payload::User { event: event.to_owned(), encoding, data: data.clone() };
    if !shared.may_relay(BroadcastSource::Http, &asker.claims, room, &payload) {
        denied(shared, room);
        return Err(message(StatusCode::FORBIDDEN, "Unauthorized"));
    }
    shared.rates.http(Instant::now(), 1, data.len(), false).map_err(too_much)?;
    publish(shared, room, Message::user(event, encoding, data, None));
    Ok(())
}

/// The response if the rights could not be checked (`docs/spec/realtime-protocol.md` §5.3).
fn rights_error(error: access::Error) -> HttpRejection {
    let (status, text) = match error {
        access::Error::Policy => (StatusCode::UNPROCESSABLE_ENTITY, "RLS policy error"),
        access::Error::Canceled => (StatusCode::UNPROCESSABLE_ENTITY, "Query canceled"),
        access::Error::MissingPartition => (StatusCode::UNPROCESSABLE_ENTITY, "Missing messages partition"),
        access::Error::Unreachable => (StatusCode::UNPROCESSABLE_ENTITY, "Tenant database unavailable"),
        access::Error::TooManyConnections => {
            (StatusCode::UNPROCESSABLE_ENTITY, "Tenant database has too many connections")
        }
        access::Error::Busy => (StatusCode::TOO_MANY_REQUESTS, "Connection pool exhausted"),
    };
    message(status, text)
}

/// Refuses a request that does not accept JSON responses.
fn accepts_json(headers: &HeaderMap) -> Result<(), HttpRejection> {
    let Some(accept) = headers.get(header::ACCEPT) else { return Ok(()) };
    let kinds = accept.to_str().unwrap_or_default().split(',');
    let mut kinds = kinds.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    let takes = kinds.any(|kind| matches!(kind, "*/*" | "application/*" | "application/json" | ""));
    if takes { Ok(()) } else { Err(message(StatusCode::NOT_ACCEPTABLE, "The answer is JSON")) }
}

/// The recent requests per second, and their limit.
type Requests = (u64, u64);

/// Supabase mode also limits requests, whatever they contain.
fn check_request_rate(shared: &Shared, (rate, limit): Requests) -> Result<(), HttpRejection> {
    let often = shared.rates.is_supabase_mode() && rate >= limit;
    if often { Err(message(StatusCode::TOO_MANY_REQUESTS, "Too many requests")) } else { Ok(()) }
}

fn publish(shared: &Shared, room: &Room, message: Message) {
    let receivers = shared.hub.publish(room, message, None);
    if shared.rates.count_deliveries(Instant::now(), receivers) {
        shared.directory.mark_over_limit(room, None);
    }
}

fn denied(shared: &Shared, room: &Room) {
    let refused = Rejection::push("http", "unauthorized", "no right to write");
    shared.refused(Some(room), room.topic.as_str(), None, refused);
}

fn too_much(why: HttpTooMuch) -> HttpRejection {
    let (text, retry) = match why {
        HttpTooMuch::Batch => ("Too many messages to broadcast, please reduce the batch size", None),
        HttpTooMuch::Now(retry) => ("You have exceeded your rate limit", retry),
    };
    let mut refused = message(StatusCode::TOO_MANY_REQUESTS, text);
    if let Some(retry) = retry {
        refused.body = json!({ "message": text, "code": "rate_limited", "retry_after_ms": retry.millis() });
        refused.retry = Some(retry);
    }
    refused
}

fn single_payload(headers: &HeaderMap, body: Bytes) -> Result<(Encoding, Bytes), HttpRejection> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return Ok((Encoding::Json, Bytes::from_static(b"{}")));
    };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/octet-stream") {
        return Ok((Encoding::Binary, body));
    }
    if !kind.eq_ignore_ascii_case("application/json") {
        let text = "Unsupported Media Type. Use application/json or application/octet-stream";
        return Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, json!({ "error": text })));
    }
    if body.is_empty() {
        return Ok((Encoding::Json, Bytes::from_static(b"{}")));
    }
    if !crate::wire::is_json(&body) {
        return Err(message(StatusCode::BAD_REQUEST, "The body is not valid JSON"));
    }
    if crate::wire::is_object(&body) {
        return Ok((Encoding::Json, body));
    }
    let wrapped = [b"{\"_json\":", &body[..], b"}"].concat();
    Ok((Encoding::Json, wrapped.into()))
}

/// The rooms and payloads of a batch, or one entry of errors per message. Payloads stay the received bytes, so every
/// digit of a number is preserved. `body` must be well-formed JSON.
fn read_batch(body: &[u8], bytes_max: usize) -> Result<Vec<(Room, Bytes)>, Value> {
    // A body that is not an object has no messages.
    let body: Members<'_> = serde_json::from_slice(body).unwrap_or_default();
    let Some(messages) = body.get("messages").filter(|messages| messages.get() != "null") else {
        return Err(json!(["can't be blank"]));
    };
    let messages: Vec<&RawValue> = serde_json::from_str(messages.get()).map_err(|_| json!(["is invalid"]))?;
    if messages.is_empty() {
        return Err(json!(["can't be blank"]));
    }
    let messages: Result<Vec<Members<'_>>, _> =
        messages.into_iter().map(|message| serde_json::from_str(message.get())).collect();
    let messages = messages.map_err(|_| json!(["is invalid"]))?;
    let read: Vec<_> = messages.iter().map(|message| read_message(message, bytes_max)).collect();
    if read.iter().any(Result::is_err) {
        return Err(read.into_iter().map(|outcome| outcome.err().map_or(json!({}), Value::Object)).collect());
    }
    Ok(read.into_iter().flatten().collect())
}

/// The members of an object, unparsed.
type Members<'a> = HashMap<String, &'a RawValue>;

/// A validated message of a batch.
#[derive(Serialize)]
struct Outgoing<'a> {
    event: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Value>,
    payload: &'a RawValue,
    #[serde(rename = "type")]
    kind: &'static str,
}

fn read_message(message: &Members<'_>, bytes_max: usize) -> Result<(Room, Bytes), Map<String, Value>> {
    let mut errors = Map::new();
    let mut wrong = |member: &str, text: &str| errors.insert(member.to_owned(), json!([text]));
    // A value that cannot be parsed, like a number beyond a double, is not one of the accepted values.
    let value = |member: &str| {
        let raw = message.get(member)?;
        Some(serde_json::from_str(raw.get()).unwrap_or(Value::Array(Vec::new())))
    };
    let mut name = |member: &str| match value(member) {
        Some(Value::String(text)) if !text.trim().is_empty() => Some(text),
        None | Some(Value::Null | Value::String(_)) => {
            wrong(member, "can't be blank");
            None
        }
        Some(_) => {
            wrong(member, "is invalid");
            None
        }
    };
    let (topic, event) = (name("topic"), name("event"));
    let private = match value("private") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(Value::String(text)) if text == "true" || text == "1" => true,
        Some(Value::String(text)) if text == "false" || text == "0" => false,
        Some(_) => {
            wrong("private", "is invalid");
            false
        }
    };
    let payload = match message.get("payload") {
        Some(payload) if crate::wire::is_object(payload.get().as_bytes()) => Some(*payload),
        Some(payload) if payload.get() != "null" => {
            wrong("payload", "is invalid");
            None
        }
        _ => {
            wrong("payload", "can't be blank");
            None
        }
    };
    let id = value("id").filter(Value::is_string);
    let object = payload.map(|payload| {
        let meta = id.map(|id| json!({ "id": id }));
        serde_json::to_vec(&Outgoing { event: event.as_deref(), meta, payload, kind: "broadcast" })
    });
    let object = object.and_then(Result::ok).unwrap_or_default();
    if object.len() > bytes_max {
        wrong("payload", TOO_LARGE);
    }
    match topic.as_deref().and_then(Topic::new) {
        Some(topic) if errors.is_empty() => Ok((Room { topic, private }, object.into())),
        _ => Err(errors),
    }
}

/// The claims, the headers and the whole body. The token is verified first: an unauthenticated body is not read.
async fn authenticated_body(
    shared: &Shared,
    request: Request,
) -> Result<(Claims, HeaderMap, Bytes), HttpRejection> {
    let headers = request.headers().clone();
    let claims = authenticate(shared, &headers).await?;
    let body = Bytes::from_request(request, &()).await.map_err(|e| match body_error(&e) {
        Some(BodyError::TooSlow) => message(StatusCode::REQUEST_TIMEOUT, "The body came too slowly"),
        Some(BodyError::NoRoom) => {
            let full = message(StatusCode::SERVICE_UNAVAILABLE, "There is no memory for the body now");
            HttpRejection { retry: Some(TooMuch(Duration::ZERO)), ..full }
        }
        None => message(e.status(), &e.body_text()),
    })?;
    Ok((claims, headers, body))
}

/// Verifies the bearer token, else the `apikey` header.
async fn authenticate(shared: &Shared, headers: &HeaderMap) -> Result<Claims, HttpRejection> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let bearer = text("authorization").and_then(auth::bearer);
    let token = bearer.or_else(|| text("apikey")).unwrap_or_default();
    shared.verify(token).await.map_err(|_| message(StatusCode::UNAUTHORIZED, "Unauthorized"))
}

/// A response other than 202.
struct HttpRejection {
    status: StatusCode,
    body: Value,
    retry: Option<TooMuch>,
}

fn refused(status: StatusCode, body: Value) -> HttpRejection {
    HttpRejection { status, body, retry: None }
}

fn message(status: StatusCode, text: &str) -> HttpRejection {
    refused(status, json!({ "message": text }))
}

fn rated((rate, limit): Requests, outcome: Result<(), HttpRejection>) -> Response {
    let headers = [
        ("x-rate-rolling", rate.to_string()),
        ("x-rate-limit", limit.to_string()),
        ("x-rate-limit-remaining", limit.saturating_sub(rate).to_string()),
    ];
    let response = match outcome {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(HttpRejection { status, body, retry }) => {
            let mut response = (status, axum::Json(body)).into_response();
            if let Some(TooMuch(wait)) = retry {
                response.headers_mut().insert(header::RETRY_AFTER, (wait.as_secs() + 1).into());
            }
            response
        }
    };
    (headers, response).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_invalid_message_rejects_the_batch_with_errors_for_each() {
        let good = json!({"topic": "den", "event": "ping", "payload": {}});
        let read = |body: Value| read_batch(body.to_string().as_bytes(), 1000);
        let errors = |messages: Value| read(json!({ "messages": messages })).unwrap_err();
        assert_eq!(
            errors(
                json!([good, {"topic": "den", "payload": 1}, {"topic": 1, "event": "", "payload": {}, "private": 2}])
            ),
            json!([
                {},
                {"event": ["can't be blank"], "payload": ["is invalid"]},
                {"topic": ["is invalid"], "event": ["can't be blank"], "private": ["is invalid"]},
            ])
        );
        assert_eq!(errors(json!([])), json!(["can't be blank"]));
        assert_eq!(errors(json!([1])), json!(["is invalid"]));
        for none in [json!({}), json!({ "messages": null }), json!([]), json!("messages")] {
            assert_eq!(read(none).unwrap_err(), json!(["can't be blank"]));
        }
        assert_eq!(errors(json!({})), json!(["is invalid"]));
        let empty = json!([{"topic": "t", "event": "e", "payload": null}]);
        assert_eq!(errors(empty), json!([{ "payload": ["can't be blank"] }]));
        let odd = br#"{"messages": [{"topic": 1e400, "event": "e", "payload": {}}]}"#;
        assert_eq!(read_batch(odd, 1000).unwrap_err(), json!([{ "topic": ["is invalid"] }]));
        let large = json!([{"topic": "t", "event": "e", "payload": {"x": "y".repeat(1000)}}]);
        assert_eq!(errors(large), json!([{ "payload": [TOO_LARGE] }]));
    }

    #[test]
    fn message_id_becomes_meta() {
        let body =
            json!({"messages": [{"topic": "t", "event": "e", "payload": {}, "id": "7", "private": "1"}]});
        let read = read_batch(body.to_string().as_bytes(), 1000).unwrap();
        assert!(read[0].0.private);
        let object: Value = serde_json::from_slice(&read[0].1).unwrap();
        assert_eq!(object["meta"]["id"], "7");
    }
    #[test]
    fn payload_is_passed_as_the_bytes_that_came() {
        let payload =
            r#"{ "a": 0.1234567890123456789012345, "b": [123456789012345678901234567890, 1e400, -0.0] }"#;
        let body =
            format!("{{\"messages\": [{{\"topic\": \"t\", \"event\": \"e\", \"payload\": {payload}}}]}}");
        let read = read_batch(body.as_bytes(), 1000).unwrap();
        assert!(std::str::from_utf8(&read[0].1).unwrap().contains(payload), "{read:?}");
    }
}
