//! Rejections: what was refused and why, for the client, the metrics and the operator.
use serde_json::json;
use std::borrow::Cow;

/// The longest text kept of what a client sent.
const TEXT_BYTES_MAX: usize = 200;

/// A request of a client that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    /// The event: `broadcast`, `presence`, `access_token`, `phx_join`, `http` or `push`.
    pub(super) what: &'static str,
    /// A code for the reason, from a small set.
    pub(super) code: Cow<'static, str>,
    /// The reason in words.
    pub(super) text: String,
    /// After how many milliseconds it may be retried, if time helps.
    pub(super) retry_after_ms: Option<u64>,
}

impl Rejection {
    pub(super) fn push(what: &'static str, code: &'static str, text: &str) -> Self {
        Self { what, code: code.into(), text: shortened(text), retry_after_ms: None }
    }

    /// A refused join. Its code is the part of the reason before the colon.
    pub(super) fn join(reason: &str) -> Self {
        let code = reason.split_once(": ").map_or(reason, |(code, _)| code);
        Self { what: "phx_join", code: code.to_owned().into(), text: shortened(reason), retry_after_ms: None }
    }

    pub(super) fn rate(what: &'static str, retry_after_ms: u64) -> Self {
        let text = format!("too fast: try again after {retry_after_ms} ms");
        Self { what, code: RATE_LIMITED.into(), text, retry_after_ms: Some(retry_after_ms) }
    }
}

/// The code of a request over its rate.
pub(super) const RATE_LIMITED: &str = "rate_limited";

/// The `response` of an error reply to a request over its rate.
pub(super) fn rate_limited(retry_after_ms: u64) -> String {
    json!({ "reason": RATE_LIMITED, "retry_after_ms": retry_after_ms }).to_string()
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_rejection_has_its_code_and_texts_are_cut() {
        let refused = Rejection::join("Unauthorized: You do not have permissions");
        assert_eq!((&*refused.code, refused.what), ("Unauthorized", "phx_join"));
        assert_eq!(Rejection::join("Unknown Error on Channel").code, "Unknown Error on Channel");
        assert_eq!(Rejection::push("push", "unknown_event", &"é".repeat(300)).text.len(), 200);
    }
}
