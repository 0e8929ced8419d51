//! `[[run.mcp]]`: an MCP server whose tools the model may call.
use super::approval::{ApprovalRule, NamedApproval};
use crate::task::Effect;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// An MCP server. It is started with `command`, or reached at `url`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpServer {
    /// Its name, which the names of its tools begin with: 1 to 20 of `a-z 0-9 _`.
    pub name: String,
    /// The program and its arguments; no shell. The server talks on standard input and output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Its working folder, relative to the folder of the file. Defaults to that folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// Variables of the daemon's environment that it gets. Defaults to none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Variables with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env_set: BTreeMap<String, String>,
    /// The URL of a server that is reached over streamable HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The variable with the token for the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_env: Option<String>,
    /// Headers for the URL, whose values are variables of the environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers_env: BTreeMap<String, String>,
    /// The tools that are offered: names, with `*` for any characters.
    pub allow: Vec<String>,
    /// The tools that are not offered, although `allow` has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// The class of the effect of tools, by name or pattern; the longest one counts. Defaults to `once`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub effects: BTreeMap<String, Effect>,
    /// Which calls of tools may not begin before a person approves them, by name or pattern; the longest one counts.
    /// Defaults to every call of a tool that only `*` allows, unless its class is `read`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub approval: BTreeMap<String, NamedApproval>,
    /// Whether the server is believed about which of its tools only read or are idempotent. Defaults to false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trusted: bool,
    /// The version of the protocol. Defaults to what the server speaks.
    #[serde(default)]
    pub protocol: McpProtocol,
    /// Whether the agent cannot work without it. Defaults to true.
    #[serde(default = "yes")]
    pub required: bool,
    /// Time limit of its start. Defaults to 30 seconds.
    #[serde(default = "half_a_minute", with = "humantime_serde")]
    pub start_timeout: Duration,
    /// How long a call may be silent: no answer and no progress. Defaults to 1 minute.
    #[serde(default = "minute", with = "humantime_serde")]
    pub timeout: Duration,
    /// Time limit of a call. Defaults to 10 minutes.
    #[serde(default = "ten_minutes", with = "humantime_serde")]
    pub timeout_max: Duration,
    /// Most bytes of a result that the model is shown; the middle of a longer one is left out. Defaults to 64 KiB.
    #[serde(default = "result_bytes")]
    pub result_bytes: usize,
    /// Which descriptions of its tools are accepted. Defaults to the first.
    #[serde(default)]
    pub pin: McpPin,
    /// The tools as a run found them at its start. Set by the daemon, never in a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<FoundTool>,
}

/// The version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum McpProtocol {
    /// The newest that the server speaks.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Without a handshake.
    #[serde(rename = "2026-07-28")]
    V20260728,
    /// With `initialize`.
    #[serde(rename = "2025-11-25")]
    V20251125,
    /// With `initialize`.
    #[serde(rename = "2025-06-18")]
    V20250618,
    /// With `initialize`.
    #[serde(rename = "2025-03-26")]
    V20250326,
    /// With `initialize`.
    #[serde(rename = "2024-11-05")]
    V20241105,
}

/// Which descriptions of tools are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "pin is \"first\", \"off\", or a table from tools to the SHA-256 of each")]
pub enum McpPin {
    /// By a rule.
    Rule(McpPinRule),
    /// These, by the SHA-256 of each tool.
    Listed(BTreeMap<String, String>),
}

/// A rule for descriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum McpPinRule {
    /// The first that the daemon saw, and those that an operator accepted later.
    First,
    /// Any.
    Off,
}

impl Default for McpPin {
    fn default() -> Self {
        Self::Rule(McpPinRule::First)
    }
}

/// A tool of a server as a run offers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundTool {
    /// Its name in calls of the model.
    pub name: String,
    /// Its name at the server.
    pub tool: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// The class of its effect.
    pub effect: Effect,
    /// SHA-256 of what the server said about it.
    pub sha256: String,
}

/// Longest name of a tool in calls of the model, in bytes: that of the endpoints. A longer one is cut and gets a hash.
pub(crate) const CALLED_BYTES_MAX: usize = 63;

impl McpServer {
    /// The name of a tool in calls of the model, if no other tool has it and it is not too long: `server__tool`.
    pub(crate) fn name_in_calls(&self, tool: &str) -> String {
        format!("{}__{}", self.name, plain(tool, '_'))
    }

