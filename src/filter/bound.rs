//! A filter bound to the columns of a table, ready to be asked of its rows.
//!
//! Binding finds the columns and reads the values by their kinds once for each version
//! of a table; asking then reads one cell a test. NULL, and a value that the log does
//! not carry, is no match, also under `not.`. Pure; binding fails with a sentence for
//! whoever wrote the filter.
use super::{Class, Condition, Filter, Keyword, Kind, Operator, Segment, Test, value::Operand};
use std::sync::Arc;

/// Why a filter cannot be asked of a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbindable {
    /// No such column.
    #[error("invalid column for filter {column}")]
    NoColumn {
        /// The column that the filter names.
        column: String,
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
    /// A pattern for what is no text.
    #[error("operator {operator} requires a text-compatible column type, got {type_name}")]
    NotTextual {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The operator.
        operator: &'static str,
    },
    /// A truth for what is no boolean.
    #[error("is {keyword} filter requires a boolean column, got {type_name}")]
    NotBoolean {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// What was asked for.
        keyword: &'static str,
    },
    /// The type's values cannot be compared.
    #[error("operator {operator} cannot compare values of type {type_name}")]
    Incomparable {
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
        /// The operator.
        operator: &'static str,
    },
}

/// An outcome in SQL's logic, or that it is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// SQL says NULL: no match.
    Null,
    /// The oracle has not answered yet.
    Unknown,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl Truth {
    fn turned(self, negated: bool) -> Self {
        match self {
            Self::True if negated => Self::False,
            Self::False if negated => Self::True,
            other => other,
        }
    }
}

/// What a row has in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// The log does not carry it.
    Absent,
    /// NULL.
    Null,
    /// The value as Postgres writes it.
    Text(&'a str),
}

/// A question for Postgres: does `expression` hold for a row's value `p.v` and `p.l`?
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// SQL over `p.v` and `p.l`, both of type text.
    pub expression: String,
    /// What `p.l` is.
    pub literal: String,
}

/// Answers what only Postgres can say.
pub trait Oracle {
    /// The answer for a row's value; [`Truth::Unknown`] when it has to be fetched first.
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth;
}

/// The value of a cell as an index keeps it: two are the same exactly when Postgres says that they are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Operand);

impl Key {
    /// Reads a value of a column of that kind; nothing where equality is not known here.
    #[must_use]
    pub fn read(kind: &Kind, text: &str) -> Option<Self> {
        kind.knows_equality().then(|| Operand::read(&kind.class, text)).flatten().map(Self)
    }
}

/// A filter for the rows of one version of a table.
#[derive(Clone, Debug, Default)]
pub struct Bound(Vec<Node>);

#[derive(Clone, Debug)]
enum Node {
    Test(Box<Asked>),
    All(Vec<Node>, bool),
    Any(Vec<Node>, bool),
}

#[derive(Clone, Debug)]
struct Asked {
    column: usize,
    class: Class,
    negated: bool,
    question: Question,
}

#[derive(Clone, Debug)]
enum Question {
    Compare(Operator, Operand),
    /// The values, and whether NULL is among them, which makes `not.in` never match.
    In(Vec<Operand>, bool),
    Like(Vec<char>),
    Is(Keyword),
    Probe(Operator, Arc<Probe>),
    AnyProbe(Vec<Arc<Probe>>, bool),
}

impl Bound {
    /// Finds the columns of `filter` by name (their place in a row and their kind) and reads its values.
    ///
    /// # Errors
    /// [`Unbindable`].
    pub fn new<'k>(
        filter: &Filter,
        column: impl Fn(&str) -> Option<(usize, &'k Kind)>,
    ) -> Result<Self, Unbindable> {
        nodes(&filter.conditions, &column).map(Self)
    }

