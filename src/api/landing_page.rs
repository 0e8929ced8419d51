//! `GET /`: an overview for people who open the address that `convoke up` prints.
use axum::http::{HeaderMap, HeaderName, header};

/// Lists what is served, as plain text.
pub(super) async fn page(headers: HeaderMap) -> ([(HeaderName, &'static str); 2], String) {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        // The text contains the client's own `Host` header, so a browser must not interpret it as HTML.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "convoke {version}: coordinates AI agents.\n\n\
         ws://{host}/realtime/v1        websocket of Supabase Realtime clients (docs/PROTOCOL.md)\n\
         http://{host}                  URL for createClient() of supabase-js, with the anon key that `convoke up` prints\n\
         http://{host}/v1/tasks         tasks and agents over HTTP, with a token (docs/TASKS.md, docs/REMOTE.md)\n\
         http://{host}/dashboard/       the dashboard; `convoke dashboard` prints a link that signs you in\n\
         http://{host}/health           how each part of the daemon is\n\
         http://{host}/health/ready     503 while the daemon cannot work\n\
         http://{host}/metrics          counters, for Prometheus\n\n\
         `convoke token --help` makes tokens; the documents are in docs/ of the repository.\n"
    );
    (headers, text)
}
