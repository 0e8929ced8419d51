//! Models behind real sockets: what each dialect says of its limits, and answers that die
//! at every byte.
use super::{
    http::{Reply, Server},
    llm::completion,
};
use convoke::{
    clock::Clock,
    llm::{
        Caller, ChatAnswer, ChatRequest, CompletionRequest, Config, Error, Format, Meter, Models, Provider,
        Streaming,
    },
};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

/// The models of a daemon in which this address may have so many requests at once.
fn models(base_url: &str, concurrent: usize) -> Models {
    crate::support::crypto();
    let config = format!("[providers.local]\nbase_url = \"{base_url}\"\nconcurrent = {concurrent}");
    Models::new(Clock::System).with_config(toml::from_str::<Config>(&config).unwrap())
}

fn question(text: &str) -> CompletionRequest {
    CompletionRequest {
        model: "m".into(),
        system: String::new(),
        user: text.into(),
        format: Format::Text,
        max_tokens: Some(10),
        limit_member: None,
        temperature: None,
        timeout: Duration::from_secs(60),
    }
}

fn soon() -> Instant {
    Instant::now() + crate::support::PATIENCE
}

/// What an endpoint says of its limits, and what of it counts: requests and tokens a minute.
type Dialect = (&'static str, Vec<(&'static str, String)>, Option<f64>, Option<f64>);

