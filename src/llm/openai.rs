//! A model behind an OpenAI-compatible endpoint.
use super::{
    Answer, ChatAnswer, ChatRequest, Clients, CompletionRequest, Error, InOrder, LimitMember, Model,
    StreamDecoder, Streaming,
    chat::WORD_CHARS_MAX,
    read_body, reported,
    transport::{ANSWER_BYTES_MAX, Plain, broken, successful},
    usage::Reported,
};
use crate::clock::Clock;
use async_openai::{Client, config::Config, error::OpenAIError};
use futures_util::StreamExt;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long the usage is waited for after the end of a message.
const USAGE_WAIT: Duration = Duration::from_secs(2);

/// A model behind `base_url`. Clones share connections.
#[derive(Clone)]
pub struct OpenAi {
    client: Client<Endpoint>,
    /// For streams, which have a decoder of our own.
    http: reqwest::Client,
    clock: Clock,
}

/// Address and key. Unlike async-openai's own configuration, it never reads environment variables.
#[derive(Clone, Debug)]
struct Endpoint {
    base_url: String,
    key: SecretString,
}

impl Config for Endpoint {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let key = self.key.expose_secret();
        if !key.is_empty()
            && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {key}"))
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers
    }
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }
    fn query(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }
    fn api_base(&self) -> &str {
        &self.base_url
    }
    fn api_key(&self) -> &SecretString {
        &self.key
    }
}

/// The parts of a chat completion that are used; compatible servers omit many others.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    /// Parsed leniently: an unusual count must not lose the answer.
    #[serde(default)]
    usage: Value,
    #[serde(default)]
    model: Value,
}
#[derive(Deserialize)]
struct Choice {
    message: ChatMessage,
    #[serde(default)]
    finish_reason: Option<String>,
}
#[derive(Deserialize)]
struct ChatMessage {
    #[serde(default)]
    content: Value,
}

/// Returns the text of a message: a string, or the concatenation of its parts of type `text`.
fn words(content: Value) -> String {
    match content {
        Value::String(text) => text,
        Value::Array(parts) => {
            let is_text = |part: &Value| {
                let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
                matches!(kind, "text" | "output_text")
            };
            let text = |part: &Value| match part {
                Value::String(text) => Some(text.clone()),
                part if is_text(part) => Some(part.get("text")?.as_str()?.to_owned()),
                _ => None,
            };
            parts.iter().filter_map(text).collect()
        }
        _ => String::new(),
    }
}

impl OpenAi {
    /// Creates a model at `base_url` (including `/v1`). Without a key no `Authorization` is sent.
    ///
    /// # Errors
    /// If no HTTP client can be created.
    pub fn new(
        base_url: &str,
        key: Option<SecretString>,
        clients: &Clients,
        clock: Clock,
    ) -> Result<Self, Error> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let client = clients.for_url(&base_url).map_err(|reason| Error::Unreachable { reason })?;
        let endpoint = Endpoint { base_url, key: key.unwrap_or_default() };
        let transport = Plain { client: client.clone(), clock: clock.clone() };
        let http = client.clone();
        Ok(Self { client: Client::build(client, endpoint).with_http_service(transport), http, clock })
    }

    /// Builds the request.
    fn body(&self, question: &CompletionRequest) -> Value {
        let mut body = json!({
            "model": question.model,
            "messages": [
                { "role": "system", "content": question.system },
                { "role": "user", "content": question.user },
            ],
            "stream": false,
        });
        let limit = LimitMember::of(question.limit_member, self.is_openai()).as_str();
        if let Value::Object(members) = &mut body {
            members.extend(question.format.member().map(|format| ("response_format".to_owned(), format)));
            members.extend(question.max_tokens.map(|most| (limit.to_owned(), json!(most))));
            members.extend(question.temperature.map(|t| ("temperature".to_owned(), super::rounded(t))));
        }
        body
    }

    /// Whether the endpoint is OpenAI's own.
    fn is_openai(&self) -> bool {
        self.client.config().base_url.contains("://api.openai.com")
    }

    /// Sends one request and waits for its whole answer.
    async fn send(&self, body: String, timeout: Duration) -> Result<Value, Error> {
        let chat = self.client.chat();
        let body =
            RawValue::from_string(body).map_err(|_| Error::InvalidAnswer("its question is no JSON"))?;
        let asked = tokio::time::timeout(timeout, chat.create_byot::<Box<RawValue>, Value>(body)).await;
        asked.map_err(|_| Error::Timeout(timeout))?.map_err(own_error)
    }
}

