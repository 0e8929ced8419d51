//! The grammar of filters: conditions joined by commas, all of which must hold.
//!
//! A condition is `column=[not.]operator.value`, or a group `or=(…)`, `and=(…)`,
//! `not.or=(…)` whose members, joined by commas, are `column.[not.]operator.value` or
//! nested groups `or(…)`, `and(…)`. Quotes around a whole value are removed; inside them
//! `\` escapes the next character. Parsing resolves no columns. Pure.
use super::list;

/// The most values of an `in`.
const IN_VALUES_MAX: usize = 100;
/// The most tests of a filter, including those in groups.
const TESTS_MAX: usize = 100;
/// The deepest nesting of groups. Bounds the recursion of the parser.
const DEPTH_MAX: usize = 8;

/// All conditions must hold. An empty filter always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// In the order of the text.
    pub conditions: Vec<Condition>,
}

impl Filter {
    /// The number of its tests.
    #[must_use]
    pub fn tests(&self) -> usize {
        self.conditions.iter().map(Condition::tests).sum()
    }

    /// Every compared value with its column and operator (`None` for `in`), to be replaced in place.
    pub fn values_mut(&mut self) -> Vec<(&str, Option<Operator>, &mut String)> {
        let mut all = Vec::new();
        values_mut(&mut self.conditions, &mut all);
        all
    }
}

fn values_mut<'a>(
    conditions: &'a mut [Condition],
    out: &mut Vec<(&'a str, Option<Operator>, &'a mut String)>,
) {
    for condition in conditions {
        match condition {
            Condition::All { of, .. } | Condition::Any { of, .. } => values_mut(of, out),
            Condition::Test(segment) => match &mut segment.test {
                Test::Compare(operator, value) => out.push((&segment.column, Some(*operator), value)),
                Test::In(values) => {
                    out.extend(values.iter_mut().flatten().map(|value| (&*segment.column, None, value)));
                }
                Test::Is(_) => {}
            },
        }
    }
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// A test of one column.
    Test(Segment),
    /// All members hold; negated: not all do.
    All {
        /// The members.
        of: Vec<Condition>,
        /// `not.and`.
        negated: bool,
    },
    /// At least one member holds; negated: none does.
    Any {
        /// The members.
        of: Vec<Condition>,
        /// `not.or`.
        negated: bool,
    },
}

impl Condition {
    fn tests(&self) -> usize {
        match self {
            Self::Test(_) => 1,
            Self::All { of, .. } | Self::Any { of, .. } => of.iter().map(Self::tests).sum(),
        }
    }
}

/// The test of one column.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// The column's name.
    pub column: String,
    /// Whether the outcome is negated. NULL stays NULL.
    pub negated: bool,
    /// The test.
    pub test: Test,
}

/// A comparison with its values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// With one value, parsed as the column's type; a pattern with the last four operators.
    Compare(Operator, String),
    /// With a list; `None` is NULL, which never matches.
    In(Vec<Option<String>>),
    /// With NULL or a boolean.
    Is(Keyword),
}

/// A comparison with one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `eq`
    Equal,
    /// `neq`
    NotEqual,
    /// `lt`
    Less,
    /// `lte`
    LessOrEqual,
    /// `gt`
    Greater,
    /// `gte`
    GreaterOrEqual,
    /// `isdistinct`: unequal, where NULL equals NULL.
    IsDistinct,
    /// `like`: a pattern with `%` and `_`.
    Like,
    /// `ilike`: `like` without case.
    ILike,
    /// `match`: a regular expression.
    Match,
    /// `imatch`: `match` without case.
    IMatch,
}

