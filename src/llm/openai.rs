//! A model behind an OpenAI-compatible endpoint.
use super::{Answer, Clients, Error, Format, Model, Question, transport::Plain};
use crate::clock::Clock;
use async_openai::{Client, config::Config, error::OpenAIError};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

/// A model behind `base_url`. Clones share connections.
#[derive(Clone)]
pub struct OpenAi {
    client: Client<Endpoint>,
}

/// Where and with which key; unlike async-openai's own settings it never looks at the environment.
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

/// The parts of a chat completion that matter; compatible servers leave out many of the others.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}
#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}
#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl OpenAi {
    /// The endpoint at `base_url` (up to and with `/v1`); without a key no `Authorization` is sent.
    ///
    /// # Errors
    /// Why no HTTP client can be made.
    pub fn new(
        base_url: &str,
        key: Option<SecretString>,
        clients: &Clients,
        clock: Clock,
    ) -> Result<Self, Error> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let client = clients.for_url(&base_url).map_err(|reason| Error::Unreachable { reason })?;
        let endpoint = Endpoint { base_url, key: key.unwrap_or_default() };
        let transport = Plain { client: client.clone(), clock };
        Ok(Self { client: Client::build(client, endpoint).with_http_service(transport) })
    }

    /// The request as JSON. Only OpenAI itself wants the newer name of the token limit; the others know the old.
    fn body(&self, question: &Question) -> Value {
        let mut body = json!({
            "model": question.model,
            "messages": [
                { "role": "system", "content": question.system },
                { "role": "user", "content": question.user },
            ],
            "stream": false,
        });
        let own = self.client.config().base_url.contains("://api.openai.com");
        let limit = if own { "max_completion_tokens" } else { "max_tokens" };
        let format = match &question.format {
            Format::Text => None,
            Format::JsonObject => Some(json!({ "type": "json_object" })),
            Format::JsonSchema(schema) => {
                Some(json!({ "type": "json_schema", "json_schema": { "name": "result", "schema": schema } }))
            }
        };
        if let Value::Object(members) = &mut body {
            members.extend(format.map(|format| ("response_format".to_owned(), format)));
            members.extend(question.max_tokens.map(|most| (limit.to_owned(), json!(most))));
            // As a decimal of six digits, or 0.2 would be sent as 0.20000000298.
            let temperature = question.temperature.map(|t| (f64::from(t) * 1e6).round() / 1e6);
            members.extend(temperature.map(|t| ("temperature".to_owned(), json!(t))));
        }
        body
    }
}

#[async_trait::async_trait]
impl Model for OpenAi {
    async fn ask(&self, question: &Question) -> Result<Answer, Error> {
        let chat = self.client.chat();
        let asked = chat.create_byot::<Value, Value>(self.body(question));
        let answer = tokio::time::timeout(question.timeout, asked).await;
        let answer = answer.map_err(|_| Error::Timeout(question.timeout))?.map_err(own_error)?;
        let completion: Completion =
            serde_json::from_value(answer).map_err(|_| Error::Rubbish("it has no choices with messages"))?;
        let choice = completion.choices.into_iter().next().ok_or(Error::Rubbish("it has no choice"))?;
        let usage = completion.usage.unwrap_or_default();
        Ok(Answer {
            text: choice.message.content.unwrap_or_default(),
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
            cut_off: choice.finish_reason.as_deref() == Some("length"),
        })
    }
}

/// What the transport put into async-openai's box.
fn own_error(error: OpenAIError) -> Error {
    match error {
        OpenAIError::Boxed(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(_) => Error::Unreachable { reason: "the transport failed".into() },
        },
        OpenAIError::Reqwest(e) => Error::Unreachable { reason: super::transport::innermost(&e) },
        OpenAIError::JSONDeserialize(..) => Error::Rubbish("it is no JSON"),
        OpenAIError::ApiError(e) => Error::Rejected { status: e.status_code.as_u16() },
        _ => Error::Rejected { status: 400 },
    }
}
