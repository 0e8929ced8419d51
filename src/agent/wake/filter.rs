//! Filters of wakes, read from text: `priority=gte.3,state=in.(new,open),note=not.is.null`.
//!
//! The grammar is that of `reference/postgres-changes.md` §3.1: segments joined
//! by commas, all of which must hold, each `column=[not.]operator.value`; a value
//! that begins and ends with `"` is taken without them, with `\` before any
//! character that is meant as itself. Operators: `eq neq lt lte gt gte in like
//! ilike is isdistinct`. Reading knows no columns; [`super::bound`] compares by
//! their types. Pure; fails with a sentence that names the segment.

/// Most values that an `in` may list.
const IN_VALUES_MAX: usize = 100;

/// All of these must hold; none holds always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In the order of the text.
    pub segments: Vec<Segment>,
}

/// One column, compared with one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The column's name.
    pub column: String,
    /// Whether the outcome is turned around; a comparison with NULL stays no match.
    pub negated: bool,
    /// How, and with what.
    pub test: Test,
}

/// How a column is compared, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// By order; the value is read as the column's type.
    Compare(Order, String),
    /// One of these; nothing for NULL, which never matches.
    In(Vec<Option<String>>),
    /// A pattern with `%` and `_`; whether case matters not.
    Like {
        /// The pattern.
        pattern: String,
        /// `ilike`.
        ignore_case: bool,
    },
    /// NULL, or a boolean.
    Is(Keyword),
    /// Unequal, where NULL is a value like any other.
    IsDistinct(String),
}

/// A comparison by order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
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
}

/// What `is` can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    /// Two commas in a row, or one at an end.
    #[error("a segment is empty: look for a comma too many")]
    EmptySegment,
    /// Not of the form.
    #[error("{0:?} is not of the form column=operator.value")]
    Form(String),
    /// No such operator.
    #[error("{0:?} is no operator: use eq, neq, lt, lte, gt, gte, in, like, ilike, is or isdistinct")]
    Operator(String),
    /// `in` without its parentheses.
    #[error("the values of in stand in parentheses, like in.(1,2), not {0:?}")]
    Parentheses(String),
    /// A value of `in` that cannot be read.
    #[error("{0:?} is no list of values: quote a value that has any of , \" \\ {{ }} or is empty")]
    List(String),
    /// Too many values of `in`.
    #[error("in lists {0} values; {IN_VALUES_MAX} are the most")]
    TooMany(usize),
    /// `is` with another word.
    #[error("is takes null, true, false or unknown, not {0:?}")]
    Keyword(String),
}

impl Filter {
    /// Reads a filter; a blank text is one that always holds.
    ///
    /// # Errors
    /// [`BadFilter`] says which part cannot be read.
    pub fn parse(text: &str) -> Result<Self, BadFilter> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let segments = split(text).into_iter().map(|part| segment(part.trim())).collect::<Result<_, _>>()?;
        Ok(Self { segments })
    }
}

/// The parts between the commas that stand in no parenthesis and no quotes.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut begin, mut depth, mut quoted, mut before) = (0, 0_u32, false, ' ');
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

fn segment(part: &str) -> Result<Segment, BadFilter> {
    if part.is_empty() {
        return Err(BadFilter::EmptySegment);
    }
    let form = || BadFilter::Form(part.to_owned());
    let (column, condition) = part.split_once('=').ok_or_else(form)?;
    let (negated, condition) = match condition.strip_prefix("not.") {
        Some(rest) => (true, rest),
        None => (false, condition),
    };
    let (operator, value) = condition.split_once('.').ok_or_else(form)?;
    if column.is_empty() {
        return Err(form());
    }
    let compare = |order| Test::Compare(order, unquote(value));
    let test = match operator {
        "eq" => compare(Order::Equal),
        "neq" => compare(Order::NotEqual),
        "lt" => compare(Order::Less),
        "lte" => compare(Order::LessOrEqual),
        "gt" => compare(Order::Greater),
        "gte" => compare(Order::GreaterOrEqual),
        "in" => Test::In(list(value)?),
        "like" => Test::Like { pattern: unquote(value), ignore_case: false },
        "ilike" => Test::Like { pattern: unquote(value), ignore_case: true },
        "is" => Test::Is(keyword(value)?),
        "isdistinct" => Test::IsDistinct(unquote(value)),
        other => return Err(BadFilter::Operator(other.to_owned())),
    };
    Ok(Segment { column: column.to_owned(), negated, test })
}

/// A value without its quotes, if they enclose all of it; else as it stands.
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