impl Operator {
    /// The operator's name in filters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "eq",
            Self::NotEqual => "neq",
            Self::Less => "lt",
            Self::LessOrEqual => "lte",
            Self::Greater => "gt",
            Self::GreaterOrEqual => "gte",
            Self::IsDistinct => "isdistinct",
            Self::Like => "like",
            Self::ILike => "ilike",
            Self::Match => "match",
            Self::IMatch => "imatch",
        }
    }

    /// The operator's name in Postgres.
    #[must_use]
    pub fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual | Self::IsDistinct => "<>",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Like => "~~",
            Self::ILike => "~~*",
            Self::Match => "~",
            Self::IMatch => "~*",
        }
    }

    /// Whether the value is a pattern.
    #[must_use]
    pub fn is_pattern(self) -> bool {
        matches!(self, Self::Like | Self::ILike | Self::Match | Self::IMatch)
    }

    fn read(word: &str) -> Option<Self> {
        Some(match word {
            "eq" => Self::Equal,
            "neq" => Self::NotEqual,
            "lt" => Self::Less,
            "lte" => Self::LessOrEqual,
            "gt" => Self::Greater,
            "gte" => Self::GreaterOrEqual,
            "isdistinct" => Self::IsDistinct,
            "like" => Self::Like,
            "ilike" => Self::ILike,
            "match" => Self::Match,
            "imatch" => Self::IMatch,
            _ => return None,
        })
    }
}

/// The operand of `is`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keyword {
    /// NULL.
    Null,
    /// A boolean that is true.
    True,
    /// A boolean that is false.
    False,
    /// A boolean that is NULL.
    Unknown,
}

impl Keyword {
    /// The keyword's name in filters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::True => "true",
            Self::False => "false",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a text is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    /// Two adjacent commas, or one at an end.
    #[error("filter must not contain empty segments (check for extra commas)")]
    EmptySegment,
    /// Not a condition; holds the parts that it was split into.
    #[error("{0:?} is not a condition of the form column=operator.value")]
    Form(Vec<String>),
    /// An unknown operator; holds the operator and the value.
    #[error(
        "{:?} is not an operator: use eq, neq, lt, lte, gt, gte, in, like, ilike, is, match, imatch or isdistinct",
        .0.first().map(String::as_str).unwrap_or_default()
    )]
    Operator(Vec<String>),
    /// `in` without its parentheses.
    #[error("`in` filter value must be wrapped by parentheses")]
    Parentheses,
    /// A group that is not closed, or is empty.
    #[error("a group must be wrapped by parentheses and not be empty, like or=(a.eq.1,b.gt.2)")]
    Group,
    /// Too many tests, or groups nested too deeply.
    #[error("filter must not have more than {TESTS_MAX} conditions or {DEPTH_MAX} groups in one another")]
    TooLong,
    /// The values of `in` are not an array; holds them as an array literal.
    #[error("malformed array literal: \"{0}\"")]
    List(String),
    /// Too many values of `in`.
    #[error("too many values for `in` filter. Maximum {IN_VALUES_MAX}")]
    TooMany,
    /// An unknown keyword for `is`.
    #[error("invalid value for is filter: must be null, true, false, or unknown")]
    Keyword,
}

impl BadFilter {
    /// The text of `docs/spec/postgres-changes.md` §1.5, without its prefix.
    #[must_use]
    pub fn protocol_text(&self) -> String {
        match self {
            Self::Form(parts) | Self::Operator(parts) => format!("{parts:?}"),
            other => other.to_string(),
        }
    }
}

impl Filter {
    /// Parses a filter. A blank text is a filter that always holds.
    ///
    /// # Errors
    /// A [`BadFilter`] with the part that is invalid.
    pub fn parse(text: &str) -> Result<Self, BadFilter> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut parser = Parser { tests: 0 };
        let parts = split(text).into_iter();
        let conditions = parts.map(|part| parser.outer(part.trim())).collect::<Result<_, _>>()?;
        Ok(Self { conditions })
    }

    /// The conditions of a filter as they are written, in the order of [`Filter::conditions`].
    #[must_use]
    pub fn texts(text: &str) -> Vec<&str> {
        if text.trim().is_empty() { Vec::new() } else { split(text).into_iter().map(str::trim).collect() }
    }

    /// The columns that it reads, each once, in the order of the text.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        let mut columns: Vec<String> = Vec::new();
        for segment in self.segments() {
            if !columns.contains(&segment.column) {
                columns.push(segment.column.clone());
            }
        }
        columns
    }

    /// Every test, including those in groups.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        let mut all = Vec::new();
        gather(&self.conditions, &mut all);
        all.into_iter()
    }
}

