//! A server that is an address: streamable HTTP with our own client, which follows no redirect.
use super::limited::{Allowance, LINE_BYTES_MAX};
use crate::{
    agent::{Env, McpServer},
    llm::Models,
};
use futures_util::{StreamExt, stream::BoxStream};
use http::{HeaderName, HeaderValue};
use rmcp::{
    model::ClientJsonRpcMessage,
    transport::{
        StreamableHttpClientTransport,
        streamable_http_client::{
            SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
            StreamableHttpPostResponse, StreamableHttpResponseLimits,
        },
    },
};
use sse_stream::Sse;
use std::{collections::HashMap, sync::Arc};

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
    allowance: Allowance,
) -> Result<StreamableHttpClientTransport<LimitedClient>, String> {
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
    Ok(StreamableHttpClientTransport::with_client(LimitedClient { client, allowance }, config))
}

/// The client of one server. The events of its streams are counted like the lines of a pipe: a stream may have any
/// number of them, and the library answers each request among them.
#[derive(Clone)]
pub(super) struct LimitedClient {
    client: reqwest::Client,
    allowance: Allowance,
}

type Events = BoxStream<'static, Result<Sse, SseError>>;
type Headers = HashMap<HeaderName, HeaderValue>;
type HttpError = StreamableHttpError<reqwest::Error>;

impl LimitedClient {
    fn limited(&self, events: Events) -> Events {
        let allowance = self.allowance.clone();
        let counted = events.map(move |event| {
            let event = event?;
            if allowance.take(event.data.as_ref().map_or(0, String::len), 1) {
                Ok(event)
            } else {
                Err(SseError::Body("the server sent more than it was asked for".into()))
            }
        });
        counted.boxed()
    }
}

impl StreamableHttpClient for LimitedClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        token: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(uri, message, session, token, headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        token: Option<String>,
        headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let client = &self.client;
        let answer =
            client.post_message_with_response_limits(uri, message, session, token, headers, limits).await?;
        Ok(match answer {
            StreamableHttpPostResponse::Sse(events, session) => {
                StreamableHttpPostResponse::Sse(self.limited(events), session)
            }
            whole => whole,
        })
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        token: Option<String>,
        headers: Headers,
    ) -> Result<(), HttpError> {
        self.client.delete_session(uri, session, token, headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        token: Option<String>,
        headers: Headers,
    ) -> Result<Events, HttpError> {
        let most = LINE_BYTES_MAX;
        self.get_stream_with_max_sse_event_size(uri, session, last_event, token, headers, most).await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        token: Option<String>,
        headers: Headers,
        most: usize,
    ) -> Result<Events, HttpError> {
        let client = &self.client;
        let events =
            client.get_stream_with_max_sse_event_size(uri, session, last_event, token, headers, most).await?;
        Ok(self.limited(events))
    }
}
