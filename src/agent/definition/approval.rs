//! `approval` of a tool: when a call of it may not begin before a person approves it.
use crate::agent::wake::{BadTemplate, Context, Template};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::time::Duration;

/// Names that `when` may use.
const NAMES: [&str; 4] = ["args", "task", "agent", "spent"];
/// Default validity of an approval.
pub(crate) const APPROVAL_EXPIRES: Duration = Duration::from_secs(24 * 3_600);

/// Which calls of a tool need an approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// A template whose value `false` means that a call needs none; every other value, and an error, that it does.
    /// Defaults to every call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// How long after the answer the call may begin. Defaults to 24 hours.
    #[serde(default = "expires", with = "humantime_serde")]
    pub expires: Duration,
    /// Roles of tokens of the org (claim `role`) that may answer, beside those who may answer every question of a task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
}

/// The rule of tools that have one by name or pattern: `None` if their calls need no approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedApproval(pub Option<ApprovalRule>);

impl<'de> Deserialize<'de> for NamedApproval {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from).map(Self)
    }
}

impl Serialize for NamedApproval {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            None => to.serialize_str("never"),
            Some(rule) => rule.serialize(to),
        }
    }
}

fn expires() -> Duration {
    APPROVAL_EXPIRES
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Never,
    Always,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "it is \"never\", \"always\", or a table with when, expires or approvers")]
enum Written {
    Word(Word),
    Table(ApprovalRule),
}

/// Reads the key: `"never"`, `"always"`, or a table.
pub(super) fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ApprovalRule>, D::Error> {
    Ok(match Written::deserialize(from)? {
        Written::Word(Word::Never) => None,
        Written::Word(Word::Always) => Some(ApprovalRule::ALWAYS),
        Written::Table(approval) => Some(approval),
    })
}

impl ApprovalRule {
    /// Every call needs one.
    pub(super) const ALWAYS: Self = Self { when: None, expires: APPROVAL_EXPIRES, approvers: Vec::new() };

    /// The template of `when`.
    ///
    /// # Errors
    /// One that cannot be parsed, or has no expression.
    pub(super) fn template(when: &str) -> Result<Template, BadTemplate> {
        if !when.contains("{{") {
            let reason = "it has no {{ expression }}".to_owned();
            return Err(BadTemplate { place: "when".into(), reason });
        }
        Template::parse(&Value::String(when.to_owned()), "when", &NAMES)
    }

    /// Whether a call needs an approval. What cannot be judged does.
    pub(crate) fn is_needed(&self, context: &Context) -> bool {
        let Some(when) = &self.when else { return true };
        let judged = Self::template(when).and_then(|template| template.fill("when", context));
        judged != Ok(Value::Bool(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn is_needed(when: &str, args: Value) -> bool {
        let names = json!({ "args": args, "spent": { "tokens": 5 }, "task": {}, "agent": {} });
        let Value::Object(names) = names else { unreachable!() };
        ApprovalRule { when: Some(when.into()), expires: APPROVAL_EXPIRES, approvers: Vec::new() }
            .is_needed(&Context::new(names))
    }

    #[test]
    fn only_the_value_false_lets_a_call_begin() {
        assert!(!is_needed("{{ args.amount > 100 }}", json!({ "amount": 100 })));
        assert!(!is_needed("{{ args.amount > 100 and spent.tokens > 1 }}", json!({ "amount": -5 })));
        assert!(is_needed("{{ args.amount > 100 }}", json!({ "amount": 100.5 })));
        for (when, args) in [
            ("{{ args.amount > 100 }}", json!({})),
            ("{{ args.amount }}", json!({ "amount": 0 })),
            ("{{ args.amount }}", json!({ "amount": "false" })),
            ("{{ args.amount }}", json!({ "amount": null })),
            ("{{ args.amount > 100 }} ", json!({})),
            ("x {{ false }}", json!({})),
            ("{{ range(1000000) | list | length > 0 }}", json!({})),
            ("{{ args.", json!({})),
        ] {
            assert!(is_needed(when, args.clone()), "{when} {args}");
        }
    }

    #[test]
    fn every_form_of_the_key_is_read_and_others_are_refused() {
        #[derive(Debug, Deserialize)]
        struct Tool {
            #[serde(default, deserialize_with = "read")]
            approval: Option<ApprovalRule>,
        }
        let read =
            |text: &str| toml::from_str::<Tool>(text).map(|tool| tool.approval).map_err(|e| e.to_string());
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("approval = \"never\"").unwrap(), None);
        assert_eq!(read("approval = \"always\"").unwrap().unwrap().expires, APPROVAL_EXPIRES);
        let table = read("approval = { when = \"{{ args.a }}\", expires = \"1h\" }").unwrap().unwrap();
        assert_eq!((table.when.as_deref(), table.expires.as_secs()), (Some("{{ args.a }}"), 3_600));
        let again: ApprovalRule = serde_json::from_value(json!(table)).unwrap();
        assert_eq!(again, table, "as it is pinned");
        for text in ["approval = true", "approval = \"sometimes\"", "approval = { whem = \"x\" }"] {
            assert!(read(text).unwrap_err().contains("\"never\", \"always\""), "{text}");
        }
    }
}
