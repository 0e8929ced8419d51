//! What an answer of a server means: the text for the model, and whether the effect happened. Pure.
use crate::agent::{job::one_line, tool::Outcome};
use rmcp::{
    ServiceError,
    model::{CallToolResult, ContentBlock, ResourceContents, ServerResult},
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};

/// The outcome of a call.
pub(super) fn outcome(server: &str, answer: Result<ServerResult, ServiceError>) -> Outcome {
    match answer {
        Ok(ServerResult::CallToolResult(result)) => {
            let text = text(server, &result);
            match result.is_error {
                Some(true) => Outcome::Failed("failed", text, true),
                _ => Outcome::Done(text),
            }
        }
        Ok(ServerResult::InputRequiredResult(_)) => {
            let message = format!("{server} asks for input, which is not supported");
            Outcome::Failed("failed", message, false)
        }
        Ok(ServerResult::CreateTaskResult(_)) => {
            Outcome::Uncertain(format!("{server} answered with a task, which is not supported"))
        }
        Ok(_) => Outcome::Uncertain(format!("{server} answered with something that is no result of a tool")),
        Err(ServiceError::McpError(error)) => {
            let message =
                format!("{server} refused the call (error {}): {}", error.code.0, one_line(&error.message));
            Outcome::Failed("failed", message, false)
        }
        Err(ServiceError::TransportSend(error)) if not_sent(&error) => {
            Outcome::Failed("failed", format!("{server}: {}", transport_reason(&error)), true)
        }
        Err(error) => Outcome::Uncertain(format!("{server}: {}", reason(&error))),
    }
}

/// The text of a result. It is data of the server, and says so.
fn text(server: &str, result: &CallToolResult) -> String {
    let mut parts: Vec<String> = result.content.iter().map(block).collect();
    if let Some(structured) = &result.structured_content {
        let structured = structured.to_string();
        // Servers repeat it as a text for older clients.
        let is_known = parts.iter().any(|part| {
            serde_json::from_str::<serde_json::Value>(part).is_ok_and(|it| it.to_string() == structured)
        });
        if !is_known {
            parts.push(structured);
        }
    }
    format!("[data from {server}]\n{}", parts.join("\n"))
}

fn block(block: &ContentBlock) -> String {
    let left_out = |kind: &str, mime: &str, bytes: usize| {
        format!("[{kind} of type {}, {bytes} bytes in base64, is left out]", one_line(mime))
    };
    let unknown = || "[content of an unknown kind is left out]".to_owned();
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => left_out("image", &image.mime_type, image.data.len()),
        ContentBlock::Audio(audio) => left_out("audio", &audio.mime_type, audio.data.len()),
        ContentBlock::ResourceLink(link) => format!("[{}]({})", one_line(&link.name), one_line(&link.uri)),
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => format!("{}:\n{text}", one_line(uri)),
            ResourceContents::BlobResourceContents { mime_type, blob, .. } => {
                left_out("resource", mime_type.as_deref().unwrap_or_default(), blob.len())
            }
            _ => unknown(),
        },
        _ => unknown(),
    }
}

/// Why there is no answer, one line without words of the server.
pub(super) fn reason(error: &ServiceError) -> String {
    match error {
        ServiceError::McpError(error) => format!("it answered with error {}", error.code.0),
        ServiceError::TransportSend(error) => transport_reason(error),
        ServiceError::TransportClosed => "the server ended, or its connection".into(),
        ServiceError::Timeout { .. } => "no answer in time".into(),
        _ => "it answered with something that is not expected".into(),
    }
}

type HttpError = StreamableHttpError<reqwest::Error>;

/// Why nothing could be sent or read, one line.
pub(super) fn transport_reason(error: &DynamicTransportError) -> String {
    match error.error.downcast_ref::<HttpError>() {
        Some(HttpError::Client(error)) if error.is_connect() => "the server cannot be reached".into(),
        Some(HttpError::Client(error)) if error.is_timeout() => "no answer in time".into(),
        Some(HttpError::Client(_)) => "the connection broke".into(),
        Some(HttpError::HttpStatus(status)) => format!("it answered with HTTP status {}", status.status),
        Some(HttpError::AuthRequired(_)) => "it refused the token (HTTP status 401)".into(),
        Some(HttpError::InsufficientScope(_)) => "the token has too few rights (HTTP status 403)".into(),
        Some(HttpError::ResponseBodyTooLarge { max_size }) => {
            format!("its answer is over {max_size} bytes")
        }
        Some(_) => "its answer over HTTP is not one of the protocol".into(),
        None => "the server ended, or its connection".into(),
    }
}

/// Whether the server cannot have seen the request.
fn not_sent(error: &DynamicTransportError) -> bool {
    match error.error.downcast_ref::<HttpError>() {
        Some(HttpError::Client(error)) => error.is_connect(),
        Some(HttpError::AuthRequired(_) | HttpError::InsufficientScope(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answered(result: serde_json::Value) -> Outcome {
        let result: CallToolResult = serde_json::from_value(result).unwrap();
        outcome("files", Ok(ServerResult::CallToolResult(result)))
    }

    #[test]
    fn text_of_every_kind_of_content_is_shown_and_binary_is_named() {
        let found = answered(json!({ "content": [
            { "type": "text", "text": "one" },
            { "type": "image", "data": "AAAA", "mimeType": "image/png" },
            { "type": "resource_link", "uri": "file:///a", "name": "a" },
            { "type": "resource", "resource": { "uri": "file:///b", "text": "b" } },
            { "type": "resource", "resource": { "uri": "file:///c", "blob": "AA" } },
        ], "structuredContent": { "n": 1 } }));
        let expected = "[data from files]\none\n[image of type image/png, 4 bytes in base64, is left out]\n\
                        [a](file:///a)\nfile:///b:\nb\n[resource of type , 2 bytes in base64, is left out]\n{\"n\":1}";
        assert_eq!(found, Outcome::Done(expected.into()));
    }

    #[test]
    fn structured_content_is_not_shown_twice_and_both_parts_of_an_error_are() {
        let text = json!([{ "type": "text", "text": "{ \"n\": 1 }" }]);
        let found = answered(json!({ "content": text, "structuredContent": { "n": 1 } }));
        assert_eq!(found, Outcome::Done("[data from files]\n{ \"n\": 1 }".into()));
        let text = json!([{ "type": "text", "text": "no such file" }]);
        let found = answered(json!({ "content": text, "structuredContent": { "code": 2 }, "isError": true }));
        let expected = "[data from files]\nno such file\n{\"code\":2}";
        assert_eq!(found, Outcome::Failed("failed", expected.into(), true));
    }

    #[test]
    fn answer_of_another_kind_leaves_the_outcome_unknown() {
        assert!(matches!(outcome("files", Ok(ServerResult::empty(()))), Outcome::Uncertain(_)));
        assert!(matches!(outcome("files", Err(ServiceError::TransportClosed)), Outcome::Uncertain(_)));
        let refused = rmcp::ErrorData::invalid_params("bad\nvalue", None);
        let found = outcome("files", Err(ServiceError::McpError(refused)));
        let expected = "files refused the call (error -32602): bad value";
        assert_eq!(found, Outcome::Failed("failed", expected.into(), false));
    }
}