    /// Whether a row passes, whose columns `cell` finds by their place.
    pub fn test<'r>(&self, cell: &impl Fn(usize) -> Found<'r>, oracle: &mut impl Oracle) -> Truth {
        all(&self.0, cell, oracle)
    }

    /// Whether it asks Postgres.
    #[must_use]
    pub fn needs_oracle(&self) -> bool {
        self.0.iter().any(Node::needs_oracle)
    }

    /// What it asks Postgres, with whether the literal is a pattern.
    pub fn probes(&self) -> impl Iterator<Item = (&Arc<Probe>, bool)> {
        let mut all = Vec::new();
        gather(&self.0, &mut all);
        all.into_iter()
    }

    /// A column and the values of which a row must have one to pass: what an index can find it by.
    #[must_use]
    pub fn keys(&self) -> Option<(usize, Vec<Key>)> {
        self.0.iter().find_map(|node| match node {
            Node::Test(asked) if !asked.negated => match &asked.question {
                Question::Compare(Operator::Equal, value) => Some((asked.column, vec![Key(value.clone())])),
                Question::In(values, _) => Some((asked.column, values.iter().cloned().map(Key).collect())),
                _ => None,
            },
            _ => None,
        })
    }
}

fn gather<'a>(nodes: &'a [Node], all: &mut Vec<(&'a Arc<Probe>, bool)>) {
    for node in nodes {
        match node {
            Node::All(nodes, _) | Node::Any(nodes, _) => gather(nodes, all),
            Node::Test(asked) => match &asked.question {
                Question::Probe(operator, probe) => all.push((probe, operator.is_pattern())),
                Question::AnyProbe(probes, _) => all.extend(probes.iter().map(|probe| (probe, false))),
                _ => {}
            },
        }
    }
}

fn nodes<'k>(
    conditions: &[Condition],
    column: &impl Fn(&str) -> Option<(usize, &'k Kind)>,
) -> Result<Vec<Node>, Unbindable> {
    let node = |condition: &Condition| {
        Ok(match condition {
            Condition::Test(segment) => {
                let no_column = || Unbindable::NoColumn { column: segment.column.clone() };
                let (at, kind) = column(&segment.column).ok_or_else(no_column)?;
                Node::Test(Box::new(asked(segment, at, kind)?))
            }
            Condition::All { of, negated } => Node::All(nodes(of, column)?, *negated),
            Condition::Any { of, negated } => Node::Any(nodes(of, column)?, *negated),
        })
    };
    let mut nodes: Vec<_> = conditions.iter().map(node).collect::<Result<_, _>>()?;
    // What is known here may spare the asking.
    nodes.sort_by_key(Node::needs_oracle);
    Ok(nodes)
}

fn asked(segment: &Segment, at: usize, kind: &Kind) -> Result<Asked, Unbindable> {
    let name = &segment.column;
    let read = |value: &String| {
        Operand::read(&kind.class, value).ok_or_else(|| Unbindable::NoValue {
            column: name.clone(),
            type_name: kind.type_name.clone(),
            value: value.clone(),
        })
    };
    let probe = |operator: Operator, literal: &String| {
        Arc::new(Probe { expression: kind.expression(operator), literal: literal.clone() })
    };
    let question = match &segment.test {
        Test::Is(Keyword::Null) => Question::Is(Keyword::Null),
        Test::Is(keyword) if kind.class == Class::Bool => Question::Is(*keyword),
        Test::Is(keyword) => {
            let (column, type_name) = (name.clone(), kind.type_name.clone());
            return Err(Unbindable::NotBoolean { column, type_name, keyword: keyword.as_str() });
        }
        Test::Compare(operator, value) => {
            kind.check(name, operator.as_str(), operator.is_pattern())?;
            if !kind.knows(*operator) {
                Question::Probe(*operator, probe(*operator, value))
            } else if *operator == Operator::Like {
                match pattern(value) {
                    Some(()) => Question::Like(value.chars().collect()),
                    None => Question::Probe(*operator, probe(*operator, value)),
                }
            } else {
                Question::Compare(*operator, read(value)?)
            }
        }
        Test::In(values) => {
            kind.check(name, "in", false)?;
            let (given, null) = (values.iter().flatten(), values.iter().any(Option::is_none));
            if kind.knows_equality() {
                Question::In(given.map(read).collect::<Result<_, _>>()?, null)
            } else {
                Question::AnyProbe(given.map(|value| probe(Operator::Equal, value)).collect(), null)
            }
        }
    };
    Ok(Asked { column: at, class: kind.class.clone(), negated: segment.negated, question })
}

/// A pattern that ends in a lone backslash is an error in Postgres, and for Postgres to tell.
fn pattern(text: &str) -> Option<()> {
    let lone = text.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1;
    (!lone).then_some(())
}