impl OpenAi {
    /// Sends one request and reads its answer as it comes. Dropping the future closes the connection.
    async fn stream(&self, body: String, streaming: &Streaming) -> Result<Value, Error> {
        let endpoint = self.client.config();
        let mut headers = endpoint.headers();
        reported::add_traceparent(&mut headers);
        let request = self.http.post(endpoint.url("/chat/completions")).headers(headers);
        let request = request.header(CONTENT_TYPE, "application/json").body(body).send();
        let begun = Instant::now();
        let late = |_| Error::Timeout(streaming.first_byte);
        let response = timeout(streaming.first_byte, request).await.map_err(late)?.map_err(|e| broken(&e))?;
        let response = successful(response, &self.clock).await?;
        let kind =
            response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/json") {
            // An endpoint that does not stream.
            let body = read_body(response, ANSWER_BYTES_MAX).await.map_err(|e| broken(&e))?;
            let body = body.ok_or(Error::InvalidAnswer("it is over 4 MiB"))?;
            return serde_json::from_slice(&body).map_err(|_| Error::InvalidAnswer("it is no JSON"));
        }
        let (mut decoder, mut bytes) = (StreamDecoder::default(), response.bytes_stream());
        let (mut wait, mut silent) =
            (streaming.first_byte.saturating_sub(begun.elapsed()), Error::Timeout(streaming.first_byte));
        while !decoder.is_done() {
            let ends_anyway = decoder.is_finished();
            match timeout(if ends_anyway { USAGE_WAIT } else { wait }, bytes.next()).await {
                Ok(Some(Ok(chunk))) => {
                    reported::first_byte();
                    decoder.feed(&chunk)?;
                }
                Ok(Some(Err(e))) if !ends_anyway => return Err(broken(&e)),
                Err(_) if !ends_anyway => return Err(silent),
                Ok(None | Some(Err(_))) | Err(_) => break,
            }
            wait = streaming.silence;
            let silence = humantime::format_duration(wait);
            silent = Error::Broken { reason: format!("nothing came for {silence}") };
            streaming.parts.send_replace(decoder.parts());
        }
        decoder.end()
    }
}

#[async_trait::async_trait]
impl Model for OpenAi {
    async fn ask(&self, question: &CompletionRequest) -> Result<Answer, Error> {
        let answer = self.send(InOrder(&self.body(question)).to_string(), question.timeout).await?;
        let completion: Completion = serde_json::from_value(answer)
            .map_err(|_| Error::InvalidAnswer("it has no choices with messages"))?;
        let choice = completion.choices.into_iter().next().ok_or(Error::InvalidAnswer("it has no choice"))?;
        let Reported { input, output, details } = Reported::read(&completion.usage);
        Ok(Answer {
            text: words(choice.message.content),
            model: completion.model.as_str().map(|name| name.chars().take(WORD_CHARS_MAX).collect()),
            input_tokens: input,
            output_tokens: output,
            details,
            cut_off: choice.finish_reason.as_deref() == Some("length"),
        })
    }

    async fn chat(&self, question: &ChatRequest) -> Result<ChatAnswer, Error> {
        if let Some(streaming) = &question.streaming {
            // As text: the values of a long history take many times its size, for as long as the model answers.
            let body = question.body(self.is_openai());
            let answer = self.stream(body, streaming);
            let answer = tokio::time::timeout(question.timeout, answer).await;
            return ChatAnswer::read(answer.map_err(|_| Error::Timeout(question.timeout))??);
        }
        ChatAnswer::read(self.send(question.body(self.is_openai()), question.timeout).await?)
    }
}

/// Unwraps the error that the transport boxed.
fn own_error(error: OpenAIError) -> Error {
    match error {
        OpenAIError::Boxed(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(_) => Error::Unreachable { reason: "the transport failed".into() },
        },
        OpenAIError::Reqwest(e) => super::transport::broken(&e),
        OpenAIError::JSONDeserialize(..) => Error::InvalidAnswer("it is no JSON"),
        OpenAIError::ApiError(e) => Error::Rejected { status: e.status_code.as_u16() },
        _ => Error::Rejected { status: 400 },
    }
}
