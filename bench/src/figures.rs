//! What a benchmark measured: numbers by name.
//!
//! The end of a name is the unit, like `_ms` or `_per_second`, so that a table of names and numbers says everything.
use crate::machine::Postgres;
use anyhow::Context;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// Units by the end of a figure's name. The first that fits is the unit.
const UNITS: [(&str, &str); 10] = [
    ("_ms", "ms"),
    ("_per_second", "1/s"),
    ("_per_million", "s per million"),
    ("_mib", "MiB"),
    ("_kib", "KiB"),
    ("kib_per_connection", "KiB"),
    ("seconds", "s"),
    ("_percent", "%"),
    ("_share", "share"),
    ("_ratio", "ratio"),
];

/// Figures of one run, and the PostgreSQL that it ran on.
#[derive(Default)]
pub(crate) struct Figures {
    values: BTreeMap<String, f64>,
    /// `None` for a benchmark without a database.
    pub(crate) postgres: Option<Postgres>,
}

impl Figures {
    /// Adds a figure, rounded to three digits after the point. A number that is not finite (a division by zero) is
    /// left out, because JSON has no form for it.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64) {
        if value.is_finite() {
            self.values.insert(name.into(), (value * 1000.0).round() / 1000.0);
        }
    }

    /// Adds p50, p95 and p99 as `<name>_p50_ms` and so on.
    pub(crate) fn add_percentiles(&mut self, name: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        for percent in [50, 95, 99] {
            let index = (times.len().saturating_sub(1) * percent).div_ceil(100);
            let ms = times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
            self.add(format!("{name}_p{percent}_ms"), ms);
        }
    }

    /// Returns the figure of this name, if there is one.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    /// All figures by name.
    pub(crate) fn values(&self) -> &BTreeMap<String, f64> {
        &self.values
    }
}

/// The unit of a figure by its name; `count` without a known end.
pub(crate) fn unit(name: &str) -> &'static str {
    UNITS.into_iter().find(|(end, _)| name.ends_with(end)).map_or("count", |(_, unit)| unit)
}

/// A number in the answer of a client process.
///
/// # Errors
/// When the answer has no such number.
pub(crate) fn number(answer: &Value, member: &str) -> anyhow::Result<f64> {
    let number = answer.get(member).and_then(Value::as_f64);
    number.with_context(|| format!("the clients sent no number {member}"))
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().saturating_sub(1) / 2)?;
    // Rounded as figures are: a mean of two has no more digits than they have.
    Some(((lower + upper) / 2.0 * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_says_the_unit() {
        for (name, expected) in [
            ("wake_p50_ms", "ms"),
            ("deliveries_per_second", "1/s"),
            ("bare_cpu_seconds_per_million", "s per million"),
            ("kib_per_connection", "KiB"),
            ("resident_before_kib", "KiB"),
            ("with_finished_seconds", "s"),
            ("paced_cpu_share", "share"),
            ("beside_the_calls_percent", "%"),
            ("filters_to_one_change_p50_ms_ratio", "ratio"),
            ("filters", "count"),
        ] {
            assert_eq!(unit(name), expected, "{name}");
        }
    }

    #[test]
    fn percentiles_are_taken_from_sorted_times() {
        let mut figures = Figures::default();
        figures.add_percentiles("wake", (1..=101).rev().map(Duration::from_millis).collect());
        let found = ["wake_p50_ms", "wake_p95_ms", "wake_p99_ms"].map(|name| figures.get(name));
        assert_eq!(found, [Some(51.0), Some(96.0), Some(100.0)]);
        figures.add_percentiles("none", Vec::new());
        assert_eq!(figures.get("none_p50_ms"), None);
    }

    #[test]
    fn median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
