//! Values of columns in Postgres' text form, read by type so that they compare as Postgres compares them.
//!
//! Numbers compare as numbers without rounding, times as times, uuids and
//! booleans as themselves, texts by their bytes (the order of the `C` collation,
//! whatever the database's). What has no order here (json, arrays, ranges, types
//! of extensions other than enums and citext) is refused when a filter is bound,
//! never compared wrongly. Pure.
use crate::wal::Column;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use std::cmp::Ordering;

/// How values of a type are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Number,
    Bool,
    Text,
    /// `char(n)`: blanks at the end do not count.
    Padded,
    /// `citext`: case does not count.
    Caseless,
    Uuid,
    /// With and without zone, and dates.
    Timestamp,
    Time,
    /// Equal text or not, and no order: enums, network addresses and the like.
    Opaque,
    /// Not comparable: json, arrays, ranges, geometric types.
    None,
}

/// The class of a column's type.
pub(crate) fn class(column: &Column) -> Class {
    match column.type_name.as_str() {
        "int2" | "int4" | "int8" | "oid" | "float4" | "float8" | "numeric" => Class::Number,
        "bool" => Class::Bool,
        "text" | "varchar" | "name" | "char" => Class::Text,
        "bpchar" => Class::Padded,
        "citext" => Class::Caseless,
        "uuid" => Class::Uuid,
        "timestamp" | "timestamptz" | "date" => Class::Timestamp,
        "time" => Class::Time,
        "bytea" | "inet" | "cidr" | "macaddr" | "macaddr8" | "bit" | "varbit" => Class::Opaque,
        name if column.type_oid >= FIRST_USER_OID && !name.starts_with('_') => Class::Opaque,
        _ => Class::None,
    }
}

/// Types from here on are made by users: enums, composite types, extensions' types.
const FIRST_USER_OID: u32 = 16_384;

/// A value that can be compared with others of its class.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Number(Number),
    Bool(bool),
    Text(String),
    Timestamp(Moment),
    Time(NaiveTime),
}

/// A point in time; dates and times without zone count as UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    Past,
    At(NaiveDateTime),
    Future,
}

impl Operand {
    /// Reads `text` as a value of that class; nothing if it is none.
    pub(crate) fn read(class: Class, text: &str) -> Option<Self> {
        match class {
            Class::Number => Number::read(text).map(Self::Number),
            Class::Bool => match text.trim().to_ascii_lowercase().as_str() {
                "t" | "true" | "yes" | "on" | "1" => Some(Self::Bool(true)),
                "f" | "false" | "no" | "off" | "0" => Some(Self::Bool(false)),
                _ => None,
            },
            Class::Text | Class::Opaque => Some(Self::Text(text.to_owned())),
            Class::Padded => Some(Self::Text(text.trim_end_matches(' ').to_owned())),
            Class::Caseless => Some(Self::Text(text.to_lowercase())),
            Class::Uuid => text.trim().parse::<uuid::Uuid>().ok().map(|id| Self::Text(id.to_string())),
            Class::Timestamp => moment(text.trim()).map(Self::Timestamp),
            Class::Time => ["%H:%M:%S%.f", "%H:%M"]
                .iter()
                .find_map(|form| NaiveTime::parse_from_str(text.trim(), form).ok())
                .map(Self::Time),
            Class::None => None,
        }
    }

    /// Their order; nothing for values of different classes.
    pub(crate) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Time(a), Self::Time(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

fn moment(text: &str) -> Option<Moment> {
    match text.to_ascii_lowercase().as_str() {
        "infinity" => return Some(Moment::Future),
        "-infinity" => return Some(Moment::Past),
        _ => {}
    }
    // Postgres writes a zone as +00, +05:30 or +0530; the parser wants minutes.
    let zoned = |form| DateTime::parse_from_str(text, form).ok().map(|at| at.naive_utc());
    let plain = |form| NaiveDateTime::parse_from_str(text, form).ok();
    let at = DateTime::parse_from_rfc3339(text).ok().map(|at| at.naive_utc());
    let at = at
        .or_else(|| ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"].into_iter().find_map(zoned))
        .or_else(|| {
            let forms = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
            forms.into_iter().find_map(plain)
        })
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0));
    at.map(Moment::At)
}

/// A decimal number of any length, compared without rounding.
///
/// The order of the variants is Postgres' own: `NaN` is above everything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Number {
    NegativeInfinity,
    Finite(Decimal),
    Infinity,
    Undefined,
}

