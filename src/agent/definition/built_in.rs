//! `[run.sql]`, `[run.fetch]` and `[run.memory]`: the settings of the tools that the daemon has itself.
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The names of the tools in `run.tools`.
pub(crate) const SQL_READ: &str = "sql:read";
pub(crate) const FETCH: &str = "fetch";
pub(crate) const REQUEST_TASK: &str = "request_task";
pub(crate) const TASKS: &str = "tasks";
pub(crate) const REMEMBER: &str = "remember";
pub(crate) const FORGET: &str = "forget";
pub(crate) const RECALL: &str = "recall";
/// The entry of `hosts` that stands for every host.
pub(crate) const PUBLIC: &str = "public";

/// How `sql:read` logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlRead {
    /// The login role, which only this agent or org has.
    pub role: String,
    /// The variable with its password. Defaults to a login without password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    /// Whether the model is shown the messages of errors, which may contain values of rows. Defaults to false: the
    /// SQLSTATE and the position.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub messages: bool,
}

/// What `remember`, `forget` and `recall` reach besides the agent's own memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemorySettings {
    /// Whether the agent reads and writes the memory that the agents of its org share. Defaults to false.
    pub org: bool,
}

/// A kind of parts that `request_task` may request. Written as the list `requires`, or as a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "WrittenPart", into = "WrittenPart")]
pub struct PartKind {
    /// The capabilities of the agents that may work on it.
    pub requires: Vec<String>,
    /// The JSON schema of its input. Defaults to any object.
    pub input: Option<Value>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "it is a list of capabilities, or a table with requires and input")]
enum WrittenPart {
    Requires(Vec<String>),
    Table(PartTable),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartTable {
    requires: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<Value>,
}

impl From<WrittenPart> for PartKind {
    fn from(written: WrittenPart) -> Self {
        match written {
            WrittenPart::Requires(requires) => Self { requires, input: None },
            WrittenPart::Table(PartTable { requires, input }) => Self { requires, input },
        }
    }
}

impl From<PartKind> for WrittenPart {
    // The list, where it says all: a definition keeps its hash.
    fn from(PartKind { requires, input }: PartKind) -> Self {
        match input {
            None => Self::Requires(requires),
            Some(_) => Self::Table(PartTable { requires, input }),
        }
    }
}

/// What `fetch` may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Hosts with public addresses: a name, `*.name` for those below it, or `public` for all; with `:port` for another
    /// port than 80 and 443.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Hosts that may have private addresses, likewise, without `public`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_hosts: Vec<String>,
    /// Defaults to GET.
    #[serde(default = "get")]
    pub methods: Vec<FetchMethod>,
    /// Headers whose values are variables of the environment. A redirect does not get them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers_env: BTreeMap<String, String>,
}

/// A method of `fetch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum FetchMethod {
    /// Returns the text.
    Get,
    /// Returns the status and the type.
    Head,
}

impl FetchMethod {
    /// Its name in HTTP.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

fn get() -> Vec<FetchMethod> {
    vec![FetchMethod::Get]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kind_of_parts_is_a_list_or_a_table_and_is_written_as_it_was_read() {
        for written in [json!(["a"]), json!({ "requires": ["a"], "input": { "type": "object" } })] {
            let read: PartKind = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(read.requires, ["a"]);
            assert_eq!(serde_json::to_value(read).unwrap(), written);
        }
        let told = "it is a list of capabilities, or a table with requires and input";
        for bad in [json!("a"), json!({ "input": {} }), json!({ "requires": [], "wish": 1 }), json!([1])] {
            let error = serde_json::from_value::<PartKind>(bad).unwrap_err();
            assert_eq!(error.to_string(), told);
        }
    }
}
