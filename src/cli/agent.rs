//! `convoke agent …`: lists and shows agents over HTTP.
use super::{Outcome, daemon::Daemon, output, settings::Settings};
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
            let query: Vec<_> = (!version.is_empty()).then_some(("version", version)).into_iter().collect();
            definition(
                settings,
                &daemon.get(&format!("/v1/agents/{id}/definition"), &query, Duration::ZERO).await?,
            );
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

/// The definition as JSON, and its versions as a table before it.
fn definition(settings: &Settings, answer: &Value) {
    if settings.json {
        return output::json(answer);
    }
    let versions = answer["versions"].as_array().cloned().unwrap_or_default();
    let now = Clock::System.now();
    let row = |version: &Value| {
        let mark = if version["hash"] == answer["hash"] { "shown" } else { "" };
        [
            version["version"].to_string(),
            output::text(&version["hash"]),
            output::ago(&version["applied_at"], now),
            mark.to_owned(),
        ]
    };
    output::table(["VERSION", "HASH", "APPLIED", ""], versions.iter().map(row));
    output::line(serde_json::to_string_pretty(&answer["definition"]).unwrap_or_default());
}