fn gather<'a>(conditions: &'a [Condition], all: &mut Vec<&'a Segment>) {
    for condition in conditions {
        match condition {
            Condition::Test(segment) => all.push(segment),
            Condition::All { of, .. } | Condition::Any { of, .. } => gather(of, all),
        }
    }
}

struct Parser {
    tests: usize,
}

impl Parser {
    /// `column=condition` or `or=(…)`.
    fn outer(&mut self, part: &str) -> Result<Condition, BadFilter> {
        if part.is_empty() {
            return Err(BadFilter::EmptySegment);
        }
        let Some((left, right)) = part.split_once('=') else {
            return Err(BadFilter::Form(vec![part.to_owned()]));
        };
        if right.starts_with('(')
            && let Some((word, negated)) = group_word(left)
        {
            return self.group(word, negated, right, 1);
        }
        if left.is_empty() {
            return Err(BadFilter::Form(vec![part.to_owned()]));
        }
        self.test(left, right)
    }

    /// `column.condition` or `or(…)`.
    fn inner(&mut self, part: &str, depth: usize) -> Result<Condition, BadFilter> {
        if part.is_empty() {
            return Err(BadFilter::EmptySegment);
        }
        if let Some(at) = part.find('(')
            && let (Some(left), Some(right)) = (part.get(..at), part.get(at..))
            && let Some((word, negated)) = group_word(left)
        {
            return self.group(word, negated, right, depth + 1);
        }
        let form = || BadFilter::Form(vec![part.to_owned()]);
        if let Some(rest) = part.strip_prefix('"') {
            // A quoted name may contain a dot.
            let mut end = None;
            let mut chars = rest.char_indices();
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' => drop(chars.next()),
                    '"' => {
                        end = Some(at);
                        break;
                    }
                    _ => {}
                }
            }
            let end = end.ok_or_else(form)?;
            let column = unquote(part.get(..end + 2).unwrap_or_default());
            let rest = part.get(end + 2..).and_then(|rest| rest.strip_prefix('.')).ok_or_else(form)?;
            return self.test(&column, rest);
        }
        let (column, rest) = part.split_once('.').ok_or_else(form)?;
        if column.is_empty() {
            return Err(form());
        }
        self.test(column, rest)
    }

    fn group(&mut self, any: bool, negated: bool, text: &str, depth: usize) -> Result<Condition, BadFilter> {
        if depth > DEPTH_MAX {
            return Err(BadFilter::TooLong);
        }
        let inside =
            text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).ok_or(BadFilter::Group)?;
        if inside.trim().is_empty() {
            return Err(BadFilter::Group);
        }
        let parts = split_group(inside).into_iter();
        let of = parts.map(|part| self.inner(part.trim(), depth)).collect::<Result<_, _>>()?;
        Ok(if any { Condition::Any { of, negated } } else { Condition::All { of, negated } })
    }

    fn test(&mut self, column: &str, condition: &str) -> Result<Condition, BadFilter> {
        self.tests += 1;
        if self.tests > TESTS_MAX {
            return Err(BadFilter::TooLong);
        }
        let (negated, condition) = match condition.strip_prefix("not.") {
            Some(rest) => (true, rest),
            None => (false, condition),
        };
        let Some((operator, value)) = condition.split_once('.') else {
            return Err(BadFilter::Form(vec![condition.to_owned()]));
        };
        let test = match operator {
            "in" => Test::In(elements(value)?),
            "is" => Test::Is(keyword(value)?),
            word => match Operator::read(word) {
                Some(operator) => Test::Compare(operator, unquote(value)),
                None => return Err(BadFilter::Operator(vec![operator.to_owned(), value.to_owned()])),
            },
        };
        Ok(Condition::Test(Segment { column: column.to_owned(), negated, test }))
    }
}