/// The values of an `in`, which follow the rules of a Postgres array literal.
fn list(value: &str) -> Result<Vec<Option<String>>, BadFilter> {
    let inside = value.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let inside = inside.ok_or_else(|| BadFilter::Parentheses(value.to_owned()))?;
    if inside.trim().is_empty() {
        return Ok(Vec::new());
    }
    let bad = || BadFilter::List(value.to_owned());
    let mut values = Vec::new();
    let mut chars = inside.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next_if_eq(&'"').is_some() {
            values.push(Some(quoted_element(&mut chars).ok_or_else(bad)?));
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
        } else {
            let mut text = String::new();
            while let Some(c) = chars.next_if(|c| *c != ',') {
                match c {
                    '\\' => text.push(chars.next().ok_or_else(bad)?),
                    '{' | '}' | '"' => return Err(bad()),
                    c => text.push(c),
                }
            }
            let text = text.trim_end();
            if text.is_empty() {
                return Err(bad());
            }
            values.push((!text.eq_ignore_ascii_case("null")).then(|| text.to_owned()));
        }
        match chars.next() {
            None => break,
            Some(',') => {}
            Some(_) => return Err(bad()),
        }
    }
    if values.len() > IN_VALUES_MAX { Err(BadFilter::TooMany(values.len())) } else { Ok(values) }
}

fn quoted_element(chars: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut text = String::new();
    loop {
        match chars.next()? {
            '\\' => text.push(chars.next()?),
            '"' => return Some(text),
            c => text.push(c),
        }
    }
}

fn keyword(value: &str) -> Result<Keyword, BadFilter> {
    match value {
        "null" => Ok(Keyword::Null),
        "true" => Ok(Keyword::True),
        "false" => Ok(Keyword::False),
        "unknown" => Ok(Keyword::Unknown),
        other => Err(BadFilter::Keyword(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests(text: &str) -> Vec<(String, bool, Test)> {
        let filter = Filter::parse(text).unwrap();
        filter.segments.into_iter().map(|s| (s.column, s.negated, s.test)).collect()
    }
    fn eq(value: &str) -> Test {
        Test::Compare(Order::Equal, value.to_owned())
    }

    #[test]
    fn segments_are_split_only_where_a_comma_is_meant() {
        let read = tests(r#"a=eq.1, b=not.gte.2 ,c=in.(x,"y,z",null),d=eq."q,\"r",e=eq.5" tall"#);
        assert_eq!(read.len(), 5);
        assert_eq!(read[0], ("a".into(), false, eq("1")));
        assert_eq!(read[1], ("b".into(), true, Test::Compare(Order::GreaterOrEqual, "2".into())));
        assert_eq!(read[2].2, Test::In(vec![Some("x".into()), Some("y,z".into()), None]));
        assert_eq!(read[3].2, eq("q,\"r"));
        assert_eq!(read[4].2, eq("5\" tall"));
        assert_eq!(tests("a=eq.(x,b=eq.1").len(), 1);
        assert_eq!(tests("  "), []);
    }

    #[test]
    fn the_value_may_have_dots_and_be_empty() {
        assert_eq!(tests("a=eq.1.5")[0].2, eq("1.5"));
        assert_eq!(tests("a=eq.")[0].2, eq(""));
        assert_eq!(tests("a=in.()")[0].2, Test::In(vec![]));
        assert_eq!(tests("a=eq.\"unterminated")[0].2, eq("\"unterminated"));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let bad = |text: &str| Filter::parse(text).unwrap_err().to_string();
        assert_eq!(bad("priority>3"), "\"priority>3\" is not of the form column=operator.value");
        assert_eq!(bad("a=wrong"), "\"a=wrong\" is not of the form column=operator.value");
        assert!(bad("a=foo.hey").starts_with("\"foo\" is no operator: use eq, neq"));
        assert!(bad("a=not.not.eq.1").starts_with("\"not\" is no operator"));
        assert!(bad("a=eq.1,,b=eq.2").contains("comma too many"));
        assert!(bad("a=in.1,2").contains("parentheses"));
        assert!(bad("a=in.(1,,2)").contains("no list of values"));
        assert!(bad("a=is.maybe").contains("null, true, false or unknown"));
        let many = (0..101).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(bad(&format!("a=in.({many})")), "in lists 101 values; 100 are the most");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[a-z=.,()\"\\\\ {}é]{0,40}") {
            let _ = Filter::parse(&text);
        }

        #[test]
        fn a_quoted_value_is_read_back(value in "[ -~é]{0,20}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            proptest::prop_assert_eq!(&tests(&format!("a=eq.\"{quoted}\""))[0].2, &eq(&value));
            let list = Test::In(vec![Some(value.clone())]);
            proptest::prop_assert_eq!(&tests(&format!("a=in.(\"{quoted}\")"))[0].2, &list);
        }
    }
}