fn all<'r>(nodes: &[Node], cell: &impl Fn(usize) -> Found<'r>, oracle: &mut impl Oracle) -> Truth {
    let mut outcome = Truth::True;
    for node in nodes {
        match (node.test(cell, oracle), outcome) {
            (Truth::False, _) => return Truth::False,
            (Truth::Unknown, _) => outcome = Truth::Unknown,
            (Truth::Null, Truth::True) => outcome = Truth::Null,
            _ => {}
        }
    }
    outcome
}

fn any<'r>(nodes: &[Node], cell: &impl Fn(usize) -> Found<'r>, oracle: &mut impl Oracle) -> Truth {
    let mut outcome = Truth::False;
    for node in nodes {
        match (node.test(cell, oracle), outcome) {
            (Truth::True, _) => return Truth::True,
            (Truth::Unknown, _) => outcome = Truth::Unknown,
            (Truth::Null, Truth::False) => outcome = Truth::Null,
            _ => {}
        }
    }
    outcome
}

impl Node {
    fn needs_oracle(&self) -> bool {
        match self {
            Self::Test(asked) => matches!(asked.question, Question::Probe(..) | Question::AnyProbe(..)),
            Self::All(nodes, _) | Self::Any(nodes, _) => nodes.iter().any(Self::needs_oracle),
        }
    }

    fn test<'r>(&self, cell: &impl Fn(usize) -> Found<'r>, oracle: &mut impl Oracle) -> Truth {
        match self {
            Self::All(nodes, negated) => all(nodes, cell, oracle).turned(*negated),
            Self::Any(nodes, negated) => any(nodes, cell, oracle).turned(*negated),
            Self::Test(asked) => match cell(asked.column) {
                Found::Absent => Truth::Null,
                Found::Null => asked.question.of_null().turned(asked.negated),
                Found::Text(text) => asked.question.of(&asked.class, text, oracle).turned(asked.negated),
            },
        }
    }
}

impl Question {
    fn of_null(&self) -> Truth {
        match self {
            Self::Is(keyword) => matches!(keyword, Keyword::Null | Keyword::Unknown).into(),
            Self::Compare(Operator::IsDistinct, _) | Self::Probe(Operator::IsDistinct, _) => Truth::True,
            // `= any` of nothing is false even for NULL, so `not.in.()` always matches.
            Self::In(values, false) if values.is_empty() => Truth::False,
            Self::AnyProbe(probes, false) if probes.is_empty() => Truth::False,
            _ => Truth::Null,
        }
    }

    fn of(&self, class: &Class, text: &str, oracle: &mut impl Oracle) -> Truth {
        match self {
            Self::Is(keyword) => match keyword {
                Keyword::Null | Keyword::Unknown => Truth::False,
                Keyword::True => (text == "t").into(),
                Keyword::False => (text == "f").into(),
            },
            Self::Like(pattern) => like(pattern, &text.chars().collect::<Vec<_>>()).into(),
            Self::Probe(_, probe) => oracle.ask(probe, text),
            Self::AnyProbe(probes, null) => {
                let mut outcome = if *null { Truth::Null } else { Truth::False };
                for probe in probes {
                    match oracle.ask(probe, text) {
                        Truth::True => return Truth::True,
                        Truth::Unknown => outcome = Truth::Unknown,
                        Truth::Null if outcome == Truth::False => outcome = Truth::Null,
                        _ => {}
                    }
                }
                outcome
            }
            Self::Compare(operator, with) => match Operand::read(class, text) {
                Some(value) => compare(*operator, &value, with).into(),
                None => Truth::Null,
            },
            Self::In(values, null) => match Operand::read(class, text) {
                Some(value) if values.contains(&value) => Truth::True,
                // SQL: neither in nor not in, as long as the one with NULL could be it.
                Some(_) if !null => Truth::False,
                _ => Truth::Null,
            },
        }
    }
}

fn compare(operator: Operator, value: &Operand, with: &Operand) -> bool {
    match operator {
        Operator::NotEqual | Operator::IsDistinct => value != with,
        Operator::Less => value < with,
        Operator::LessOrEqual => value <= with,
        Operator::Greater => value > with,
        Operator::GreaterOrEqual => value >= with,
        // Patterns never come here.
        _ => value == with,
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
mod tests;
