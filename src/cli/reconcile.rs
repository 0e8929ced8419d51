//! `convoke spend reconcile`: what a provider billed beside what was charged, by day. Reads files and the daemon's
//! spending, and changes nothing.
#![expect(clippy::indexing_slicing, reason = "indexing a JSON value returns null for a missing member")]
use super::{Outcome, daemon::Daemon, exit::Failure, input_file, output, settings::Settings};
use crate::{
    api::SPEND_BY_DAYS_MAX,
    clock::Clock,
    llm::{Bill, BillProblem, read_bill},
};
use anyhow::anyhow;
use chrono::{NaiveDate, TimeDelta};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// Largest file that is read.
const BILL_BYTES_MAX: u64 = 64 << 20;

#[derive(clap::Args)]
pub(super) struct Args {
    /// What the provider says it billed: costs of OpenAI, the cost report of Anthropic or the activity of OpenRouter, as
    /// JSON. Several files are pages of one bill
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Name of the provider in the settings, else the host of its address
    #[arg(long, value_name = "NAME")]
    provider: String,
}

/// One day of a comparison, in microdollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Day {
    billed: i64,
    charged: i64,
    /// Of what was charged: questions whose usage is not known, which count as their most.
    presumed: i64,
    questions: i64,
}

impl Day {
    fn added(self, other: Self) -> Self {
        Self {
            billed: self.billed.saturating_add(other.billed),
            charged: self.charged.saturating_add(other.charged),
            presumed: self.presumed.saturating_add(other.presumed),
            questions: self.questions.saturating_add(other.questions),
        }
    }

    /// What was charged too much (or too little, if negative), as a part of what was billed in percent.
    fn error_percent(self) -> Option<f64> {
        let (billed, charged) = (self.billed as f64, self.charged as f64);
        (self.billed > 0).then(|| (charged - billed) * 100.0 / billed)
    }
}

pub(super) async fn run(settings: &Settings, args: Args) -> Outcome {
    let (bill, problems) = read(&args.files)?;
    for problem in &problems {
        eprintln!("{problem}");
    }
    let (Some(first), Some(last)) = (bill.keys().next().copied(), bill.keys().next_back().copied()) else {
        return Err(anyhow!("the bill has no day that can be read").into());
    };
    let now = Clock::System.now();
    // An hour less than the longest range: the clocks of this program and the daemon may differ.
    let oldest =
        (now - TimeDelta::days(SPEND_BY_DAYS_MAX) + TimeDelta::hours(1)).date_naive() + TimeDelta::days(1);
    let from = first.max(oldest);
    let daemon = Daemon::find(settings)?;
    let query = [("by", "day,org,provider".to_owned()), ("from", format!("{from}T00:00:00Z"))];
    let spent = daemon.get("/v1/spend", &query, Duration::ZERO).await?;
    if spent["partial"] == true {
        return Err(
            anyhow!("there are more than 10000 rows of spending since {from}: compare fewer days").into()
        );
    }
    let charged = charged(&spent, &args.provider);
    // The present day is not over, neither there nor here.
    let days = compared(&bill, &charged, from, last.min(now.date_naive() - TimeDelta::days(1)));
    if first < from {
        eprintln!("days before {from} are not compared: spending is read {SPEND_BY_DAYS_MAX} days back");
    }
    if days.is_empty() {
        return Err(anyhow!("no day of the bill can be compared: all are too old, or not over").into());
    }
    show(settings, &args.provider, &days);
    let is_covered = days.values().all(|day| day.charged >= day.billed);
    if is_covered && problems.is_empty() { Ok(()) } else { Err(Failure::reported()) }
}

/// What was billed by day, and the problems of the files. A day of which something cannot be read is left out.
fn read(files: &[PathBuf]) -> Result<(BTreeMap<NaiveDate, i64>, Vec<String>), Failure> {
    let (mut days, mut problems) = (BTreeMap::<NaiveDate, i64>::new(), Vec::new());
    let at = |file: &Path, problem: &BillProblem| {
        format!("{}: {}: {}", file.display(), problem.key, problem.message)
    };
    let mut unknown = Vec::new();
    for file in files {
        let text = input_file::read(file, BILL_BYTES_MAX)?;
        let Bill { days: read, unknown_days, problems: found } =
            read_bill(&text).map_err(|problem| anyhow!(at(file, &problem)))?;
        for (day, billed) in read {
            let sum = days.entry(day).or_default();
            *sum = sum.saturating_add(billed);
        }
        unknown.extend(unknown_days);
        problems.extend(found.iter().map(|problem| at(file, problem)));
    }
    for day in unknown {
        days.remove(&day);
    }
    Ok((days, problems))
}

