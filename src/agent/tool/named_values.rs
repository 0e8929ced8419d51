//! Statements with named values: `:name` becomes `$1`, `$2` and so on. Pure.

/// A statement for the extended protocol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The statement with numbered parameters.
    pub(crate) text: String,
    /// The name of each parameter in turn.
    pub(crate) names: Vec<String>,
}

/// Replaces the names. A name in a quoted text, a quoted name, a comment or a cast (`::int`) is left alone.
pub(crate) fn bind(statement: &str) -> Bound {
    let mut bound = Bound { text: String::with_capacity(statement.len()), names: Vec::new() };
    let mut rest = statement;
    while let Some(first) = rest.chars().next() {
        let length = quoted(rest, &bound.text).unwrap_or_else(|| match name(rest) {
            Some(name) => {
                let at = bound.names.iter().position(|known| known == name);
                let at = at.unwrap_or_else(|| {
                    bound.names.push(name.to_owned());
                    bound.names.len() - 1
                });
                bound.text.push_str(&format!("${}", at + 1));
                rest = rest.get(1 + name.len()..).unwrap_or_default();
                0
            }
            None if rest.starts_with("::") => 2,
            None => first.len_utf8(),
        });
        let (taken, left) = rest.split_at_checked(length).unwrap_or((rest, ""));
        bound.text.push_str(taken);
        rest = left;
    }
    bound
}

/// The name after a colon. `None` for a cast, a slice like `[1:2]` and any other colon.
fn name(rest: &str) -> Option<&str> {
    let after = rest.strip_prefix(':')?;
    let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
    let name = after.get(..end)?;
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_').then_some(name)
}

/// Length of the text, name or comment that begins here. `None` if none does.
fn quoted(rest: &str, before: &str) -> Option<usize> {
    let closed_by = |from: usize, end: &str| {
        rest.get(from..)?.find(end).map(|at| from + at + end.len()).or(Some(rest.len()))
    };
    match rest.as_bytes() {
        [b'\'', ..] => {
            // `E'…'` has escapes; a doubled quote begins the next text, which is skipped likewise.
            let escapes = before.ends_with(['e', 'E'])
                && !before.trim_end_matches(['e', 'E']).ends_with(|c: char| c.is_alphanumeric() || c == '_');
            Some(if escapes { escaped(rest) } else { closed_by(1, "'")? })
        }
        [b'"', ..] => closed_by(1, "\""),
        [b'-', b'-', ..] => closed_by(2, "\n"),
        [b'/', b'*', ..] => Some(comment(rest)),
        [b'$', ..] => {
            let tag_end = rest.get(1..)?.find(|c: char| !(c.is_alphanumeric() || c == '_'))? + 1;
            let tag = rest.get(..=tag_end).filter(|tag| tag.ends_with('$'))?;
            // `$1` and names like `a$b$` are no quotes.
            let is_tag = !tag.get(1..)?.starts_with(|c: char| c.is_ascii_digit());
            let in_name = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            (is_tag && !in_name).then(|| closed_by(tag.len(), tag))?
        }
        _ => None,
    }
}

/// Length of a text with backslash escapes.
fn escaped(rest: &str) -> usize {
    let mut escape = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escape => escape = false,
            '\\' => escape = true,
            '\'' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of a comment; comments nest.
fn comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0_usize);
    while let Some(two) = rest.as_bytes().get(at..at + 2) {
        match two {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => {
                (depth, at) = (depth.saturating_sub(1), at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_numbers_outside_of_quotes_and_comments() {
        for (statement, text, names) in [
            ("update t set a = :a where id = :id", "update t set a = $1 where id = $2", &["a", "id"][..]),
            ("select :a, :b, :a", "select $1, $2, $1", &["a", "b"]),
            ("select :a::int, b::text", "select $1::int, b::text", &["a"]),
            ("select ':a', \":a\", 'it''s :a'", "select ':a', \":a\", 'it''s :a'", &[]),
            ("select E'\\':a', :b", "select E'\\':a', $1", &["b"]),
            ("select 'e' ':a', :b", "select 'e' ':a', $1", &["b"]),
            ("select $$:a$$, $x$:a $$ $x$, :b", "select $$:a$$, $x$:a $$ $x$, $1", &["b"]),
            ("select 1 -- :a\n, :b", "select 1 -- :a\n, $1", &["b"]),
            ("select 1 /* :a /* :b */ :c */, :d", "select 1 /* :a /* :b */ :c */, $1", &["d"]),
            ("select x[1:2], a := 1", "select x[1:2], a := 1", &[]),
            ("select 'open :a", "select 'open :a", &[]),
            ("select 'é', :ü, :a", "select 'é', :ü, $1", &["a"]),
            ("select :a1_b", "select $1", &["a1_b"]),
        ] {
            let bound = bind(statement);
            assert_eq!(
                (bound.text.as_str(), bound.names.as_slice()),
                (text, &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()[..]),
                "{statement}"
            );
        }
    }
}
