//! One answer of a scripted model.
use serde_json::{Value, json};
use std::{fmt, sync::Arc, time::Duration};

/// Tokens of an answer unless [`Reply::usage`] says otherwise.
const INPUT_TOKENS: u64 = 100;
const OUTPUT_TOKENS: u64 = 10;

/// How a stream ends after its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The body ends.
    Body,
    /// The connection breaks.
    Reset,
    /// Nothing more comes, and the connection stays open.
    Hang,
}

/// The answer to one request: a message of the model, or a failure of its endpoint.
///
/// ```
/// use convoke::testing::{Reply, StreamEnd};
/// use serde_json::json;
/// use std::time::Duration;
///
/// let slow = Reply::text("an answer").after(Duration::from_millis(200)).usage(1_000, 50);
/// let cut = Reply::call("pay", json!({ "amount": 5 })).cut(StreamEnd::Reset);
/// let busy = Reply::status(503, "try again").header("retry-after", "2");
/// let for_one_model = Reply::finish(json!(1)).when(|request| request["model"] == "small");
/// # drop((slow, cut, busy, for_one_model));
/// ```
#[derive(Clone)]
pub struct Reply {
    pub(super) kind: Kind,
    pub(super) delay: Duration,
    pub(super) condition: Option<Condition>,
}

/// Whether a reply answers a request, by its body.
pub(super) type Condition = Arc<dyn Fn(&Value) -> bool + Send + Sync>;

#[derive(Clone)]
pub(super) enum Kind {
    Message(Message),
    /// The body of a whole answer.
    Body(Value),
    Events {
        events: Vec<String>,
        pause: Duration,
        end: StreamEnd,
    },
    Status {
        code: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    Hang,
    /// One after the other for the same turn.
    InTurn(Vec<Reply>),
}

/// A message of the model, in one piece or as a stream.
#[derive(Clone)]
pub(super) struct Message {
    content: Option<String>,
    calls: Vec<(String, Value)>,
    reasoning: Option<String>,
    model: Option<String>,
    usage: (u64, u64),
    stream: Option<Stream>,
}

#[derive(Clone, Copy)]
struct Stream {
    /// Whether the events that end an answer are sent.
    whole: bool,
    pause: Duration,
    end: StreamEnd,
}

impl Reply {
    fn of(kind: Kind) -> Self {
        Self { kind, delay: Duration::ZERO, condition: None }
    }

    fn message(content: Option<String>, calls: Vec<(String, Value)>) -> Self {
        let usage = (INPUT_TOKENS, OUTPUT_TOKENS);
        Self::of(Kind::Message(Message { content, calls, reasoning: None, model: None, usage, stream: None }))
    }

    /// A text without calls.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::message(Some(text.into()), Vec::new())
    }

    /// Calls one tool with these arguments.
    #[must_use]
    pub fn call(tool: impl Into<String>, arguments: Value) -> Self {
        Self::calls([(tool, arguments)])
    }

    /// Calls these tools in one answer. Their ids are `call_0`, `call_1` and so on, in every answer again.
    #[must_use]
    pub fn calls<N: Into<String>>(calls: impl IntoIterator<Item = (N, Value)>) -> Self {
        Self::message(None, calls.into_iter().map(|(name, arguments)| (name.into(), arguments)).collect())
    }

    /// Ends the task with this result. For a result whose schema has the type `object`, which is not wrapped in
    /// `{"result": …}`, use `Reply::call("finish", result)`.
    #[must_use]
    pub fn finish(result: Value) -> Self {
        Self::call("finish", json!({ "result": result }))
    }

    /// Ends the task without a result.
    #[must_use]
    pub fn give_up(reason: &str, retryable: bool) -> Self {
        Self::call("give_up", json!({ "reason": reason, "retryable": retryable }))
    }

    /// Asks a person.
    #[must_use]
    pub fn ask(question: &str) -> Self {
        Self::call("ask", json!({ "question": question }))
    }

