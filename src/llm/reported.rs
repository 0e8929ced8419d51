//! What the headers of an answer say: the account's limits, and the id of the request.
use super::limiter::Reported;
use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, HeaderValue};
use std::{cell::Cell, future::Future, time::Duration};

/// Longest time until a reset; a longer one is shortened to it.
const RESET_MAX: Duration = Duration::from_secs(3_600);
/// Names of the headers before and after the words `limit`, `remaining` and `reset`, for requests and for tokens: of
/// OpenAI and its like, of Anthropic, and of OpenRouter and the IETF draft, which have one limit.
const REQUESTS: [[&str; 2]; 4] = [
    ["x-ratelimit-", "-requests"],
    ["anthropic-ratelimit-requests-", ""],
    ["x-ratelimit-", ""],
    ["ratelimit-", ""],
];
const TOKENS: [[&str; 2]; 2] = [["x-ratelimit-", "-tokens"], ["anthropic-ratelimit-tokens-", ""]];

/// Headers with the id of a request, for which the support of a provider asks.
const REQUEST_IDS: [&str; 4] = ["x-request-id", "request-id", "apim-request-id", "cf-ray"];
/// Longest id that is kept, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 200;

/// What the headers of an answer report.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RateReport {
    /// Of requests a minute.
    pub(super) requests: Option<Reported>,
    /// Of tokens a minute.
    pub(super) tokens: Option<Reported>,
    /// The id of the request.
    pub(super) request_id: Option<String>,
}

impl RateReport {
    /// Reads the headers. Whatever cannot be read counts as missing.
    #[must_use]
    pub(super) fn read(headers: &HeaderMap, now: DateTime<Utc>) -> Self {
        let first = |names: &[[&str; 2]]| names.iter().find_map(|name| reported(headers, *name, now));
        let id = |name: &&str| {
            let id = headers.get(*name)?.to_str().ok()?.trim();
            (!id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX).then(|| id.to_owned())
        };
        let request_id = REQUEST_IDS.iter().find_map(id);
        Self { requests: first(&REQUESTS), tokens: first(&TOKENS), request_id }
    }
}

tokio::task_local! {
    /// The report of the request that the present task waits for: async-openai returns bodies without headers.
    static REPORT: Cell<RateReport>;
    /// What is called at the first byte of the answer that the present task waits for.
    static ON_FIRST_BYTE: Cell<Option<Box<dyn Fn() + Send>>>;
    /// The header `traceparent` of the requests that the present task sends.
    static TRACEPARENT: Option<HeaderValue>;
}

/// Sends a request with this header `traceparent`, calls `on_first_byte` when its answer begins, and returns what the
/// headers of its last answer report.
pub(super) async fn with_report<F: Future>(
    traceparent: Option<&str>,
    on_first_byte: Box<dyn Fn() + Send>,
    request: F,
) -> (F::Output, RateReport) {
    let traceparent = traceparent.and_then(|text| HeaderValue::from_str(text).ok());
    let with_report = async { (request.await, REPORT.with(Cell::take)) };
    let with_report = REPORT.scope(Cell::default(), with_report);
    TRACEPARENT.scope(traceparent, ON_FIRST_BYTE.scope(Cell::new(Some(on_first_byte)), with_report)).await
}

/// An answer with the status of success has begun. Later calls for the same request do nothing.
pub(super) fn first_byte() {
    if let Some(begins) = ON_FIRST_BYTE.try_with(Cell::take).ok().flatten() {
        begins();
    }
}

/// Adds the header `traceparent` of [`with_report`], if there is one.
pub(super) fn add_traceparent(headers: &mut HeaderMap) {
    let traceparent = TRACEPARENT.try_with(Clone::clone).ok().flatten();
    if let Some(traceparent) = traceparent {
        headers.insert("traceparent", traceparent);
    }
}

/// Keeps the headers of an answer for [`with_report`]. Without one around it, they are ignored.
pub(super) fn keep(headers: &HeaderMap, now: DateTime<Utc>) {
    let _outside = REPORT.try_with(|report| report.set(RateReport::read(headers, now)));
}

fn reported(headers: &HeaderMap, [before, after]: [&str; 2], now: DateTime<Utc>) -> Option<Reported> {
    let text = |word: &str| headers.get(format!("{before}{word}{after}"))?.to_str().ok().map(str::trim);
    let count = |word| text(word)?.parse::<f64>().ok().filter(|count| count.is_finite() && *count >= 0.0);
    let limit = count("limit");
    let reset = text("reset").and_then(|text| reset(text, now));
    // A limit a day (Groq's requests) is no rate a minute: it is left alone until it is used up.
    let is_of_a_day = reset.is_some_and(|reset| reset >= RESET_MAX);
    let remaining = count("remaining")?;
    match is_of_a_day && remaining >= 1.0 {
        true => None,
        false => Some(Reported { limit, remaining, reset: reset.map(|reset| reset.min(RESET_MAX)) }),
    }
}

