//! Usage of an attempt, as it is reported.
//!
//! Reports come from model endpoints and foreign programs: a count may be missing, a fraction, a text or absurdly
//! large. A result is never refused for that. A readable count is rounded up and limited; an unreadable one is
//! presumed, so that the reservation counts in its place.
use crate::json::{COUNT_MAX, count};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// What an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Model tokens, in and out.
    pub tokens: u64,
    /// Money.
    pub microdollars: u64,
    /// Whether it was not reported, or cannot be read: a reservation counts as used instead.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub presumed: bool,
}

impl Usage {
    /// The usage of a report without figures.
    #[must_use]
    pub fn unreported() -> Self {
        Self { presumed: true, ..Self::default() }
    }

    /// The same within the limits of what is stored.
    #[must_use]
    pub(in crate::task) fn limited(self) -> Self {
        let Self { tokens, microdollars, presumed } = self;
        Self { tokens: tokens.min(COUNT_MAX), microdollars: microdollars.min(COUNT_MAX), presumed }
    }
}

impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Anything but an object has no figures.
        let reported = Value::deserialize(deserializer)?;
        let member = |name: &str| reported.get(name).cloned().unwrap_or_default();
        let (tokens, microdollars) = (member("tokens"), member("microdollars"));
        let presumed = member("presumed");
        // One of the two may be left out; a report without both has no figures.
        let silent = tokens.is_null() && microdollars.is_null();
        let odd = |value: &Value| !value.is_null() && count(value).is_none();
        Ok(Self {
            tokens: count(&tokens).unwrap_or(0),
            microdollars: count(&microdollars).unwrap_or(0),
            presumed: silent || odd(&tokens) || odd(&microdollars) || presumed == true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn malformed_or_missing_usage_is_presumed() {
        let read = |value: Value| serde_json::from_value::<Usage>(value).unwrap();
        let known = Usage { tokens: 5, microdollars: 0, presumed: false };
        assert_eq!(read(json!({ "tokens": 5 })), known);
        assert_eq!(read(json!({ "tokens": 5, "microdollars": null, "more": 1 })), known);
        assert_eq!(read(json!({ "tokens": 0, "microdollars": 0 })), Usage::default());
        let odd = [json!("x"), json!(7), json!(true), json!([5, 5]), json!([{ "tokens": 5 }])];
        for silent in odd.into_iter().chain([json!(null), json!({}), json!({ "tokens": null })]) {
            assert_eq!(read(silent), Usage::unreported());
        }
        let odd = read(json!({ "tokens": "lots", "microdollars": 7 }));
        assert_eq!(odd, Usage { tokens: 0, microdollars: 7, presumed: true });
    }
}
