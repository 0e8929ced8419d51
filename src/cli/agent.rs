//! `convoke agent …`: lists and shows agents over HTTP.
#![expect(clippy::indexing_slicing, reason = "indexing a JSON value returns null for a missing member")]
use super::{Outcome, daemon::Daemon, definition_diff, exit::Failure, output, settings::Settings};
use crate::{
    clock::Clock,
    id::{AgentId, OrgId},
};
use clap::Subcommand;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List agents with their capabilities and load.
    List {
        /// Only of this org
        #[arg(long)]
        org: Option<OrgId>,
    },
    /// Show one agent with its statistics, or its definition.
    // Without clap's own `--version`, which the program's setting hands on to each command.
    #[command(disable_version_flag = true)]
    Show {
        /// The agent's id
        id: AgentId,
        /// Show the definition in use and its versions, or an earlier one by its number or hash
        #[arg(long, value_name = "N|HASH", num_args = 0..=1, default_missing_value = "")]
        version: Option<String>,
    },
    /// List the versions of an agent's definition, the latest first
    History {
        /// The agent's id
        id: AgentId,
    },
    /// Show in which keys two versions of an agent's definition differ
    Diff {
        /// The agent's id
        id: AgentId,
        /// The earlier one, by its number or hash; the one before the definition in use if it is missing
        before: Option<String>,
        /// The later one; the definition in use if it is missing
        after: Option<String>,
    },
    /// Give an agent no new task; what it has is finished. It stays so until `resume`, also after restarts.
    Drain {
        /// The agent's id
        id: AgentId,
    },
    /// End the drain of an agent.
    Resume {
        /// The agent's id
        id: AgentId,
    },
}

pub(super) async fn run(settings: &Settings, command: Command) -> Outcome {
    let daemon = Daemon::find(settings)?;
    match command {
        Command::List { org } => {
            let query: Vec<_> = org.into_iter().map(|org| ("org", org.to_string())).collect();
            let answer = daemon.get("/v1/agents", &query, Duration::ZERO).await?;
            if settings.json {
                output::json(&answer);
                return Ok(());
            }
            let agents = answer.get("agents").and_then(Value::as_array).cloned().unwrap_or_default();
            let now = Clock::System.now();
            let row = |agent: &Value| {
                let capabilities = agent["capabilities"].as_array().into_iter().flatten().map(output::text);
                [
                    output::text(&agent["id"]),
                    output::text(&agent["org"]),
                    output::text(&agent["kind"]),
                    output::text(&agent["status"]),
                    format!("{} of {}", agent["slots_used"], agent["slots"]),
                    output::ago(&agent["last_seen_at"], now),
                    capabilities.collect::<Vec<_>>().join(" "),
                ]
            };
            let header = ["AGENT", "ORG", "KIND", "STATUS", "SLOTS", "SEEN", "CAPABILITIES"];
            output::table(header, agents.iter().map(row));
        }
        Command::Show { id, version: Some(version) } => {
            let answer =
                version_of(&daemon, &id, Some(version).filter(|version| !version.is_empty())).await?;
            if settings.json {
                output::json(&answer);
                return Ok(());
            }
            versions(&answer, "shown");
            output::line(serde_json::to_string_pretty(&answer["definition"]).unwrap_or_default());
        }
        Command::History { id } => {
            let answer = version_of(&daemon, &id, None).await?;
            if settings.json {
                output::json(&answer["versions"]);
                return Ok(());
            }
            versions(&answer, "in use");
        }
        Command::Diff { id, before, after } => {
            let after = version_of(&daemon, &id, after).await?;
            let before = before.or_else(|| version_before(&after)).ok_or_else(|| {
                Failure::Usage(format!("agent {id} has no earlier version of this definition: name one"))
            })?;
            let before = version_of(&daemon, &id, Some(before)).await?;
            let lines = definition_diff::lines(&before["definition"], &after["definition"]);
            if settings.json {
                let hashes = (&before["hash"], &after["hash"]);
                output::json(&json!({ "before": hashes.0, "after": hashes.1, "differences": lines }));
                return Ok(());
            }
            if lines.is_empty() {
                output::line("there is no difference");
            }
            lines.into_iter().for_each(output::line);
        }
        Command::Show { id, version: None } => {
            shown(settings, &daemon.get(&format!("/v1/agents/{id}"), &[], Duration::ZERO).await?);
        }
        Command::Drain { id } => {
            shown(settings, &daemon.post(&format!("/v1/agents/{id}/drain"), &[], &json!({})).await?);
        }
        Command::Resume { id } => {
            shown(settings, &daemon.post(&format!("/v1/agents/{id}/resume"), &[], &json!({})).await?);
        }
    }
    Ok(())
}