    /// This body with status 200, whatever it is.
    #[must_use]
    pub fn body(body: Value) -> Self {
        Self::of(Kind::Body(body))
    }

    /// These texts as a stream of events, whatever they are: an event is `data: …` with two line ends.
    #[must_use]
    pub fn events(events: impl IntoIterator<Item = String>, end: StreamEnd) -> Self {
        let events = events.into_iter().collect();
        Self::of(Kind::Events { events, pause: Duration::ZERO, end })
    }

    /// An answer with this status, from 100 to 999.
    #[must_use]
    pub fn status(code: u16, body: impl Into<String>) -> Self {
        Self::of(Kind::Status { code, headers: Vec::new(), body: body.into() })
    }

    /// Status 429, with a time to wait in whole seconds, rounded up.
    #[must_use]
    pub fn limited(wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::status(429, "slow down").header("retry-after", &seconds.to_string())
    }

    /// No answer, and the connection stays open.
    #[must_use]
    pub fn hang() -> Self {
        Self::of(Kind::Hang)
    }

    /// Begins an answer and breaks the connection.
    #[must_use]
    pub fn reset() -> Self {
        Self::events([], StreamEnd::Reset)
    }

    /// One reply after the other if the same turn is asked again; the last one is repeated. In a script in order, the
    /// same as its replies.
    #[must_use]
    pub fn in_turn(replies: impl IntoIterator<Item = Self>) -> Self {
        Self::of(Kind::InTurn(replies.into_iter().collect()))
    }

    /// Waits before it answers.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Answers only requests whose body is `wanted`. Only for a script in order.
    #[must_use]
    pub fn when(mut self, wanted: impl Fn(&Value) -> bool + Send + Sync + 'static) -> Self {
        self.condition = Some(Arc::new(wanted));
        self
    }

    /// A header, if this is a reply with a status.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Kind::Status { headers, .. } = &mut self.kind {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Tokens of the prompt and of the answer, if this is a message. Defaults to 100 and 10.
    #[must_use]
    pub fn usage(self, input_tokens: u64, output_tokens: u64) -> Self {
        self.with(|message| message.usage = (input_tokens, output_tokens))
    }

    /// The name of the model in the answer, if this is a message. Defaults to that of the request.
    #[must_use]
    pub fn model(self, name: &str) -> Self {
        self.with(|message| message.model = Some(name.to_owned()))
    }

    /// What the model thought (`reasoning_content`), if this is a message.
    #[must_use]
    pub fn reasoning(self, text: &str) -> Self {
        self.with(|message| message.reasoning = Some(text.to_owned()))
    }

    /// As a stream of events, if this is a message.
    #[must_use]
    pub fn streamed(self) -> Self {
        self.as_stream(true, StreamEnd::Body)
    }

    /// As a stream after whose last event the connection stays open, if this is a message.
    #[must_use]
    pub fn left_open(self) -> Self {
        self.as_stream(true, StreamEnd::Hang)
    }

    /// As a stream without the events that end an answer, if this is a message.
    #[must_use]
    pub fn cut(self, end: StreamEnd) -> Self {
        self.as_stream(false, end)
    }

    /// Waits between the events, if this is a stream.
    #[must_use]
    pub fn pause(mut self, between: Duration) -> Self {
        match &mut self.kind {
            Kind::Message(Message { stream: Some(stream), .. }) => stream.pause = between,
            Kind::Events { pause, .. } => *pause = between,
            _ => {}
        }
        self
    }

    fn as_stream(self, whole: bool, end: StreamEnd) -> Self {
        self.with(|message| message.stream = Some(Stream { whole, pause: Duration::ZERO, end }))
    }

    fn with(mut self, change: impl FnOnce(&mut Message)) -> Self {
        if let Kind::Message(message) = &mut self.kind {
            change(message);
        }
        self
    }

