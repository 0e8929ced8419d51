//! Standard output: tables, times, JSON.
use chrono::{DateTime, Utc};
use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use std::io::Write;

/// Writes a line to standard output. A closed pipe is not an error: the reader has seen enough.
pub(super) fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// Writes a value as one line of JSON.
pub(super) fn json(value: &impl Serialize) {
    line(serde_json::to_string(value).unwrap_or_default());
}

/// Writes rows under a header.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    line(plain_table(header, rows).to_string());
}

/// A table without borders.
pub(super) fn plain_table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.map(Cell::new));
    for row in rows {
        table.add_row(row);
    }
    table
}

/// The text of a string, JSON of any other value, and a dash for null.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The age, like `12s` or `3h`; a dash without a time.
pub(super) fn ago(at: &Value, now: DateTime<Utc>) -> String {
    let Some(at) = at.as_str().and_then(|at| at.parse::<DateTime<Utc>>().ok()) else { return "-".into() };
    let seconds = (now - at).num_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The terminal's width in columns; `None` if standard output is not a terminal.
pub(super) fn width() -> Option<usize> {
    Table::new().width().map(usize::from).filter(|width| *width > 0)
}

/// A fraction with two digits: integers are millionths (scores), other numbers are fractions.
pub(super) fn fraction(value: &Value) -> String {
    let whole = value.as_i64().map(|millionths| millionths as f64 / 1e6);
    whole.or_else(|| value.as_f64()).map_or_else(|| text(value), |fraction| format!("{fraction:.2}"))
}

/// Microdollars as dollars.
pub(super) fn dollars(microdollars: &Value) -> String {
    microdollars.as_f64().map_or_else(|| "-".into(), |micro| format!("${:.6}", micro / 1e6))
}

/// Writes an object's members, one a line, without nulls; nested objects are indented.
pub(super) fn members(value: &Value) {
    for (key, member) in value.as_object().into_iter().flatten().filter(|(_, member)| !member.is_null()) {
        let shown = match member {
            Value::Object(map) if !map.is_empty() => {
                let pretty = serde_json::to_string_pretty(member).unwrap_or_default();
                pretty.replace('\n', "\n                ")
            }
            other => text(other),
        };
        line(format!("{key:<15} {shown}"));
    }
}
