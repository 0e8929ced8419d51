//! A filter bound to the columns of a table, ready to evaluate its rows.
//!
//! Binding resolves the columns and parses the values by their kinds, once for each version
//! of a table. A test then reads one cell. NULL, and a value that the WAL does
//! not carry, never match, also under `not.`. Pure. Binding fails with a message for
//! the author of the filter.
use super::{Class, Condition, Filter, Keyword, Kind, Operator, Segment, Test, Unbindable, value::Operand};
use std::sync::Arc;

/// Steps of one `like` in this process; Postgres evaluates a longer one.
const LIKE_STEPS_MAX: usize = 100_000;
/// Bytes of a cell that a comparison reads in one step: as fast as one step of `like`.
const BYTES_PER_STEP: usize = 8;

/// A truth value of SQL's three-valued logic, or not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// True: the row matches.
    True,
    /// False.
    False,
    /// NULL: no match.
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
    fn negate_if(self, negated: bool) -> Self {
        match self {
            Self::True if negated => Self::False,
            Self::False if negated => Self::True,
            other => other,
        }
    }
}

/// The value of a row in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnValue<'a> {
    /// The WAL does not carry it (an unchanged TOAST value).
    Absent,
    /// NULL.
    Null,
    /// The value as Postgres writes it.
    Text(&'a str),
}

/// A condition for Postgres to evaluate: does `expression` hold for a row's value `p.v` and `p.l`?
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// SQL over `p.v` and `p.l`, both of type text. The values of a list share it.
    pub expression: Arc<str>,
    /// The value of `p.l`.
    pub literal: String,
}

/// Answers what only Postgres can decide.
pub trait Oracle {
    /// The answer for a row's value; [`Truth::Unknown`] if it has to be fetched first.
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth;

    /// Steps that may still be spent on comparisons and patterns in this process. Beyond them Postgres is asked.
    fn steps_left(&self) -> usize {
        usize::MAX
    }

    /// Counts steps that were spent, whatever their outcome.
    fn spend(&mut self, _steps: usize) {}
}

/// The value of a cell as an index key: two keys are equal exactly if Postgres considers the values equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Operand);

impl Key {
    /// Parses a value of a column of this kind; `None` if equality cannot be decided here.
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
    Test(Box<BoundTest>),
    All(Vec<Node>, bool),
    Any(Vec<Node>, bool),
}

#[derive(Clone, Debug)]
struct BoundTest {
    column: usize,
    class: Class,
    negated: bool,
    predicate: ProbeKind,
}

#[derive(Clone, Debug)]
enum ProbeKind {
    /// The value, and the probe for a comparison that takes too many steps.
    Compare(Operator, Operand, Arc<Probe>),
    /// The values, each with the probe for a comparison that takes too many steps, and whether NULL is among them. With
    /// NULL, `not.in` never matches.
    In(Vec<(Operand, Arc<Probe>)>, bool),
    /// The pattern, and the probe for a match that takes too many steps.
    Like(Vec<char>, Arc<Probe>),
    Is(Keyword),
    Probe(Operator, Arc<Probe>),
    AnyProbe(Vec<Arc<Probe>>, bool),
}

impl Bound {
    /// Resolves the columns of `filter` by name (to their position in a row and their kind) and parses its values.
    ///
    /// # Errors
    /// [`Unbindable`].
    pub fn new<'k>(
        filter: &Filter,
        column: impl Fn(&str) -> Option<(usize, &'k Kind)>,
    ) -> Result<Self, Unbindable> {
        nodes(&filter.conditions, &column).map(Self)
    }

    /// Evaluates a row whose columns `cell` returns by position.
    pub fn test<'r>(&self, cell: &impl Fn(usize) -> ColumnValue<'r>, oracle: &mut impl Oracle) -> Truth {
        all(&self.0, cell, oracle)
    }

    /// Whether a test always asks the oracle. A long `like` may ask in addition.
    #[must_use]
    pub fn needs_oracle(&self) -> bool {
        self.0.iter().any(Node::needs_oracle)
    }

    /// The probes, with whether the literal is a pattern.
    pub fn probes(&self) -> impl Iterator<Item = (&Arc<Probe>, bool)> {
        let mut all = Vec::new();
        gather(&self.0, &mut all);
        all.into_iter()
    }

    /// A column and the values of which a matching row must have one, for an index; `None` if there is no such test.
    #[must_use]
    pub fn keys(&self) -> Option<(usize, Vec<Key>)> {
        self.0.iter().find_map(|node| match node {
            Node::Test(bound) if !bound.negated => match &bound.predicate {
                ProbeKind::Compare(Operator::Equal, value, _) => {
                    Some((bound.column, vec![Key(value.clone())]))
                }
                ProbeKind::In(values, _) => {
                    Some((bound.column, values.iter().map(|(value, _)| Key(value.clone())).collect()))
                }
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
            Node::Test(bound) => match &bound.predicate {
                ProbeKind::Probe(operator, probe) => all.push((probe, operator.is_pattern())),
                ProbeKind::AnyProbe(probes, _) => all.extend(probes.iter().map(|probe| (probe, false))),
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
                Node::Test(Box::new(bind_test(segment, at, kind)?))
            }
            Condition::All { of, negated } => Node::All(nodes(of, column)?, *negated),
            Condition::Any { of, negated } => Node::Any(nodes(of, column)?, *negated),
        })
    };
    let mut nodes: Vec<_> = conditions.iter().map(node).collect::<Result<_, _>>()?;
    // Tests decided here come first: a false one saves a probe.
    nodes.sort_by_key(Node::needs_oracle);
    Ok(nodes)
}

