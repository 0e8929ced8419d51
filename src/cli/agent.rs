//! `convoke agent …`: who there is and what they have done.
use super::{Outcome, daemon::Daemon, screen, settings::Settings};
use crate::{
    clock::Clock,
    id::{AgentId, OrgId},
};
use clap::Subcommand;
use serde_json::Value;
use std::time::Duration;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the agents, with what they can do and what they have now.
    List {
        /// Only this org's
        #[arg(long)]
        org: Option<OrgId>,
    },
    /// Show one agent with its statistics.
    Show {
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
                screen::json(&answer);
                return Ok(());
            }
            let agents = answer.get("agents").and_then(Value::as_array).cloned().unwrap_or_default();
            let now = Clock::System.now();
            let row = |agent: &Value| {
                let capabilities = agent["capabilities"].as_array().into_iter().flatten().map(screen::text);
                [
                    screen::text(&agent["id"]),
                    screen::text(&agent["org"]),
                    screen::text(&agent["kind"]),
                    screen::text(&agent["status"]),
                    format!("{} of {}", agent["slots_used"], agent["slots"]),
                    screen::ago(&agent["last_seen_at"], now),
                    capabilities.collect::<Vec<_>>().join(" "),
                ]
            };
            let header = ["AGENT", "ORG", "KIND", "STATUS", "SLOTS", "SEEN", "CAPABILITIES"];
            screen::table(header, agents.iter().map(row));
        }
        Command::Show { id } => {
            let answer = daemon.get(&format!("/v1/agents/{id}"), &[], Duration::ZERO).await?;
            if settings.json {
                screen::json(&answer);
            } else {
                screen::members(&answer);
            }
        }
    }
    Ok(())
}
