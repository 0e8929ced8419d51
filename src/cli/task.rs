//! `convoke task …`: requests, shows and commands tasks over HTTP.
#![expect(clippy::indexing_slicing, reason = "indexing a JSON value returns null for a missing member")]
use super::{
    Outcome, daemon::Daemon, exit::Failure, output, settings::Settings, steps, task_id_prefix::TaskRef, why,
};
use crate::{
    clock::Clock,
    id::{AgentId, OrgId, TaskId},
    json,
};
use anyhow::Context;
use chrono::TimeDelta;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::{io::Read, time::Duration};

/// How long one long poll waits. The next one follows immediately.
const POLL: Duration = Duration::from_secs(30);

#[derive(Subcommand)]
pub(super) enum Command {
    /// Request a task; prints its id, or with --wait its result.
    Request(Request),
    /// List tasks, newest first.
    List(List),
    /// Show one task with its result.
    Show {
        /// The task's id, or its beginning
        id: TaskRef,
    },
    /// Follow a task's events until it ends; fails if the task does.
    Watch {
        /// The task's id, or its beginning
        id: TaskRef,
    },
    /// Explain the offers and awards of a task.
    Why {
        /// The task's id, or its beginning
        id: TaskRef,
    },
    /// Show the runs of a task that an agent thought about: each question, call and note.
    Steps {
        /// The task's id, or its beginning
        id: TaskRef,
    },
    /// Request a task that goes on behind a step of this one's run; prints its id.
    Fork {
        /// The task's id, or its beginning
        id: TaskRef,
        /// The last step that it begins with: a note, or the last call of an answer (see `convoke task steps`)
        #[arg(long, value_name = "SEQ")]
        at: i32,
        /// The number of the run [default: the latest]
        #[arg(long, value_name = "RUN")]
        run: Option<i32>,
    },
    /// Set the budget of a task; a task that waits for budget continues.
    Budget {
        /// The task's id, or its beginning
        id: TaskRef,
        /// Model tokens, input and output together
        #[arg(long)]
        tokens: Option<u64>,
        /// Money, in millionths of a dollar
        #[arg(long)]
        microdollars: Option<u64>,
        /// For the task and all its parts together
        #[arg(long)]
        tree: bool,
    },
    /// Award a task to an agent that offered, where the award policy is requester.
    Choose {
        /// The task's id, or its beginning
        id: TaskRef,
        /// The agent whose offer wins
        agent: AgentId,
    },
    /// Answer what a task waits for: input, an approval, budget.
    Answer {
        /// The task's id, or its beginning
        id: TaskRef,
        /// JSON, or else text; @FILE, or - for standard input
        answer: String,
    },
    /// Start a failed or canceled task again, or all that match a filter.
    Requeue(Requeue),
    /// Cancel a task.
    Cancel {
        /// The task's id, or its beginning
        id: TaskRef,
        /// One line that explains it to people
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Args)]
pub(super) struct Request {
    /// Kind of the task, like support.triage
    kind: String,
    /// Input of the task: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    input: Option<String>,
    /// A capability that an agent must have (may be repeated)
    #[arg(long, value_name = "CAPABILITY")]
    requires: Vec<String>,
    /// Tasks with a higher priority are awarded first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i16,
    /// Idempotency key: repeating the request with the same key returns the same task
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Org of the task; agents of other orgs do not see it [default: default]
    #[arg(long)]
    org: Option<OrgId>,
    /// Award policy: first, cheapest, fastest, least_loaded, weighted, calibrated or requester
    #[arg(long, value_name = "POLICY")]
    award: Option<String>,
    /// Award the task to this agent only
    #[arg(long, value_name = "AGENT", conflicts_with = "award")]
    agent: Option<AgentId>,
    /// Wait until this task is completed (may be repeated)
    #[arg(long, value_name = "TASK")]
    after: Vec<TaskRef>,
    /// Run even if a task of --after fails
    #[arg(long, requires = "after")]
    anyway: bool,
    /// Do not start before this time, like 2030-01-01T09:00:00Z
    #[arg(long, value_name = "TIME")]
    at: Option<chrono::DateTime<chrono::Utc>>,
    /// Parent task; this task is canceled with it
    #[arg(long, value_name = "TASK")]
    parent: Option<TaskRef>,
    /// Fail the task if it is not completed within this time, like 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// Budget in millionths of a dollar; the task waits for more when it is used up
    #[arg(long, value_name = "MICRODOLLARS")]
    budget: Option<u64>,
    /// Wait for the end and print the result
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
pub(super) struct Requeue {
    /// The task's id, or its beginning; without it, give a filter
    #[arg(required_unless_present = "state", conflicts_with_all = ["state", "kind", "reason", "org", "limit", "dry_run"])]
    id: Option<TaskRef>,
    /// All in this state: failed or canceled
    #[arg(long)]
    state: Option<String>,
    /// Only of this kind
    #[arg(long, requires = "state")]
    kind: Option<String>,
    /// Only those that ended for this reason, like unallocatable
    #[arg(long, requires = "state")]
    reason: Option<String>,
    /// Only of this org
    #[arg(long, requires = "state")]
    org: Option<OrgId>,
    /// Maximum number of tasks, the oldest first; at most 1000
    #[arg(long, requires = "state", default_value_t = 100)]
    limit: i64,
    /// Only list the tasks
    #[arg(long, requires = "state")]
    dry_run: bool,
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
    /// Maximum number of tasks
    #[arg(long, default_value_t = 50)]
    limit: i64,
}

pub(super) async fn run(settings: &Settings, command: Command) -> Outcome {
    let daemon = Daemon::find(settings)?;
    match command {
        Command::Request(args) => request(&daemon, settings, args).await,
        Command::List(args) => list(&daemon, settings, args).await,
        Command::Show { id } => {
            let id = id.find(&daemon).await?;
            let mut task = daemon.get(&format!("/v1/tasks/{id}"), &[], Duration::ZERO).await?;
            // Adds what the task waits for, its costs and its attempts.
            let why = daemon.get(&format!("/v1/tasks/{id}/why"), &[], Duration::ZERO).await?;
            why::add_to(&mut task, &why);
            show(settings, &task);
            Ok(())
        }
        Command::Watch { id } => watch(&daemon, settings, id.find(&daemon).await?).await,
        Command::Why { id } => {
            let id = id.find(&daemon).await?;
            let answer = daemon.get(&format!("/v1/tasks/{id}/why"), &[], Duration::ZERO).await?;
            if settings.json {
                output::json(&answer);
            } else {
                why::print(&answer);
            }
            Ok(())
        }
        Command::Steps { id } => {
            let id = id.find(&daemon).await?;
            let answer = daemon.get(&format!("/v1/tasks/{id}/steps"), &[], Duration::ZERO).await?;
            if settings.json {
                output::json(&answer);
            } else if answer["runs"].as_array().is_none_or(Vec::is_empty) {
                output::line(format!("{id} has no steps: no agent with tools has worked on it"));
            } else {
                steps::print(&answer["runs"]);
            }
            Ok(())
        }
        Command::Fork { id, at, run } => {
            let (id, body) = (id.find(&daemon).await?, json!({ "at": at, "run": run }));
            let answer = daemon.post(&format!("/v1/tasks/{id}/fork"), &[], &body).await?;
            if settings.json {
                output::json(&answer);
            } else {
                output::line(output::text(&answer["task"]["id"]));
            }
            Ok(())
        }
        Command::Budget { id, tokens, microdollars, tree } => {
            let mut amount = Map::new();
            amount.extend(tokens.map(|most| ("tokens".to_owned(), most.into())));
            amount.extend(microdollars.map(|most| ("microdollars".to_owned(), most.into())));
            let body = if tree { json!({ "tree": amount }) } else { amount.into() };
            order(&daemon, settings, &id, "budget", &body).await
        }
        Command::Choose { id, agent } => {
            let (id, body) = (id.find(&daemon).await?, json!({ "agent_id": agent }));
            daemon.post(&format!("/v1/tasks/{id}/choose"), &[], &body).await?;
            if !settings.json {
                output::line(format!("{id} is awarded to {agent}"));
            }
            Ok(())
        }
        Command::Answer { id, answer } => {
            let body = json!({ "answer": read_answer(&answer)? });
            order(&daemon, settings, &id, "answer", &body).await
        }
        Command::Requeue(args) => requeue(&daemon, settings, args).await,
        Command::Cancel { id, reason } => {
            let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
            order(&daemon, settings, &id, "cancel", &body).await
        }
    }
}

async fn requeue(daemon: &Daemon, settings: &Settings, args: Requeue) -> Outcome {
    if let Some(id) = args.id {
        return order(daemon, settings, &id, "requeue", &json!({})).await;
    }
    let query: Vec<_> = args.org.into_iter().map(|org| ("org", org.to_string())).collect();
    let body = json!({ "state": args.state, "kind": args.kind, "reason": args.reason, "limit": args.limit,
        "dry_run": args.dry_run });
    let answer = daemon.post("/v1/tasks/requeue", &query, &body).await?;
    if settings.json {
        output::json(&answer);
        return Ok(());
    }
    let list = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    let (tasks, refused) = (list("tasks"), list("refused"));
    tasks.iter().for_each(|id| output::line(output::text(id)));
    for task in &refused {
        output::line(format!(
            "{} was not requeued: {}",
            output::text(&task["id"]),
            output::text(&task["reason"])
        ));
    }
    let what = if args.dry_run { "would be requeued" } else { "are requeued" };
    let more = if answer["more"] == true { "; more tasks match" } else { "" };
    output::line(format!("{} tasks {what}{more}", tasks.len()));
    if refused.is_empty() { Ok(()) } else { Err(Failure::reported()) }
}

/// Posts a command on a task, and prints the new state.
async fn order(daemon: &Daemon, settings: &Settings, task: &TaskRef, command: &str, body: &Value) -> Outcome {
    let id = task.find(daemon).await?;
    let task = daemon.post(&format!("/v1/tasks/{id}/{command}"), &[], body).await?;
    if settings.json {
        output::json(&task);
    } else {
        output::line(format!("{id} is {}", output::text(&task["state"])));
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
    let mut after = Vec::new();
    for task in &args.after {
        after.push(task.find(daemon).await?);
    }
    if !after.is_empty() {
        body.insert("depends_on".into(), json!(after));
    }
    if args.anyway {
        body.insert("on_dependency_failure".into(), "run".into());
    }
    body.extend(args.at.map(|at| ("run_at".to_owned(), json!(at))));
    if let Some(parent) = &args.parent {
        body.insert("parent_id".into(), json!(parent.find(daemon).await?));
    }
    body.extend(args.budget.map(|most| ("budget".to_owned(), json!({ "microdollars": most }))));
    if let Some(deadline) = args.deadline {
        let deadline =
            TimeDelta::from_std(deadline).ok().and_then(|d| Clock::System.now().checked_add_signed(d));
        let deadline = deadline.ok_or_else(|| Failure::Usage("--deadline is too far away".into()))?;
        body.insert("deadline".into(), json!(deadline));
    }
    let query: Vec<_> = args.org.into_iter().map(|org| ("org", org.to_string())).collect();
    let answer = daemon.post("/v1/tasks", &query, &Value::Object(body)).await?;
    let id = output::text(&answer["task"]["id"]);
    if !args.wait {
        if settings.json {
            output::json(&answer)
        } else {
            output::line(id)
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
        (true, _) => output::json(&task),
        (false, true) => output::line(serde_json::to_string_pretty(&task["result"])?),
        (false, false) => show(settings, &task),
    }
    if task["state"] == "completed" { Ok(()) } else { Err(Failure::reported()) }
}

fn read_input(given: &str) -> Result<Value, Failure> {
    let text = read_text(given)?;
    let input =
        serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("--input is not JSON: {e}")))?;
    json::check_command(text.as_bytes()).map_err(|e| Failure::Usage(format!("--input: {e}")))?;
    Ok(input)
}

/// Text that is not JSON is a JSON string.
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
        output::json(&answer);
        return Ok(());
    }
    let now = Clock::System.now();
    let row = |task: &Value| {
        let reason = task["state_reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
        [
            output::text(&task["id"]),
            output::text(&task["kind"]),
            format!("{}{reason}", output::text(&task["state"])),
            output::text(&task["agent_id"]),
            format!("{} of {}", task["attempt"], task["attempts_max"]),
            output::ago(&task["created_at"], now),
        ]
    };
    let tasks = answer["tasks"].as_array().cloned().unwrap_or_default();
    output::table(["TASK", "KIND", "STATE", "AGENT", "ATTEMPTS", "AGE"], tasks.iter().map(row));
    Ok(())
}

fn show(settings: &Settings, task: &Value) {
    if settings.json { output::json(task) } else { output::members(task) }
}

async fn watch(daemon: &Daemon, settings: &Settings, id: TaskId) -> Outcome {
    let mut after = 0;
    loop {
        let query = [("after", after.to_string()), ("wait", humantime::format_duration(POLL).to_string())];
        let answer = daemon.get(&format!("/v1/tasks/{id}/events"), &query, POLL).await?;
        for event in answer["events"].as_array().into_iter().flatten() {
            if settings.json { output::json(event) } else { output::line(event_line(event)) }
        }
        after = answer["next"].as_i64().unwrap_or(after);
        if answer["final"] == true {
            break;
        }
    }
    let task = daemon.get(&format!("/v1/tasks/{id}"), &[], Duration::ZERO).await?;
    if task["state"] == "completed" { Ok(()) } else { Err(Failure::reported()) }
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
    let line = format!("{at}  {:<16} {agent:<14} {body}", output::text(&event["type"]));
    line.trim_end().to_owned()
}

fn is_final(state: &Value) -> bool {
    matches!(state.as_str(), Some("completed" | "failed" | "canceled"))
}
