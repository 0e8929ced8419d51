//! Values of columns in Postgres' text form, parsed by class so that they compare as in Postgres.
//!
//! Numbers without rounding, times as points in time, the rest by the bytes of Postgres'
//! output. Pure.
use super::Class;
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, Timelike};
use std::cmp::Ordering;

/// A value that can be compared with others of its class.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Operand {
    Number(Number),
    Bool(bool),
    Text(Box<str>),
    Timestamp(Moment),
    /// Microseconds since midnight.
    Time(i64),
    /// The index of the label.
    Enum(usize),
}

/// A point in time. Dates, and times without zone, count as UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Moment {
    Past,
    /// Year (0 is 1 BC), month, day, microseconds since midnight.
    At(i32, u32, u32, i64),
    Future,
}

impl Operand {
    /// Parses `text` as a value of this class; `None` if it is not one.
    pub(super) fn read(class: &Class, text: &str) -> Option<Self> {
        match class {
            Class::Number => Number::read(text).map(Self::Number),
            Class::Bool => match text.trim().to_ascii_lowercase().as_str() {
                "t" | "true" | "yes" | "on" | "1" => Some(Self::Bool(true)),
                "f" | "false" | "no" | "off" | "0" => Some(Self::Bool(false)),
                _ => None,
            },
            Class::Text | Class::Alike => Some(Self::Text(text.into())),
            Class::Padded => Some(Self::Text(text.trim_end_matches(' ').into())),
            Class::Bytes => Some(Self::Text(text.to_ascii_lowercase().into())),
            Class::Uuid => text.trim().parse::<uuid::Uuid>().ok().map(|id| Self::Text(id.to_string().into())),
            Class::Timestamp => moment(text.trim()).map(Self::Timestamp),
            Class::Time => time(text.trim()).map(Self::Time),
            Class::Enum(labels) => labels.iter().position(|label| **label == *text).map(Self::Enum),
            Class::Asked | Class::Incomparable => None,
        }
    }
}

const DAY_MICROS: i64 = 86_400_000_000;

/// `HH:MM[:SS[.ffffff]]`, up to `24:00:00`.
fn time(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let mut whole = || parts.next()?.parse::<u32>().ok();
    let (hours, minutes) = (whole()?, whole()?);
    let seconds = match parts.next() {
        None => 0,
        Some(text) => {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
            i64::from(whole.parse::<u32>().ok().filter(|n| *n < 61)?) * 1_000_000 + micros
        }
    };
    let micros =
        (i64::from(hours) * 60 + i64::from(minutes)).checked_mul(60_000_000)?.checked_add(seconds)?;
    (parts.next().is_none() && minutes < 60 && micros <= DAY_MICROS).then_some(micros)
}

/// Parses Postgres' output with ISO dates in UTC: `2026-08-21 09:15:02.118+00`, `0044-03-15 BC`.
fn parse_output(text: &str) -> Option<Moment> {
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (date, clock) = match text.split_once([' ', 'T']) {
        Some((date, clock)) => (date, time(clock.strip_suffix("+00").unwrap_or(clock))?),
        None => (text, 0),
    };
    let mut parts = date.splitn(3, '-').map(str::parse::<u32>);
    let mut part = || parts.next()?.ok();
    let (year, month, day) = (i32::try_from(part()?).ok()?, part()?, part()?);
    let year = if before_christ { 1 - year } else { year };
    let real = (1..=12).contains(&month) && (1..=31).contains(&day) && clock < DAY_MICROS;
    real.then_some(Moment::At(year, month, day, clock))
}

fn moment(text: &str) -> Option<Moment> {
    match text.to_ascii_lowercase().as_str() {
        "infinity" => return Some(Moment::Future),
        "-infinity" => return Some(Moment::Past),
        _ => {}
    }
    // Forms that people write in filters: other zones, and times without seconds.
    let zoned = |form| DateTime::parse_from_str(text, form).ok().map(|at| at.naive_utc());
    let plain = |form| NaiveDateTime::parse_from_str(text, form).ok();
    let parse_other_form = || -> Option<NaiveDateTime> {
        let rfc = DateTime::parse_from_rfc3339(text).ok().map(|at| at.naive_utc());
        rfc.or_else(|| ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"].into_iter().find_map(zoned))
            .or_else(|| ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"].into_iter().find_map(plain))
            .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))
    };
    parse_output(text).or_else(|| {
        let at = parse_other_form()?;
        let midnight = NaiveTime::MIN;
        let micros = (at.time() - midnight).num_microseconds().unwrap_or(i64::from(at.second()));
        Some(Moment::At(at.year(), at.month(), at.day(), micros))
    })
}

/// A decimal number of any length, compared without rounding.
///
/// The order of the variants is Postgres': `NaN` is larger than every other value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Number {
    NegativeInfinity,
    Finite(Decimal),
    Infinity,
    Undefined,
}

/// Sign, exponent, and the digits without leading and trailing zeros.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Decimal {
    negative: bool,
    /// The number is `0.digits × 10^magnitude`; zero has no digits.
    magnitude: i64,
    digits: Vec<u8>,
}

