//! `[run]`: how an agent does its work.
//!
//! One flat table. Each key belongs to one kind or to some; the check refuses it with another kind.
use super::{CallRule, Failover, Fetch, McpServer, MemorySettings, ModelChoice, PartKind, SqlRead};
use crate::agent::think::ToolsBy;
use crate::llm::LimitMember;
pub use crate::llm::{Price, Tier};
pub use crate::task::AgentKind as Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How an agent does its work: `kind`, and the keys of that kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The kind, which decides the other keys that count.
    pub kind: Kind,

    /// `command`: the program and its arguments; no shell. A name without `/` is looked up on `PATH`,
    /// a relative path from the agent's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// `command`: its working folder, relative to the folder of the file. Defaults to that folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// `command`: variables of the daemon's environment that the process gets. Defaults to none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `command`: variables with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env_set: BTreeMap<String, String>,

    /// `http`: the URL of the POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `http`: the variable with the secret that signs the request. Defaults to unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_env: Option<String>,

    /// `llm`: the model's name at its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `llm`: the endpoint, up to and with `/v1`. Defaults to the OpenAI API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// `llm`: the variable with the endpoint. It takes precedence over `base_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url_env: Option<String>,
    /// `llm`: the variable with the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// `llm`: the models, first to last, in place of the one of the keys above. A question that one cannot answer goes
    /// to the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelChoice>,
    /// `llm`: when a question goes to another of `models`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
    /// `llm`: the system message before each task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// `llm`: a template of the message with the task. Defaults to the input as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// `llm`: a template of the thread of a task. Tasks of one thread are worked on one after the other, and begin with its
    /// last results. Defaults to no threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<String>,
    /// `llm`: JSON schema of its results. A task's own schema takes precedence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_schema: Option<Value>,
    /// `llm`: how the endpoint is asked for JSON. Defaults to the schema, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// `llm`: most tokens of an answer. Defaults to 4,096 for an agent with tools or a task with a budget, else to the
    /// endpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<u32>,
    /// `llm`: the member of a request that limits its answer. Defaults to `max_completion_tokens` for OpenAI's own
    /// endpoint, else to `max_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_member: Option<LimitMember>,
    /// `llm`: tokens of the model's context, question and answer together. With tools, long results of old calls are
    /// left out of questions that would fill it, and the tool `step_result` reads them. Defaults to unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// `llm`: 0 to 2. Defaults to the endpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// `llm`: the prices of its questions. Defaults to those of the model in the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// `llm`: the tools that the model may call: names of `[[tool]]`, `ask`, `fetch`, `forget`, `recall`, `remember`, `request_task`, `sql:read` and `tasks`. Defaults to none: one question, one answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// `llm`: how the model calls tools. Defaults to the endpoint's own calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools_by: Option<ToolsBy>,
    /// `llm`: when the tools are open to the model, by their names in calls, and the form of their arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calls: BTreeMap<String, CallRule>,
    /// `llm`: how the answers of a run are streamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// `llm`: the login of `sql:read`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlRead>,
    /// `llm`: what `fetch` may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Fetch>,

    /// `llm`: the kinds of parts that `request_task` may request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, PartKind>,
    /// `llm`: which memories `remember`, `forget` and `recall` reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemorySettings>,
    /// `llm`: MCP servers whose tools the model may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mcp: Vec<McpServer>,

    /// `rust`: the name under which its code is registered. Defaults to the agent's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// How an endpoint is asked for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// The schema is sent, and the endpoint makes the model keep to it.
    JsonSchema,
    /// Any JSON object.
    JsonObject,
    /// No format, for endpoints without the others.
    Text,
}

/// How the answers of a run are streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stream {
    /// Whether they are. Defaults to true; an endpoint that answers whole is understood all the same.
    pub enabled: bool,
    /// Longest wait for the first byte. Defaults to a minute.
    #[serde(with = "humantime_serde")]
    pub first_byte: Duration,
    /// Longest silence between bytes. Defaults to a minute.
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
}

impl Default for Stream {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { enabled: true, first_byte: minute, silence: minute }
    }
}

