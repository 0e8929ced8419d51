//! A server that is an address: streamable HTTP with our own client, which follows no redirect.
use super::limited::LINE_BYTES_MAX;
use crate::{
    agent::{Env, McpServer},
    llm::Models,
};
use http::{HeaderName, HeaderValue};
use rmcp::transport::{
    StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
};
use std::collections::HashMap;

/// Largest body of an error.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// The transport to the URL of a server. Nothing is sent yet.
///
/// # Errors
/// Which variable is missing, or why there is no client; one line.
pub(super) fn transport(
    server: &McpServer,
    env: &Env,
    models: &Models,
) -> Result<StreamableHttpClientTransport<reqwest::Client>, String> {
    let url = server.url.as_deref().unwrap_or_default();
    let client = models.clients().for_url(url)?;
    let mut headers = HashMap::new();
    for (name, variable) in &server.headers_env {
        let value = env.get(variable).and_then(|value| HeaderValue::from_str(&value).ok());
        let (Some(mut value), Ok(name)) = (value, HeaderName::try_from(name.as_str())) else {
            return Err(format!("{variable} is not set, or is no value of a header"));
        };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let mut config = StreamableHttpClientTransportConfig::with_uri(url)
        .custom_headers(headers)
        .max_sse_event_size(LINE_BYTES_MAX)
        .max_json_response_size(LINE_BYTES_MAX)
        .max_error_response_size(ERROR_BYTES_MAX);
    if let Some(variable) = &server.bearer_env {
        let token = env.get(variable).ok_or_else(|| format!("{variable} is not set"))?;
        config = config.auth_header(token);
    }
    Ok(StreamableHttpClientTransport::with_client(client, config))
}
