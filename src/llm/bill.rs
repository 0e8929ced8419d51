//! Reads what a provider says that it billed, by day: OpenAI's costs (`GET /v1/organization/costs`), Anthropic's cost
//! report (`GET /v1/organizations/cost_report`) and OpenRouter's activity (`GET /api/v1/activity`). Pure.
//!
//! The file is one that others wrote. What cannot be read is a problem with its key, and the rest is read nevertheless.
use super::dollars::scaled;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};

/// Amounts are added as billionths of a dollar, so that the rounding of many small ones does not add up.
const NANO: i32 = 9;
const NANO_PER_MICRO: i128 = 1_000;

/// What was read of a bill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bill {
    /// Microdollars by day (UTC). Negative for a day with more credits than costs.
    pub days: BTreeMap<NaiveDate, i64>,
    /// Days of which something cannot be read.
    pub unknown_days: BTreeSet<NaiveDate>,
    /// What cannot be read.
    pub problems: Vec<BillProblem>,
}

/// A part of a bill that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BillProblem {
    /// Where it is, with dots.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

type Members<'a> = BTreeMap<String, &'a RawValue>;

/// Reads the JSON of a bill: an object with the list `data`, or the list. The form of each entry is recognised by its
/// members.
///
/// # Errors
/// If it has no such list.
pub fn read_bill(text: &str) -> Result<Bill, BillProblem> {
    let problem = |message: String| BillProblem { key: "the file".into(), message };
    let whole: &RawValue = serde_json::from_str(text).map_err(|e| problem(format!("it is no JSON: {e}")))?;
    let list = members(whole).and_then(|mut top| top.remove("data")).unwrap_or(whole);
    let entries: Vec<&RawValue> = serde_json::from_str(list.get())
        .map_err(|_| problem("it has no list of costs: neither `data` nor the file itself is one".into()))?;
    let mut reader = Reader::default();
    for (at, entry) in entries.into_iter().enumerate() {
        reader.entry(&format!("data.{at}"), entry);
    }
    Ok(reader.bill())
}

#[derive(Default)]
struct Reader {
    nanos: BTreeMap<NaiveDate, i128>,
    unknown_days: BTreeSet<NaiveDate>,
    problems: Vec<BillProblem>,
}

impl Reader {
    fn entry(&mut self, key: &str, entry: &RawValue) {
        let Some(entry) = members(entry) else { return self.problem(key, "it is no object") };
        let read = |name: &str| entry.get(name).copied();
        match (read("start_time"), read("starting_at"), read("date")) {
            (Some(start), ..) => {
                self.bucket(key, &entry, seconds(start), read("end_time").and_then(seconds), Self::openai)
            }
            (_, Some(start), _) => {
                self.bucket(key, &entry, time(start), read("ending_at").and_then(time), Self::anthropic);
            }
            (.., Some(date)) => self.openrouter(key, &entry, date),
            _ => self.problem(key, "it is no cost of a day: it has none of start_time, starting_at and date"),
        }
    }

    /// Reads the costs of a span of time, which must be of one day.
    fn bucket(
        &mut self,
        key: &str,
        entry: &Members<'_>,
        start: Option<DateTime<Utc>>,
        end: Option<DateTime<Utc>>,
        read: fn(&Members<'_>) -> Result<i128, &'static str>,
    ) {
        let Some(start) = start else { return self.problem(key, "its start is no time") };
        let day = start.date_naive();
        // A span ends with the first moment that does not belong to it.
        let last = end.and_then(|end| end.checked_sub_signed(TimeDelta::milliseconds(1)));
        if last.is_none_or(|last| last.date_naive() != day) {
            return self.problem(key, "it is not of one day: export the costs by day");
        }
        let results: Option<Vec<&RawValue>> =
            entry.get("results").and_then(|results| serde_json::from_str(results.get()).ok());
        let Some(results) = results else { return self.unknown(key, day, "it has no list of results") };
        // A day without costs is a day, too.
        self.nanos.entry(day).or_default();
        for (at, result) in results.into_iter().enumerate() {
            let amount = members(result).ok_or("it is no object").and_then(|result| read(&result));
            self.add(&format!("{key}.results.{at}"), day, amount);
        }
    }

    /// `{amount: {value, currency}}`, in dollars.
    fn openai(result: &Members<'_>) -> Result<i128, &'static str> {
        let amount = result.get("amount").and_then(|amount| members(amount)).ok_or("it has no amount")?;
        in_dollars(&amount)?;
        nanos(amount.get("value").copied(), NANO)
    }

    /// `{amount, currency}`, in cents.
    fn anthropic(result: &Members<'_>) -> Result<i128, &'static str> {
        in_dollars(result)?;
        nanos(result.get("amount").copied(), NANO - 2)
    }

    /// `{date, usage, byok_usage_inference}`, in dollars. The latter is what the owner of a key paid elsewhere.
    fn openrouter(&mut self, key: &str, entry: &Members<'_>, date: &RawValue) {
        let day = text(date).and_then(|date| date.get(..10)?.parse::<NaiveDate>().ok());
        let Some(day) = day else { return self.problem(key, "its date is no day") };
        let elsewhere = entry.get("byok_usage_inference").map_or(Ok(0), |amount| nanos(Some(amount), NANO));
        let amount = nanos(entry.get("usage").copied(), NANO);
        self.add(key, day, amount.and_then(|amount| Ok(amount + elsewhere?)));
    }

    fn add(&mut self, key: &str, day: NaiveDate, amount: Result<i128, &'static str>) {
        match amount {
            // Billionths of at most a billion dollars: no file has enough of them for an overflow.
            Ok(amount) => *self.nanos.entry(day).or_default() += amount,
            Err(why) => self.unknown(key, day, why),
        }
    }

    fn unknown(&mut self, key: &str, day: NaiveDate, why: &str) {
        self.unknown_days.insert(day);
        self.problem(key, why);
    }

    fn problem(&mut self, key: &str, why: &str) {
        self.problems.push(BillProblem { key: key.to_owned(), message: why.to_owned() });
    }

    fn bill(self) -> Bill {
        let micros = |nanos: i128| {
            let rounded = (nanos + NANO_PER_MICRO / 2).div_euclid(NANO_PER_MICRO);
            i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
        };
        Bill {
            days: self.nanos.into_iter().map(|(day, nanos)| (day, micros(nanos))).collect(),
            unknown_days: self.unknown_days,
            problems: self.problems,
        }
    }
}

fn members(raw: &RawValue) -> Option<Members<'_>> {
    serde_json::from_str(raw.get()).ok()
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// Seconds since 1970.
fn seconds(raw: &RawValue) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(serde_json::from_str(raw.get()).ok()?, 0)
}

/// A time in RFC 3339.
fn time(raw: &RawValue) -> Option<DateTime<Utc>> {
    Some(DateTime::parse_from_rfc3339(&text(raw)?).ok()?.to_utc())
}

fn in_dollars(members: &Members<'_>) -> Result<(), &'static str> {
    let currency = members.get("currency").and_then(|currency| text(currency));
    match currency {
        Some(currency) if currency.eq_ignore_ascii_case("usd") => Ok(()),
        _ => Err("its currency is not USD"),
    }
}

/// An amount in decimal notation, as a number or a text, times ten to the power of `power`.
fn nanos(amount: Option<&RawValue>, power: i32) -> Result<i128, &'static str> {
    let amount = amount.ok_or("it has no amount")?;
    let written = text(amount).unwrap_or_else(|| amount.get().to_owned());
    let (sign, written) = match written.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, written.as_str()),
    };
    scaled(written, power).map(|amount| sign * i128::from(amount)).ok_or("its amount is no decimal number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(bill: &Bill) -> Vec<(String, i64)> {
        bill.days.iter().map(|(day, amount)| (day.to_string(), *amount)).collect()
    }

