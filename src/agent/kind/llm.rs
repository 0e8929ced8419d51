//! `kind = "llm"`: a model answers each task with JSON.
//!
//! It is told the `instructions` and the input (or what `prompt` makes of it),
//! and asked for JSON: by schema where the task or the file has one. The answer
//! is checked here whatever the endpoint promises. Tokens come from the usage
//! that the endpoint reports, money from `price`; both are charged for failures
//! too. No word of the model becomes part of a failure.
use super::Parts;
use crate::{
    agent::{
        Agent, Definition, Finished, Job, ResponseFormat,
        job::{permanent, retryable},
        wake::{BadTemplate, Context, Template},
    },
    llm::{Answer, Error, Format, Provider, Question},
    task::{Failure, Usage},
};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// What a prompt may name.
const NAMES: [&str; 9] =
    ["input", "kind", "task_id", "attempt", "checkpoint", "result_schema", "messages", "answers", "rejected"];
/// Bytes of text that count as a token before the endpoint has counted.
const BYTES_PER_TOKEN: usize = 4;
/// Most tokens of an answer that counts to a budget, where `limits.tokens_per_task` does not say.
const ANSWER_TOKENS_MAX: u32 = 4_096;
/// Tokens that an endpoint puts around a question.
pub(super) const FRAME_TOKENS: u64 = 64;

/// An agent that is a model with instructions.
pub(crate) struct Llm {
    definition: Arc<Definition>,
    provider: Provider,
    prompt: Option<Template>,
}

/// Reads the template of a prompt.
pub(crate) fn prompt_template(text: &str) -> Result<Template, BadTemplate> {
    Template::parse(&Value::String(text.to_owned()), "prompt", &NAMES)
}

impl Llm {
    pub(crate) fn new(definition: Arc<Definition>, parts: &Parts) -> Result<Self, String> {
        let endpoint = definition.run.endpoint(&parts.env)?;
        let provider = parts.models.at(&endpoint.base_url, endpoint.api_key).map_err(|e| e.to_string())?;
        let prompt = definition.run.prompt.as_deref().map(prompt_template).transpose();
        Ok(Self { prompt: prompt.map_err(|e| e.to_string())?, provider, definition })
    }

    fn question(&self, job: &Job, schema: Option<&Value>) -> Result<Question, Failure> {
        let run = &self.definition.run;
        let user = match &self.prompt {
            None if job.messages().is_empty() => job.start.input.to_string(),
            None => {
                // Data, like the input: what others say is no instruction.
                let messages = json!(job.messages());
                format!("{}\n\nMessages from others since the last task:\n{messages}", job.start.input)
            }
            Some(prompt) => {
                let context = prompt_context(job, schema);
                prompt.fill_text("prompt", &context).map_err(|e| permanent(format!("run.{e}")))?
            }
        };
        let user = match &job.start.rejected {
            // Data, like the input: it may hold words of a verifier.
            Some(reason) if self.prompt.is_none() => {
                format!("{user}\n\nThe last result was rejected:\n{}", json!(reason))
            }
            _ => user,
        };
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
        // OpenAI refuses to be asked for an object unless the word JSON is there.
        system.push_str("\n\nAnswer with one JSON value and nothing else.");
        if let (Some(schema), false) = (schema, matches!(format, Format::JsonSchema(_))) {
            system.push_str(&format!(" It must satisfy this JSON schema: {schema}"));
        }
        let max_tokens = self.tokens_left(system.len() + user.len())?;
        Ok(Question {
            model: run.model.clone().unwrap_or_default(),
            system: system.trim_start().to_owned(),
            user,
            format,
            max_tokens,
            temperature: run.temperature,
            timeout: job.deadline.saturating_duration_since(Instant::now()),
        })
    }

    /// What `limits.tokens_per_task` leaves for the answer.
    fn tokens_left(&self, question_bytes: usize) -> Result<Option<u32>, Failure> {
        let Some(limit) = self.definition.limits.tokens_per_task else { return Ok(None) };
        let question = u32::try_from(question_bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
        match limit.saturating_sub(question) {
            0 => Err(permanent(format!(
                "the question is about {question} tokens, over limits.tokens_per_task, {limit}"
            ))),
            left => Ok(Some(left)),
        }
    }

    /// The most that asking may use: no tokenizer makes more tokens than there are bytes.
    fn most(&self, question: &Question, answer_tokens: u32) -> Usage {
        let schema = match &question.format {
            Format::JsonSchema(schema) => schema.to_string().len(),
            Format::Text | Format::JsonObject => 0,
        };
        let bytes = question.system.len() + question.user.len() + schema;
        let input = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(FRAME_TOKENS);
        let microdollars = match self.definition.run.price {
            Some(price) => price.of(input, u64::from(answer_tokens)),
            None => self.definition.offer.cost_microdollars,
        };
        Usage { tokens: input.saturating_add(u64::from(answer_tokens)), microdollars }
    }

    fn usage(&self, answer: &Answer) -> Usage {
        let microdollars = match self.definition.run.price {
            Some(price) => price.of(answer.input_tokens, answer.output_tokens),
            None => self.definition.offer.cost_microdollars,
        };
        Usage { tokens: answer.input_tokens.saturating_add(answer.output_tokens), microdollars }
    }

    fn result(&self, answer: &Answer, schema: Option<&Value>) -> Result<Value, Failure> {
        if answer.cut_off {
            return Err(permanent(
                "the answer was cut off at the limit of tokens: raise limits.tokens_per_task",
            ));
        }
        let text = without_fence(&answer.text);
        let result: Value = serde_json::from_str(text).map_err(|_| retryable("result is no JSON"))?;
        let bytes_max = self.definition.limits.output_bytes;
        if text.len() > bytes_max {
            return Err(permanent(format!("the result is over limits.output_bytes, {bytes_max} bytes")));
        }
        let Some(schema) = schema else { return Ok(result) };
        let validator =
            jsonschema::validator_for(schema).map_err(|_| permanent("the result schema is none"))?;
        if let Err(e) = validator.validate(&result) {
            // The message would quote the model; the place and the rule do not.
            let (place, rule) = (e.instance_path().to_string(), e.schema_path().to_string());
            let place = if place.is_empty() { "/".to_owned() } else { place };
            return Err(retryable(format!("result does not satisfy its schema: {place} breaks {rule}")));
        }
        Ok(result)
    }
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

/// The text without the fence that models like to put around JSON.
pub(super) fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let inside = inside.map(|rest| rest.strip_prefix("json").unwrap_or(rest).trim());
    inside.unwrap_or(text)
}

fn failure(error: Error) -> Failure {
    if error.is_permanent() { permanent(error.to_string()) } else { retryable(error.to_string()) }
}

#[async_trait::async_trait]
impl Agent for Llm {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        let schema = job.start.result_schema.as_ref().or(self.definition.run.result_schema.as_ref());
        let mut question = self.question(&job, schema)?;
        if let Some(purse) = job.purse() {
            // What nobody limits cannot be reserved.
            let answer = *question.max_tokens.get_or_insert(ANSWER_TOKENS_MAX);
            purse.reserve(self.most(&question, answer)).await?;
        }
        let answer = tokio::select! {
            answer = self.provider.ask(&question, job.deadline) => answer.map_err(failure)?,
            () = job.stopped() => return Err(retryable("the request to the model was stopped")),
        };
        let usage = self.usage(&answer);
        let result = self.result(&answer, schema).map_err(|failure| Failure { usage, ..failure })?;
        Ok(Finished::Result { result, usage })
    }
}