/// `convoke reload`.
pub(super) async fn reload(settings: &Settings) -> Outcome {
    let answer = Daemon::find(settings)?.post("/v1/reload", &[], &json!({})).await?;
    if settings.json {
        output::json(&answer);
        return Ok(());
    }
    let mut parts = Vec::new();
    for name in ["added", "changed", "removed"] {
        let ids = answer.get(name).and_then(Value::as_array).into_iter().flatten();
        let ids = ids.map(output::text).collect::<Vec<_>>();
        if !ids.is_empty() {
            parts.push(format!("{name}: {}", ids.join(", ")));
        }
    }
    for (name, what) in [("applied", "settings in use"), ("needs_restart", "settings that need a restart")] {
        let keys =
            answer.pointer(&format!("/settings/{name}")).and_then(Value::as_array).into_iter().flatten();
        let keys = keys.map(output::text).collect::<Vec<_>>();
        if !keys.is_empty() {
            parts.push(format!("{what}: {}", keys.join(", ")));
        }
    }
    output::line(if parts.is_empty() { "nothing has changed".to_owned() } else { parts.join("; ") });
    Ok(())
}

fn shown(settings: &Settings, agent: &Value) {
    if settings.json {
        output::json(agent);
    } else {
        output::members(agent);
    }
}

/// A definition with the list of versions: the one in use, or an earlier one.
async fn version_of(daemon: &Daemon, id: &AgentId, version: Option<String>) -> Result<Value, Failure> {
    let query: Vec<_> = version.into_iter().map(|version| ("version", version)).collect();
    Ok(daemon.get(&format!("/v1/agents/{id}/definition"), &query, Duration::ZERO).await?)
}

/// The number of the version before that of this answer. `None` if there is none.
fn version_before(answer: &Value) -> Option<String> {
    let versions = answer["versions"].as_array()?;
    let at = versions.iter().position(|version| version["hash"] == answer["hash"])?;
    Some(versions.get(at + 1)?["version"].to_string())
}

/// The versions as a table. `mark` stands beside the one of this answer.
fn versions(answer: &Value, mark: &str) {
    let versions = answer["versions"].as_array().cloned().unwrap_or_default();
    let now = Clock::System.now();
    let row = |version: &Value| {
        let mark = if version["hash"] == answer["hash"] { mark } else { "" };
        [
            version["version"].to_string(),
            output::text(&version["hash"]),
            output::ago(&version["applied_at"], now),
            mark.to_owned(),
        ]
    };
    output::table(["VERSION", "HASH", "APPLIED", ""], versions.iter().map(row));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_before_is_the_next_older_one() {
        let version = |n: i32, hash: &str| json!({ "version": n, "hash": hash });
        let answer = |hash: &str| json!({ "hash": hash, "versions": [version(7, "c"), version(4, "b"), version(1, "a")] });
        assert_eq!(version_before(&answer("c")).as_deref(), Some("4"));
        assert_eq!(version_before(&answer("b")).as_deref(), Some("1"));
        assert_eq!((version_before(&answer("a")), version_before(&answer("x"))), (None, None));
    }
}