    fn told(bill: &Bill) -> Vec<String> {
        bill.problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
    }

    #[test]
    fn costs_of_openai_are_dollars_in_buckets_of_a_day() {
        let bill = read_bill(
            r#"{ "object": "page", "has_more": false, "data": [
                { "object": "bucket", "start_time": 1730419200, "end_time": 1730505600, "results": [
                    { "amount": { "value": 0.06, "currency": "usd" }, "line_item": "a" },
                    { "amount": { "value": 1.2e-7, "currency": "usd" }, "line_item": "b" },
                    { "amount": { "value": 0.0000004, "currency": "USD" }, "line_item": "c" },
                    { "amount": { "value": -0.01, "currency": "usd" }, "line_item": "credit" } ] },
                { "object": "bucket", "start_time": 1730505600, "end_time": 1730592000, "results": [] } ] }"#,
        )
        .unwrap();
        assert_eq!(days(&bill), [("2024-11-01".into(), 50_001), ("2024-11-02".into(), 0)]);
        assert_eq!(bill.problems, Vec::new());
    }

    #[test]
    fn costs_of_anthropic_are_cents_as_texts() {
        let bill = read_bill(
            r#"{ "data": [ { "starting_at": "2026-07-01T00:00:00Z", "ending_at": "2026-07-02T00:00:00Z", "results": [
                { "amount": "123.78912", "currency": "USD", "model": "m" }, { "amount": "1", "currency": "USD" } ] } ] }"#,
        )
        .unwrap();
        assert_eq!(days(&bill), [("2026-07-01".into(), 1_247_891)]);
    }

    #[test]
    fn activity_of_openrouter_is_dollars_by_day_and_model() {
        let bill = read_bill(
            r#"[ { "date": "2026-07-01", "model": "a", "usage": 0.015, "byok_usage_inference": 0.5, "requests": 5 },
                 { "date": "2026-07-01 00:00:00", "model": "b", "usage": 0.000001 } ]"#,
        )
        .unwrap();
        assert_eq!(days(&bill), [("2026-07-01".into(), 515_001)]);
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_key_and_its_day_is_unknown() {
        let bill = read_bill(
            r#"{ "data": [ 7, {}, { "date": "soon", "usage": 1 }, { "date": "2026-07-01", "usage": "many" },
                { "date": "2026-07-02", "usage": 1 }, { "date": "2026-07-03" },
                { "start_time": 1730419200, "end_time": 1731000000, "results": [] },
                { "start_time": 1730419200, "end_time": 1730505600, "results": [
                    { "amount": { "value": 1, "currency": "eur" } }, null ] },
                { "starting_at": 5, "results": [] } ] }"#,
        )
        .unwrap();
        assert_eq!(days(&bill), [("2024-11-01".into(), 0), ("2026-07-02".into(), 1_000_000)]);
        let unknown: Vec<String> = bill.unknown_days.iter().map(NaiveDate::to_string).collect();
        assert_eq!(unknown, ["2024-11-01", "2026-07-01", "2026-07-03"]);
        let expected = [
            "data.0: it is no object",
            "data.1: it is no cost of a day: it has none of start_time, starting_at and date",
            "data.2: its date is no day",
            "data.3: its amount is no decimal number",
            "data.5: it has no amount",
            "data.6: it is not of one day: export the costs by day",
            "data.7.results.0: its currency is not USD",
            "data.7.results.1: it is no object",
            "data.8: its start is no time",
        ];
        assert_eq!(told(&bill), expected);
        for text in ["", "7", "{}", "{ \"data\": {} }", "null", "[1"] {
            assert_eq!(read_bill(text).unwrap_err().key, "the file", "{text}");
        }
    }
}
