//! `convoke spend`: what agents and their models used, over HTTP.
#![expect(clippy::indexing_slicing, reason = "indexing a JSON value returns null for a missing member")]
use super::{Outcome, daemon::Daemon, output, reconcile, settings::Settings};
use crate::{clock::Clock, id::OrgId, task::SpendBy};
use chrono::TimeDelta;
use serde_json::Value;
use std::time::Duration;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Dimensions with commas: day, hour, org, agent, kind, task, tree, provider, model
    #[arg(long, value_delimiter = ',', default_value = "agent,model", value_parser = dimension)]
    by: Vec<SpendBy>,
    /// How many days back, up to 92
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=92))]
    days: u32,
    /// Only of this org
    #[arg(long)]
    org: Option<OrgId>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Compare a provider's bill with what was charged, by day; exit code 1 if a day was billed for more.
    Reconcile(reconcile::Args),
}

fn dimension(name: &str) -> Result<SpendBy, String> {
    let found = SpendBy::ALL.into_iter().find(|by| by.as_str() == name.trim());
    found.ok_or_else(|| format!("use some of {}", SpendBy::ALL.map(SpendBy::as_str).join(", ")))
}

pub(super) async fn run(settings: &Settings, args: Args) -> Outcome {
    if let Some(Command::Reconcile(args)) = args.command {
        return reconcile::run(settings, args).await;
    }
    let daemon = Daemon::find(settings)?;
    let by: Vec<&str> = args.by.iter().copied().map(SpendBy::as_str).collect();
    // A minute less than the longest range: the clocks of this program and the daemon may differ.
    let from = Clock::System.now() - TimeDelta::days(args.days.into()) + TimeDelta::minutes(1);
    let mut query = vec![("by", by.join(",")), ("from", from.to_rfc3339())];
    query.extend(args.org.map(|org| ("org", org.to_string())));
    let answer = daemon.get("/v1/spend", &query, Duration::ZERO).await?;
    if settings.json {
        output::json(&answer);
        return Ok(());
    }
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    let name = |row: &Value| {
        let parts = args.by.iter().map(|by| match &row[member(*by)] {
            // A report of another program has no provider and no model.
            Value::String(text) if text.is_empty() => "-".to_owned(),
            // Null for tasks that retention has deleted.
            value => output::text(value),
        });
        parts.collect::<Vec<_>>().join("  ")
    };
    let row = |row: &Value| {
        [
            name(row),
            output::text(&row["attempts"]),
            output::text(&row["questions"]),
            output::text(&row["tokens"]),
            output::text(&row["cached_tokens"]),
            output::text(&row["reasoning_tokens"]),
            output::dollars(&row["microdollars"]),
            output::dollars(&row["presumed_microdollars"]),
        ]
    };
    let by = by.join("  ").to_uppercase();
    let header = [&*by, "ATTEMPTS", "QUESTIONS", "TOKENS", "CACHED", "REASONING", "SPENT", "PRESUMED"];
    output::table(header, rows.iter().map(row));
    if answer["partial"] == true {
        output::line("only the first 10000 rows; use fewer dimensions or days for all of them");
    }
    Ok(())
}

/// The member of a row that has a dimension.
fn member(by: SpendBy) -> &'static str {
    match by {
        SpendBy::Agent => "agent_id",
        SpendBy::Task => "task_id",
        SpendBy::Tree => "root_id",
        other => other.as_str(),
    }
}
