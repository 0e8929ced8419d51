//! `kind = "llm"`: a model answers each task with JSON, or works on it with tools (`crate::agent::think`).
//!
//! The model gets the `instructions` and the input (or the result of `prompt`), and is asked for JSON, by schema if
//! the task or the definition has one. The answer is always checked here. Tokens come from the usage that the
//! endpoint reports, money from `price`; failures are charged too. No text of the model becomes part of a failure.
use super::{RunnerDeps, json_in_text::candidates};
use crate::{
    agent::{
        Agent, Definition, Finished, Job, ResponseFormat,
        asking::{Asking, Pricing},
        failover::{Choice, Choices, Turns},
        job::{permanent, retryable},
        think::{Session, Thinker},
        thread::{self, thread_template},
        wake::{BadTemplate, Context, Template},
    },
    llm::{Answer, Caller, CompletionRequest, Format, Models},
    task::{Failure, ModelUsage, SchemaMismatch, Schemas, Usage},
};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// Names that a prompt may use.
const NAMES: [&str; 9] =
    ["input", "kind", "task_id", "attempt", "checkpoint", "result_schema", "messages", "answers", "rejected"];
/// Bytes of text that are estimated as one token before the endpoint reports its count.
pub(in crate::agent) const BYTES_PER_TOKEN: usize = 4;
/// Most tokens of an answer of an agent with tools or under a budget, without `run.answer_tokens` and
/// `limits.tokens_per_task`.
pub(in crate::agent) const ANSWER_TOKENS_MAX: u32 = 4_096;
/// Tokens that an endpoint adds to a question.
pub(in crate::agent) const FRAME_TOKENS: u64 = 64;

/// An agent of kind `llm`.
pub(crate) struct Llm {
    definition: Arc<Definition>,
    choices: Choices,
    models: Models,
    prompt: Option<Template>,
    thread: Option<Template>,
    schemas: Schemas,
    /// The loop, if the model has tools.
    thinker: Option<Thinker>,
}

/// Parses the template of a prompt.
pub(crate) fn prompt_template(text: &str) -> Result<Template, BadTemplate> {
    Template::parse(&Value::String(text.to_owned()), "prompt", &NAMES)
}

impl Llm {
    pub(crate) fn new(definition: Arc<Definition>, parts: &RunnerDeps) -> Result<Self, String> {
        let choices = Choices::new(&definition, parts)?;
        let prompt = definition.run.prompt.as_deref().map(prompt_template).transpose();
        let prompt = prompt.map_err(|e| e.to_string())?;
        let thread = definition.run.thread.as_deref().map(thread_template).transpose();
        let thread = thread.map_err(|e| e.to_string())?;
        let schemas = parts.schemas.of(&definition.org, definition.id.as_str());
        let thinker = definition
            .run
            .thinks()
            .then(|| Thinker::new(definition.clone(), parts.clone(), choices.clone(), schemas.clone()));
        let models = parts.models.clone();
        Ok(Self { prompt, thread, choices, models, definition, schemas, thinker })
    }

    /// The user message: the last results of the thread, then the task.
    fn user(&self, job: &Job, schema: Option<&Value>, memory: &str) -> Result<String, Failure> {
        let user = match &self.prompt {
            None if job.messages().is_empty() => job.start.input.to_string(),
            None => {
                // As data, like the input: messages of others must not be instructions.
                let messages = json!(job.messages());
                format!("{}\n\nMessages from others since the last task:\n{messages}", job.start.input)
            }
            Some(prompt) => {
                let context = prompt_context(job, schema);
                prompt.fill_text("prompt", &context).map_err(|e| permanent(format!("run.{e}")))?
            }
        };
        Ok(match &job.start.rejected {
            // As data, like the input: it may contain text of a verifier.
            Some(reason) if self.prompt.is_none() => {
                format!("{memory}{user}\n\nThe last result was rejected:\n{}", json!(reason))
            }
            _ => format!("{memory}{user}"),
        })
    }

