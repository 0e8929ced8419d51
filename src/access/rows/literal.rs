//! A row in the text form of its composite type, with the columns that its policies look at.
use super::types::{Cell, Image};

/// Where a column of the row type takes its value from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The image's cell, without which nothing can be said.
    Needed(usize),
    /// The image's cell, if it has it: a domain may refuse `NULL`.
    Wanted(usize),
    /// No policy looks at it.
    Nothing,
}

/// The row; nothing when a cell that is needed is not known or is no UTF-8.
pub(super) fn row(sources: &[Source], image: &Image) -> Option<String> {
    let mut text = String::from("(");
    for (at, source) in sources.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        match source {
            Source::Needed(at) => match image.get(*at)? {
                Cell::Null => {}
                Cell::Unknown => return None,
                Cell::Text(value) => quote(std::str::from_utf8(value).ok()?, &mut text),
            },
            Source::Wanted(at) => {
                if let Some(Cell::Text(value)) = image.get(*at) {
                    quote(std::str::from_utf8(value).ok()?, &mut text);
                }
            }
            Source::Nothing => {}
        }
    }
    text.push(')');
    Some(text)
}

fn quote(value: &str, text: &mut String) {
    text.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_cells_that_are_looked_at_and_no_others() {
        let image = vec![
            Cell::Text("a\"b\\c, (é)".into()),
            Cell::Null,
            Cell::Unknown,
            Cell::Text("".into()),
            Cell::Text(bytes::Bytes::from_static(b"\xff")),
        ];
        let needed = |at| Source::Needed(at);
        let sources =
            [needed(0), needed(1), Source::Wanted(2), needed(3), Source::Nothing, Source::Wanted(9)];
        assert_eq!(row(&sources, &image).unwrap(), r#"("a\"b\\c, (é)",,,"",,)"#);
        assert_eq!(row(&[needed(2)], &image), None);
        assert_eq!(row(&[needed(4)], &image), None);
        assert_eq!(row(&[needed(9)], &image), None);
        assert_eq!(row(&[Source::Nothing], &image).unwrap(), "()");
    }
}