    /// Some words about it, for reports of a script.
    pub(super) fn shown(&self) -> String {
        match &self.kind {
            Kind::Message(Message { calls, .. }) if !calls.is_empty() => {
                let names: Vec<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
                format!("a call of {}", names.join(", "))
            }
            Kind::Message(Message { content, .. }) => {
                format!("the text {:?}", content.as_deref().unwrap_or_default())
            }
            Kind::Body(_) => "a body".into(),
            Kind::Events { events, .. } => format!("a stream of {} events", events.len()),
            Kind::Status { code, .. } => format!("status {code}"),
            Kind::Hang => "no answer".into(),
            Kind::InTurn(replies) => format!("{} replies in turn", replies.len()),
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Message {
    /// The answer on the wire, for a request for this model.
    pub(super) fn kind(self, asked: &str) -> Kind {
        let model = self.model.clone().unwrap_or_else(|| asked.to_owned());
        match self.stream {
            None => Kind::Body(self.whole(&model)),
            Some(Stream { whole, pause, end }) => {
                let mut events = self.pieces(&model);
                if whole {
                    events.extend(self.end(&model));
                }
                Kind::Events { events, pause, end }
            }
        }
    }

    fn finish(&self) -> &'static str {
        if self.calls.is_empty() { "stop" } else { "tool_calls" }
    }

    fn usage(&self) -> Value {
        let (input, output) = self.usage;
        json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input.saturating_add(output) })
    }

    fn whole(&self, model: &str) -> Value {
        let mut message = json!({ "role": "assistant", "content": self.content });
        if let Some(reasoning) = &self.reasoning {
            message["reasoning_content"] = json!(reasoning);
        }
        if !self.calls.is_empty() {
            let call = |(place, (name, arguments)): (usize, &(String, Value))| {
                json!({ "index": place, "id": format!("call_{place}"), "type": "function",
                    "function": { "name": name, "arguments": arguments.to_string() } })
            };
            message["tool_calls"] = self.calls.iter().enumerate().map(call).collect();
        }
        let choice = json!({ "index": 0, "message": message, "finish_reason": self.finish() });
        json!({ "id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": model, "choices": [choice],
            "usage": self.usage() })
    }

    /// The events with the message: texts in two pieces, calls in three.
    fn pieces(&self, model: &str) -> Vec<String> {
        let mut deltas = vec![json!({ "role": "assistant" })];
        let texts = [("reasoning_content", &self.reasoning), ("content", &self.content)];
        for (member, text) in texts.into_iter().filter_map(|(member, text)| Some((member, text.as_ref()?))) {
            let (first, second) = halves(text);
            deltas.push(json!({ member: first }));
            deltas.push(json!({ member: second }));
        }
        for (place, (name, arguments)) in self.calls.iter().enumerate() {
            let arguments = arguments.to_string();
            let (first, second) = halves(&arguments);
            let call = |call: Value| json!({ "tool_calls": [call] });
            let function = json!({ "name": name, "arguments": "" });
            deltas.push(call(
                json!({ "index": place, "id": format!("call_{place}"), "type": "function", "function": function }),
            ));
            for piece in [first, second] {
                deltas.push(call(json!({ "index": place, "function": { "arguments": piece } })));
            }
        }
        let choice = |delta: Value| event(model, &json!([{ "index": 0, "delta": delta }]), None);
        deltas.into_iter().map(choice).collect()
    }

    /// The events that end an answer.
    fn end(&self, model: &str) -> [String; 3] {
        let finish = json!([{ "index": 0, "delta": {}, "finish_reason": self.finish() }]);
        let usage = event(model, &json!([]), Some(self.usage()));
        [event(model, &finish, None), usage, "data: [DONE]\n\n".to_owned()]
    }
}

fn event(model: &str, choices: &Value, usage: Option<Value>) -> String {
    let mut chunk = json!({ "id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": model,
        "choices": choices });
    if let Some(usage) = usage {
        chunk["usage"] = usage;
    }
    format!("data: {chunk}\n\n")
}

/// Two pieces of a text, cut near its middle.
fn halves(text: &str) -> (&str, &str) {
    let middle = (text.len() / 2..=text.len()).find(|at| text.is_char_boundary(*at));
    text.split_at(middle.unwrap_or_default())
}
