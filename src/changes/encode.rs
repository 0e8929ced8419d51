//! JSON of values of composite types, domains, and arrays of them (`docs/spec/postgres-changes.md` §2.6). Pure.
use crate::wal::{Encoding, Node, parse_array, write_string};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use tokio_postgres::types::Oid;

/// The JSON form of the values of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Decided by the type name.
    Plain(Encoding),
    /// An object with one member for each attribute.
    Composite(Arc<[(String, Shape)]>),
    /// An array of elements, with its delimiter in the text form.
    Array(Arc<Shape>, u8),
}

/// Types by oid, as the catalog describes them.
#[derive(Debug, Default)]
pub(super) struct Shapes(HashMap<Oid, Made>);

#[derive(Debug)]
struct Made {
    name: String,
    /// The base type of a domain; 0 for other types.
    base: Oid,
    /// The element type of an array; 0 for other types.
    element: Oid,
    delimiter: u8,
    attributes: Vec<(String, Oid)>,
}

/// Most levels of nested types.
const DEPTH_MAX: usize = 16;

impl Shapes {
    pub(super) fn learn(
        &mut self,
        oid: Oid,
        name: String,
        (base, element): (Oid, Oid),
        delimiter: u8,
        attributes: impl Iterator<Item = (String, Oid)>,
    ) {
        self.0.insert(oid, Made { name, base, element, delimiter, attributes: attributes.collect() });
    }

    /// Base, element and attribute types that are not described yet.
    pub(super) fn unknown(&self) -> BTreeSet<Oid> {
        let parts = self.0.values().flat_map(|made| {
            let attributes = made.attributes.iter().map(|(_, oid)| *oid);
            attributes.chain([made.base, made.element])
        });
        parts.filter(|oid| *oid != 0 && !self.0.contains_key(oid)).collect()
    }

    pub(super) fn of(&self, oid: Oid) -> Option<Shape> {
        self.shape(oid, 0)
    }

    fn shape(&self, oid: Oid, depth: usize) -> Option<Shape> {
        let made = self.0.get(&oid).filter(|_| depth < DEPTH_MAX)?;
        if made.base != 0 {
            return self.shape(made.base, depth + 1);
        }
        if made.element != 0 {
            let element = self.shape(made.element, depth + 1)?;
            return Some(Shape::Array(element.into(), made.delimiter));
        }
        if made.attributes.is_empty() {
            return Some(Shape::Plain(Encoding::of(&made.name)));
        }
        let attribute = |(name, oid): &(String, Oid)| Some((name.clone(), self.shape(*oid, depth + 1)?));
        Some(Shape::Composite(made.attributes.iter().map(attribute).collect::<Option<_>>()?))
    }
}

impl Shape {
    /// Appends a value, given in Postgres's text form, as JSON. A value that does not parse becomes a string.
    pub(super) fn write(&self, text: &str, out: &mut Vec<u8>) {
        let begin = out.len();
        if self.try_write(text, out).is_none() {
            out.truncate(begin);
            write_string(text, out);
        }
    }

    fn try_write(&self, text: &str, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Plain(encoding) => encoding.write(text, out),
            Self::Array(element, delimiter) => element.write_node(&parse_array(text, *delimiter)?, out),
            Self::Composite(attributes) => {
                let fields = fields(text)?;
                if fields.len() != attributes.len() {
                    return None;
                }
                out.push(b'{');
                for (at, (field, (name, shape))) in fields.iter().zip(attributes.iter()).enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    write_string(name, out);
                    out.push(b':');
                    match field {
                        None => out.extend_from_slice(b"null"),
                        Some(text) => shape.write(text, out),
                    }
                }
                out.push(b'}');
            }
        }
        Some(())
    }

    fn write_node(&self, node: &Node<'_>, out: &mut Vec<u8>) {
        match node {
            Node::Null => out.extend_from_slice(b"null"),
            Node::Leaf(text) => self.write(text, out),
            Node::List(nodes) => {
                out.push(b'[');
                for (at, node) in nodes.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    self.write_node(node, out);
                }
                out.push(b']');
            }
        }
    }
}

/// Parses a composite's text form, `(1,"a b",)`. A NULL field is `None`.
fn fields(text: &str) -> Option<Vec<Option<String>>> {
    let inside = text.strip_prefix('(')?.strip_suffix(')')?;
    let (mut fields, mut field) = (Vec::new(), None::<String>);
    let mut chars = inside.chars().peekable();
    let mut quoted = false;
    loop {
        let Some(c) = chars.next() else {
            if quoted {
                return None;
            }
            fields.push(field);
            return Some(fields);
        };
        match c {
            ',' if !quoted => fields.push(field.take()),
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.get_or_insert_default().push('"'),
            '"' => {
                quoted = !quoted;
                field.get_or_insert_default();
            }
            '\\' => field.get_or_insert_default().push(chars.next()?),
            c => field.get_or_insert_default().push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> Shapes {
        let mut shapes = Shapes::default();
        let none = std::iter::empty;
        shapes.learn(23, "int4".into(), (0, 0), b',', none());
        shapes.learn(25, "text".into(), (0, 0), b',', none());
        let attributes = [("a".to_owned(), 23), ("b".to_owned(), 25), ("c".to_owned(), 100)];
        shapes.learn(99, "pair".into(), (0, 0), b',', attributes.into_iter());
        assert_eq!(shapes.unknown(), BTreeSet::from([100]));
        shapes.learn(100, "positive".into(), (23, 0), b',', none());
        shapes.learn(101, "_pair".into(), (0, 99), b',', none());
        assert!(shapes.unknown().is_empty());
        shapes
    }

    fn written(oid: Oid, text: &str) -> String {
        let mut out = Vec::new();
        shapes().of(oid).unwrap().write(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn composites_become_objects_at_any_depth() {
        assert_eq!(written(99, r#"(1,"x, ""y""",3)"#), r#"{"a":1,"b":"x, \"y\"","c":3}"#);
        assert_eq!(written(99, "(,\"\",)"), r#"{"a":null,"b":"","c":null}"#);
        assert_eq!(written(101, r#"{"(1,a,2)",NULL}"#), r#"[{"a":1,"b":"a","c":2},null]"#);
        assert_eq!(written(100, "7"), "7");
    }

    #[test]
    fn malformed_composite_becomes_a_string() {
        assert_eq!(written(99, "rubbish"), r#""rubbish""#);
        assert_eq!(written(99, "(1,2)"), r#""(1,2)""#);
        assert_eq!(written(99, "(\"1,2"), r#""(\"1,2""#);
    }
}
