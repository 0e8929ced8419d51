//! The past of chosen metrics in memory: every second for 15 minutes, and every minute for a day.
//!
//! For charts that have a past when a page is opened, without another program. Of a metric with labels it keeps the sum.
//! Takes about 600 KB. Lost when the daemon stops.
use super::Registry;
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// The metrics, by their names at `/metrics`. Those that end in `_total` only rise.
pub const SERIES: [&str; 30] = [
    "convoke_agent_jobs_failed_total",
    "convoke_agent_microdollars_total",
    "convoke_agent_tokens_total",
    "convoke_agent_wakes_total",
    "convoke_changes_delivered_total",
    "convoke_changes_lag_microseconds",
    "convoke_gateway_channels",
    "convoke_gateway_closed_total",
    "convoke_gateway_connections",
    "convoke_gateway_frames_received_total",
    "convoke_gateway_frames_sent_total",
    "convoke_gateway_joins_total",
    "convoke_gateway_received_bytes_total",
    "convoke_gateway_sent_bytes_total",
    "convoke_hub_deliveries_total",
    "convoke_hub_memory_bytes",
    "convoke_hub_messages_total",
    "convoke_hub_slow_disconnects_total",
    "convoke_server_refused_connections_total",
    "convoke_task_assignments_ended_total",
    "convoke_task_notices_dropped_total",
    "convoke_tasks_awarded_total",
    "convoke_tasks_failed_total",
    "convoke_tasks_requested_total",
    "convoke_wal_changes_total",
    "convoke_wal_gaps_total",
    "convoke_wal_lag_bytes",
    "convoke_wal_reconnects_total",
    "convoke_wal_retained_bytes",
    "convoke_wal_transactions_total",
];
const SECONDS_MAX: usize = 15 * 60;
const MINUTES_MAX: usize = 24 * 60;
const MINUTE: i64 = 60;

/// The distance of two samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Of the last 15 minutes.
    Second,
    /// Of the last 24 hours.
    Minute,
}

impl Step {
    /// Its length.
    #[must_use]
    pub fn seconds(self) -> i64 {
        match self {
            Self::Second => 1,
            Self::Minute => MINUTE,
        }
    }

    /// How far back its samples reach, in seconds.
    #[must_use]
    pub fn reach(self) -> i64 {
        let samples = match self {
            Self::Second => SECONDS_MAX,
            Self::Minute => MINUTES_MAX,
        };
        i64::try_from(samples).unwrap_or(i64::MAX).saturating_mul(self.seconds())
    }
}

/// A time in seconds since 1970, and the metrics at it; not a number for one that is not exposed.
type Sample = (i64, [f64; SERIES.len()]);

/// The samples of one daemon. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Series(Arc<Mutex<Rings>>);

#[derive(Debug, Default)]
struct Rings {
    seconds: VecDeque<Sample>,
    minutes: VecDeque<Sample>,
}

/// The samples of a range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Samples {
    /// Their times in seconds since 1970, oldest first. Seconds in which the daemon did not run are missing.
    pub times: Vec<i64>,
    /// The metrics at these times, by name.
    pub values: BTreeMap<&'static str, Vec<Option<f64>>>,
}

impl Series {
    /// Takes a sample at this time, in seconds since 1970. Does nothing for a time that it has: the clock may be set back.
    pub fn sample(&self, registry: &Registry, now: i64) {
        let Ok(text) = registry.encode() else { return };
        let sample = (now, read(&text));
        let mut rings = self.0.lock();
        push(&mut rings.seconds, sample, SECONDS_MAX, 1);
        push(&mut rings.minutes, sample, MINUTES_MAX, MINUTE);
    }

    /// The samples from a time on. `names`: those of [`SERIES`] that are wanted.
    #[must_use]
    pub fn read(&self, names: &[&str], from: i64, step: Step) -> Samples {
        let rings = self.0.lock();
        let ring = match step {
            Step::Second => &rings.seconds,
            Step::Minute => &rings.minutes,
        };
        let samples: Vec<&Sample> = ring.iter().filter(|(at, _)| *at >= from).collect();
        let of = |place: usize| -> Vec<Option<f64>> {
            let value = |sample: &&Sample| sample.1.get(place).copied().filter(|value| !value.is_nan());
            samples.iter().map(value).collect()
        };
        let wanted = SERIES.iter().enumerate().filter(|(_, name)| names.contains(name));
        let values = wanted.map(|(place, name)| (*name, of(place))).collect();
        Samples { times: samples.iter().map(|(at, _)| *at).collect(), values }
    }
}

fn push(ring: &mut VecDeque<Sample>, sample: Sample, max: usize, step: i64) {
    let slot = |at: i64| at.div_euclid(step);
    if ring.back().is_some_and(|(last, _)| slot(*last) >= slot(sample.0)) {
        return;
    }
    ring.push_back(sample);
    while ring.len() > max {
        ring.pop_front();
    }
}

/// Reads the chosen metrics of an exposition, each as the sum over its labels. A counter with labels is exposed from its
/// first count on, so one that is not is 0.
fn read(text: &str) -> [f64; SERIES.len()] {
    let mut values = SERIES.map(|name| if name.ends_with("_total") { 0.0 } else { f64::NAN });
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, rest)) = line.split_once(' ') else { continue };
        let name = series.split('{').next().unwrap_or(series);
        let Ok(place) = SERIES.binary_search(&name) else { continue };
        // A label may contain a space, so the value is behind the last brace.
        let value = line.rsplit_once('}').map_or(rest, |(_, rest)| rest.trim_start());
        let value: Option<f64> = value.split(' ').next().and_then(|value| value.parse().ok());
        if let (Some(sum), Some(value)) = (values.get_mut(place), value) {
            *sum = if sum.is_nan() { value } else { *sum + value };
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTED: &str = "convoke_tasks_requested_total";

    #[test]
    fn names_are_sorted_for_the_search() {
        assert!(SERIES.is_sorted());
    }

    #[test]
    fn metric_with_labels_is_summed() {
        let text = "# TYPE x counter\nconvoke_tasks_failed_total{reason=\"a b} c\"} 2\n\
                    convoke_tasks_failed_total{reason=\"d\"} 3 1700000000\nconvoke_wal_lag_bytes 7\nother 1\n";
        let values = read(text);
        let at = |name: &str| values[SERIES.binary_search(&name).unwrap()];
        assert_eq!((at("convoke_tasks_failed_total"), at("convoke_wal_lag_bytes")), (5.0, 7.0));
        assert_eq!(at(REQUESTED), 0.0, "nothing was counted");
        assert!(at("convoke_gateway_connections").is_nan());
    }

    #[test]
    fn samples_are_kept_by_second_and_by_minute() {
        let (registry, series) = (Registry::default(), Series::default());
        let requested = registry.counter("tasks_requested", "x");
        for second in 0..1000 {
            requested.inc();
            series.sample(&registry, 6_000 + second);
            series.sample(&registry, 6_000 + second);
        }
        let seconds = series.read(&[REQUESTED], 0, Step::Second);
        assert_eq!((seconds.times.len(), seconds.times.last()), (SECONDS_MAX, Some(&6_999)));
        assert_eq!(seconds.values[REQUESTED].last(), Some(&Some(1000.0)));
        let minutes = series.read(&[REQUESTED], 6_060, Step::Minute);
        assert_eq!(minutes.times, (6_060..7_000).step_by(60).collect::<Vec<_>>());
        series.sample(&registry, 10);
        assert_eq!(
            series.read(&[REQUESTED], 0, Step::Second).times.len(),
            SECONDS_MAX,
            "the clock was set back"
        );
    }
}