/// What was charged at a provider by day, in an answer of `/v1/spend`.
fn charged(spent: &Value, provider: &str) -> BTreeMap<NaiveDate, Day> {
    let mut days: BTreeMap<NaiveDate, Day> = BTreeMap::new();
    let rows = spent["rows"].as_array().into_iter().flatten();
    for row in rows.filter(|row| row["provider"] == provider) {
        let Some(day) = row["day"].as_str().and_then(|day| day.parse().ok()) else { continue };
        let count = |name: &str| row[name].as_i64().unwrap_or(0);
        let (charged, presumed) = (count("microdollars"), count("presumed_microdollars"));
        let of_org = Day { billed: 0, charged, presumed, questions: count("questions") };
        let sum = days.entry(day).or_default();
        *sum = sum.added(of_org);
    }
    days
}

/// Every day of the bill from `from` to `last`, and those between them on which something was charged.
fn compared(
    bill: &BTreeMap<NaiveDate, i64>,
    charged: &BTreeMap<NaiveDate, Day>,
    from: NaiveDate,
    last: NaiveDate,
) -> BTreeMap<NaiveDate, Day> {
    let within = |day: &NaiveDate| (from..=last).contains(day);
    let mut days: BTreeMap<NaiveDate, Day> =
        charged.iter().filter(|(day, _)| within(day)).map(|(day, charged)| (*day, *charged)).collect();
    for (day, billed) in bill.iter().filter(|(day, _)| within(day)) {
        days.entry(*day).or_default().billed = *billed;
    }
    days
}

fn show(settings: &Settings, provider: &str, days: &BTreeMap<NaiveDate, Day>) {
    let total = days.values().fold(Day::default(), |sum, day| sum.added(*day));
    let covered = days.values().filter(|day| day.charged >= day.billed).count();
    if settings.json {
        let rows: Vec<Value> = days
            .iter()
            .map(|(day, of)| json!({ "day": day, "amounts": of, "error_percent": of.error_percent() }))
            .collect();
        let whole = json!({ "amounts": total, "error_percent": total.error_percent() });
        output::json(&json!({ "provider": provider, "days": rows, "total": whole, "covered_days": covered }));
        return;
    }
    let percent =
        |day: Day| day.error_percent().map_or_else(|| "-".to_owned(), |error| format!("{error:+.3} %"));
    let row = |name: String, day: Day| {
        let [billed, charged, presumed] =
            [day.billed, day.charged, day.presumed].map(|amount| output::dollars(&json!(amount)));
        [name, day.questions.to_string(), billed, charged, presumed, percent(day)]
    };
    let rows: Vec<_> = days.iter().map(|(day, of)| row(day.to_string(), *of)).collect();
    let rows = rows.into_iter().chain([row("all".to_owned(), total)]);
    output::table(["DAY", "QUESTIONS", "BILLED", "CHARGED", "PRESUMED", "ERROR"], rows);
    output::line(format!("charged at least what {provider} billed on {covered} of {} days", days.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn days_of_the_bill_and_days_between_them_are_compared() {
        let bill =
            BTreeMap::from([(day("2026-07-01"), 100), (day("2026-07-03"), 50), (day("2026-07-05"), 7)]);
        let row = |day: &str, org: &str, provider: &str, money: i64| json!({ "day": day, "org": org, "provider": provider, "microdollars": money, "questions": 2 });
        let spent = json!({ "rows": [
            row("2026-06-30", "a", "openai", 9), row("2026-07-01", "a", "openai", 60),
            row("2026-07-01", "b", "openai", 41), row("2026-07-01", "a", "other", 1_000),
            row("2026-07-02", "a", "openai", 3), row("2026-07-03", "a", "openai", 49),
        ] });
        let days = compared(&bill, &charged(&spent, "openai"), day("2026-07-01"), day("2026-07-04"));
        let found: Vec<(i64, i64, i64)> =
            days.values().map(|day| (day.billed, day.charged, day.questions)).collect();
        assert_eq!(found, [(100, 101, 4), (0, 3, 2), (50, 49, 2)]);
        let errors: Vec<Option<f64>> = days.values().map(|day| day.error_percent()).collect();
        assert_eq!(errors, [Some(1.0), None, Some(-2.0)]);
    }
}
