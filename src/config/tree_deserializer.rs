//! A serde deserializer for a tree that tracks paths: every error has its path, and every struct reports the
//! keys that it does not know. Pure.
use super::path::Path;
use serde::{
    Deserializer,
    de::{
        DeserializeSeed, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};
use std::{cell::RefCell, fmt, slice, vec};

/// A deserialization error with its path.
#[derive(Debug)]
pub(super) struct Fail {
    pub(super) path: Option<Path>,
    pub(super) message: String,
}

impl Fail {
    /// Sets the path unless it is set already: the innermost path wins.
    fn at(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.clone());
        self
    }
}
impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Fail {}
impl serde::de::Error for Fail {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: None, message: message.to_string() }
    }
}

/// A struct that was read: its path, its known keys, and the given keys that are not among them.
pub(super) struct Struct {
    pub(super) path: Path,
    pub(super) known: &'static [&'static str],
    pub(super) unknown: Vec<String>,
}

/// One value of the tree with its path.
pub(super) struct Node<'a> {
    pub(super) value: &'a Value,
    pub(super) path: Path,
    pub(super) structs: &'a RefCell<Vec<Struct>>,
}

impl<'a> Node<'a> {
    fn entries(&self, map: &'a Map<String, Value>, known: Option<&[&str]>) -> Entries<'a> {
        let wanted = |key: &str| known.is_none_or(|known| known.contains(&key));
        let entries: Vec<_> = map.iter().filter(|(key, _)| wanted(key)).collect();
        Entries { left: entries.into_iter(), value: None, path: self.path.clone(), structs: self.structs }
    }
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Fail;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        let path = self.path.clone();
        let outcome = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(yes) => visitor.visit_bool(*yes),
            Value::String(text) => visitor.visit_str(text),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(n), ..) => visitor.visit_u64(n),
                (_, Some(n), _) => visitor.visit_i64(n),
                (.., n) => visitor.visit_f64(n.unwrap_or_default()),
            },
            Value::Array(items) => {
                visitor.visit_seq(Items { left: items.iter(), at: 0, path: self.path, structs: self.structs })
            }
            Value::Object(map) => visitor.visit_map(self.entries(map, None)),
        };
        outcome.map_err(|e| e.at(&path))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fail> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        let Value::Object(map) = self.value else { return self.deserialize_any(visitor) };
        let unknown = map.keys().filter(|key| !known.contains(&key.as_str())).cloned().collect();
        self.structs.borrow_mut().push(Struct { path: self.path.clone(), known, unknown });
        visitor.visit_map(self.entries(map, Some(known))).map_err(|e| e.at(&self.path))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        let outcome = match self.value {
            Value::String(text) => visitor.visit_enum(StrDeserializer::<Fail>::new(text)),
            Value::Object(map) => visitor.visit_enum(MapAccessDeserializer::new(self.entries(map, None))),
            _ => return self.deserialize_any(visitor),
        };
        outcome.map_err(|e| e.at(&self.path))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Entries<'a> {
    left: vec::IntoIter<(&'a String, &'a Value)>,
    value: Option<(&'a String, &'a Value)>,
    path: Path,
    structs: &'a RefCell<Vec<Struct>>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fail;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fail> {
        self.value = self.left.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        seed.deserialize(StrDeserializer::<Fail>::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fail> {
        let (key, value) =
            self.value.take().ok_or_else(|| <Fail as serde::de::Error>::custom("a value before its key"))?;
        let path = self.path.key(key);
        let node = Node { value, path: path.clone(), structs: self.structs };
        seed.deserialize(node).map_err(|e| e.at(&path))
    }
}

struct Items<'a> {
    left: slice::Iter<'a, Value>,
    at: usize,
    path: Path,
    structs: &'a RefCell<Vec<Struct>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fail;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fail> {
        let Some(value) = self.left.next() else { return Ok(None) };
        let path = self.path.index(self.at);
        self.at += 1;
        let node = Node { value, path: path.clone(), structs: self.structs };
        seed.deserialize(node).map(Some).map_err(|e| e.at(&path))
    }
}
