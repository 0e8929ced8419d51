//! `convoke task …`: requests and follows work over HTTP.
#![expect(clippy::indexing_slicing, reason = "a member that JSON does not have is null, not a panic")]
use super::{Outcome, daemon::Daemon, failure::Failure, screen, settings::Settings, why};
use crate::{
    clock::Clock,
    id::{AgentId, OrgId, TaskId},
};
use anyhow::Context;
use chrono::TimeDelta;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::{io::Read, time::Duration};

/// How long one long poll waits; the next one follows at once.
const POLL: Duration = Duration::from_secs(30);

#[derive(Subcommand)]
pub(super) enum Command {
    /// Request a task; prints its id, or with --wait its result.
    Request(Request),
    /// List tasks, newest first.
    List(List),
    /// Show one task with its result.
    Show {
        /// The task's id
        id: TaskId,
    },
    /// Follow a task's events until it ends; fails if the task does.
    Watch {
        /// The task's id
        id: TaskId,
    },
    /// Explain who offered, who won and why.
    Why {
        /// The task's id
        id: TaskId,
    },
    /// Say what a task may use; one that waits for budget goes on.
    Budget {
        /// The task's id
        id: TaskId,
        /// Model tokens, in and out
        #[arg(long)]
        tokens: Option<u64>,
        /// Money, in millionths of a dollar
        #[arg(long)]
        microdollars: Option<u64>,
        /// For the task and all its parts together
        #[arg(long)]
        tree: bool,
    },
    /// Take an agent's offer on a task whose award is requester.
    Choose {
        /// The task's id
        id: TaskId,
        /// Whose offer
        agent: AgentId,
    },
    /// Answer what a task waits for: input, an approval, budget.
    Answer {
        /// The task's id
        id: TaskId,
        /// The answer: JSON, or else a text; @FILE, or - for standard input
        answer: String,
    },
    /// Try a task again that has failed or was canceled.
    Requeue {
        /// The task's id
        id: TaskId,
    },
    /// Cancel a task.
    Cancel {
        /// The task's id
        id: TaskId,
        /// One line for people
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Args)]
pub(super) struct Request {
    /// What kind of work, like support.triage
    kind: String,
    /// What to work on: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    input: Option<String>,
    /// A capability that an agent must have (may be repeated)
    #[arg(long, value_name = "CAPABILITY")]
    requires: Vec<String>,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i16,
    /// Repeating the request with the same key gives the same task
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Whose task it is; agents of other orgs do not see it [default: default]
    #[arg(long)]
    org: Option<OrgId>,
    /// Who wins: first, cheapest, fastest, least_loaded, weighted, calibrated or requester
    #[arg(long, value_name = "POLICY")]
    award: Option<String>,
    /// This agent and no other gets it
    #[arg(long, value_name = "AGENT", conflicts_with = "award")]
    agent: Option<AgentId>,
    /// Wait until this task is completed (may be repeated)
    #[arg(long, value_name = "TASK")]
    after: Vec<TaskId>,
    /// Run even if what it waits for fails
    #[arg(long, requires = "after")]
    anyway: bool,
    /// Do not start before this time, like 2030-01-01T09:00:00Z
    #[arg(long, value_name = "TIME")]
    at: Option<chrono::DateTime<chrono::Utc>>,
    /// The task that this one is a part of, and is canceled with
    #[arg(long, value_name = "TASK")]
    parent: Option<TaskId>,
    /// Give up when it is not done within this time, like 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// What it may cost, in millionths of a dollar; over it, it waits for more
    #[arg(long, value_name = "MICRODOLLARS")]
    budget: Option<u64>,
    /// Wait for the end and print the result
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
pub(super) struct List {
    /// Only in this state, like open, running or completed
    #[arg(long)]
    state: Option<String>,
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only of this org
    #[arg(long)]
    org: Option<OrgId>,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: i64,
}

pub(super) async fn run(settings: &Settings, command: Command) -> Outcome {
    let daemon = Daemon::find(settings)?;
    match command {
        Command::Request(args) => request(&daemon, settings, args).await,
        Command::List(args) => list(&daemon, settings, args).await,
        Command::Show { id } => {
            show(settings, &daemon.get(&format!("/v1/tasks/{id}"), &[], Duration::ZERO).await?);
            Ok(())
        }
        Command::Watch { id } => watch(&daemon, settings, id).await,
        Command::Why { id } => {
            let answer = daemon.get(&format!("/v1/tasks/{id}/why"), &[], Duration::ZERO).await?;
            if settings.json {
                screen::json(&answer);
            } else {
                why::print(&answer);
            }
            Ok(())
        }
        Command::Budget { id, tokens, microdollars, tree } => {
            let mut amount = Map::new();
            amount.extend(tokens.map(|most| ("tokens".to_owned(), most.into())));
            amount.extend(microdollars.map(|most| ("microdollars".to_owned(), most.into())));
            let body = if tree { json!({ "tree": amount }) } else { amount.into() };
            let task = daemon.post(&format!("/v1/tasks/{id}/budget"), &[], &body).await?;
            if settings.json {
                screen::json(&task);
            } else {
                screen::line(format!("{id} is {}", screen::text(&task["state"])));
            }
            Ok(())
        }
        Command::Choose { id, agent } => {
            let body = json!({ "agent_id": agent });
            daemon.post(&format!("/v1/tasks/{id}/choose"), &[], &body).await?;
            if !settings.json {
                screen::line(format!("{agent} gets {id}"));
            }
            Ok(())
        }
        Command::Answer { id, answer } => {
            let body = json!({ "answer": read_answer(&answer)? });
            moved(settings, &daemon.post(&format!("/v1/tasks/{id}/answer"), &[], &body).await?)
        }
        Command::Requeue { id } => {
            moved(settings, &daemon.post(&format!("/v1/tasks/{id}/requeue"), &[], &json!({})).await?)
        }
        Command::Cancel { id, reason } => {
            let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
            moved(settings, &daemon.post(&format!("/v1/tasks/{id}/cancel"), &[], &body).await?)
        }
    }
}

fn moved(settings: &Settings, task: &Value) -> Outcome {
    if settings.json {
        screen::json(task);
    } else {
        screen::line(format!("{} is {}", screen::text(&task["id"]), screen::text(&task["state"])));
    }
    Ok(())
}

async fn request(daemon: &Daemon, settings: &Settings, args: Request) -> Outcome {
    let mut body = Map::new();
    body.insert("kind".into(), args.kind.into());
    body.insert("requires".into(), args.requires.into());
    body.insert("priority".into(), args.priority.into());
    body.insert("input".into(), args.input.as_deref().map_or(Ok(Value::Null), read_input)?);
    body.extend(args.key.map(|key| ("idempotency_key".to_owned(), Value::from(key))));
    body.extend(args.award.map(|award| ("policy".to_owned(), json!({ "award": award }))));
    body.extend(args.agent.map(|agent| ("policy".to_owned(), json!({ "award": "direct", "agent": agent }))));
    if !args.after.is_empty() {
        body.insert("depends_on".into(), json!(args.after));
    }
    if args.anyway {
        body.insert("on_dependency_failure".into(), "run".into());
    }
    body.extend(args.at.map(|at| ("run_at".to_owned(), json!(at))));
    body.extend(args.parent.map(|parent| ("parent_id".to_owned(), json!(parent))));
    body.extend(args.budget.map(|most| ("budget".to_owned(), json!({ "microdollars": most }))));
    if let Some(deadline) = args.deadline {
        let deadline =
            TimeDelta::from_std(deadline).ok().and_then(|d| Clock::System.now().checked_add_signed(d));
        let deadline = deadline.ok_or_else(|| Failure::Usage("--deadline is too far away".into()))?;
        body.insert("deadline".into(), json!(deadline));
    }
    let query: Vec<_> = args.org.into_iter().map(|org| ("org", org.to_string())).collect();
    let answer = daemon.post("/v1/tasks", &query, &Value::Object(body)).await?;
    let id = screen::text(&answer["task"]["id"]);
    if !args.wait {
        if settings.json {
            screen::json(&answer)
        } else {
            screen::line(id)
        }
        return Ok(());
    }
    let task = loop {
        let query = [("wait", humantime::format_duration(POLL).to_string())];
        let task = daemon.get(&format!("/v1/tasks/{id}"), &query, POLL).await?;
        if is_final(&task["state"]) {
            break task;
        }
    };
    match (settings.json, task["state"] == "completed") {
        (true, _) => screen::json(&task),
        (false, true) => screen::line(serde_json::to_string_pretty(&task["result"])?),
        (false, false) => show(settings, &task),
    }
    if task["state"] == "completed" { Ok(()) } else { Err(Failure::not_well()) }
}

fn read_input(given: &str) -> Result<Value, Failure> {
    let text = read_text(given)?;
    serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("--input is not JSON: {e}")))
}