    fn question(
        &self,
        job: &Job,
        schema: Option<&Value>,
        memory: &str,
    ) -> Result<CompletionRequest, Failure> {
        let run = &self.definition.run;
        let user = self.user(job, schema, memory)?;
        let wanted = run.response_format.unwrap_or(match schema {
            Some(_) => ResponseFormat::JsonSchema,
            None => ResponseFormat::JsonObject,
        });
        let format = match (wanted, schema) {
            (ResponseFormat::JsonSchema, Some(schema)) => Format::JsonSchema(schema.clone()),
            (ResponseFormat::Text, _) => Format::Text,
            (ResponseFormat::JsonSchema | ResponseFormat::JsonObject, _) => Format::JsonObject,
        };
        let mut system = run.instructions.clone().unwrap_or_default();
        // OpenAI refuses the format `json_object` unless the messages contain the word JSON.
        system.push_str("\n\nAnswer with one JSON value and nothing else.");
        if let (Some(schema), false) = (schema, matches!(format, Format::JsonSchema(_))) {
            system.push_str(&format!(" It must satisfy this JSON schema: {schema}"));
        }
        let max_tokens = self.tokens_left(system.len() + user.len())?;
        Ok(CompletionRequest {
            // Set for each model that it goes to.
            model: String::new(),
            system: system.trim_start().to_owned(),
            user,
            format,
            max_tokens,
            limit_member: run.limit_member,
            temperature: run.temperature,
            timeout: job.deadline.saturating_duration_since(Instant::now()),
        })
    }

