//! A tool that is a service: a POST of the arguments as JSON, the body of the answer as the result.
use super::{Outcome, ToolCall};
use crate::agent::Tool;
use crate::llm::{innermost, read_body};
use reqwest::header::{CONTENT_TYPE, HeaderValue};

/// Most bytes of an answer.
const BODY_BYTES_MAX: usize = 4 << 20;

pub(super) async fn call(call: ToolCall<'_>, tool: &Tool) -> Outcome {
    tokio::select! {
        outcome = post(call, tool) => outcome,
        () = call.stop.cancelled() => Outcome::Stopped,
    }
}

async fn post(call: ToolCall<'_>, tool: &Tool) -> Outcome {
    let url = tool.url.as_deref().unwrap_or_default();
    let client = match call.parts.models.clients().for_url(url) {
        Ok(client) => client,
        Err(message) => return Outcome::Failed("failed", message, true),
    };
    let mut request = client
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("Idempotency-Key", call.key)
        .timeout(tool.timeout())
        .body(call.args.to_string());
    if let Some(trace) = call.trace {
        request = request.header("traceparent", trace.to_string());
    }
    for (header, variable) in &tool.headers_env {
        let value = call.parts.env.get(variable).and_then(|value| HeaderValue::from_str(&value).ok());
        let Some(mut value) = value else {
            return Outcome::Failed(
                "failed",
                format!("{variable} is not set, or is no value of a header"),
                false,
            );
        };
        value.set_sensitive(true);
        request = request.header(header, value);
    }
    let response = match request.send().await {
        Ok(response) => response,
        Err(e) if e.is_connect() || e.is_builder() => {
            return Outcome::Failed(
                "failed",
                format!("the service cannot be reached: {}", innermost(&e)),
                true,
            );
        }
        Err(e) if e.is_timeout() => return Outcome::Uncertain("the service did not answer in time".into()),
        Err(e) => return Outcome::Uncertain(format!("the connection broke: {}", innermost(&e))),
    };
    let status = response.status().as_u16();
    let body = match read_body(response, BODY_BYTES_MAX).await {
        Ok(Some(body)) => String::from_utf8_lossy(&body).into_owned(),
        // The service has answered, so its status decides.
        Ok(None) if (200..300).contains(&status) => {
            return Outcome::Done(format!("the answer is over {BODY_BYTES_MAX} bytes and is left out"));
        }
        Ok(None) => String::new(),
        Err(e) => return Outcome::Uncertain(format!("the connection broke: {}", innermost(&e))),
    };
    match status {
        200..300 => Outcome::Done(body),
        // A server that failed, or a proxy before it, does not say whether the effect happened.
        500.. => Outcome::Uncertain(format!("the service answered {status}")),
        408 | 425 | 429 => Outcome::Failed("rate_limited", format!("the service answered {status}"), true),
        _ => Outcome::Failed("failed", format!("the service answered {status}: {body}"), false),
    }
}
