//! The decoder of a streamed chat completion: bytes in, a whole completion out. Pure.
//!
//! Two layers: lines to events (`text/event-stream`), and chunks to one message. Endpoints differ in both, so nothing
//! but the data of an event is believed, and any split of the bytes gives the same completion. A stream that ends
//! without a `finish_reason` or `[DONE]` is cut: nothing of it is used.
mod message;
mod repeats;

use super::Error;
use message::Message;
use serde_json::{Map, Value, json};

/// Most bytes of one event.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a stream.
const STREAM_BYTES_MAX: usize = 4 << 20;

const NO_JSON: &str = "an event of it is no JSON";

/// Puts the chunks of a streamed completion together.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    /// The line so far.
    line: Vec<u8>,
    /// The data of the event so far.
    data: Vec<u8>,
    has_data: bool,
    /// Whether the event is one that only keeps the connection alive.
    is_ping: bool,
    /// Whether the last byte was a carriage return: a line feed behind it is part of it.
    after_return: bool,
    bytes: usize,
    completion: Completion,
}

/// What the chunks have said.
#[derive(Debug, Default)]
struct Completion {
    model: Option<Value>,
    usage: Option<Value>,
    finish: Option<String>,
    message: Message,
    chunks: u64,
    is_done: bool,
}

impl StreamDecoder {
    /// Takes the next bytes. What follows `[DONE]` is ignored.
    ///
    /// # Errors
    /// The error that the endpoint reports in the stream; `InvalidAnswer` for anything that is no chunk, and for an
    /// event or a stream over its limit.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > STREAM_BYTES_MAX {
            return Err(Error::InvalidAnswer("it is over 4 MiB"));
        }
        for &byte in bytes {
            if self.completion.is_done {
                return Ok(());
            }
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line()?,
                _ if self.line.len() + self.data.len() >= EVENT_BYTES_MAX => {
                    return Err(Error::InvalidAnswer("an event of it is over 1 MiB"));
                }
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// Whether the endpoint has said that nothing follows.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.completion.is_done
    }

    /// Whether the message is complete: what may follow is its usage.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.completion.finish.is_some()
    }

    /// How many chunks had a part of the message. The endpoint has made at least so many tokens.
    #[must_use]
    pub fn parts(&self) -> u64 {
        self.completion.chunks
    }

    /// The completion in the form of one that was not streamed.
    ///
    /// # Errors
    /// `Broken` if the stream was cut; those of [`Self::feed`] for a last event without its blank line.
    pub fn end(mut self) -> Result<Value, Error> {
        if !self.completion.is_done {
            // The last line, and the last event, may lack their ends. One that is no JSON was cut itself.
            match self.end_line().and_then(|()| self.end_event()) {
                Ok(()) | Err(Error::InvalidAnswer(NO_JSON)) => {}
                Err(error) => return Err(error),
            }
        }
        let Completion { model, usage, finish, message, is_done, .. } = self.completion;
        if !is_done && finish.is_none() {
            return Err(Error::Broken { reason: "the stream ended before the answer".into() });
        }
        let choice = json!({ "index": 0, "message": message.whole(), "finish_reason": finish });
        let mut completion: Map<String, Value> = Map::new();
        completion.insert("choices".into(), json!([choice]));
        completion.extend(model.map(|model| ("model".to_owned(), model)));
        completion.extend(usage.map(|usage| ("usage".to_owned(), usage)));
        Ok(Value::Object(completion))
    }

    fn end_line(&mut self) -> Result<(), Error> {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line);
        if line.is_empty() {
            return self.end_event();
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.is_ping = matches!(value, b"ping" | b"keepalive" | b"keep-alive"),
            // A comment, or a field that means nothing here.
            _ => {}
        }
        Ok(())
    }

    fn end_event(&mut self) -> Result<(), Error> {
        let data = std::mem::take(&mut self.data);
        let has_data = std::mem::take(&mut self.has_data);
        let is_ping = std::mem::take(&mut self.is_ping);
        let data = data.trim_ascii();
        if !has_data || is_ping || data.is_empty() {
            return Ok(());
        }
        if data == b"[DONE]" {
            self.completion.is_done = true;
            return Ok(());
        }
        let chunk = serde_json::from_slice(data);
        self.completion.add(chunk.map_err(|_| Error::InvalidAnswer(NO_JSON))?)
    }
}

impl Completion {
    fn add(&mut self, mut chunk: Value) -> Result<(), Error> {
        if let Some(error) = Error::in_body(&chunk) {
            return Err(error);
        }
        let Some(members) = chunk.as_object_mut() else {
            return Err(Error::InvalidAnswer("an event of it is no chunk"));
        };
        if self.model.is_none() {
            self.model = members.remove("model").filter(Value::is_string);
        }
        let groq = members.get_mut("x_groq").and_then(|it| it.get_mut("usage")).map(Value::take);
        let timings = members.remove("timings");
        for usage in [groq, members.remove("usage")].into_iter().flatten() {
            self.count(usage);
        }
        if self.usage.is_none() {
            self.usage = timings.as_ref().and_then(from_timings);
        }
        // Missing or empty before the first part, and in a chunk that has only the usage.
        let choices = members.get_mut("choices").and_then(Value::as_array_mut);
        for choice in choices.into_iter().flatten() {
            let Some(choice) = choice.as_object_mut() else { continue };
            if choice.get("index").and_then(Value::as_u64).unwrap_or(0) != 0 {
                continue;
            }
            if let Some(usage) = choice.remove("usage") {
                self.count(usage);
            }
            let part = choice.remove("delta").or_else(|| choice.remove("message"));
            if let Some(Value::Object(part)) = part
                && self.message.add(part)
            {
                self.chunks += 1;
                if self.message.repeats() {
                    // Read to its limit it would only cost more. What is there counts as cut off.
                    (self.finish, self.is_done) = (Some("length".to_owned()), true);
                    return Ok(());
                }
            }
            let finish = choice.get("finish_reason").and_then(Value::as_str);
            if let Some(finish) = finish.filter(|finish| !finish.is_empty()) {
                self.finish = Some(finish.to_owned());
            }
        }
        Ok(())
    }

    /// The last usage that is not empty counts, wherever it stands.
    fn count(&mut self, usage: Value) {
        if usage.as_object().is_some_and(|members| !members.is_empty()) {
            self.usage = Some(usage);
        }
    }
}

/// The usage in the timings of llama.cpp.
pub(super) fn from_timings(timings: &Value) -> Option<Value> {
    let (prompt, predicted) = (timings.get("prompt_n")?, timings.get("predicted_n")?);
    let cached = timings.get("cache_n").and_then(Value::as_u64).unwrap_or(0);
    let prompt = prompt.as_u64()?.saturating_add(cached);
    Some(json!({ "prompt_tokens": prompt, "completion_tokens": predicted,
        "prompt_tokens_details": { "cached_tokens": cached } }))
}

#[cfg(test)]
mod tests;
