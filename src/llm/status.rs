//! The errors of endpoints by status, headers and code. Pure; texts of the endpoint are matched and dropped.
//!
//! The status decides, and the `code` where one status has two meanings. Words never do: some endpoints call a limit
//! of a minute a quota.
use super::{Error, retry_after};
use chrono::{DateTime, Utc};
use reqwest::header::HeaderMap;
use serde_json::Value;
use std::time::Duration;

/// Longest wait that an endpoint can ask for.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

impl Error {
    /// The error of an answer with this status. `None` for success.
    pub(super) fn of_status(
        status: u16,
        headers: &HeaderMap,
        body: &Value,
        now: DateTime<Utc>,
    ) -> Option<Self> {
        if (200..300).contains(&status) {
            return None;
        }
        let wait = wait(headers, body, now);
        let error = classify(status, &code(body), wait);
        // The endpoint knows best whether the same request may succeed.
        Some(match (headers.get("x-should-retry").map(|value| value.as_bytes()), &error) {
            (Some(b"true"), Self::Rejected { status }) => Self::Failed { status: *status, retry_after: wait },
            (Some(b"false"), Self::RateLimited { .. } | Self::Failed { .. } | Self::BadCall) => {
                Self::Rejected { status }
            }
            _ => error,
        })
    }

    /// The error in a body with status 200, or in an event of a stream. `None` if it is none.
    pub(super) fn in_body(body: &Value) -> Option<Self> {
        let body = first(body);
        let is_error = body.get("error").is_some_and(|error| !error.is_null())
            || body.get("object").and_then(Value::as_str) == Some("error");
        if !is_error {
            return None;
        }
        let code = code(body);
        let status = code.parse().ok().filter(|status| (400..600).contains(status));
        Some(match status {
            Some(status) => classify(status, &code, retry_delay(body)),
            None if code == "insufficient_quota" => Self::Quota { status: 200 },
            None if is_context(&code) => Self::TooLarge { status: 200 },
            None => Self::InvalidAnswer("it is an error with status 200"),
        })
    }
}

fn classify(status: u16, code: &str, retry_after: Option<Duration>) -> Error {
    match status {
        401 | 403 => Error::Refused { status },
        // With a wait it is a budget of requests in flight.
        402 if retry_after.is_none() => Error::Quota { status },
        429 if code == "insufficient_quota" => Error::Quota { status },
        402 | 429 | 529 => Error::RateLimited { retry_after },
        503 if retry_after.is_some() => Error::RateLimited { retry_after },
        413 => Error::TooLarge { status },
        400 if is_context(code) => Error::TooLarge { status },
        400 if code == "tool_use_failed" => Error::BadCall,
        408 | 409 | 500.. => Error::Failed { status, retry_after },
        _ => Error::Rejected { status },
    }
}

fn is_context(code: &str) -> bool {
    matches!(code, "context_length_exceeded" | "exceed_context_size_error")
}

/// Some endpoints send a list of one error.
fn first(body: &Value) -> &Value {
    body.as_array().and_then(|list| list.first()).unwrap_or(body)
}

/// The code of an error: a text or a number, in the error or in the body; its type where there is no code, or where
/// the code is only the status.
fn code(body: &Value) -> String {
    let body = first(body);
    let error = body.get("error").filter(|error| error.is_object()).unwrap_or(body);
    let kind = error.get("type").and_then(Value::as_str);
    match error.get("code") {
        Some(Value::String(code)) if !code.is_empty() => code.clone(),
        Some(Value::Number(number)) => match kind {
            Some(kind) if is_context(kind) => kind.to_owned(),
            _ => number.to_string(),
        },
        _ => kind.unwrap_or_default().to_owned(),
    }
}

/// How long the endpoint asks to wait: in milliseconds, in seconds or as a date, or in the body.
fn wait(headers: &HeaderMap, body: &Value, now: DateTime<Utc>) -> Option<Duration> {
    let millis =
        headers.get("retry-after-ms").and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
    let millis = millis.and_then(|millis| Duration::try_from_secs_f64(millis / 1e3).ok());
    millis.map(|wait| wait.min(WAIT_MAX)).or_else(|| retry_after(headers, now)).or_else(|| retry_delay(body))
}

