//! What a request brings: body, query and path, with a problem that says what is wrong with them.
use super::problem::Problem;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request, rejection::BytesRejection},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;
use std::{fmt::Display, str::FromStr};

/// A JSON body; an empty one is read as `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await.map_err(|e| unreadable(&e))?;
        let text = if bytes.is_empty() { b"{}" } else { bytes.as_ref() };
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
            let path = e.path().to_string();
            let place = if path == "." { String::new() } else { format!("{path}: ") };
            let hint = if path == "org" {
                ": the org is the token's, or the service says it in the query, ?org=…"
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

fn unreadable(e: &BytesRejection) -> Problem {
    if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("the body is larger than {} bytes", super::BODY_BYTES_MAX);
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail);
    }
    Problem::bad_request("the body could not be read to its end")
}

/// The query parameters.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(params)| Self(params)).map_err(|e| {
            let reason = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            Problem::bad_request(format!("the query is not as expected: {reason}"))
        })
    }
}

/// A number of rows: at least one.
pub(super) fn limit(asked: Option<i64>) -> Result<Option<i64>, Problem> {
    match asked {
        Some(count) if count < 1 => {
            Err(Problem::bad_request(format!("limit is {count}: ask for at least 1")))
        }
        asked => Ok(asked),
    }
}

/// An id in the path.
pub(super) fn id<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|e| Problem::bad_request(format!("{text:?} is not {what}: {e}")))
}
