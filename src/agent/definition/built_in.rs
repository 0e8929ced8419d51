//! `[run.sql]`, `[run.fetch]` and `[run.memory]`: the settings of the tools that the daemon has itself.
use serde::{Deserialize, Serialize};
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
