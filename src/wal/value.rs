//! Values of the WAL as JSON, by column type (`docs/spec/postgres-changes.md §2.6`).
//!
//! Two forms: a [`Map`] for code that looks into values, and JSON text for
//! clients, which keeps every digit of a `numeric`. A value that does not
//! match the format of its type is returned as a string, never an error.
use super::{
    array::{self, Node},
    change::{Cell, Column, Op, RowChange},
};
use serde_json::{Map, Number, Value};

/// How values of a type are written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    scalar: Scalar,
    array: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    Integer,
    Float,
    Numeric,
    Bool,
    Json,
    Bytes,
    Timestamp,
    TimestampTz,
    /// Boxes: a string, but arrays of them are separated by semicolons.
    Box,
    Text,
}

impl Encoding {
    /// By the type's name in `pg_type`, where an array's begins with an underscore.
    #[must_use]
    pub fn of(type_name: &str) -> Self {
        let (name, array) = match type_name.strip_prefix('_') {
            Some(element) => (element, true),
            None => (type_name, false),
        };
        let scalar = match name {
            "int2" | "int4" | "int8" => Scalar::Integer,
            "float4" | "float8" => Scalar::Float,
            "numeric" => Scalar::Numeric,
            "bool" => Scalar::Bool,
            "json" | "jsonb" => Scalar::Json,
            "bytea" => Scalar::Bytes,
            "timestamp" => Scalar::Timestamp,
            "timestamptz" => Scalar::TimestampTz,
            "box" => Scalar::Box,
            _ => Scalar::Text,
        };
        Self { scalar, array }
    }

    /// Appends a value in Postgres's text form as JSON text.
    pub fn write(self, text: &str, out: &mut Vec<u8>) {
        write(self, text, out);
    }

    fn delimiter(self) -> u8 {
        if self.scalar == Scalar::Box { b';' } else { b',' }
    }
}

/// The value of a cell of `column`; an unchanged cell has none.
#[must_use]
pub fn to_json(column: &Column, cell: &Cell) -> Option<Value> {
    match cell {
        Cell::Null => Some(Value::Null),
        Cell::Unchanged => None,
        Cell::Text(bytes) => Some(match std::str::from_utf8(bytes) {
            Ok(text) => value(column.encoding, text),
            Err(_) => Value::String(String::from_utf8_lossy(bytes).into_owned()),
        }),
    }
}

impl RowChange {
    /// The row after the change by column name; empty for a delete.
    ///
    /// Numbers are JSON numbers; a `numeric` that a double cannot hold exactly
    /// is a string. Unchanged out-of-line values are taken from the old row
    /// where it has them, and are absent otherwise.
    #[must_use]
    pub fn new_json(&self) -> Map<String, Value> {
        self.fields_new().filter_map(|(c, cell)| Some((c.name.clone(), to_json(c, cell)?))).collect()
    }

    /// The row before the change, as far as the replica identity carries it; empty for an insert.
    ///
    /// Where an update does not change the key, Postgres sends no old row: its
    /// key columns are then taken from the new one, because they are the same.
    #[must_use]
    pub fn old_json(&self) -> Map<String, Value> {
        self.fields_old().filter_map(|(c, cell)| Some((c.name.clone(), to_json(c, cell)?))).collect()
    }

    /// Like [`Self::new_json`], as JSON text with every digit kept, appended to `out`.
    pub fn write_new_json(&self, out: &mut Vec<u8>) {
        write_object(self.fields_new(), out);
    }

    /// Like [`Self::old_json`], as JSON text with every digit kept, appended to `out`.
    pub fn write_old_json(&self, out: &mut Vec<u8>) {
        write_object(self.fields_old(), out);
    }

    fn fields_new(&self) -> impl Iterator<Item = (&Column, &Cell)> {
        let columns = self.relation.columns.iter().enumerate();
        let cell = |at| self.completed(self.new.as_ref()?, at);
        columns.filter_map(move |(at, column)| Some((column, cell(at)?)))
    }

    fn fields_old(&self) -> impl Iterator<Item = (&Column, &Cell)> {
        let columns = self.relation.columns.iter().enumerate();
        columns.filter_map(move |(at, column)| {
            let cell = match (&self.old, &self.new, self.op) {
                (Some(_), _, _) => self.old_cell(at),
                (None, Some(new), Op::Update) if column.is_key => new.get(at),
                _ => None,
            };
            Some((column, cell?))
        })
    }
}

fn write_object<'a>(fields: impl Iterator<Item = (&'a Column, &'a Cell)>, out: &mut Vec<u8>) {
    out.push(b'{');
    let begin = out.len();
    for (column, cell) in fields {
        if *cell == Cell::Unchanged {
            continue;
        }
        if out.len() > begin {
            out.push(b',');
        }
        write_string(&column.name, out);
        out.push(b':');
        write_cell(column, cell, out);
    }
    out.push(b'}');
}

