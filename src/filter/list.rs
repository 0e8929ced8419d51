//! The elements of an `in.(…)`, which follow the rules of a Postgres array literal.
use std::{iter::Peekable, str::Chars};

/// The elements between the parentheses; an unquoted `NULL` is an inner `None`. Returns `None` for what Postgres
/// calls a malformed array literal.
pub(super) fn elements(inside: &str) -> Option<Vec<Option<String>>> {
    if inside.trim().is_empty() {
        return Some(Vec::new());
    }
    let mut values = Vec::new();
    let mut chars = inside.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.next_if_eq(&'"').is_some() {
            values.push(Some(quoted(&mut chars)?));
            while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        } else {
            values.push(bare(&mut chars)?);
        }
        match chars.next() {
            None => return Some(values),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

fn quoted(chars: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut text = String::new();
    loop {
        match chars.next()? {
            '\\' => text.push(chars.next()?),
            '"' => return Some(text),
            c => text.push(c),
        }
    }
}

/// An unquoted element. Trailing blanks are dropped unless the last one is escaped.
fn bare(chars: &mut Peekable<Chars<'_>>) -> Option<Option<String>> {
    let mut text = String::new();
    let (mut kept, mut escaped) = (0, false);
    while let Some(c) = chars.next_if(|c| *c != ',') {
        match c {
            '\\' => {
                text.push(chars.next()?);
                (kept, escaped) = (text.len(), true);
            }
            '{' | '}' | '"' => return None,
            c => {
                text.push(c);
                if !c.is_ascii_whitespace() {
                    kept = text.len();
                }
            }
        }
    }
    text.truncate(kept);
    if text.is_empty() {
        return None;
    }
    Some((escaped || !text.eq_ignore_ascii_case("null")).then_some(text))
}