/// `google.rpc.RetryInfo`: a text like `26s`.
fn retry_delay(body: &Value) -> Option<Duration> {
    let details = first(body).get("error")?.get("details")?.as_array()?;
    let delay = details.iter().find_map(|detail| detail.get("retryDelay")?.as_str())?;
    let seconds = delay.strip_suffix('s')?.parse().ok()?;
    Some(Duration::try_from_secs_f64(seconds).ok()?.min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(status: u16, headers: &[(&'static str, &str)], body: Value) -> Error {
        let headers = headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()));
        let headers: HeaderMap = headers.collect();
        Error::of_status(status, &headers, &body, DateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn code_decides_where_a_status_has_two_meanings() {
        let with = |code: Value| json!({ "error": { "message": "m", "type": "t", "code": code } });
        let rate = Error::RateLimited { retry_after: None };
        for (status, body, error) in [
            (401, json!(null), Error::Refused { status: 401 }),
            (403, json!(null), Error::Refused { status: 403 }),
            (402, json!(null), Error::Quota { status: 402 }),
            (429, with(json!("insufficient_quota")), Error::Quota { status: 429 }),
            // The same words in the text are no code.
            (
                429,
                json!({ "error": { "message": "insufficient_quota", "code": "rate_limit" } }),
                rate.clone(),
            ),
            (429, json!({ "error": "INSUFFICIENT QUOTA" }), rate.clone()),
            (429, with(json!(429)), rate.clone()),
            (529, json!(null), rate.clone()),
            (413, json!(null), Error::TooLarge { status: 413 }),
            (400, with(json!("context_length_exceeded")), Error::TooLarge { status: 400 }),
            (
                400,
                json!({ "error": { "code": 400, "type": "exceed_context_size_error", "n_ctx": 4096 } }),
                Error::TooLarge { status: 400 },
            ),
            (400, with(json!("tool_use_failed")), Error::BadCall),
            (400, with(json!(null)), Error::Rejected { status: 400 }),
            (400, json!({ "object": "error", "code": 400 }), Error::Rejected { status: 400 }),
            (422, json!([{ "error": { "code": 422 } }]), Error::Rejected { status: 422 }),
            (404, json!("secret"), Error::Rejected { status: 404 }),
            (302, json!(null), Error::Rejected { status: 302 }),
            (409, json!(null), Error::Failed { status: 409, retry_after: None }),
            (
                500,
                json!({ "error": { "message": "secret" } }),
                Error::Failed { status: 500, retry_after: None },
            ),
        ] {
            let found = of(status, &[], body.clone());
            assert_eq!(found, error, "{status} {body}");
            assert!(!found.to_string().contains("secret"));
        }
    }

    #[test]
    fn header_about_retries_goes_before_the_status() {
        let no = [("x-should-retry", "false")];
        assert_eq!(of(500, &no, json!(null)), Error::Rejected { status: 500 });
        assert_eq!(of(429, &no, json!(null)), Error::Rejected { status: 429 });
        let yes = [("x-should-retry", "true")];
        assert_eq!(of(400, &yes, json!(null)), Error::Failed { status: 400, retry_after: None });
        assert_eq!(of(401, &yes, json!(null)), Error::Refused { status: 401 });
    }

    #[test]
    fn wait_is_read_from_the_most_exact_place() {
        let body =
            json!([{ "error": { "code": 429, "details": [{ "@type": "x" }, { "retryDelay": "26s" }] } }]);
        let wait = |headers: &[(&'static str, &str)]| of(429, headers, body.clone()).retry_after();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(
            wait(&[("retry-after-ms", "1500"), ("retry-after", "9")]),
            Some(Duration::from_millis(1_500))
        );
        assert_eq!(wait(&[("retry-after-ms", "soon"), ("retry-after", "9")]), seconds(9));
        assert_eq!(wait(&[]), seconds(26));
        assert_eq!(
            of(503, &[("retry-after", "9")], json!(null)),
            Error::RateLimited { retry_after: seconds(9) }
        );
        assert_eq!(
            of(402, &[("retry-after", "9")], json!(null)),
            Error::RateLimited { retry_after: seconds(9) }
        );
        let odd = json!({ "error": { "details": [{ "retryDelay": "-1s" }] } });
        assert_eq!(of(429, &[], odd).retry_after(), None);
    }

    #[test]
    fn error_with_status_200_has_its_own_code() {
        let of = |body: Value| Error::in_body(&body);
        assert_eq!(of(json!({ "error": null, "choices": [] })), None);
        assert_eq!(
            of(json!({ "error": { "code": 502 } })),
            Some(Error::Failed { status: 502, retry_after: None })
        );
        assert_eq!(
            of(json!({ "error": { "code": "insufficient_quota" } })),
            Some(Error::Quota { status: 200 })
        );
        let unknown = Some(Error::InvalidAnswer("it is an error with status 200"));
        for odd in
            [json!({}), json!("secret"), json!(7), json!({ "code": 7 }), json!({ "code": [] }), json!([1])]
        {
            assert_eq!(of(json!({ "error": odd })), unknown, "{odd}");
        }
    }
}