/// Parses a reset: `6m0s`, `120ms`, seconds, seconds or milliseconds since 1970, or a time.
fn reset(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        let since_1970 = match seconds {
            s if s > 1e11 => s / 1_000.0,
            s => s,
        };
        let now = now.timestamp_millis() as f64 / 1_000.0;
        let wait = if since_1970 > 1e9 { since_1970 - now } else { seconds };
        return Duration::try_from_secs_f64(wait.max(0.0)).ok();
    }
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some((at.to_utc() - now).to_std().unwrap_or_default());
    }
    // Go's form of a duration has fractions, like `1m26.4s`; humantime has none.
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, next) = unit.split_at(end);
        let factor = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * factor;
        rest = next;
    }
    Duration::try_from_secs_f64(total).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2026-08-21T09:00:00Z").unwrap().to_utc()
    }

    fn read(headers: &[(&'static str, &str)]) -> RateReport {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        RateReport::read(&map, now())
    }

    #[test]
    fn headers_of_each_dialect_are_read() {
        let told = |limit, remaining, seconds: f64| {
            Some(Reported { limit, remaining, reset: Some(Duration::from_secs_f64(seconds)) })
        };
        let openai = read(&[
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", "499"),
            ("x-ratelimit-reset-requests", "120ms"),
            ("x-ratelimit-limit-tokens", "30000"),
            ("x-ratelimit-remaining-tokens", "12000"),
            ("x-ratelimit-reset-tokens", "1m26.4s"),
        ]);
        assert_eq!(openai.requests, told(Some(500.0), 499.0, 0.12));
        assert_eq!(openai.tokens, told(Some(30_000.0), 12_000.0, 86.4));
        let anthropic = read(&[
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("anthropic-ratelimit-requests-reset", "2026-08-21T09:00:30Z"),
            ("anthropic-ratelimit-tokens-remaining", "7"),
        ]);
        assert_eq!(anthropic.requests, told(Some(50.0), 0.0, 30.0));
        assert_eq!(anthropic.tokens, Some(Reported { limit: None, remaining: 7.0, reset: None }));
        let openrouter = read(&[
            ("x-ratelimit-limit", "20"),
            ("x-ratelimit-remaining", "3"),
            ("x-ratelimit-reset", "1787302810000"),
        ]);
        assert_eq!(openrouter.requests, told(Some(20.0), 3.0, 10.0));
    }

    #[test]
    fn limit_of_a_day_counts_only_when_it_is_used_up() {
        let groq = |remaining| {
            read(&[
                ("x-ratelimit-limit-requests", "14400"),
                ("x-ratelimit-remaining-requests", remaining),
                ("x-ratelimit-reset-requests", "2h59m56s"),
            ])
        };
        assert_eq!(groq("14370").requests, None);
        assert_eq!(groq("0").requests.unwrap().reset, Some(RESET_MAX));
    }

    #[test]
    fn id_of_the_request_is_that_of_the_provider_before_that_of_a_proxy() {
        let id = |headers: &[(&'static str, &str)]| read(headers).request_id;
        assert_eq!(id(&[("cf-ray", "8a-FRA"), ("x-request-id", "req_1")]).as_deref(), Some("req_1"));
        assert_eq!(id(&[("cf-ray", "8a-FRA")]).as_deref(), Some("8a-FRA"));
        let long = "x".repeat(201);
        for odd in ["", " ", "é", long.as_str()] {
            assert_eq!(id(&[("x-request-id", odd)]), None, "{odd}");
        }
    }

    #[test]
    fn unreadable_headers_count_as_missing() {
        for odd in ["", "soon", "-1", "NaN", "inf", "1e999", "é", "1 2"] {
            assert_eq!(read(&[("x-ratelimit-remaining-requests", odd)]).requests, None, "{odd}");
        }
        for odd in ["", "soon", "s", "1x", "..s", "1m-3s", "5 s", "ms"] {
            assert_eq!(reset(odd, now()), None, "{odd}");
        }
        assert_eq!(reset("-3", now()), Some(Duration::ZERO));
        assert_eq!(reset("1787302700", now()), Some(Duration::ZERO), "a time that has passed");
    }
}
