//! Encodes an image in the text form of its composite type, with the columns that policies read.
use super::types::{Cell, Image};

/// The source of a column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The image's cell; the row cannot be checked without it.
    Required(usize),
    /// The image's cell if it has one. For domains, which may refuse `NULL`.
    Optional(usize),
    /// `NULL`: no policy reads the column.
    Omitted,
}

/// Returns the row; `None` if a required cell is missing or is not UTF-8.
pub(super) fn row(sources: &[Source], image: &Image) -> Option<String> {
    let mut text = String::from("(");
    for (at, source) in sources.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        match source {
            Source::Required(at) => match image.get(*at)? {
                Cell::Null => {}
                Cell::Unknown => return None,
                Cell::Text(value) => quote(std::str::from_utf8(value).ok()?, &mut text),
            },
            Source::Optional(at) => {
                if let Some(Cell::Text(value)) = image.get(*at) {
                    quote(std::str::from_utf8(value).ok()?, &mut text);
                }
            }
            Source::Omitted => {}
        }
    }
    text.push(')');
    Some(text)
}

/// Quotes a value. Always with quotes: an unquoted empty text would be `NULL`.
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
    fn row_has_only_the_cells_that_policies_read() {
        let image = vec![
            Cell::Text("a\"b\\c, (é)".into()),
            Cell::Null,
            Cell::Unknown,
            Cell::Text("".into()),
            Cell::Text(bytes::Bytes::from_static(b"\xff")),
        ];
        let required = |at| Source::Required(at);
        let sources = [
            required(0),
            required(1),
            Source::Optional(2),
            required(3),
            Source::Omitted,
            Source::Optional(9),
        ];
        assert_eq!(row(&sources, &image).unwrap(), r#"("a\"b\\c, (é)",,,"",,)"#);
        assert_eq!(row(&[required(2)], &image), None);
        assert_eq!(row(&[required(4)], &image), None);
        assert_eq!(row(&[required(9)], &image), None);
        assert_eq!(row(&[Source::Omitted], &image).unwrap(), "()");
    }
}
