//! Templates: values of a definition whose texts are filled in when a row changes or a task starts.
//!
//! A text that is exactly one `{{ expression }}` becomes the value of the
//! expression, of any type; any other text with `{{` or `{%` becomes a text; everything else stays. The language is
//! Jinja without includes, with a limit on its steps, and strict: an unknown name is an error, never an empty text.
//! Pure. Errors name the place in the value and the kind of mistake, never values of a row.
use minijinja::{Environment, ErrorKind, Expression, UndefinedBehavior, value::ValueKind};
use serde_json::{Map, Number, Value};
use std::sync::{LazyLock, OnceLock};

/// Most steps of one template.
const FUEL: u64 = 100_000;
/// Largest text that a template makes, in bytes.
const TEXT_BYTES_MAX: usize = crate::task::INPUT_BYTES_MAX;
/// Names that the language defines.
const BUILT_IN: [&str; 6] = ["range", "dict", "namespace", "debug", "loop", "self"];

/// The language. Immutable.
static LANGUAGE: Language = LazyLock::new(language);
/// The language of texts that name something: only texts that are not empty, and numbers, become parts of them.
static NAMING: Language = LazyLock::new(|| {
    let mut language = language();
    language.set_formatter(|out, _, value| match value.kind() {
        ValueKind::Number => {
            let number =
                serde_json::to_value(value).ok().as_ref().and_then(Value::as_number).map(number_text);
            out.write_str(&number.unwrap_or_else(|| value.to_string())).map_err(Into::into)
        }
        ValueKind::String if value.as_str().is_some_and(|text| !text.trim().is_empty()) => {
            out.write_str(value.as_str().unwrap_or_default()).map_err(Into::into)
        }
        _ => Err(minijinja::Error::new(ErrorKind::InvalidOperation, NO_NAME)),
    });
    language
});
type Language = LazyLock<Environment<'static>>;

const NO_NAME: &str = "a value in it is neither a text nor a number, or an empty text";

fn language() -> Environment<'static> {
    let mut language = Environment::new();
    language.set_undefined_behavior(UndefinedBehavior::Strict);
    language.set_fuel(Some(FUEL));
    language
}

/// A number as text, the same for equal numbers: `7.0` is `7`.
pub(crate) fn number_text(number: &Number) -> String {
    // Up to here a float holds every whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number.as_f64() {
        Some(float) if float.fract() == 0.0 && float.abs() <= EXACT => format!("{:.0}", float + 0.0),
        _ => number.to_string(),
    }
}

/// Why a template cannot be parsed or filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct BadTemplate {
    /// The place in the value, like `input.ticket`.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

/// A value whose texts are templates.
#[derive(Debug)]
pub(crate) struct Template {
    root: Node,
    language: &'static Language,
}

#[derive(Debug)]
enum Node {
    Literal(Value),
    /// `{{ new.title }}`: a path of members, evaluated without the language.
    Path(Vec<String>),
    Expression(Box<Expression<'static, 'static>>),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

/// The values of the names in a template. Converted at most once to the language's own form.
pub(crate) struct Context {
    names: Map<String, Value>,
    read: OnceLock<minijinja::Value>,
}

impl Context {
    /// A context with these names.
    #[must_use]
    pub(crate) fn new(names: Map<String, Value>) -> Self {
        Self { names, read: OnceLock::new() }
    }

    /// The same context with another value of one name.
    #[must_use]
    pub(crate) fn with(&self, name: &str, value: Value) -> Self {
        let mut names = self.names.clone();
        names.insert(name.to_owned(), value);
        Self::new(names)
    }

    fn read(&self) -> minijinja::Value {
        self.read.get_or_init(|| minijinja::Value::from(minijinja::value::Serde(&self.names))).clone()
    }
}

impl Template {
    /// Parses the templates in `value`; `place` names it in errors. Only `names` may be used.
    ///
    /// # Errors
    /// The first text that cannot be parsed.
    pub(crate) fn parse(value: &Value, place: &str, names: &[&str]) -> Result<Self, BadTemplate> {
        Ok(Self { root: node(value, place, names)?, language: &LANGUAGE })
    }

    /// As [`Self::parse`], of a text that names something: what it puts together must be texts that are not empty, and
    /// numbers.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(crate) fn naming(text: &str, place: &str, names: &[&str]) -> Result<Self, BadTemplate> {
        Ok(Self { root: text_node(text, place, names)?, language: &NAMING })
    }

