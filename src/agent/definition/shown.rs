//! A definition as people may see it: with the names of variables, and without values that may be secret.
use super::Definition;
use serde_json::Value;

/// Stands for a value that is not shown.
const HIDDEN: &str = "set";

impl Definition {
    /// The definition as JSON. Variables with values (`run.env_set`) have their names only, and URLs no password.
    #[must_use]
    pub fn shown(&self) -> Value {
        let mut shown = serde_json::to_value(self).unwrap_or_default();
        hide(&mut shown, "");
        shown
    }
}

fn hide(value: &mut Value, key: &str) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (key, &member) {
                    ("env_set", Value::String(_)) => *member = HIDDEN.into(),
                    _ => hide(member, name),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, key)),
        Value::String(text) if matches!(key, "url" | "base_url") => *text = without_login(text),
        _ => {}
    }
}

/// The URL without the login before `@`; any other text as it is.
#[must_use]
pub fn without_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_shown_without_values_of_variables_and_without_passwords() {
        let text = r#"
            id = "a"
            [run]
            kind = "command"
            argv = ["/bin/true"]
            env = ["HOME"]
            env_set = { TOKEN = "s3cret" }
            [offer]
            by = "http"
            url = "https://user:s3cret@example.org/offer?x=1@2"
        "#;
        let definition: Definition = toml::from_str(text).unwrap();
        let shown = definition.shown();
        assert!(!shown.to_string().contains("s3cret"), "{shown}");
        assert_eq!(shown["run"]["env_set"]["TOKEN"], HIDDEN);
        assert_eq!(shown["run"]["env"][0], "HOME");
        assert_eq!(shown["offer"]["url"], "https://example.org/offer?x=1@2");
    }
}
