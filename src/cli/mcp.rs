//! `convoke mcp …`: what is accepted of the words of MCP servers about their tools. Asks the database, so that it works
//! without a daemon.
use super::{Outcome, doctor, output, settings::Settings};
use crate::{
    db::Database,
    id::AgentId,
    scope::Scope,
    task::{PinnedTool, accept_tool, pinned_tools},
};
use clap::Subcommand;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the accepted tools of MCP servers, and what changed since.
    Pins,
    /// Accept what a server says now about a tool; agents are offered it from their next run on.
    Pin {
        /// The agent's id
        agent: AgentId,
        /// The name of the server in the agent's file
        server: String,
        /// The name of the tool at the server
        tool: String,
    },
}

pub(super) async fn run(settings: &Settings, command: Command) -> Outcome {
    let config = settings.load()?.config;
    let scope = Scope::default();
    let (database, running) = doctor::open(&config, &scope).await?;
    let outcome = match command {
        Command::Pins => list(settings, &database).await,
        Command::Pin { agent, server, tool } => accept(settings, &database, &agent, &server, &tool).await,
    };
    if !running {
        database.stop().await?;
    }
    let _ = scope.drain(Duration::from_secs(5)).await;
    outcome
}

async fn list(settings: &Settings, database: &Database) -> Outcome {
    let tools = pinned_tools(database, None).await?;
    if settings.json {
        output::json(&json!({ "tools": tools.iter().map(shown).collect::<Vec<_>>() }));
        return Ok(());
    }
    let row = |tool: &PinnedTool| {
        let state = if tool.seen.is_some() { "changed" } else { "accepted" };
        [tool.agent.clone(), tool.server.clone(), printable(&tool.tool), state.into(), tool.sha256.clone()]
    };
    output::table(["AGENT", "SERVER", "TOOL", "STATE", "SHA256"], tools.iter().map(row));
    for tool in &tools {
        if let Some((_, seen)) = &tool.seen {
            output::line(format!("\n{} of {} for {} said:", printable(&tool.tool), tool.server, tool.agent));
            output::line(format!("  {}\nand says now:\n  {}", words(&tool.body), words(seen)));
        }
    }
    Ok(())
}

async fn accept(
    settings: &Settings,
    database: &Database,
    agent: &AgentId,
    server: &str,
    tool: &str,
) -> Outcome {
    let found = pinned_tools(database, Some((agent, server, tool))).await?;
    let Some(pinned) = found.first() else {
        return Err(anyhow::anyhow!("agent {agent} has seen no tool {tool} of a server {server}").into());
    };
    if pinned.seen.is_none() {
        return Err(anyhow::anyhow!("{tool} has not changed since it was accepted").into());
    }
    if !accept_tool(database, pinned).await? {
        return Err(anyhow::anyhow!("{tool} has just changed again; look at `convoke mcp pins`").into());
    }
    if settings.json {
        output::json(&json!({ "accepted": shown(pinned) }));
    } else {
        output::line(format!("accepted {tool} of {server} for {agent}"));
    }
    Ok(())
}

fn shown(tool: &PinnedTool) -> Value {
    let seen = tool.seen.as_ref();
    json!({
        "agent": tool.agent, "server": tool.server, "tool": tool.tool, "sha256": tool.sha256,
        "changed": seen.is_some(), "accepted": parsed(&tool.body), "seen_sha256": seen.map(|(sha256, _)| sha256),
        "seen": seen.map(|(_, body)| parsed(body)),
    })
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// Words of a server for a terminal: as JSON in ASCII, so that no character can hide or move another.
fn words(body: &[u8]) -> String {
    printable(&parsed(body).to_string())
}

fn printable(text: &str) -> String {
    text.chars()
        .map(
            |c| if c.is_ascii_graphic() || c == ' ' { c.to_string() } else { c.escape_unicode().to_string() },
        )
        .collect()
}