impl Number {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.bytes().next_back().is_some_and(|last| last.is_ascii_digit()) {
            return Decimal::read(text).map(Self::Finite);
        }
        match text.to_ascii_lowercase().as_str() {
            "nan" => Some(Self::Undefined),
            "infinity" | "+infinity" | "inf" | "+inf" => Some(Self::Infinity),
            "-infinity" | "-inf" => Some(Self::NegativeInfinity),
            _ => Decimal::read(text).map(Self::Finite),
        }
    }
}

impl Decimal {
    fn read(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = whole.bytes().chain(fraction.bytes());
        if whole.len() + fraction.len() == 0 || !all.clone().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let zeros = all.clone().take_while(|b| *b == b'0').count();
        let mut digits: Vec<u8> = all.skip(zeros).collect();
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        if digits.is_empty() {
            return Some(Self { negative: false, magnitude: 0, digits });
        }
        let magnitude = i64::try_from(whole.len()).ok()? - i64::try_from(zeros).ok()? + i64::from(exponent);
        Some(Self { negative, magnitude, digits })
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |d: &Self| match (d.digits.is_empty(), d.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        sign(self).cmp(&sign(other)).then_with(|| {
            let size = self.magnitude.cmp(&other.magnitude).then_with(|| self.digits.cmp(&other.digits));
            if self.negative { size.reverse() } else { size }
        })
    }
}
impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Kind;

    fn read(type_name: &str, text: &str) -> Option<Operand> {
        Operand::read(&Kind::builtin(type_name, false).class, text)
    }
    fn order(type_name: &str, a: &str, b: &str) -> Ordering {
        read(type_name, a).unwrap().cmp(&read(type_name, b).unwrap())
    }

    #[test]
    fn numbers_compare_without_rounding() {
        for (small, big) in [
            ("9", "10"),
            ("-10", "-9"),
            ("-0.5", "0"),
            ("0", "0.0000000001"),
            ("9007199254740992", "9007199254740993"),
            ("1e-7", "0.001"),
            ("99", "1e2"),
            ("-Infinity", "-1e300"),
            ("1e308", "Infinity"),
            ("Infinity", "NaN"),
        ] {
            assert_eq!(order("numeric", small, big), Ordering::Less, "{small} < {big}");
            assert_eq!(order("numeric", big, small), Ordering::Greater, "{big} > {small}");
        }
        for (a, b) in [("1.50", "1.5"), ("-0", "0.000"), ("100", "1e2"), ("+7", "007")] {
            assert_eq!(read("numeric", a), read("numeric", b), "{a} = {b}");
        }
        for bad in ["", ".", "1.2.3", "abc", "1e", "--1"] {
            assert_eq!(read("numeric", bad), None, "{bad:?}");
        }
    }

    #[test]
    fn times_compare_across_zones_and_forms() {
        let same = |name, a, b| assert_eq!(read(name, a).unwrap(), read(name, b).unwrap(), "{a} {b}");
        same("timestamptz", "2026-08-21 09:15:02.118+00", "2026-08-21T11:15:02.118+02:00");
        same("timestamp", "2026-08-21 09:15:00", "2026-08-21T09:15");
        for (name, early, late) in [
            ("timestamptz", "2026-08-21 09:15:02+05:30", "2026-08-21T09:15:02Z"),
            ("timestamp", "2026-08-21", "2026-08-21 09:15:02"),
            ("date", "2026-08-21", "infinity"),
            ("date", "0044-03-15 BC", "0001-01-01"),
            ("date", "0045-03-15 BC", "0044-03-15 BC"),
            ("timestamp", "9999-12-31 23:59:59.999999", "294276-12-31 00:00:00"),
            ("time", "09:15", "09:15:00.5"),
            ("time", "23:59:59.999999", "24:00:00"),
        ] {
            assert_eq!(order(name, early, late), Ordering::Less, "{early} < {late}");
        }
        for no in ["soon", "2026-13-01", "25:00", "2026-08-21 24:00:01"] {
            assert_eq!(read("timestamp", no), None, "{no}");
        }
    }

    #[test]
    fn booleans_uuids_texts_and_enums_compare_as_in_postgres() {
        assert_eq!(read("bool", "t"), read("bool", "true"));
        let (upper, braced) =
            ("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}");
        assert_eq!(read("uuid", upper), read("uuid", braced));
        assert_eq!(order("name", "10", "9"), Ordering::Less);
        assert_eq!(read("bpchar", "ab   "), read("bpchar", "ab"));
        let mood = Class::Enum(["sad".into(), "ok".into(), "happy".into()].into());
        assert!(Operand::read(&mood, "sad") < Operand::read(&mood, "happy"));
        assert_eq!(Operand::read(&mood, "other"), None);
    }

    proptest::proptest! {
        #[test]
        fn integers_compare_numerically(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000, shift in 0_u32..6) {
            let exact = |n: i64| format!("{n}e-{shift}");
            let plain = |n: i64| {
                let (sign, digits) = (if n < 0 { "-" } else { "" }, format!("{:0>8}", n.abs()));
                let (whole, part) = digits.split_at(digits.len() - shift as usize);
                format!("{sign}{whole}.{part}")
            };
            proptest::prop_assert_eq!(order("numeric", &exact(a), &plain(b)), a.cmp(&b));
        }

        #[test]
        fn parsing_arbitrary_text_never_panics(text in "[-0-9: .+TZBCé]{0,30}") {
            for name in ["timestamp", "time", "numeric", "uuid", "bool"] {
                let _ = read(name, &text);
            }
        }
    }
}