/// Appends a cell of `column` as JSON text; an unchanged cell is written as `null`.
pub fn write_cell(column: &Column, cell: &Cell, out: &mut Vec<u8>) {
    match cell {
        Cell::Null | Cell::Unchanged => out.extend_from_slice(b"null"),
        Cell::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => write(column.encoding, text, out),
            Err(_) => write_string(&String::from_utf8_lossy(bytes), out),
        },
    }
}

fn value(encoding: Encoding, text: &str) -> Value {
    if !encoding.array {
        return scalar_value(encoding.scalar, text, false);
    }
    match array::parse(text, encoding.delimiter()) {
        Some(node) => node_value(encoding.scalar, node),
        None => Value::String(text.to_owned()),
    }
}

fn node_value(scalar: Scalar, node: Node<'_>) -> Value {
    match node {
        Node::Null => Value::Null,
        Node::Leaf(text) => scalar_value(scalar, &text, true),
        Node::List(nodes) => nodes.into_iter().map(|node| node_value(scalar, node)).collect(),
    }
}

fn scalar_value(scalar: Scalar, text: &str, in_array: bool) -> Value {
    let plain = || Value::String(text.to_owned());
    match scalar {
        Scalar::Integer => text.parse::<i64>().map_or_else(|_| plain(), Value::from),
        Scalar::Float if is_no_number(text) => Value::Null,
        Scalar::Float => text.parse().ok().and_then(Number::from_f64).map_or_else(plain, Value::Number),
        Scalar::Numeric if is_no_number(text) => Value::Null,
        Scalar::Numeric => exact_number(text).map_or_else(plain, Value::Number),
        Scalar::Bool if text == "t" => Value::Bool(true),
        Scalar::Bool if text == "f" => Value::Bool(false),
        // As with `numeric`: what a number of JSON would round is a text.
        Scalar::Json => crate::json::parse(text.as_bytes()).unwrap_or_else(|_| plain()),
        Scalar::Bytes if !in_array => Value::String(without_hex_mark(text).to_owned()),
        Scalar::Timestamp => Value::String(iso(text, false)),
        Scalar::TimestampTz => Value::String(iso(text, true)),
        Scalar::Bool | Scalar::Bytes | Scalar::Box | Scalar::Text => plain(),
    }
}

fn write(encoding: Encoding, text: &str, out: &mut Vec<u8>) {
    if !encoding.array {
        return write_scalar(encoding.scalar, text, false, out);
    }
    match array::parse(text, encoding.delimiter()) {
        Some(node) => write_node(encoding.scalar, &node, out),
        None => write_string(text, out),
    }
}

fn write_node(scalar: Scalar, node: &Node<'_>, out: &mut Vec<u8>) {
    match node {
        Node::Null => out.extend_from_slice(b"null"),
        Node::Leaf(text) => write_scalar(scalar, text, true, out),
        Node::List(nodes) => {
            out.push(b'[');
            for (at, node) in nodes.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_node(scalar, node, out);
            }
            out.push(b']');
        }
    }
}

fn write_scalar(scalar: Scalar, text: &str, in_array: bool, out: &mut Vec<u8>) {
    match scalar {
        Scalar::Integer | Scalar::Numeric if is_json_number(text) => out.extend_from_slice(text.as_bytes()),
        Scalar::Float if is_json_number(text) => {
            let text = if text == "-0" { "0" } else { text };
            out.extend_from_slice(text.as_bytes());
        }
        Scalar::Json if serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok() => {
            out.extend_from_slice(text.as_bytes());
        }
        Scalar::Json | Scalar::Text | Scalar::Box => write_string(text, out),
        // What is left is short or rare: strings, booleans, null.
        _ => match scalar_value(scalar, text, in_array) {
            Value::String(text) => write_string(&text, out),
            other => out.extend_from_slice(other.to_string().as_bytes()),
        },
    }
}

/// Appends a text as a JSON string.
pub(crate) fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing to memory cannot fail, and a string has no map keys to refuse.
    let _ = serde_json::to_writer(out, text);
}

fn is_no_number(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
}

