//! A filter bound to the columns of a table, ready to be asked of its rows.
//!
//! Binding finds the columns and reads the values by their types once for each
//! version of a table; asking then parses one cell a segment. NULL, and a value
//! that the log does not carry (an unchanged large value without `replica
//! identity full`, a column outside the identity of a deleted row), is no match,
//! also under `not.`. Pure; binding fails with a sentence for the operator.
use super::{
    filter::{Filter, Keyword, Order, Test},
    value::{Class, Operand, class},
};
use crate::wal::{Cell, Relation, RowChange};
use std::cmp::Ordering;

/// Why a filter cannot be asked of a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbindable {
    /// No such column.
    #[error("column {column} is not among the published columns of {table}")]
    NoColumn {
        /// The column that the filter names.
        column: String,
        /// The table.
        table: String,
    },
    /// The value is none of that type.
    #[error("{value:?} is no value for column {column} of type {type_name}")]
    NoValue {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The value of the filter.
        value: String,
    },
    /// The type does not know the operator.
    #[error("column {column} of type {type_name} cannot be compared with {operator}")]
    NoOperator {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The operator.
        operator: &'static str,
    },
}

/// A filter for the rows of one version of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bound(Vec<Asked>);

#[derive(Clone, Debug)]
struct Asked {
    column: String,
    class: Class,
    negated: bool,
    test: Question,
}

#[derive(Clone, Debug)]
enum Question {
    Compare(Order, Operand),
    /// The values, and whether NULL is among them, which makes `not.in` never match.
    In(Vec<Operand>, bool),
    Like(Vec<char>, bool),
    Is(Keyword),
    IsDistinct(Operand),
}

