//! A conversation with tools: messages as they are sent, and an answer as it is received.
use super::{
    Error, Format, InOrder, LimitMember, TokenCounts, UsageDetails,
    stream::from_timings,
    usage::{Reported, counts},
};
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Longest `finish_reason` and name of a model that is kept, in characters.
pub(super) const WORD_CHARS_MAX: usize = 64;

/// A request of a conversation. The same request has the same bytes.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// Name of the model at its endpoint.
    pub model: String,
    /// Messages in order, the system message first.
    pub messages: Vec<Value>,
    /// Tools in the form of the endpoint. Empty for none.
    pub tools: Arc<[Value]>,
    /// Whether the model must call a tool.
    pub tool_required: bool,
    /// Required form of a text answer.
    pub format: Format,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// The member that limits them. `None` for that of the endpoint.
    pub limit_member: Option<LimitMember>,
    /// What questions with the same beginning have in common, for the cache of OpenAI's own endpoint, which alone is
    /// sent it.
    pub cache_key: Option<Arc<str>>,
    /// 0 to 2. Defaults to the endpoint's own.
    pub temperature: Option<f32>,
    /// Timeout of one attempt.
    pub timeout: Duration,
    /// How the answer is streamed. `None` for a whole answer.
    pub streaming: Option<Streaming>,
}

/// How an answer is streamed.
#[derive(Clone, Debug)]
pub struct Streaming {
    /// Longest wait for the first byte of the body.
    pub first_byte: Duration,
    /// Longest silence between bytes; a comment of the endpoint counts as bytes.
    pub silence: Duration,
    /// How many parts of the answer have come.
    pub parts: watch::Sender<u64>,
}

impl Streaming {
    /// Streams with the limits of most endpoints: 60 seconds.
    #[must_use]
    pub fn usual() -> Self {
        let minute = Duration::from_secs(60);
        Self { first_byte: minute, silence: minute, parts: watch::Sender::new(0) }
    }
}

/// The answer of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatAnswer {
    /// The assistant message as received, with members that this program does not know.
    pub message: Value,
    /// `finish_reason`, if it is a text.
    pub finish: Option<String>,
    /// The model that the endpoint names.
    pub model: Option<String>,
    /// Tokens of the prompt, as counted by the endpoint; `None` if the count is missing or unreadable.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer, likewise. At least the difference of total and prompt: some endpoints leave reasoning out.
    pub output_tokens: Option<u64>,
    /// The parts of these counts, and the cost that the endpoint names.
    pub details: UsageDetails,
    /// The id of the request in the headers of the answer.
    pub request_id: Option<String>,
}

impl ChatRequest {
    /// The body, for OpenAI's own endpoint or another one: its schemas have their properties in the order of `required`.
    #[must_use]
    pub fn body(&self, is_openai: bool) -> String {
        InOrder(&self.members(is_openai)).to_string()
    }

    fn members(&self, is_openai: bool) -> Value {
        let limit = LimitMember::of(self.limit_member, is_openai).as_str();
        let mut body: Map<String, Value> = Map::new();
        body.insert("model".into(), json!(self.model));
        body.insert("messages".into(), json!(self.messages));
        body.insert("stream".into(), json!(self.streaming.is_some()));
        if self.streaming.is_some() {
            body.insert("stream_options".into(), json!({ "include_usage": true }));
        }
        body.insert(limit.into(), json!(self.max_tokens));
        if !self.tools.is_empty() {
            body.insert("tools".into(), json!(&*self.tools));
            body.insert("tool_choice".into(), json!(if self.tool_required { "required" } else { "auto" }));
        }
        body.extend(self.format.member().map(|format| ("response_format".to_owned(), format)));
        body.extend(self.temperature.map(|t| ("temperature".to_owned(), super::rounded(t))));
        let cache_key = self.cache_key.as_ref().filter(|_| is_openai);
        body.extend(cache_key.map(|key| ("prompt_cache_key".to_owned(), json!(key))));
        Value::Object(body)
    }
}

impl ChatAnswer {
    /// Reads a chat completion.
    ///
    /// # Errors
    /// `InvalidAnswer` if it has no choice with a message.
    pub(super) fn read(mut completion: Value) -> Result<Self, Error> {
        if let Some(error) = Error::in_body(&completion) {
            return Err(error);
        }
        let timings = || completion.get("timings").and_then(from_timings);
        let usage = completion.get("usage").filter(|usage| usage.get("prompt_tokens").is_some()).cloned();
        let usage = usage.or_else(timings).unwrap_or_default();
        let Reported { input, output, details } = Reported::read(&usage);
        // No control characters: a database cannot store U+0000.
        let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        let word =
            |value: Option<&Value>| Some(value?.as_str()?.chars().take(WORD_CHARS_MAX).map(plain).collect());
        let model = word(completion.get("model"));
        let choices = completion.get_mut("choices").and_then(Value::as_array_mut);
        let choices = choices.ok_or(Error::InvalidAnswer("it has no choices with messages"))?;
        let choice = choices.first_mut().ok_or(Error::InvalidAnswer("it has no choice"))?;
        let finish = word(choice.get("finish_reason"));
        let message = choice.get_mut("message").map(Value::take).filter(Value::is_object);
        let message = message.ok_or(Error::InvalidAnswer("it has no choices with messages"))?;
        let (input_tokens, output_tokens) = (input, output);
        // The headers are not read here.
        Ok(Self { message, finish, model, input_tokens, output_tokens, details, request_id: None })
    }