    /// The part of a name in calls behind `server__`. `None` if it is no name of a tool of this server.
    pub(crate) fn tool_in_calls<'a>(&self, name_in_calls: &'a str) -> Option<&'a str> {
        name_in_calls.strip_prefix(&self.name)?.strip_prefix("__")
    }

    /// Whether a tool with this name in calls can be offered, in whatever spelling the server gives it.
    pub(crate) fn may_offer(&self, name_in_calls: &str) -> bool {
        let Some(name) = self.tool_in_calls(name_in_calls) else { return false };
        let is_allowed = self.allow.iter().any(|pattern| matches(&plain(pattern, '*'), name));
        // Another pattern may leave a spelling over.
        let is_denied =
            self.deny.iter().any(|pattern| !pattern.is_empty() && pattern.chars().all(|c| c == '*'));
        let is_pinned = match &self.pin {
            McpPin::Listed(pins) => pins.keys().any(|tool| plain(tool, '_') == name),
            McpPin::Rule(_) => true,
        };
        is_allowed && !is_denied && is_pinned
    }

    /// Whether a tool of this name may be called.
    pub(crate) fn allows(&self, tool: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, tool));
        any(&self.allow) && !any(&self.deny)
    }

    /// Which calls of a tool of this name and class need an approval. `None` for none.
    pub(crate) fn approval(&self, tool: &str, effect: Effect) -> Option<&ApprovalRule> {
        static ALWAYS: ApprovalRule = ApprovalRule::ALWAYS;
        if let Some(rule) = longest(&self.approval, tool) {
            return rule.0.as_ref();
        }
        // The operator has not named the tool: it may be one that the server has added since.
        let is_named =
            self.allow.iter().any(|pattern| pattern.contains(|c: char| c != '*') && matches(pattern, tool));
        (!is_named && effect != Effect::Read).then_some(&ALWAYS)
    }

    /// The class that the definition gives a tool of this name.
    pub(crate) fn effect(&self, tool: &str) -> Option<Effect> {
        longest(&self.effects, tool).copied()
    }

    /// The variables with secrets.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &String> {
        self.headers_env.values().chain(&self.bearer_env)
    }
}

/// A name in lower case, with `_` for all but letters, digits and `kept`.
fn plain(name: &str, kept: char) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == kept { c.to_ascii_lowercase() } else { '_' };
    name.chars().map(plain).collect()
}

/// What a table has for the longest of its patterns that a name has the form of.
fn longest<'a, T>(table: &'a BTreeMap<String, T>, name: &str) -> Option<&'a T> {
    let fitting = table.iter().filter(|(pattern, _)| matches(pattern, name));
    fitting.max_by_key(|(pattern, _)| pattern.len()).map(|(_, value)| value)
}

/// Whether a name has the form of a pattern: `*` stands for any characters.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

fn yes() -> bool {
    true
}
fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}
fn minute() -> Duration {
    Duration::from_secs(60)
}
fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}
fn result_bytes() -> usize {
    64 << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tool_that_nobody_named_needs_an_approval_unless_it_only_reads() {
        let server = |more: &str| -> McpServer {
            toml::from_str(&format!("name = \"a\"\nurl = \"http://x\"\n{more}")).unwrap()
        };
        let any = server("allow = [\"*\"]");
        assert!(any.approval("pay", Effect::Once).is_some() && any.approval("pay", Effect::Keyed).is_some());
        assert!(any.approval("look", Effect::Read).is_none());
        assert!(server("allow = [\"p*\"]").approval("pay", Effect::Once).is_none());
        assert!(server("allow = [\"**\", \"look\"]").approval("pay", Effect::Once).is_some());
        let text = "allow = [\"*\"]\napproval = { \"*\" = \"never\", \"pay*\" = \"always\", \
                    pay_back = { when = \"{{ args.a > 3 }}\", approvers = [\"boss\"] } }";
        let ruled = server(text);
        assert!(ruled.approval("send", Effect::Once).is_none());
        assert_eq!(ruled.approval("pay", Effect::Read), Some(&ApprovalRule::ALWAYS));
        assert_eq!(ruled.approval("pay_back", Effect::Once).unwrap().approvers, ["boss"]);
        let again: McpServer = serde_json::from_value(serde_json::json!(ruled)).unwrap();
        assert_eq!(again, ruled, "as it is pinned");
    }

    #[test]
    fn pattern_stands_for_any_characters() {
        for (pattern, name, fits) in [
            ("search", "search", true),
            ("search", "searches", false),
            ("*", "", true),
            ("read_*", "read_file", true),
            ("read_*", "write_file", false),
            ("*delete*", "soft_delete_all", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("aa*aa", "aaa", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