impl Bound {
    /// Finds the columns of `filter` in `relation` and reads its values by their types.
    pub(crate) fn new(filter: &Filter, relation: &Relation) -> Result<Self, Unbindable> {
        filter.segments.iter().map(|segment| asked(segment, relation)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the row after the change, or before it for a delete, passes.
    pub(crate) fn matches(&self, change: &RowChange) -> bool {
        self.0.iter().all(|asked| {
            let Some(cell) = change.cell(&asked.column) else { return false };
            let outcome = match cell {
                Cell::Unchanged => None,
                Cell::Null => asked.test.of_null(),
                Cell::Text(_) => cell.text().and_then(|text| asked.test.of(asked.class, text)),
            };
            outcome.is_some_and(|matched| matched != asked.negated)
        })
    }
}

fn asked(segment: &super::filter::Segment, relation: &Relation) -> Result<Asked, Unbindable> {
    let column = relation.columns.iter().find(|column| column.name == segment.column);
    let column = column.ok_or_else(|| Unbindable::NoColumn {
        column: segment.column.clone(),
        table: format!("{}.{}", relation.schema, relation.name),
    })?;
    let class = class(column);
    let no_operator = |operator| Unbindable::NoOperator {
        column: column.name.clone(),
        type_name: column.type_name.clone(),
        operator,
    };
    let read = |value: &String, operator| {
        if class == Class::None {
            return Err(no_operator(operator));
        }
        Operand::read(class, value).ok_or_else(|| Unbindable::NoValue {
            column: column.name.clone(),
            type_name: column.type_name.clone(),
            value: value.clone(),
        })
    };
    let text = matches!(class, Class::Text | Class::Padded | Class::Caseless);
    let test = match &segment.test {
        Test::Compare(order, value) => {
            let ordered = !matches!(order, Order::Equal | Order::NotEqual);
            if ordered && class == Class::Opaque {
                return Err(no_operator(order.as_str()));
            }
            Question::Compare(*order, read(value, order.as_str())?)
        }
        Test::In(values) => {
            let given = values.iter().flatten().map(|value| read(value, "in")).collect::<Result<_, _>>()?;
            Question::In(given, values.iter().any(Option::is_none))
        }
        Test::Like { pattern, ignore_case } if text => {
            let fold = *ignore_case || class == Class::Caseless;
            let pattern = if fold { pattern.to_lowercase() } else { pattern.clone() };
            Question::Like(pattern.chars().collect(), fold)
        }
        Test::Like { .. } => return Err(no_operator("like")),
        Test::Is(keyword) if *keyword != Keyword::Null && class != Class::Bool => {
            return Err(no_operator("is.true, is.false or is.unknown"));
        }
        Test::Is(keyword) => Question::Is(*keyword),
        Test::IsDistinct(value) => Question::IsDistinct(read(value, "isdistinct")?),
    };
    Ok(Asked { column: column.name.clone(), class, negated: segment.negated, test })
}

impl Question {
    /// The outcome for NULL; nothing where SQL says NULL.
    fn of_null(&self) -> Option<bool> {
        match self {
            Self::Is(keyword) => Some(matches!(keyword, Keyword::Null | Keyword::Unknown)),
            Self::IsDistinct(_) => Some(true),
            // `= any` of nothing is false even for NULL, so `not.in.()` always matches.
            Self::In(values, null) if values.is_empty() && !null => Some(false),
            Self::Compare(..) | Self::In(..) | Self::Like(..) => None,
        }
    }

    fn of(&self, class: Class, text: &str) -> Option<bool> {
        if let Self::Is(keyword) = self {
            return Some(match keyword {
                Keyword::Null | Keyword::Unknown => false,
                Keyword::True => text == "t",
                Keyword::False => text == "f",
            });
        }
        if let Self::Like(pattern, fold) = self {
            let text: Vec<char> =
                if *fold { text.to_lowercase().chars().collect() } else { text.chars().collect() };
            return Some(like(pattern, &text));
        }
        let value = Operand::read(class, text)?;
        match self {
            Self::Compare(order, with) => value.compare(with).map(|found| order.holds(found)),
            Self::IsDistinct(with) => value.compare(with).map(|found| found != Ordering::Equal),
            Self::In(values, null) => {
                let found = values.iter().any(|with| value.compare(with) == Some(Ordering::Equal));
                // SQL: neither in nor not in, as long as the one with NULL could be it.
                if found || !null { Some(found) } else { None }
            }
            Self::Is(_) | Self::Like(..) => None,
        }
    }
}

impl Order {
    fn holds(self, found: Ordering) -> bool {
        match self {
            Self::Equal => found.is_eq(),
            Self::NotEqual => found.is_ne(),
            Self::Less => found.is_lt(),
            Self::LessOrEqual => found.is_le(),
            Self::Greater => found.is_gt(),
            Self::GreaterOrEqual => found.is_ge(),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "eq",
            Self::NotEqual => "neq",
            Self::Less => "lt",
            Self::LessOrEqual => "lte",
            Self::Greater => "gt",
            Self::GreaterOrEqual => "gte",
        }
    }
}

/// SQL's `like`: `%` any run, `_` any character, `\` before one that is meant as itself.
///
/// Goes back only to the last `%`, so it is never worse than pattern times text.
fn like(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut again: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        match (pattern.get(p), pattern.get(p + 1)) {
            (Some('%'), _) => {
                again = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some('_'), _) => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            (Some('\\'), Some(meant)) if meant == c => {
                (p, t) = (p + 2, t + 1);
                continue;
            }
            (Some(same), _) if same == c && *same != '\\' => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            _ => {}
        }
        let Some((after, from)) = again else { return false };
        again = Some((after, from + 1));
        (p, t) = (after, from + 1);
    }
    pattern.get(p..).unwrap_or_default().iter().all(|c| *c == '%')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wal::{Column, Op};
    use bytes::Bytes;
    use std::sync::Arc;

    /// A table of (name, type) with `id` as its key.
    pub(crate) fn table(columns: &[(&str, &str)]) -> Arc<Relation> {
        let column = |(name, type_name): &(&str, &str)| {
            let oid = if *type_name == "mood" { 20_000 } else { 25 };
            Column::new((*name).into(), oid, -1, *name == "id", (*type_name).into())
        };
        Arc::new(Relation {
            oid: 1,
            schema: "public".into(),
            name: "tickets".into(),
            replica_identity: 'd',
            columns: columns.iter().map(column).collect(),
        })
    }

    pub(crate) fn cell(text: &'static str) -> Cell {
        match text {
            "NULL" => Cell::Null,
            "TOAST" => Cell::Unchanged,
            text => Cell::Text(Bytes::from_static(text.as_bytes())),
        }
    }

    pub(crate) fn insert(relation: &Arc<Relation>, values: &[&'static str]) -> RowChange {
        let new = Some(values.iter().map(|text| cell(text)).collect());
        RowChange { relation: relation.clone(), op: Op::Insert, new, old: None, old_is_key_only: false }
    }

    const COLUMNS: [(&str, &str); 7] = [
        ("id", "int8"),
        ("priority", "int4"),
        ("title", "text"),
        ("done", "bool"),
        ("body", "jsonb"),
        ("feeling", "mood"),
        ("at", "timestamptz"),
    ];

    fn passes(filter: &str, values: [&'static str; 7]) -> bool {
        let relation = table(&COLUMNS);
        let bound = Bound::new(&Filter::parse(filter).unwrap(), &relation).unwrap();
        bound.matches(&insert(&relation, &values))
    }
    const ROW: [&str; 7] = ["12", "3", "Printer on fire", "f", "{}", "sad", "2026-01-01 10:00:00+00"];
    const NULLS: [&str; 7] = ["12", "NULL", "NULL", "NULL", "NULL", "NULL", "NULL"];

    #[test]
    fn rows_are_compared_by_the_types_of_their_columns() {
        for yes in [
            "",
            "priority=gte.3",
            "priority=eq.3.0",
            "id=gt.9",
            "priority=not.lt.2,title=like.Printer%",
            "title=ilike.%FIRE",
            "title=like.P_inter%\\f%",
            "title=neq.x",
            "done=is.false",
            "done=eq.false",
            "priority=in.(1,2,3)",
            "priority=not.in.(4,5)",
            "priority=in.(3,null)",
            "feeling=eq.sad",
            "body=not.is.null",
            "at=lt.2026-01-01T12:00:00+01:00",
            "priority=isdistinct.4",
        ] {
            assert!(passes(yes, ROW), "{yes}");
        }
        for no in [
            "priority=gt.3",
            "id=lt.9",
            "title=eq.printer on fire",
            "title=like.fire",
            "done=is.true",
            "done=is.null",
            "priority=in.()",
            "priority=not.in.(4,null)",
            "priority=eq.3,done=eq.true",
        ] {
            assert!(!passes(no, ROW), "{no}");
        }
    }

    #[test]
    fn null_matches_only_what_asks_for_it() {
        for yes in ["priority=is.null", "done=is.unknown", "priority=isdistinct.3", "priority=not.in.()"] {
            assert!(passes(yes, NULLS), "{yes}");
        }
        for no in [
            "priority=eq.3",
            "priority=not.eq.3",
            "priority=neq.3",
            "priority=not.in.(1)",
            "title=not.like.x",
        ] {
            assert!(!passes(no, NULLS), "{no}");
        }
    }

    #[test]
    fn a_value_that_the_log_does_not_carry_is_no_match() {
        let relation = table(&COLUMNS);
        let bound = |text| Bound::new(&Filter::parse(text).unwrap(), &relation).unwrap();
        let mut change = insert(&relation, &["12", "3", "TOAST", "f", "{}", "sad", "NULL"]);
        change.op = Op::Update;
        assert!(!bound("title=not.eq.x").matches(&change));
        let deleted = RowChange { old: change.new.take(), op: Op::Delete, old_is_key_only: true, ..change };
        assert!(bound("id=eq.12").matches(&deleted));
        assert!(!bound("priority=not.eq.9").matches(&deleted));
    }

    #[test]
    fn what_cannot_be_compared_is_refused_by_name() {
        let relation = table(&COLUMNS);
        let why = |text| Bound::new(&Filter::parse(text).unwrap(), &relation).unwrap_err().to_string();
        assert_eq!(
            why("urgency=eq.3"),
            "column urgency is not among the published columns of public.tickets"
        );
        assert_eq!(why("priority=gte.high"), "\"high\" is no value for column priority of type int4");
        assert_eq!(why("body=eq.{}"), "column body of type jsonb cannot be compared with eq");
        assert_eq!(why("feeling=gt.sad"), "column feeling of type mood cannot be compared with gt");
        assert_eq!(why("priority=like.3"), "column priority of type int4 cannot be compared with like");
        assert!(why("title=is.true").contains("is.true"));
    }

    #[test]
    fn like_goes_back_to_the_last_run_only() {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        let long = "a".repeat(2_000);
        assert!(!like(&chars("%a%a%a%a%b"), &chars(&long)));
        assert!(like(&chars("%a%a"), &chars(&long)));
        assert!(like(&chars("100\\%"), &chars("100%")));
        assert!(!like(&chars("100\\%"), &chars("1000")));
        assert!(like(&chars("%"), &chars("")));
        assert!(!like(&chars("_"), &chars("")));
    }
}
