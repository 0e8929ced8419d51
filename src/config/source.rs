//! Parses TOML text to a tree with the line of every key, and finds every syntax error. Pure.
use super::{path::Path, problem::Problem};
use serde_json::{Map, Number, Value};
use std::collections::HashMap;
use toml::de::{DeTable, DeValue};

/// A parsed file.
pub(super) struct Source {
    /// Name of the file, as problems show it.
    pub(super) file: String,
    /// Content; parts with syntax errors are missing.
    pub(super) tree: Value,
    lines: HashMap<Path, usize>,
}

impl Source {
    /// Parses `text`; the problems are its syntax errors.
    pub(super) fn parse(file: &str, text: &str) -> (Self, Vec<Problem>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let starts = line_starts(text);
        let mut source = Self { file: file.to_owned(), tree: Value::Null, lines: HashMap::new() };
        source.tree = source.table(table.get_ref(), &Path::default(), &starts);
        let problem = |e: &toml::de::Error| Problem {
            file: file.to_owned(),
            line: e.span().map(|span| line_of(&starts, span.start)),
            key: String::new(),
            message: format!("not valid TOML: {}", e.message().replace('\n', ", ")),
            remedy: None,
        };
        (source, errors.iter().map(problem).collect())
    }

    /// Returns the line of a key, or of the nearest path above it with a known line.
    pub(super) fn line(&self, path: &Path) -> Option<usize> {
        let mut at = path.clone();
        loop {
            if let Some(line) = self.lines.get(&at) {
                return Some(*line);
            }
            at = at.parent()?;
        }
    }

    fn table(&mut self, table: &DeTable<'_>, path: &Path, starts: &[usize]) -> Value {
        let mut map = Map::new();
        for (key, value) in table.iter() {
            let at = path.key(key.get_ref());
            self.lines.insert(at.clone(), line_of(starts, key.span().start));
            map.insert(key.get_ref().to_string(), self.value(value.get_ref(), &at, starts));
        }
        Value::Object(map)
    }

    fn value(&mut self, value: &DeValue<'_>, path: &Path, starts: &[usize]) -> Value {
        match value {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Datetime(time) => Value::String(time.to_string()),
            DeValue::Integer(int) => integer(int.as_str(), int.radix()),
            DeValue::Float(float) => float.as_str().parse().map_or_else(|_| float.as_str().into(), number),
            DeValue::Table(table) => self.table(table, path, starts),
            DeValue::Array(items) => {
                let mut list = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let at = path.index(index);
                    self.lines.insert(at.clone(), line_of(starts, item.span().start));
                    list.push(self.value(item.get_ref(), &at, starts));
                }
                Value::Array(list)
            }
        }
    }
}

/// An integer that no type holds becomes text, so that the reader reports what it expected: as a missing value it would
/// leave a limit out.
fn integer(digits: &str, radix: u32) -> Value {
    let signed = i64::from_str_radix(digits, radix).map(Value::from);
    let number = signed.or_else(|_| u64::from_str_radix(digits, radix).map(Value::from));
    number.unwrap_or_else(|_| digits.into())
}

/// Infinity and NaN are not JSON numbers: they become text, so that the reader reports what it expected.
fn number(float: f64) -> Value {
    Number::from_f64(float).map_or_else(|| Value::String(float.to_string()), Value::Number)
}

fn line_starts(text: &str) -> Vec<usize> {
    let after = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
    std::iter::once(0).chain(after).collect()
}

fn line_of(starts: &[usize], offset: usize) -> usize {
    starts.partition_point(|start| *start <= offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_every_key_is_known() {
        let text = "id = \"a\"\n\n[run]\nkind = \"llm\"\n\n[[wake]]\ntable = \"t\"\n[[wake]]\ntable = 1_0\n";
        let (source, problems) = Source::parse("a.toml", text);
        assert_eq!(problems, []);
        assert_eq!(source.tree["wake"][1]["table"], 10);
        for (key, line) in [("id", 1), ("run", 3), ("run.kind", 4), ("wake.0.table", 7), ("wake.1.table", 9)]
        {
            assert_eq!(source.line(&Path::parse(key)), Some(line), "{key}");
        }
        assert_eq!(source.line(&Path::parse("run.missing")), Some(3), "the table's own line");
    }

    #[test]
    fn number_that_no_type_holds_is_a_fault_and_no_missing_value() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Limits {
            #[serde(default)]
            _most: Option<u64>,
        }
        for number in ["99999999999999999999", "-99999999999999999999", "0xfffffffffffffffff", "inf", "1e999"]
        {
            let (source, problems) = Source::parse("a.toml", &format!("_most = {number}\n"));
            assert_eq!(problems, []);
            let reading = super::super::read::read::<Limits>(&source.tree);
            let faults: Vec<_> = reading.faults.iter().map(|fault| fault.path.to_string()).collect();
            assert_eq!(faults, ["_most"], "{number}");
        }
        let (source, _) = Source::parse("a.toml", "_most = 18446744073709551615\n");
        assert_eq!(source.tree["_most"], u64::MAX);
    }

    #[test]
    fn every_syntax_error_is_reported() {
        let (source, problems) = Source::parse("a.toml", "a = \nb = 1\nb = 2\nc = 3\n");
        let lines: Vec<_> = problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [Some(1), Some(3)], "{problems:?}");
        assert_eq!(source.tree["c"], 3);
    }
}