/// Whether `text` is a number in JSON's grammar that readers can hold, as nearly all of Postgres's are; a
/// `numeric` can be too big for any double.
fn is_json_number(text: &str) -> bool {
    text.bytes().next_back().is_some_and(|last| last.is_ascii_digit())
        && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
        && text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// The number if a JSON integer or double is exactly equal.
fn exact_number(text: &str) -> Option<Number> {
    if let Ok(integer) = text.parse::<i64>() {
        return Some(integer.into());
    }
    let number = Number::from_f64(text.parse().ok()?)?;
    // A double has 15 digits that are always right; trailing zeros of the scale are ignored.
    let digits = text.trim_start_matches('-').trim_start_matches(['0', '.']);
    let fraction = text.contains('.');
    let digits = if fraction { digits.trim_end_matches('0') } else { digits };
    let count = digits.bytes().filter(u8::is_ascii_digit).count();
    (count <= 15).then_some(number)
}

fn without_hex_mark(text: &str) -> &str {
    text.strip_prefix("\\x").unwrap_or(text)
}

/// `2024-02-29 10:34:56+00` as `2024-02-29T10:34:56+00:00`.
fn iso(text: &str, zone: bool) -> String {
    // Years before Christ have a trailing era, which Postgres keeps in JSON, too.
    let (text, era) = match text.strip_suffix(" BC") {
        Some(text) => (text, " BC"),
        None => (text, ""),
    };
    let Some((date, time)) = text.split_once(' ') else { return format!("{text}{era}") };
    let short_zone =
        zone && time.len() > 3 && time.get(time.len() - 3..).is_some_and(|z| z.starts_with(['+', '-']));
    format!("{date}T{time}{}{era}", if short_zone { ":00" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(type_name: &str, text: &str) -> (Value, String) {
        let encoding = Encoding::of(type_name);
        let mut out = Vec::new();
        write(encoding, text, &mut out);
        (value(encoding, text), String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_become_json_by_their_type() {
        let cases = [
            ("int8", "9223372036854775807", json!(9_223_372_036_854_775_807_i64), "9223372036854775807"),
            ("numeric", "150.50", json!(150.5), "150.50"),
            ("numeric", "12345678901234567890.1", json!("12345678901234567890.1"), "12345678901234567890.1"),
            ("numeric", "0.0000000001", json!(1e-10), "0.0000000001"),
            ("numeric", "NaN", Value::Null, "null"),
            ("float8", "1.1", json!(1.1), "1.1"),
            ("float8", "1e+308", json!(1e308), "1e+308"),
            ("float8", "-Infinity", Value::Null, "null"),
            ("bool", "t", json!(true), "true"),
            ("text", "a \"b\"\n", json!("a \"b\"\n"), r#""a \"b\"\n""#),
            ("jsonb", r#"{"b": 1, "a": [1.50]}"#, json!({"b": 1, "a": [1.5]}), r#"{"b": 1, "a": [1.50]}"#),
            ("jsonb", "null", Value::Null, "null"),
            ("bytea", "\\xdeadbeef00", json!("deadbeef00"), r#""deadbeef00""#),
            (
                "timestamp",
                "2024-02-29 12:34:56.5",
                json!("2024-02-29T12:34:56.5"),
                r#""2024-02-29T12:34:56.5""#,
            ),
            ("timestamp", "infinity", json!("infinity"), r#""infinity""#),
            (
                "timestamptz",
                "2024-02-29 10:34:56.789012+00",
                json!("2024-02-29T10:34:56.789012+00:00"),
                r#""2024-02-29T10:34:56.789012+00:00""#,
            ),
            ("_int4", "{1,NULL,3}", json!([1, null, 3]), "[1,null,3]"),
            ("_int4", "[0:1]={1,2}", json!([1, 2]), "[1,2]"),
            ("_text", r#"{{a,"b,\"c"},{NULL,"NULL"}}"#, json!([["a", "b,\"c"], [null, "NULL"]]), ""),
            ("_numeric", "{1.10}", json!([1.1]), "[1.10]"),
            ("_jsonb", r#"{"{\"a\": 1}",2}"#, json!([{"a": 1}, 2]), r#"[{"a": 1},2]"#),
            ("_bytea", r#"{"\\xde"}"#, json!(["\\xde"]), r#"["\\xde"]"#),
            ("_box", "{(1,1),(0,0);(2,2),(1,1)}", json!(["(1,1),(0,0)", "(2,2),(1,1)"]), ""),
            ("mood", "happy", json!("happy"), r#""happy""#),
            ("int4", "rubbish", json!("rubbish"), r#""rubbish""#),
        ];
        for (type_name, text, expected, written) in cases {
            let (value, out) = of(type_name, text);
            assert_eq!(value, expected, "{type_name} {text}");
            let written = if written.is_empty() { expected.to_string() } else { written.to_owned() };
            assert_eq!(out, written, "{type_name} {text}");
        }
    }

    #[test]
    fn a_number_that_no_reader_can_hold_is_a_string() {
        let huge = "9".repeat(400);
        assert_eq!(of("numeric", &huge), (json!(huge), format!("\"{huge}\"")));
    }

    #[test]
    fn the_written_text_is_always_json() {
        for type_name in
            ["int4", "float8", "numeric", "bool", "json", "bytea", "timestamptz", "_int4", "_box"]
        {
            for text in
                ["", "-", "1.", "01", "\"", "{", "{1,", "{1}}", "\\x", "\u{1}", "1e5", "-0", " 1", "1 ", "+"]
            {
                let (_, out) = of(type_name, text);
                assert!(serde_json::from_str::<Value>(&out).is_ok(), "{type_name} {text:?} -> {out}");
            }
        }
    }
}
