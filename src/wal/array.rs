//! Arrays in Postgres's text form: `{1,NULL,"a \"b\""}`, nested, with an optional `[0:2]=` before.
use std::borrow::Cow;

/// Postgres has no arrays of more dimensions.
const DEPTH_MAX: usize = 6;

/// A part of an array.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Node<'a> {
    Null,
    Leaf(Cow<'a, str>),
    List(Vec<Node<'a>>),
}

/// Parses `text` as an array; `None` if it is not one.
pub(crate) fn parse(text: &str, delimiter: u8) -> Option<Node<'_>> {
    let text = if text.starts_with('[') { text.split_once('=')?.1 } else { text };
    let mut parser = Parser { text, at: 0, delimiter };
    let list = parser.list(1)?;
    (parser.at == text.len()).then_some(list)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    delimiter: u8,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn list(&mut self, depth: usize) -> Option<Node<'a>> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.take(b'{')?;
        let mut nodes = Vec::new();
        if self.take(b'}').is_some() {
            return Some(Node::List(nodes));
        }
        loop {
            nodes.push(match self.peek()? {
                b'{' => self.list(depth + 1)?,
                b'"' => Node::Leaf(self.quoted()?),
                _ => self.bare()?,
            });
            if self.take(b'}').is_some() {
                return Some(Node::List(nodes));
            }
            self.take(self.delimiter)?;
        }
    }

    fn quoted(&mut self) -> Option<Cow<'a, str>> {
        self.take(b'"')?;
        let rest = self.text.get(self.at..)?;
        let mut owned: Option<String> = None;
        let mut kept = 0;
        let mut bytes = rest.bytes().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.at += at + 1;
                    let tail = rest.get(kept..at)?;
                    return Some(match owned {
                        Some(head) => Cow::Owned(head + tail),
                        None => Cow::Borrowed(tail),
                    });
                }
                b'\\' => {
                    owned.get_or_insert_default().push_str(rest.get(kept..at)?);
                    kept = at + 1;
                    bytes.next()?;
                }
                _ => {}
            }
        }
        None
    }

    fn bare(&mut self) -> Option<Node<'a>> {
        let rest = self.text.get(self.at..)?;
        let end = rest.bytes().position(|b| b == self.delimiter || b == b'}' || b == b'{' || b == b'"')?;
        let text = rest.get(..end)?;
        self.at += end;
        match text {
            "" => None,
            "NULL" => Some(Node::Null),
            text => Some(Node::Leaf(Cow::Borrowed(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_array_is_none() {
        for bad in ["", "{", "}", "{1", "{1,}", "{,1}", "{1}x", "{\"a}", "{\"a\\", "[0:1]", "{{{{{{{1}}}}}}}"]
        {
            assert_eq!(parse(bad, b','), None, "{bad}");
        }
        assert_eq!(parse("{}", b','), Some(Node::List(vec![])));
    }
}