/// What is no JSON is the text that a person wrote.
fn read_answer(given: &str) -> Result<Value, Failure> {
    let text = read_text(given)?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|_| text.trim_end().into()))
}

fn read_text(given: &str) -> Result<String, Failure> {
    Ok(match given.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?,
        None if given == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
        None => given.to_owned(),
    })
}

async fn list(daemon: &Daemon, settings: &Settings, args: List) -> Outcome {
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.state.map(|state| ("state", state)));
    query.extend(args.kind.map(|kind| ("kind", kind)));
    query.extend(args.org.map(|org| ("org", org.to_string())));
    let answer = daemon.get("/v1/tasks", &query, Duration::ZERO).await?;
    if settings.json {
        screen::json(&answer);
        return Ok(());
    }
    let now = Clock::System.now();
    let row = |task: &Value| {
        let reason = task["state_reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
        [
            screen::text(&task["id"]),
            screen::text(&task["kind"]),
            format!("{}{reason}", screen::text(&task["state"])),
            screen::text(&task["agent_id"]),
            format!("{} of {}", task["attempt"], task["attempts_max"]),
            screen::ago(&task["created_at"], now),
        ]
    };
    let tasks = answer["tasks"].as_array().cloned().unwrap_or_default();
    screen::table(["TASK", "KIND", "STATE", "AGENT", "ATTEMPTS", "AGE"], tasks.iter().map(row));
    Ok(())
}