    /// The value with its texts filled in.
    ///
    /// # Errors
    /// The first text that cannot be filled in.
    pub(crate) fn fill(&self, place: &str, context: &Context) -> Result<Value, BadTemplate> {
        fill(&self.root, place, context, self.language)
    }

    /// The value as a text; other values are written as JSON.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(crate) fn fill_text(&self, place: &str, context: &Context) -> Result<String, BadTemplate> {
        Ok(match self.fill(place, context)? {
            Value::String(text) => text,
            other => other.to_string(),
        })
    }
}

fn node(value: &Value, place: &str, names: &[&str]) -> Result<Node, BadTemplate> {
    Ok(match value {
        Value::String(text) => text_node(text, place, names)?,
        Value::Array(items) => {
            let nodes =
                items.iter().enumerate().map(|(at, item)| node(item, &format!("{place}.{at}"), names));
            Node::List(nodes.collect::<Result<_, _>>()?)
        }
        Value::Object(members) => {
            let nodes = members.iter().map(|(key, item)| {
                node(item, &format!("{place}.{key}"), names).map(|node| (key.clone(), node))
            });
            Node::Object(nodes.collect::<Result<_, _>>()?)
        }
        other => Node::Literal(other.clone()),
    })
}

fn text_node(text: &str, place: &str, names: &[&str]) -> Result<Node, BadTemplate> {
    if !text.contains("{{") && !text.contains("{%") && !text.contains("{#") {
        return Ok(Node::Literal(Value::String(text.to_owned())));
    }
    let bad = |e: minijinja::Error| BadTemplate { place: place.to_owned(), reason: reason(&e) };
    let known = |used: std::collections::HashSet<String>| {
        let mut unknown: Vec<_> = used
            .into_iter()
            .filter(|name| !names.contains(&&**name) && !BUILT_IN.contains(&&**name))
            .collect();
        unknown.sort();
        match unknown.first() {
            None => Ok(()),
            Some(name) => Err(BadTemplate {
                place: place.to_owned(),
                reason: format!("there is no {name:?}: use {}", names.join(", ")),
            }),
        }
    };
    if let Some(source) = sole_expression(text) {
        if let Some(path) = path(source) {
            known(path.iter().take(1).cloned().collect())?;
            return Ok(Node::Path(path));
        }
        let expression = LANGUAGE.compile_expression_owned(source.to_owned()).map_err(bad)?;
        known(expression.undeclared_variables(false))?;
        return Ok(Node::Expression(Box::new(expression)));
    }
    let template = LANGUAGE.template_from_str(text).map_err(bad)?;
    known(template.undeclared_variables(false))?;
    Ok(Node::Text(text.to_owned()))
}

/// The expression of a text that is one pair of braces and nothing else.
fn sole_expression(text: &str) -> Option<&str> {
    let inside = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let inside = inside.strip_prefix('-').unwrap_or(inside);
    let inside = inside.strip_suffix('-').unwrap_or(inside);
    (!inside.contains("{{") && !inside.contains("}}")).then(|| inside.trim())
}

/// The members of `a.b.c`.
fn path(source: &str) -> Option<Vec<String>> {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !matches!(part, "true" | "false" | "none" | "null" | "True" | "False" | "None" | "not")
    };
    source.split('.').map(|part| word(part).then(|| part.to_owned())).collect()
}