/// Returns whether it is an `or`, and whether it is negated; `None` for another word.
fn group_word(word: &str) -> Option<(bool, bool)> {
    Some(match word {
        "or" => (true, false),
        "and" => (false, false),
        "not.or" => (true, true),
        "not.and" => (false, true),
        _ => return None,
    })
}

fn split(text: &str) -> Vec<&str> {
    split_from(text, ' ')
}

/// In a group the first member may be a quoted name.
fn split_group(text: &str) -> Vec<&str> {
    split_from(text, '(')
}

/// Splits at commas outside of parentheses and quotes.
fn split_from(text: &str, before: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut begin, mut depth, mut quoted, mut before) = (0, 0_u32, false, before);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quoted => {
                chars.next();
            }
            '"' if quoted => quoted = false,
            _ if quoted => {}
            // A quote elsewhere is text, as in `5" tall`.
            '"' if matches!(before, '.' | '(' | ',') => quoted = true,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.extend(text.get(begin..at));
                begin = at + 1;
            }
            _ => {}
        }
        before = c;
    }
    parts.extend(text.get(begin..));
    parts
}

/// Removes the quotes if they enclose the whole value.
fn unquote(value: &str) -> String {
    quoted_whole(value).unwrap_or_else(|| value.to_owned())
}

fn quoted_whole(value: &str) -> Option<String> {
    let mut rest = value.strip_prefix('"')?.chars();
    let mut text = String::new();
    loop {
        match rest.next()? {
            '\\' => text.push(rest.next()?),
            '"' => return rest.next().is_none().then_some(text),
            c => text.push(c),
        }
    }
}

fn elements(value: &str) -> Result<Vec<Option<String>>, BadFilter> {
    let inside = value.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let inside = inside.ok_or(BadFilter::Parentheses)?;
    let values = list::elements(inside).ok_or_else(|| BadFilter::List(format!("{{{inside}}}")))?;
    if values.len() > IN_VALUES_MAX { Err(BadFilter::TooMany) } else { Ok(values) }
}