    /// The most tokens of the answer: `run.answer_tokens`, and what `limits.tokens_per_task` leaves.
    fn tokens_left(&self, question_bytes: usize) -> Result<Option<u32>, Failure> {
        let most = self.definition.run.answer_tokens;
        let Some(limit) = self.definition.limits.tokens_per_task else { return Ok(most) };
        let question = u32::try_from(question_bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
        match limit.saturating_sub(question) {
            0 => Err(permanent(format!(
                "the question is about {question} tokens, over limits.tokens_per_task, {limit}"
            ))),
            left => Ok(Some(most.map_or(left, |most| most.min(left)))),
        }
    }

    /// The most usage of a question: no tokenizer makes more tokens than bytes.
    fn most(pricing: Pricing<'_>, question: &CompletionRequest, answer_tokens: u32) -> Usage {
        let schema = match &question.format {
            Format::JsonSchema(schema) => schema.to_string().len(),
            Format::Text | Format::JsonObject => 0,
        };
        let bytes = question.system.len() + question.user.len() + schema;
        let input = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(FRAME_TOKENS);
        pricing.most(input, u64::from(answer_tokens))
    }

    /// The usage of an answer. What the endpoint does not report is presumed to be the most that it may be.
    /// `limit`: the most tokens of the answer.
    fn usage(pricing: Pricing<'_>, question: &CompletionRequest, answer: &Answer, limit: u32) -> ModelUsage {
        let answer_tokens = u32::try_from(answer.text.len()).unwrap_or(u32::MAX);
        let most = Self::most(pricing, question, limit.max(answer_tokens));
        pricing.used(answer.counts(), answer.details, answer.model.as_deref(), most)
    }

    async fn result(&self, answer: &Answer, schema: Option<&Value>) -> Result<Value, Failure> {
        if answer.cut_off {
            return Err(permanent(
                "the answer was cut off at the limit of tokens: raise run.answer_tokens or limits.tokens_per_task",
            ));
        }
        result_in(&answer.text, schema, &self.schemas, self.definition.limits.output_bytes).await
    }
}

/// The result in the text of a model: the most likely value that fits the schema.
///
/// # Errors
/// The failure of the most likely value.
pub(in crate::agent) async fn result_in(
    text: &str,
    schema: Option<&Value>,
    schemas: &Schemas,
    bytes_max: usize,
) -> Result<Value, Failure> {
    let mut why = None;
    for found in candidates(text) {
        let result = match found {
            Ok(result) => result,
            Err(refused) => {
                why = why.or_else(|| Some(format!("the result cannot be kept: {refused}")));
                continue;
            }
        };
        let Some(schema) = schema else { return within_limits(result, bytes_max) };
        match schemas.fits(schema, &result).await.map_err(|e| retryable(e.to_string()))? {
            Ok(()) => return within_limits(result, bytes_max),
            // The validator's message quotes the model; its path and rule do not.
            Err(SchemaMismatch::Value { place, rule, .. }) => {
                let place = if place.is_empty() { "/".to_owned() } else { place };
                why = why
                    .or_else(|| Some(format!("result does not satisfy its schema: {place} breaks {rule}")));
            }
            Err(misfit) => return Err(permanent(misfit.to_string())),
        }
    }
    Err(retryable(why.unwrap_or_else(|| "result is no JSON".to_owned())))
}

fn within_limits(result: Value, bytes_max: usize) -> Result<Value, Failure> {
    if result.to_string().len() > bytes_max {
        return Err(permanent(format!("the result is over limits.output_bytes, {bytes_max} bytes")));
    }
    Ok(result)
}

fn prompt_context(job: &Job, schema: Option<&Value>) -> Context {
    let start = &job.start;
    let names = [
        ("input", start.input.clone()),
        ("kind", json!(start.kind)),
        ("task_id", json!(start.key.task_id)),
        ("attempt", json!(start.attempt)),
        ("checkpoint", json!(start.checkpoint)),
        ("result_schema", json!(schema)),
        ("messages", json!(job.messages())),
        ("answers", json!(start.answers)),
        ("rejected", json!(start.rejected)),
    ];
    Context::new(names.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

#[async_trait::async_trait]
impl Agent for Llm {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        let schema = job.start.result_schema.as_ref().or(self.definition.run.result_schema.as_ref());
        let memory = match &self.thread {
            None => String::new(),
            // Each time: another task may have come in front after a requeue of this one.
            Some(template) => match Box::pin(thread::turn(template, &job)).await? {
                Ok(memory) => memory,
                Err(deferred) => return Ok(deferred),
            },
        };
        if let Some(thinker) = &self.thinker {
            // Boxed: of the two, the begin of a run takes no room while it works.
            let session = Box::pin(Session::open(thinker, &job, || self.user(&job, schema, &memory))).await?;
            return Box::pin(session.run()).await;
        }
        let mut question = self.question(&job, schema, &memory)?;
        if job.budget().is_some() {
            // Without a limit of the answer there is nothing to reserve.
            question.max_tokens.get_or_insert(ANSWER_TOKENS_MAX);
        }
        let mut turns = self.choices.turns(&job, None);
        let mut usage = Usage::default();
        while let Some(choice) = turns.next() {
            question.model.clone_from(&choice.model.model);
            if let Some(answer) = self.ask(&job, &question, choice, &mut turns, &mut usage).await? {
                let result =
                    self.result(&answer, schema).await.map_err(|failure| Failure { usage, ..failure })?;
                return Ok(Finished::Result { result, usage });
            }
        }
        turns.end(usage)
    }
}

impl Llm {
    /// Asks one model, and adds what that used to `usage`. `None` if it could not answer, which `turns` is told.
    ///
    /// # Errors
    /// The failure of the job.
    async fn ask<'a>(
        &'a self,
        job: &Job,
        question: &CompletionRequest,
        choice: &'a Choice,
        turns: &mut Turns<'a>,
        usage: &mut Usage,
    ) -> Result<Option<Answer>, Failure> {
        let is_first = *usage == Usage::default();
        let (definition, models) = (&self.definition, &self.models);
        let pricing = Pricing { definition, choice: &choice.model, models, is_first, day: models.today() };
        let (name, context) = (&choice.model.model, choice.model.context_tokens);
        let limit = question.max_tokens.unwrap_or(ANSWER_TOKENS_MAX);
        let limit = choice.provider.answer_most(name, limit, context);
        let most = Self::most(pricing, question, limit);
        let asking = Asking::new(job, &choice.provider, pricing, most, *usage)?;
        asking.begin().await?;
        if let Some(deferred) = asking.deferral() {
            turns.deferred(choice, deferred);
            return Ok(None);
        }
        let shows = |activity| job.shows(activity);
        let priority = job.start.priority.into();
        let caller = turns.caller(Caller {
            shows: &shows,
            priority,
            meter: Some(&asking),
            traceparent: job.start.traceparent.map(String::from),
            ..self.definition.caller()
        });
        let answer = tokio::select! {
            answer = choice.provider.ask(question, &caller, job.deadline) => answer,
            () = job.stopped() => {
                asking.stopped().await;
                let stopped = retryable("the request to the model was stopped");
                return Err(Failure { usage: asking.used(), ..stopped });
            }
        };
        match answer {
            Ok(answer) => {
                asking.ended(&Self::usage(pricing, question, &answer, limit)).await;
                *usage = asking.used();
                Ok(Some(answer))
            }
            Err(error) => {
                asking.failed(&error).await;
                *usage = asking.used();
                let deferred = asking.deferral();
                turns.failed(choice, error, deferred);
                Ok(None)
            }
        }
    }
}