fn bind_test(segment: &Segment, at: usize, kind: &Kind) -> Result<BoundTest, Unbindable> {
    let name = &segment.column;
    let read = |value: &String| {
        Operand::read(&kind.class, value).ok_or_else(|| Unbindable::NoValue {
            column: name.clone(),
            type_name: kind.type_name.clone(),
            value: value.clone(),
        })
    };
    let probe = |operator: Operator, literal: &String| {
        Arc::new(Probe { expression: kind.expression(operator).into(), literal: literal.clone() })
    };
    let predicate = match &segment.test {
        Test::Is(Keyword::Null) => ProbeKind::Is(Keyword::Null),
        Test::Is(keyword) if kind.class == Class::Bool => ProbeKind::Is(*keyword),
        Test::Is(keyword) => {
            let (column, type_name) = (name.clone(), kind.type_name.clone());
            return Err(Unbindable::NotBoolean { column, type_name, keyword: keyword.as_str() });
        }
        Test::Compare(operator, value) => {
            kind.check(name, operator.as_str(), operator.is_pattern())?;
            if !kind.knows(*operator) {
                ProbeKind::Probe(*operator, probe(*operator, value))
            } else if *operator == Operator::Like {
                match pattern(value) {
                    Some(()) => ProbeKind::Like(value.chars().collect(), probe(*operator, value)),
                    None => ProbeKind::Probe(*operator, probe(*operator, value)),
                }
            } else {
                ProbeKind::Compare(*operator, read(value)?, probe(*operator, value))
            }
        }
        Test::In(values) => {
            kind.check(name, "in", false)?;
            let (given, null) = (values.iter().flatten(), values.iter().any(Option::is_none));
            let expression: Arc<str> = kind.expression(Operator::Equal).into();
            let probe =
                |value: &String| Arc::new(Probe { expression: expression.clone(), literal: value.clone() });
            if kind.knows_equality() {
                let read = |value| Ok((read(value)?, probe(value)));
                ProbeKind::In(given.map(read).collect::<Result<_, _>>()?, null)
            } else {
                ProbeKind::AnyProbe(given.map(probe).collect(), null)
            }
        }
    };
    Ok(BoundTest { column: at, class: kind.class.clone(), negated: segment.negated, predicate })
}

/// `None` for a pattern that ends in a lone backslash: Postgres must report that error.
fn pattern(text: &str) -> Option<()> {
    let lone = text.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1;
    (!lone).then_some(())
}

fn all<'r>(nodes: &[Node], cell: &impl Fn(usize) -> ColumnValue<'r>, oracle: &mut impl Oracle) -> Truth {
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

fn any<'r>(nodes: &[Node], cell: &impl Fn(usize) -> ColumnValue<'r>, oracle: &mut impl Oracle) -> Truth {
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
            Self::Test(bound) => matches!(bound.predicate, ProbeKind::Probe(..) | ProbeKind::AnyProbe(..)),
            Self::All(nodes, _) | Self::Any(nodes, _) => nodes.iter().any(Self::needs_oracle),
        }
    }

    fn test<'r>(&self, cell: &impl Fn(usize) -> ColumnValue<'r>, oracle: &mut impl Oracle) -> Truth {
        match self {
            Self::All(nodes, negated) => all(nodes, cell, oracle).negate_if(*negated),
            Self::Any(nodes, negated) => any(nodes, cell, oracle).negate_if(*negated),
            Self::Test(bound) => match cell(bound.column) {
                ColumnValue::Absent => Truth::Null,
                ColumnValue::Null => bound.predicate.evaluate_null().negate_if(bound.negated),
                ColumnValue::Text(text) => {
                    bound.predicate.evaluate(&bound.class, text, oracle).negate_if(bound.negated)
                }
            },
        }
    }
}