fn headers<const N: usize>(headers: [(&'static str, &str); N]) -> Vec<(&'static str, String)> {
    headers.map(|(name, value)| (name, value.to_owned())).into()
}

#[tokio::test]
async fn headers_of_each_dialect_are_learned() {
    crate::support::crypto();
    let reset = Clock::System.now() + chrono::TimeDelta::seconds(20);
    let (date, millis) = (reset.to_rfc3339(), reset.timestamp_millis().to_string());
    let dialects: [Dialect; 6] = [
        (
            "openai",
            headers([
                ("x-ratelimit-limit-requests", "500"),
                ("x-ratelimit-remaining-requests", "499"),
                ("x-ratelimit-reset-requests", "120ms"),
                ("x-ratelimit-limit-tokens", "30000"),
                ("x-ratelimit-remaining-tokens", "29000"),
                ("x-ratelimit-reset-tokens", "2s"),
            ]),
            Some(500.0),
            Some(30_000.0),
        ),
        (
            "anthropic",
            headers([
                ("anthropic-ratelimit-requests-limit", "50"),
                ("anthropic-ratelimit-requests-remaining", "49"),
                ("anthropic-ratelimit-requests-reset", &*date),
                ("anthropic-ratelimit-tokens-limit", "80000"),
                ("anthropic-ratelimit-tokens-remaining", "79000"),
                ("anthropic-ratelimit-tokens-reset", &*date),
            ]),
            Some(50.0),
            Some(80_000.0),
        ),
        // Requests are those of a day, and count when they are used up.
        (
            "groq",
            headers([
                ("x-ratelimit-limit-requests", "14400"),
                ("x-ratelimit-remaining-requests", "14370"),
                ("x-ratelimit-reset-requests", "2h59m56s"),
                ("x-ratelimit-limit-tokens", "6000"),
                ("x-ratelimit-remaining-tokens", "5970"),
                ("x-ratelimit-reset-tokens", "7.66s"),
            ]),
            None,
            Some(6_000.0),
        ),
        (
            "openrouter",
            headers([
                ("x-ratelimit-limit", "20"),
                ("x-ratelimit-remaining", "19"),
                ("x-ratelimit-reset", &*millis),
            ]),
            Some(20.0),
            None,
        ),
        (
            "unreadable",
            headers([("x-ratelimit-limit-requests", "many"), ("x-ratelimit-remaining-requests", "-1")]),
            None,
            None,
        ),
        ("none", Vec::new(), None, None),
    ];
    for (name, headers, requests, tokens) in dialects {
        let Reply::Say(status, _, body) = completion("yes") else { unreachable!() };
        let server = Server::start([Reply::Say(status, headers, body)]).await;
        let models = Models::new(Clock::System);
        let provider = models.at(&server.address, Some("key".to_owned().into())).unwrap();
        provider.ask(&question("?"), &Caller::new("acme/a"), soon()).await.unwrap();
        let account = models.accounts().remove(0);
        assert_eq!((account.requests_per_minute, account.tokens_per_minute), (requests, tokens), "{name}");
    }
}

#[tokio::test]
async fn wait_that_each_dialect_asks_for_is_obeyed() {
    crate::support::crypto();
    let hour = Duration::from_secs(3_600);
    let json = |body: Value| body.to_string();
    let retry_info = json!([{ "error": { "code": 429, "details": [
        { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1800s" }] } }]);
    let quota = json!({ "error": { "code": "insufficient_quota", "message": "x" } });
    let limited = |wait| Error::RateLimited { retry_after: Some(wait) };
    for (name, status, header, body, told) in [
        (
            "openai",
            429,
            Some(("retry-after-ms", "900500")),
            json(json!({})),
            limited(Duration::from_millis(900_500)),
        ),
        (
            "anthropic",
            529,
            Some(("retry-after", "1200")),
            json(json!({})),
            limited(Duration::from_secs(1_200)),
        ),
        ("gemini", 429, None, json(retry_info), limited(Duration::from_secs(1_800))),
        ("proxy", 503, Some(("retry-after", "99999")), "busy".to_owned(), limited(hour)),
        ("openai without credit", 429, Some(("retry-after", "1")), json(quota), Error::Quota { status: 429 }),
    ] {
        let headers = header.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let server = Server::start([Reply::Say(status, headers, body)]).await;
        let models = Models::new(Clock::System);
        let provider = models.at(&server.address, None).unwrap();
        // The wait is longer than there is time, so the question fails at once, with the wait.
        let failed = provider.ask(&question("?"), &Caller::new("acme/a"), soon()).await.unwrap_err();
        assert_eq!((failed, server.seen().len()), (told.clone(), 1), "{name}");
        let account = models.accounts().remove(0);
        let is_paused = account.paused_seconds.is_some_and(|left| left > 600.0);
        assert_eq!(is_paused, matches!(told, Error::RateLimited { .. }), "{name}: {account:?}");
    }
}

/// Lets this process have as many open files as it may.
fn allow_sockets() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Bytes of the two line ends after an event.
const BLANK_LINE: usize = 2;

/// How a connection dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    /// It is closed.
    Closed,
    /// It is reset, so that bytes under way may be lost.
    Reset,
    /// It stays open, and nothing more comes.
    Silent,
}

/// An answer as a stream: with reasoning, a text of characters of several bytes, and a call in two pieces.
fn events() -> Vec<String> {
    let delta = |delta: Value| json!({ "model": "m-1", "choices": [{ "index": 0, "delta": delta }] });
    let call = |call: Value| delta(json!({ "tool_calls": [call] }));
    let chunks = [
        delta(json!({ "role": "assistant", "reasoning_content": "hm" })),
        delta(json!({ "content": "caf\u{e9} \u{1f600}" })),
        call(
            json!({ "index": 0, "id": "c", "type": "function", "function": { "name": "pay", "arguments": "{\"n\":" } }),
        ),
        call(json!({ "index": 0, "function": { "arguments": "12}" } })),
        json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }] }),
        json!({ "choices": [], "usage": { "prompt_tokens": 100, "completion_tokens": 10 } }),
    ];
    let events = chunks.iter().map(|chunk| format!("data: {chunk}\n\n"));
    events.chain(["data: [DONE]\n\n".to_owned()]).collect()
}

/// The bytes of the whole answer on the wire, and how many of them come before the model has finished, and before its
/// usage is known.
struct Wire {
    bytes: Vec<u8>,
    finished: usize,
    counted: usize,
}

impl Wire {
    fn new(is_chunked: bool) -> Self {
        let framing = if is_chunked { "transfer-encoding: chunked\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{framing}connection: close\r\n\r\n"
        );
        let (mut bytes, mut ends) = (head.into_bytes(), Vec::new());
        for event in events() {
            if is_chunked {
                bytes.extend(format!("{:x}\r\n", event.len()).bytes());
            }
            bytes.extend(event.bytes());
            ends.push(bytes.len());
            if is_chunked {
                bytes.extend(b"\r\n");
            }
        }
        if is_chunked {
            bytes.extend(b"0\r\n\r\n");
        }
        Self { bytes, finished: ends[4], counted: ends[5] }
    }
}

/// An endpoint whose first answer to each model dies after so many bytes as the model's name says; later ones are whole.
struct DyingEndpoint {
    address: String,
    asked: Arc<Mutex<HashMap<usize, usize>>>,
}

impl DyingEndpoint {
    async fn start(wire: Vec<u8>, death: Death) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked: Arc<Mutex<HashMap<usize, usize>>> = Arc::default();
        let (wire, tries) = (Arc::new(wire), asked.clone());
        let accept = async move {
            while let Ok((socket, _)) = listener.accept().await {
                #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
                tokio::spawn(answer_once(socket, wire.clone(), tries.clone(), death));
            }
        };
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(accept);
        Self { address, asked }
    }
}

async fn answer_once(
    mut socket: TcpStream,
    wire: Arc<Vec<u8>>,
    tries: Arc<Mutex<HashMap<usize, usize>>>,
    death: Death,
) {
    let Some(asked) = request(&mut socket).await else { return };
    let length: usize = asked["model"].as_str().unwrap().parse().unwrap();
    let is_first = {
        let mut tries = tries.lock();
        let tried = tries.entry(length).or_default();
        *tried += 1;
        *tried == 1
    };
    let sent = if is_first { &wire[..length] } else { &wire[..] };
    let _ = socket.write_all(sent).await;
    match death {
        Death::Silent if is_first => std::future::pending().await,
        Death::Reset if is_first => {
            socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
        _ => drop(socket.shutdown().await),
    }
}

/// The body of a request.
async fn request(socket: &mut TcpStream) -> Option<Value> {
    let mut read = Vec::new();
    loop {
        let head = read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head {
            let lines = String::from_utf8_lossy(&read[..head]).to_lowercase();
            let length =
                lines.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if read.len() >= head + length.unwrap_or(0) {
                return serde_json::from_slice(&read[head..]).ok();
            }
        }
        if socket.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

/// Counts the tries that were lost.
#[derive(Default)]
struct Lost(AtomicUsize);

#[async_trait::async_trait]
impl Meter for Lost {
    async fn lost(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// The answer to a question whose first try dies after so many bytes, and how many tries were counted as lost.
async fn asked(provider: &Provider, length: usize, silence: Duration) -> (ChatAnswer, usize) {
    let question = ChatRequest {
        model: length.to_string(),
        messages: vec![json!({ "role": "user", "content": "?" })],
        tools: Arc::default(),
        tool_required: false,
        format: Format::Text,
        max_tokens: 100,
        limit_member: None,
        cache_key: None,
        temperature: None,
        timeout: Duration::from_secs(60),
        streaming: Some(Streaming { first_byte: silence, silence, ..Streaming::usual() }),
    };
    let lost = Lost::default();
    let caller = Caller { meter: Some(&lost), ..Caller::new("acme/a") };
    let answer = provider.chat(&question, &caller, soon()).await;
    (answer.unwrap_or_else(|e| panic!("{length} bytes: {e}")), lost.0.into_inner())
}

/// Asks a question for each length, and returns its answer, the tries that were counted as lost, and all tries.
async fn each_length(
    wire: &Wire,
    death: Death,
    lengths: impl IntoIterator<Item = usize>,
    silence: Duration,
) -> Vec<(usize, ChatAnswer, usize, usize)> {
    const AT_ONCE: usize = 100;
    let endpoint = DyingEndpoint::start(wire.bytes.clone(), death).await;
    let models = models(&endpoint.address, AT_ONCE);
    let provider = models.at(&endpoint.address, None).unwrap();
    let answers = stream::iter(lengths).map(|length| {
        let provider = &provider;
        async move { (length, asked(provider, length, silence).await) }
    });
    let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
    let tries = endpoint.asked.lock();
    let found = answers.into_iter().map(|(length, (answer, lost))| (length, answer, lost, tries[&length]));
    found.collect()
}

fn whole_message() -> Value {
    let call =
        json!({ "id": "c", "type": "function", "function": { "name": "pay", "arguments": "{\"n\":12}" } });
    json!({ "role": "assistant", "reasoning_content": "hm", "content": "caf\u{e9} \u{1f600}", "tool_calls": [call] })
}

#[tokio::test]
async fn stream_that_dies_at_any_byte_is_whole_or_asked_again() {
    allow_sockets();
    let usual = Duration::from_secs(60);
    for is_chunked in [true, false] {
        let wire = Wire::new(is_chunked);
        let found = each_length(&wire, Death::Closed, 0..=wire.bytes.len(), usual).await;
        assert_eq!(found.len(), wire.bytes.len() + 1);
        for (length, answer, lost, tries) in found {
            let at = format!("after {length} bytes, chunked: {is_chunked}");
            assert_eq!(answer.message, whole_message(), "{at}");
            // Before its end nothing of it is used, and it counts as lost; afterwards only its usage may be missing. The
            // last event of a body that ends may lack its blank line; one that breaks off may not.
            let is_whole = length >= if is_chunked { wire.finished } else { wire.finished - BLANK_LINE };
            assert_eq!((tries, lost), if is_whole { (1, 0) } else { (2, 1) }, "{at}");
            let is_counted = !is_whole || length >= wire.counted - BLANK_LINE;
            let counted = (answer.input_tokens, answer.output_tokens);
            assert_eq!(counted, if is_counted { (Some(100), Some(10)) } else { (None, None) }, "{at}");
        }
        // A reset may lose bytes that were sent, so what has arrived is not known.
        let found = each_length(&wire, Death::Reset, (0..wire.bytes.len()).step_by(7), usual).await;
        for (length, answer, lost, tries) in found {
            assert_eq!(answer.message, whole_message(), "reset after {length} bytes");
            assert!(
                lost + 1 == tries && tries <= 2 && (tries == 2 || length >= wire.finished),
                "{length}: {tries}"
            );
        }
    }
}

#[tokio::test]
async fn stream_that_falls_silent_is_asked_again() {
    let wire = Wire::new(true);
    let head = wire.bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let inside = [0, 1, head, head + 4, head + 30, wire.finished - 1];
    // Far more than an answer takes, and far less than the test waits.
    let silence = Duration::from_secs(2);
    for (length, answer, lost, tries) in each_length(&wire, Death::Silent, inside, silence).await {
        assert_eq!(answer.message, whole_message(), "silent after {length} bytes");
        assert!(tries >= 2 && lost + 1 == tries, "silent after {length} bytes: {tries} tries, {lost} lost");
    }
    // Once the model has finished, only its usage is waited for, and not for long.
    let after = [wire.finished, wire.counted];
    for (length, answer, lost, tries) in
        each_length(&wire, Death::Silent, after, Duration::from_secs(60)).await
    {
        let counted = if length >= wire.counted { Some(100) } else { None };
        assert_eq!((answer.message, answer.input_tokens), (whole_message(), counted));
        assert_eq!((tries, lost), (1, 0), "silent after {length} bytes");
    }
}