fn keyword(value: &str) -> Result<Keyword, BadFilter> {
    match value {
        "null" => Ok(Keyword::Null),
        "true" => Ok(Keyword::True),
        "false" => Ok(Keyword::False),
        "unknown" => Ok(Keyword::Unknown),
        _ => Err(BadFilter::Keyword),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests(text: &str) -> Vec<(String, bool, Test)> {
        let filter = Filter::parse(text).unwrap();
        filter.segments().cloned().map(|s| (s.column, s.negated, s.test)).collect()
    }
    fn eq(value: &str) -> Test {
        Test::Compare(Operator::Equal, value.to_owned())
    }

    #[test]
    fn commas_in_quotes_and_parentheses_do_not_split() {
        let read = tests(r#"a=eq.1, b=not.gte.2 ,c=in.(x,"y,z",null),d=eq."q,\"r",e=eq.5" tall"#);
        assert_eq!(read.len(), 5);
        assert_eq!(read[0], ("a".into(), false, eq("1")));
        assert_eq!(read[1], ("b".into(), true, Test::Compare(Operator::GreaterOrEqual, "2".into())));
        assert_eq!(read[2].2, Test::In(vec![Some("x".into()), Some("y,z".into()), None]));
        assert_eq!(read[3].2, eq("q,\"r"));
        assert_eq!(read[4].2, eq("5\" tall"));
        assert_eq!(tests("a=eq.(x,b=eq.1").len(), 1);
        assert_eq!(tests(r#"desc=eq.5" tall,id=gt.0"#).len(), 2, "statement 68");
        assert_eq!(tests("  "), []);
    }

    #[test]
    fn quotes_are_removed_only_around_a_whole_value() {
        let one = |text: &str| tests(text).remove(0).2;
        assert_eq!(one(r#"name=eq."a,b""#), eq("a,b"));
        assert_eq!(one(r#"name=eq."she said \"hi\"""#), eq("she said \"hi\""));
        assert_eq!(one(r#"path=eq."C:\\tmp""#), eq("C:\\tmp"));
        assert_eq!(one(r#"name=eq."ab"cd"#), eq("\"ab\"cd"));
        assert_eq!(one(r#"name=eq."x"#), eq("\"x"));
        assert_eq!(one("a=eq.1.5"), eq("1.5"));
        assert_eq!(one("a=eq."), eq(""));
        assert_eq!(one("a=in.()"), Test::In(vec![]));
        assert_eq!(one(r"a=in.( x y , \null, NULL )"), {
            let text = |text: &str| Some(text.to_owned());
            Test::In(vec![text("x y"), text("null"), None])
        });
    }

    #[test]
    fn groups_are_parsed_with_or_and_negation() {
        let filter = Filter::parse(r#"a=eq.1,or=(b.eq.2,not.and(c.not.lt.3,"d.e".in.(x,y)))"#).unwrap();
        let Condition::Any { of, negated: false } = &filter.conditions[1] else { panic!("{filter:?}") };
        let Condition::All { of: inner, negated: true } = &of[1] else { panic!("{filter:?}") };
        let columns: Vec<_> = inner.iter().map(|it| format!("{it:?}")).collect();
        assert!(columns[0].contains("negated: true") && columns[1].contains("\"d.e\""), "{columns:?}");
        assert_eq!(filter.segments().count(), 4);
        assert_eq!(tests("or=eq.1"), [("or".into(), false, eq("1"))], "a column of that name");
        for bad in ["or=()", "or=(a.eq.1", "or=(a=eq.1)", "or=(a.eq.1,,b.eq.2)", "or=(.eq.1)", "or=(\"a)"] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
        let deep = format!("or=({}a.eq.1{})", "or(".repeat(20), ")".repeat(20));
        assert_eq!(Filter::parse(&deep), Err(BadFilter::TooLong));
        assert_eq!(Filter::parse(&vec!["a=eq.1"; 101].join(",")), Err(BadFilter::TooLong));
    }

    #[test]
    fn syntax_errors_name_the_part() {
        let bad = |text: &str| Filter::parse(text).unwrap_err();
        assert_eq!(bad("priority>3").protocol_text(), r#"["priority>3"]"#);
        assert_eq!(bad("a=wrong").protocol_text(), r#"["wrong"]"#);
        assert_eq!(bad("subject=foo.hey").protocol_text(), r#"["foo", "hey"]"#);
        assert_eq!(bad("a=not.not.eq.1").protocol_text(), r#"["not", "eq.1"]"#);
        assert!(bad("a=foo.hey").to_string().starts_with("\"foo\" is not an operator: use eq, neq"));
        for comma in ["a=eq.1,,b=eq.2", "id=gt.0,", ",id=gt.0"] {
            assert_eq!(bad(comma), BadFilter::EmptySegment);
        }
        assert_eq!(bad("a=in.1,2"), BadFilter::Parentheses);
        assert_eq!(bad("a=in.(1,2"), BadFilter::Parentheses);
        assert_eq!(bad("a=in.(1,,2)").to_string(), "malformed array literal: \"{1,,2}\"");
        assert_eq!(bad("a=is.NULL"), BadFilter::Keyword);
        let many = |n: u32| (0..n).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(bad(&format!("a=in.({})", many(101))), BadFilter::TooMany);
        assert!(Filter::parse(&format!("a=in.({})", many(100))).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn parsing_arbitrary_text_never_panics(text in "[a-z=.,()\"\\\\ {}é]{0,40}") {
            let _ = Filter::parse(&text);
            let _ = Filter::parse(&format!("or=({text})"));
        }

        #[test]
        fn quoted_value_round_trips(value in "[ -~é]{0,20}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            proptest::prop_assert_eq!(&tests(&format!("a=eq.\"{quoted}\""))[0].2, &eq(&value));
            let list = Test::In(vec![Some(value.clone())]);
            proptest::prop_assert_eq!(&tests(&format!("a=in.(\"{quoted}\")"))[0].2, &list);
            let group = tests(&format!("or=(a.eq.\"{quoted}\",b.eq.1)"));
            proptest::prop_assert_eq!((group.len(), &group[0].2), (2, &eq(&value)));
        }
    }
}