impl ProbeKind {
    fn evaluate_null(&self) -> Truth {
        match self {
            Self::Is(keyword) => matches!(keyword, Keyword::Null | Keyword::Unknown).into(),
            Self::Compare(Operator::IsDistinct, ..) | Self::Probe(Operator::IsDistinct, _) => Truth::True,
            // `= any` of an empty array is false even for NULL, so `not.in.()` always matches.
            Self::In(values, false) if values.is_empty() => Truth::False,
            Self::AnyProbe(probes, false) if probes.is_empty() => Truth::False,
            _ => Truth::Null,
        }
    }

    fn evaluate(&self, class: &Class, text: &str, oracle: &mut impl Oracle) -> Truth {
        match self {
            Self::Is(keyword) => match keyword {
                Keyword::Null | Keyword::Unknown => Truth::False,
                Keyword::True => (text == "t").into(),
                Keyword::False => (text == "f").into(),
            },
            Self::Like(pattern, probe) => {
                let (holds, steps) = like(pattern, text, oracle.steps_left().min(LIKE_STEPS_MAX));
                oracle.spend(steps);
                holds.map_or_else(|| oracle.ask(probe, text), Truth::from)
            }
            Self::Probe(_, probe) => oracle.ask(probe, text),
            Self::AnyProbe(probes, null) => ask_any(probes.iter(), *null, text, oracle),
            Self::Compare(_, _, probe) if !pays(1, text, oracle) => oracle.ask(probe, text),
            Self::Compare(operator, with, _) => match Operand::read(class, text) {
                Some(value) => compare(*operator, &value, with).into(),
                None => Truth::Null,
            },
            Self::In(values, null) if !pays(values.len(), text, oracle) => {
                ask_any(values.iter().map(|(_, probe)| probe), *null, text, oracle)
            }
            Self::In(values, null) => match Operand::read(class, text) {
                Some(value) if values.iter().any(|(with, _)| *with == value) => Truth::True,
                // As in SQL, a list with NULL neither contains nor lacks other values: the NULL could be equal.
                Some(_) if !null => Truth::False,
                _ => Truth::Null,
            },
        }
    }
}

/// Counts the steps of comparing a cell with this many values; false if there are not enough left, so that Postgres
/// must compare it.
fn pays(values: usize, text: &str, oracle: &mut impl Oracle) -> bool {
    let steps = values + text.len() / BYTES_PER_STEP;
    let has_steps = steps <= oracle.steps_left();
    if has_steps {
        oracle.spend(steps);
    }
    has_steps
}

/// Whether one of the probes holds; `null` is whether NULL is among their values.
fn ask_any<'a>(
    probes: impl Iterator<Item = &'a Arc<Probe>>,
    null: bool,
    text: &str,
    oracle: &mut impl Oracle,
) -> Truth {
    let mut outcome = if null { Truth::Null } else { Truth::False };
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

fn compare(operator: Operator, value: &Operand, with: &Operand) -> bool {
    match operator {
        Operator::NotEqual | Operator::IsDistinct => value != with,
        Operator::Less => value < with,
        Operator::LessOrEqual => value <= with,
        Operator::Greater => value > with,
        Operator::GreaterOrEqual => value >= with,
        // Patterns are not compared here.
        _ => value == with,
    }
}

/// SQL's `like`: `%` matches any run, `_` any character, `\` escapes the next one. Returns `None` above `steps_max`
/// steps, and the number of steps.
///
/// Backtracks only to the last `%`, so it takes at most pattern times text steps.
fn like(pattern: &[char], text: &str, steps_max: usize) -> (Option<bool>, usize) {
    let (mut p, mut rest, mut steps) = (0, text.chars(), 0);
    let mut again: Option<(usize, std::str::Chars<'_>)> = None;
    loop {
        let here = rest.clone();
        let Some(c) = rest.next() else { break };
        steps += 1;
        if steps > steps_max {
            return (None, steps);
        }
        match (pattern.get(p), pattern.get(p + 1)) {
            (Some('%'), _) => {
                again = Some((p + 1, here.clone()));
                (p, rest) = (p + 1, here);
                continue;
            }
            (Some('_'), _) => {
                p += 1;
                continue;
            }
            (Some('\\'), Some(meant)) if *meant == c => {
                p += 2;
                continue;
            }
            (Some(same), _) if *same == c && *same != '\\' => {
                p += 1;
                continue;
            }
            _ => {}
        }
        let Some((after, mut from)) = again else { return (Some(false), steps) };
        from.next();
        (p, rest) = (after, from.clone());
        again = Some((after, from));
    }
    (Some(pattern.get(p..).unwrap_or_default().iter().all(|c| *c == '%')), steps)
}

#[cfg(test)]
mod tests;