    /// All counts of its tokens. `None` if one of the two wholes is missing.
    #[must_use]
    pub fn counts(&self) -> Option<TokenCounts> {
        counts(self.input_tokens, self.output_tokens, self.details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ChatRequest {
        ChatRequest {
            model: "m".into(),
            messages: vec![json!({ "role": "user", "content": "x" })],
            tools: Arc::default(),
            tool_required: false,
            format: Format::Text,
            max_tokens: 7,
            limit_member: None,
            cache_key: Some("k".into()),
            temperature: Some(0.2),
            timeout: Duration::from_secs(1),
            streaming: None,
        }
    }

    #[test]
    fn body_has_only_the_members_that_are_needed() {
        let plain = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }], "stream": false,
            "max_tokens": 7, "temperature": 0.2 });
        assert_eq!(request().members(false), plain);
        let with_tools =
            ChatRequest { tools: Arc::new([json!(1)]), tool_required: true, ..request() }.members(true);
        assert_eq!((&with_tools["tool_choice"], &with_tools["tools"]), (&json!("required"), &json!([1])));
        assert_eq!((&with_tools["max_completion_tokens"], with_tools.get("max_tokens")), (&json!(7), None));
        assert_eq!(with_tools["prompt_cache_key"], "k");
        let streamed = ChatRequest { streaming: Some(Streaming::usual()), ..request() }.members(true);
        assert_eq!(
            (&streamed["stream"], &streamed["stream_options"]),
            (&json!(true), &json!({ "include_usage": true }))
        );
    }

    #[test]
    fn limit_has_the_member_of_the_endpoint_unless_the_agent_names_one() {
        let named = |limit_member, is_openai| {
            let body = ChatRequest { limit_member, ..request() }.members(is_openai);
            let names = ["max_tokens", "max_completion_tokens"];
            names.into_iter().filter(|name| body.get(name).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(
            (named(None, false), named(None, true)),
            (vec!["max_tokens"], vec!["max_completion_tokens"])
        );
        for is_openai in [false, true] {
            assert_eq!(named(Some(LimitMember::MaxTokens), is_openai), ["max_tokens"]);
            assert_eq!(named(Some(LimitMember::MaxCompletionTokens), is_openai), ["max_completion_tokens"]);
        }
    }

    #[test]
    fn schema_is_sent_in_the_order_of_required() {
        let schema =
            json!({ "required": ["tool", "arguments"], "properties": { "arguments": {}, "tool": {} } });
        let tools = Arc::new([json!({ "function": { "parameters": schema } })]);
        let body = ChatRequest { format: Format::JsonSchema(schema), tools, ..request() }.body(false);
        assert_eq!(body.matches("\"properties\":{\"tool\":{},\"arguments\":{}}").count(), 2, "{body}");
    }

    #[test]
    fn answer_keeps_members_that_are_unknown() {
        let message = json!({ "role": "assistant", "content": null, "reasoning": "r", "tool_calls": [] });
        let completion = json!({ "model": "m-1", "choices": [{ "message": message, "finish_reason": "eos" }],
            "usage": { "prompt_tokens": 10, "completion_tokens": 3.2, "total_tokens": 19 } });
        let answer = ChatAnswer::read(completion).unwrap();
        assert_eq!((answer.message, answer.finish.as_deref()), (message, Some("eos")));
        assert_eq!((answer.input_tokens, answer.output_tokens), (Some(10), Some(9)));
        assert_eq!(answer.model.as_deref(), Some("m-1"));
    }

    #[test]
    fn wrong_type_of_every_member_is_an_error_or_absent() {
        let read = |completion: Value| ChatAnswer::read(completion).map_err(|error| error.to_string());
        let choice = json!([{ "message": { "content": "x" } }]);
        for odd in [json!(null), json!(7), json!("x"), json!([1]), json!({ "a": 1 })] {
            assert!(read(odd.clone()).is_err());
            assert!(read(json!({ "choices": odd })).is_err(), "{odd}");
            assert!(read(json!({ "choices": [odd] })).is_err(), "{odd}");
            let answer = read(json!({ "choices": choice, "usage": odd, "model": odd })).unwrap();
            assert_eq!(
                (answer.input_tokens, answer.output_tokens, answer.finish),
                (None, None, None),
                "{odd}"
            );
            let message = read(json!({ "choices": [{ "message": odd }] }));
            assert_eq!(message.is_ok(), odd.is_object(), "{odd}");
        }
        let error = json!({ "choices": choice, "error": { "message": "secret", "code": 429 } });
        assert_eq!(read(error).unwrap_err(), "model endpoint is over its rate limit (429)");
    }
}
