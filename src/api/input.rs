//! Extractors for body, query and path, with errors that name the faulty part.
use super::problem::Problem;
use crate::gateway::edge::{BodyError, body_error};
use crate::json;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request, rejection::BytesRejection},
    http::{StatusCode, Uri, request::Parts},
};
use serde::de::DeserializeOwned;
use std::{fmt::Display, str::FromStr};

/// A JSON body. An empty body counts as `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await.map_err(unreadable)?;
        let text = if bytes.is_empty() { b"{}" } else { bytes.as_ref() };
        json::check_command(text)
            .map_err(|e| Problem::bad_request(format!("the body is not as expected: {e}")))?;
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
            let path = e.path().to_string();
            let place = if path == "." { String::new() } else { format!("{path}: ") };
            let hint = if path == "org" {
                ": the org is the one of the token; the service names it in the query, ?org=…"
            } else {
                ""
            };
            Problem::bad_request(format!("the body is not as expected: {place}{}{hint}", e.into_inner()))
        })?;
        deserializer
            .end()
            .map_err(|e| Problem::bad_request(format!("the body goes on after its JSON: {e}")))?;
        Ok(Self(value))
    }
}

fn unreadable(e: BytesRejection) -> Problem {
    if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("the body is larger than {} bytes", super::BODY_BYTES_MAX);
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail);
    }
    match body_error(&e) {
        Some(BodyError::TooSlow) => {
            let detail = "the body came too slowly: send it within server.body_timeout";
            Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", detail)
        }
        Some(BodyError::NoRoom) => Problem::unavailable("there is no memory for this body now"),
        None => Problem::bad_request("the body could not be read to its end"),
    }
}

/// The query parameters.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        params(&parts.uri).map(Self)
    }
}

/// Reads the query parameters of a request.
pub(super) fn params<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let query = Query::try_from_uri(uri);
    query.map(|Query(params)| params).map_err(|e| {
        let reason = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
        Problem::bad_request(format!("the query is not as expected: {reason}"))
    })
}

/// Checks a limit on rows: at least 1.
pub(super) fn limit(asked: Option<i64>) -> Result<Option<i64>, Problem> {
    match asked {
        Some(count) if count < 1 => {
            Err(Problem::bad_request(format!("limit is {count}: ask for at least 1")))
        }
        asked => Ok(asked),
    }
}

/// Parses an id in the path.
pub(super) fn id<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|e| Problem::bad_request(format!("{text:?} is not {what}: {e}")))
}