fn fill(node: &Node, place: &str, context: &Context, language: &Language) -> Result<Value, BadTemplate> {
    let bad = |reason: String| BadTemplate { place: place.to_owned(), reason };
    Ok(match node {
        Node::Literal(value) => value.clone(),
        Node::Path(path) => {
            let mut at = path.split_first().and_then(|(first, _)| context.names.get(first));
            for member in path.iter().skip(1) {
                at = at.and_then(|value| value.get(member));
            }
            at.ok_or_else(|| bad(format!("there is no {}", path.join("."))))?.clone()
        }
        Node::Expression(expression) => {
            let value = expression.eval(context.read()).map_err(|e| bad(reason(&e)))?;
            if value.is_undefined() {
                return Err(bad("its value is undefined".into()));
            }
            serde_json::to_value(&value).map_err(|_| bad("its value is no JSON".into()))?
        }
        Node::Text(source) => {
            let mut text = Limited(Vec::new());
            let template = language.template_from_str(source).map_err(|e| bad(reason(&e)))?;
            template.render_captured_to(context.read(), &mut text).map_err(|e| bad(reason(&e)))?;
            Value::String(String::from_utf8(text.0).map_err(|_| bad("its text is not Unicode".into()))?)
        }
        Node::List(nodes) => {
            let items = nodes
                .iter()
                .enumerate()
                .map(|(at, node)| fill(node, &format!("{place}.{at}"), context, language));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Node::Object(nodes) => {
            let members = nodes.iter().map(|(key, node)| {
                fill(node, &format!("{place}.{key}"), context, language).map(|value| (key.clone(), value))
            });
            Value::Object(members.collect::<Result<_, _>>()?)
        }
    })
}

/// A buffer that refuses to grow beyond [`TEXT_BYTES_MAX`].
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_BYTES_MAX {
            return Err(std::io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The kind of a mistake. Its detail may quote values, so it is used only for mistakes of the source.
fn reason(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::SyntaxError, Some(detail)) => format!("syntax error: {detail}"),
        (ErrorKind::WriteFailure, _) => format!("makes more than {TEXT_BYTES_MAX} bytes"),
        (_, Some(NO_NAME)) => NO_NAME.into(),
        (ErrorKind::OutOfFuel, _) => format!("takes more than {FUEL} steps"),
        (kind, _) => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(template: Value) -> Result<Value, String> {
        let names = json!({
            "new": { "id": 9_007_199_254_740_993_i64, "title": "Fire", "tags": ["a", "b"], "meta": { "x": 1.5 } },
            "old": null,
            "event": "INSERT",
        });
        let Value::Object(names) = names else { unreachable!() };
        let known: Vec<_> = names.keys().cloned().collect();
        let known: Vec<_> = known.iter().map(String::as_str).collect();
        let template = Template::parse(&template, "input", &known).map_err(|e| e.to_string())?;
        template.fill("input", &Context::new(names)).map_err(|e| e.to_string())
    }

    #[test]
    fn one_expression_becomes_its_value_and_keeps_its_type() {
        let template = json!({
            "row": "{{ new }}", "id": "{{new.id}}", "was": "{{ old }}", "first": "{{ new.tags[0] }}",
            "many": "{{ new.tags | length > 1 }}", "deep": ["{{ new.meta.x }}", 7, "plain"],
            "text": "{{ new.title }}: {{ event | lower }}", "both": "{{ new.title }}{{ event }}",
        });
        let expected = json!({
            "row": { "id": 9_007_199_254_740_993_i64, "title": "Fire", "tags": ["a", "b"], "meta": { "x": 1.5 } },
            "id": 9_007_199_254_740_993_i64, "was": null, "first": "a", "many": true,
            "deep": [1.5, 7, "plain"], "text": "Fire: insert", "both": "FireINSERT",
        });
        assert_eq!(filled(template), Ok(expected));
    }

    #[test]
    fn unknown_name_is_an_error_and_not_an_empty_text() {
        let why = |template: Value| filled(template).unwrap_err();
        assert_eq!(why(json!({ "t": "{{ nwe.id }}" })), "input.t: there is no \"nwe\": use event, new, old");
        assert_eq!(why(json!("x {{ nwe }}")), "input: there is no \"nwe\": use event, new, old");
        assert_eq!(why(json!(["{{ new.titel }}"])), "input.0: there is no new.titel");
        assert_eq!(why(json!("a {{ new.titel }}")), "input: undefined value");
        assert_eq!(why(json!("{{ old.id }}")), "input: there is no old.id");
    }

    #[test]
    fn parse_error_names_its_place() {
        let why = |template: Value| filled(template).unwrap_err();
        assert!(why(json!({ "a": { "b": "{{ new. }}" } })).starts_with("input.a.b: syntax error: "));
        assert!(why(json!("{% if %}")).starts_with("input: syntax error: "));
    }

    #[test]
    fn template_has_a_limit_of_steps_and_bytes() {
        let text = "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}x\
                    {% endfor %}{% endfor %}{% endfor %}";
        assert_eq!(filled(json!(text)).unwrap_err(), "input: takes more than 100000 steps");
        let wide = "{% for a in range(9000) %}{{ 'xxxxxxxxxx' * 1000 }}{% endfor %}";
        assert!(filled(json!(wide)).is_err());
    }
}