fn show(settings: &Settings, task: &Value) {
    if settings.json { screen::json(task) } else { screen::members(task) }
}

async fn watch(daemon: &Daemon, settings: &Settings, id: TaskId) -> Outcome {
    let mut after = 0;
    loop {
        let query = [("after", after.to_string()), ("wait", humantime::format_duration(POLL).to_string())];
        let answer = daemon.get(&format!("/v1/tasks/{id}/events"), &query, POLL).await?;
        for event in answer["events"].as_array().into_iter().flatten() {
            if settings.json { screen::json(event) } else { screen::line(event_line(event)) }
        }
        after = answer["next"].as_i64().unwrap_or(after);
        if answer["final"] == true {
            break;
        }
    }
    let task = daemon.get(&format!("/v1/tasks/{id}"), &[], Duration::ZERO).await?;
    if task["state"] == "completed" { Ok(()) } else { Err(Failure::not_well()) }
}

/// `09:41:07.213  awarded    keyword   {"cost":…}`
fn event_line(event: &Value) -> String {
    let at = event["at"].as_str().and_then(|at| at.parse::<chrono::DateTime<chrono::Utc>>().ok());
    let at = at.map(|at| at.format("%H:%M:%S%.3f").to_string()).unwrap_or_default();
    let agent = event["agent_id"].as_str().unwrap_or_default();
    let body = if event["body"].as_object().is_none_or(Map::is_empty) {
        String::new()
    } else {
        event["body"].to_string()
    };
    let line = format!("{at}  {:<16} {agent:<14} {body}", screen::text(&event["type"]));
    line.trim_end().to_owned()
}

fn is_final(state: &Value) -> bool {
    matches!(state.as_str(), Some("completed" | "failed" | "canceled"))
}
