//! A definition as people may see it: with the names of variables, and without values that may be secret.
use super::Definition;
use crate::telemetry::{HIDDEN, without_login};
use serde_json::Value;

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