impl Run {
    /// This kind with all defaults.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            argv: None,
            cwd: None,
            env: Vec::new(),
            env_set: BTreeMap::new(),
            url: None,
            secret_env: None,
            model: None,
            base_url: None,
            base_url_env: None,
            api_key_env: None,
            models: Vec::new(),
            failover: None,
            instructions: None,
            prompt: None,
            thread: None,
            result_schema: None,
            response_format: None,
            answer_tokens: None,
            limit_member: None,
            context_tokens: None,
            temperature: None,
            price: None,
            tools: Vec::new(),
            tools_by: None,
            calls: BTreeMap::new(),
            stream: None,
            sql: None,
            fetch: None,
            parts: BTreeMap::new(),
            memory: None,
            mcp: Vec::new(),
            name: None,
        }
    }

    /// The models in the order in which they are asked: `models`, else the one that the keys of `[run]` name.
    #[must_use]
    pub(crate) fn choices(&self) -> Vec<ModelChoice> {
        if self.models.is_empty() { vec![self.first_choice()] } else { self.models.clone() }
    }

    /// The model that is asked first.
    #[must_use]
    pub(crate) fn first_choice(&self) -> ModelChoice {
        self.models.first().cloned().unwrap_or_else(|| ModelChoice {
            model: self.model.clone().unwrap_or_default(),
            base_url: self.base_url.clone(),
            base_url_env: self.base_url_env.clone(),
            api_key_env: self.api_key_env.clone(),
            price: self.price.clone(),
            context_tokens: self.context_tokens,
        })
    }

    /// Whether the context of one of the models is known.
    pub(crate) fn knows_a_context(&self) -> bool {
        self.context_tokens.is_some() || self.models.iter().any(|choice| choice.context_tokens.is_some())
    }

    /// Whether the model works with tools until it has a result.
    pub(crate) fn thinks(&self) -> bool {
        !self.tools.is_empty() || !self.mcp.is_empty()
    }

    /// The keys that are present, each with its kind.
    pub(super) fn present_keys(&self) -> Vec<(&'static str, Kind)> {
        let keys = [
            ("argv", Kind::Command, self.argv.is_some()),
            ("cwd", Kind::Command, self.cwd.is_some()),
            ("env", Kind::Command, !self.env.is_empty()),
            ("env_set", Kind::Command, !self.env_set.is_empty()),
            ("url", Kind::Http, self.url.is_some()),
            ("secret_env", Kind::Http, self.secret_env.is_some()),
            ("model", Kind::Llm, self.model.is_some()),
            ("base_url", Kind::Llm, self.base_url.is_some()),
            ("base_url_env", Kind::Llm, self.base_url_env.is_some()),
            ("api_key_env", Kind::Llm, self.api_key_env.is_some()),
            ("models", Kind::Llm, !self.models.is_empty()),
            ("failover", Kind::Llm, self.failover.is_some()),
            ("instructions", Kind::Llm, self.instructions.is_some()),
            ("prompt", Kind::Llm, self.prompt.is_some()),
            ("thread", Kind::Llm, self.thread.is_some()),
            ("result_schema", Kind::Llm, self.result_schema.is_some()),
            ("response_format", Kind::Llm, self.response_format.is_some()),
            ("answer_tokens", Kind::Llm, self.answer_tokens.is_some()),
            ("limit_member", Kind::Llm, self.limit_member.is_some()),
            ("context_tokens", Kind::Llm, self.context_tokens.is_some()),
            ("temperature", Kind::Llm, self.temperature.is_some()),
            ("price", Kind::Llm, self.price.is_some()),
            ("tools", Kind::Llm, !self.tools.is_empty()),
            ("tools_by", Kind::Llm, self.tools_by.is_some()),
            ("calls", Kind::Llm, !self.calls.is_empty()),
            ("stream", Kind::Llm, self.stream.is_some()),
            ("sql", Kind::Llm, self.sql.is_some()),
            ("fetch", Kind::Llm, self.fetch.is_some()),
            ("memory", Kind::Llm, self.memory.is_some()),
            ("parts", Kind::Llm, !self.parts.is_empty()),
            ("mcp", Kind::Llm, !self.mcp.is_empty()),
            ("name", Kind::Rust, self.name.is_some()),
        ];
        keys.into_iter().filter(|(_, _, said)| *said).map(|(key, kind, _)| (key, kind)).collect()
    }
}