/// Sign, the place of the first digit, and the digits without zeros at the ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decimal {
    negative: bool,
    /// The number is `0.digits × 10^magnitude`; zero has no digits.
    magnitude: i64,
    digits: Vec<u8>,
}

impl Number {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        match text.to_ascii_lowercase().as_str() {
            "nan" => return Some(Self::Undefined),
            "infinity" | "+infinity" | "inf" | "+inf" => return Some(Self::Infinity),
            "-infinity" | "-inf" => return Some(Self::NegativeInfinity),
            _ => {}
        }
        Decimal::read(text).map(Self::Finite)
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

    fn column(type_name: &str) -> Column {
        Column::new("c".into(), 25, -1, false, type_name.into())
    }
    fn order(type_name: &str, a: &str, b: &str) -> Ordering {
        let read = |text| Operand::read(class(&column(type_name)), text).unwrap();
        read(a).compare(&read(b)).unwrap()
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
            assert_eq!(order("numeric", a, b), Ordering::Equal, "{a} = {b}");
        }
        for bad in ["", ".", "1.2.3", "abc", "1e", "--1"] {
            assert_eq!(Operand::read(Class::Number, bad), None, "{bad:?}");
        }
    }

    #[test]
    fn times_compare_across_zones_and_forms() {
        assert_eq!(
            order("timestamptz", "2026-08-21 09:15:02.118+00", "2026-08-21T11:15:02.118+02:00"),
            Ordering::Equal
        );
        assert_eq!(order("timestamptz", "2026-08-21 09:15:02+05:30", "2026-08-21T09:15:02Z"), Ordering::Less);
        assert_eq!(order("timestamp", "2026-08-21 09:15:02", "2026-08-21"), Ordering::Greater);
        assert_eq!(order("date", "2026-08-21", "infinity"), Ordering::Less);
        assert_eq!(order("time", "09:15", "09:15:00.5"), Ordering::Less);
        assert_eq!(Operand::read(Class::Timestamp, "soon"), None);
    }

    #[test]
    fn booleans_uuids_and_texts_compare_as_themselves() {
        assert_eq!(order("bool", "t", "true"), Ordering::Equal);
        let (upper, braced) =
            ("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}");
        assert_eq!(order("uuid", upper, braced), Ordering::Equal);
        assert_eq!(order("text", "10", "9"), Ordering::Less);
        assert_eq!(order("bpchar", "ab   ", "ab"), Ordering::Equal);
        assert_eq!(order("citext", "Ab", "aB"), Ordering::Equal);
        for no in ["jsonb", "_text", "int4range", "point"] {
            assert_eq!(class(&column(no)), Class::None, "{no}");
        }
        let enumeration = Column::new("c".into(), 20_000, -1, false, "mood".into());
        assert_eq!(class(&enumeration), Class::Opaque);
    }

    proptest::proptest! {
        #[test]
        fn whole_numbers_compare_like_numbers(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000, shift in 0_u32..6) {
            let exact = |n: i64| format!("{n}e-{shift}");
            let plain = |n: i64| {
                let (sign, digits) = (if n < 0 { "-" } else { "" }, format!("{:0>8}", n.abs()));
                let (whole, part) = digits.split_at(digits.len() - shift as usize);
                format!("{sign}{whole}.{part}")
            };
            proptest::prop_assert_eq!(order("numeric", &exact(a), &plain(b)), a.cmp(&b));
        }
    }
}
