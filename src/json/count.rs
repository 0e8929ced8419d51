//! Lenient parsing of counts in other programs' reports: a fraction, a text or a huge number must not lose
//! the answer that comes with it.
use serde_json::Value;

/// Largest count: a billion dollars in microdollars, and as many tokens. Sums of many such counts fit in 64
/// bits.
pub(crate) const COUNT_MAX: u64 = 1_000_000_000_000_000;

/// Parses a count: an integer, a fraction (rounded up), or one of them as text; limited to [`COUNT_MAX`].
/// `None` for anything else, and for negative numbers.
pub(crate) fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => {
            number.as_u64().map(|whole| whole.min(COUNT_MAX)).or_else(|| rounded(number.as_f64()?))
        }
        Value::String(text) => count_text(text),
        _ => None,
    }
}

/// Like [`count`], for a text such as the value of a header.
pub(crate) fn count_text(text: &str) -> Option<u64> {
    let text = text.trim();
    let whole = text.parse::<u64>().ok().map(|whole| whole.min(COUNT_MAX));
    whole.or_else(|| rounded(text.parse::<f64>().ok()?))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the range of u64")]
fn rounded(count: f64) -> Option<u64> {
    (count >= 0.0).then(|| count.ceil().min(COUNT_MAX as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn count_is_parsed_from_every_form_and_limited() {
        let counts = [
            (json!(12), 12),
            (json!(12.2), 13),
            (json!("12"), 12),
            (json!(" 1.5e3 "), 1500),
            (json!(u64::MAX), COUNT_MAX),
            (json!(1e300), COUNT_MAX),
            (json!("inf"), COUNT_MAX),
            (json!(-0.0), 0),
        ];
        for (written, count) in counts {
            assert_eq!(super::count(&written), Some(count), "{written}");
        }
        for odd in
            [json!(-1), json!("-0.5"), json!("many"), json!("NaN"), json!(null), json!([1]), json!(true)]
        {
            assert_eq!(count(&odd), None, "{odd}");
        }
    }
}
