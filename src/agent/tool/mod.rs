//! The tools that a model may call: programs, services and statements, each with the class of its effect.
//!
//! A tool gets the arguments after they were checked, and the idempotency key of its step. Its outcome says whether the
//! effect happened; one that does not know says so, and never guesses.
mod callable;
mod command;
mod fetch;
mod html;
mod http;
pub(crate) mod judge;
mod keep;
mod keeper;
mod limits;
mod mcp;
pub(crate) mod named_values;
mod run_program;
mod shown;
mod sql_read;

use super::{Definition, Env, Tool, ToolKind};
use crate::{
    agent::kind::RunnerDeps,
    id::{AgentId, OrgId, TraceContext},
    task::DatabaseCall,
};
use serde_json::Value;
use std::path::Path;
use tokio_util::sync::CancellationToken;

pub(crate) use callable::{Callable, callable, callables};
pub(crate) use keep::keep_call;
pub(crate) use keeper::KEEP;
pub use keeper::Keeper;
pub(crate) use limits::{Allowed, Permit, Permits, ToolLimits};
pub(crate) use shown::{Shown, shown};
pub(crate) use sql_read::unfit_readers;

/// One call.
#[derive(Clone, Copy)]
pub(crate) struct ToolCall<'a> {
    pub(crate) tool: Callable<'a>,
    pub(crate) agent: &'a AgentId,
    pub(crate) org: &'a OrgId,
    pub(crate) args: &'a Value,
    /// The idempotency key of the step.
    pub(crate) key: &'a str,
    /// The span of the step. `None` if the task belongs to no trace.
    pub(crate) trace: Option<TraceContext>,
    /// The ids of the task, for a program.
    pub(crate) ids: &'a [(&'static str, String)],
    /// The folder of the agent's file.
    pub(crate) folder: Option<&'a Path>,
    pub(crate) parts: &'a RunnerDeps,
    /// Cancelled when the job must end.
    pub(crate) stop: &'a CancellationToken,
}

/// The outcome of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The output.
    Done(String),
    /// It failed, and had no effect, or says what it did: code, message, whether a retry may succeed.
    Failed(&'static str, String, bool),
    /// It may have had its effect: why that is unknown.
    Uncertain(String),
    /// The job must end.
    Stopped,
}

/// Runs a tool that is not a statement.
pub(crate) async fn call(call: ToolCall<'_>) -> Outcome {
    let tool = match call.tool {
        Callable::Declared(tool) => tool,
        Callable::SqlRead(sql) => return sql_read::call(call, sql).await,
        Callable::Fetch(fetch) => return fetch::call(call, fetch).await,
        Callable::RequestTask(_)
        | Callable::Tasks
        | Callable::Remember(_)
        | Callable::Forget(_)
        | Callable::Recall(_)
        | Callable::StepResult => {
            return Outcome::Failed("failed", "the loop carries it out".into(), false);
        }
        Callable::Mcp { server, tool } => return mcp::call(call, server, tool).await,
    };
    match tool.kind {
        ToolKind::Command => command::call(call, tool).await,
        ToolKind::Http => http::call(call, tool).await,
        ToolKind::Sql => Outcome::Failed("failed", "a statement is run with its step".into(), false),
    }
}

/// How a command that was begun earlier ended, if its keeper has recorded that. Waits while it runs, for at most its time
/// limit.
pub(crate) async fn kept(
    tool: Callable<'_>,
    key: &str,
    parts: &RunnerDeps,
    stop: &CancellationToken,
) -> Option<Outcome> {
    let tool = tool.declared().filter(|tool| tool.kind == ToolKind::Command)?;
    let found = parts.keeper.as_ref()?.found(key, tool.timeout(), stop).await?;
    Some(command::outcome(found))
}

/// The statement of a call with its values.
pub(crate) fn statement(tool: &Tool, args: &Value) -> DatabaseCall {
    let bound = named_values::bind(tool.statement.as_deref().unwrap_or_default());
    let value = |name: &String| match args.get(name)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    DatabaseCall {
        role: tool.role.clone().unwrap_or_default(),
        values: bound.names.iter().map(value).collect(),
        statement: bound.text,
        read_only: tool.effect() == crate::task::Effect::Read,
        timeout: tool.timeout(),
    }
}

/// The secrets that a definition names, which no result may contain: name and value.
pub(crate) fn secrets(definition: &Definition, env: &Env) -> Vec<(String, String)> {
    let of_tools = definition.tool.iter().flat_map(|tool| tool.env.iter().chain(tool.headers_env.values()));
    let of_models = definition.run.models.iter().flat_map(|model| &model.api_key_env);
    let names = of_tools.chain(&definition.run.api_key_env).chain(of_models);
    let names = names.chain(definition.run.sql.iter().flat_map(|sql| &sql.password_env));
    let names = names.chain(definition.run.fetch.iter().flat_map(|fetch| fetch.headers_env.values()));
    let of_servers = definition.run.mcp.iter().flat_map(|server| server.env.iter().chain(server.secrets()));
    names.chain(of_servers).filter_map(|name| Some((name.clone(), env.get(name)?))).collect()
}
