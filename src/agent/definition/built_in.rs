//! `[run.sql]`: the settings of the tools that the daemon has itself.
use serde::{Deserialize, Serialize};

/// The name of the tool in `run.tools`.
pub(crate) const SQL_READ: &str = "sql:read";

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
