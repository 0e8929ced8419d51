//! Many agents at once at accounts behind real sockets: a thousand questions, and questions that begin alike.
use super::{Bench, definition, start};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderName, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use convoke::{
    agent::Finished,
    clock::Clock,
    llm::{Caller, ChatRequest, Config, Format, Models, Streaming},
};
use futures_util::{StreamExt, future::join_all, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::Notify, time::Instant};

/// Questions to each endpoint, and agents that ask them.
const QUESTIONS: usize = 200;
const AGENTS: usize = 40;
/// Concurrent requests of each account.
const PLACES: usize = 8;
/// How often the first question is refused: more often than a question is tried that fails.
const REFUSALS: usize = 7;
/// How long an answer takes, so that requests overlap.
const LATENCY: Duration = Duration::from_millis(20);

async fn serve(router: Router) -> String {
    crate::support::crypto();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// What an endpoint says of its limits, and how it refuses.
struct Dialect {
    name: &'static str,
    headers: Vec<(String, String)>,
    /// Status, header and body of a refusal.
    refusal: (u16, &'static str, &'static str, Value),
    /// Whether the limit of requests is declared. Where it is neither declared nor reported, a refusal would lower it.
    is_declared: bool,
    /// Whether it names the cost of an answer, in dollars.
    names_cost: bool,
}

fn dialects() -> [Dialect; 5] {
    let reset = Clock::System.now() + chrono::TimeDelta::seconds(30);
    let (date, millis) = (reset.to_rfc3339(), reset.timestamp_millis().to_string());
    // Limits that are far away, so that only refusals and places hold anything up.
    let each = |reset: &str| {
        let values = [("limit", "6000000"), ("remaining", "5900000"), ("reset", reset)];
        values.map(|(word, value)| (word, value.to_owned()))
    };
    let both = |name: fn(&str, &str) -> String, reset: &str| {
        let of = |what| each(reset).map(|(word, value)| (name(what, word), value));
        [of("requests"), of("tokens")].concat()
    };
    let mut groq = both(|what, word| format!("x-ratelimit-{word}-{what}"), "7.66s");
    // Its requests are those of a day.
    groq[..3].clone_from_slice(
        &[("limit", "14400"), ("remaining", "14000"), ("reset", "2h59m56s")]
            .map(|(word, value)| (format!("x-ratelimit-{word}-requests"), value.to_owned())),
    );
    let slow_down = json!({ "error": { "message": "slow down", "code": 429 } });
    let retry_info = json!([{ "error": { "code": 429, "details": [
        { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.01s" }] } }]);
    let dialect = |name, headers, refusal, is_declared, names_cost| Dialect {
        name,
        headers,
        refusal,
        is_declared,
        names_cost,
    };
    let openai = both(|what, word| format!("x-ratelimit-{word}-{what}"), "1s");
    let anthropic = both(|what, word| format!("anthropic-ratelimit-{what}-{word}"), &date);
    let openrouter = each(&millis).map(|(word, value)| (format!("x-ratelimit-{word}"), value)).into();
    [
        dialect("openai", openai, (429, "retry-after-ms", "10", slow_down.clone()), false, false),
        dialect("anthropic", anthropic, (529, "retry-after", "0.01", json!({})), false, false),
        dialect("groq", groq, (429, "retry-after", "0.01", slow_down.clone()), true, false),
        dialect("openrouter", openrouter, (429, "retry-after", "0.01", slow_down), false, true),
        dialect("gemini", Vec::new(), (429, "x-request-id", "1", retry_info), true, false),
    ]
}

/// An endpoint that answers each question with its number, and counts what it bills.
struct Endpoint {
    dialect: Dialect,
    under_way: AtomicUsize,
    under_way_most: AtomicUsize,
    refused: AtomicUsize,
    answered: Mutex<Vec<usize>>,
    billed: AtomicU64,
}

/// A request that the endpoint works on.
struct UnderWay(Arc<Endpoint>);

impl UnderWay {
    fn begin(endpoint: &Arc<Endpoint>) -> Self {
        let now = endpoint.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        endpoint.under_way_most.fetch_max(now, Ordering::SeqCst);
        Self(endpoint.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Prices of [`usage_of`], for a million tokens.
const PRICE: &str = "price = { input = 1_000_000, cached_input = 100_000, output = 4_000_000 }";

/// The usage of the answer to a question, and what it costs in microdollars.
fn usage_of(number: usize, names_cost: bool) -> (Value, u64) {
    let n = u64::try_from(number).unwrap();
    let (prompt, cached, answer) = (100 + n, 10 * (n % 7), 10 + n % 3);
    let mut usage = json!({ "prompt_tokens": prompt, "completion_tokens": answer,
        "prompt_tokens_details": { "cached_tokens": cached } });
    if names_cost {
        usage["cost"] = serde_json::from_str(&format!("0.000{:03}", 1 + n)).unwrap();
        return (usage, 1 + n);
    }
    (usage, prompt - cached + cached / 10 + 4 * answer)
}

async fn answer(State(endpoint): State<Arc<Endpoint>>, body: Bytes) -> Response {
    let _under_way = UnderWay::begin(&endpoint);
    let question: Value = serde_json::from_slice(&body).unwrap();
    let number: usize = question["messages"][1]["content"].as_str().unwrap().parse().unwrap();
    let mut response = if number == 0 && endpoint.refused.fetch_add(1, Ordering::SeqCst) < REFUSALS {
        let (status, header, value, body) = &endpoint.dialect.refusal;
        let status = StatusCode::from_u16(*status).unwrap();
        (status, [(*header, *value)], Json(body.clone())).into_response()
    } else {
        tokio::time::sleep(LATENCY).await;
        let (usage, microdollars) = usage_of(number, endpoint.dialect.names_cost);
        endpoint.billed.fetch_add(microdollars, Ordering::SeqCst);
        endpoint.answered.lock().push(number);
        let text = json!({ "of": endpoint.dialect.name, "n": number }).to_string();
        let message = json!({ "role": "assistant", "content": text });
        let choice = json!({ "index": 0, "message": message, "finish_reason": "stop" });
        Json(json!({ "model": "m", "choices": [choice], "usage": usage })).into_response()
    };
    for (name, value) in &endpoint.dialect.headers {
        response.headers_mut().insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    response
}

#[tokio::test]
async fn thousand_questions_at_once_are_answered_each_once_within_the_places_of_their_accounts() {
    let (mut endpoints, mut settings) = (Vec::new(), String::new());
    for dialect in dialects() {
        let (name, is_declared) = (dialect.name, dialect.is_declared);
        let endpoint = Arc::new(Endpoint {
            dialect,
            under_way: AtomicUsize::new(0),
            under_way_most: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            answered: Mutex::default(),
            billed: AtomicU64::new(0),
        });
        let address = serve(Router::new().fallback(post(answer)).with_state(endpoint.clone())).await;
        let rate = if is_declared { "requests_per_minute = 6_000_000\n" } else { "" };
        settings += &format!("[providers.{name}]\nbase_url = \"{address}\"\nconcurrent = {PLACES}\n{rate}");
        endpoints.push((endpoint, address));
    }
    let config: Config = toml::from_str(&settings).unwrap();
    let models = Models::new(Clock::System).with_config(config);
    let mut agents = Vec::new();
    for (endpoint, address) in &endpoints {
        for agent in 0..AGENTS {
            let text = format!(
                "id = \"{}-{agent}\"\n[run]\nkind = \"llm\"\nmodel = \"m\"\nbase_url = \"{address}\"\n\
                 prompt = \"{{{{ input.n }}}}\"\n{PRICE}",
                endpoint.dialect.name
            );
            let mut bench = Bench::new(definition(&text)).models(&models);
            bench.timeout = Duration::from_secs(600);
            agents.push((endpoint, agent, bench));
        }
    }
    // All at once: each agent has several jobs at the same time.
    let jobs = agents.iter().flat_map(|(endpoint, agent, bench)| {
        (*agent..QUESTIONS).step_by(AGENTS).map(move |number| async move {
            let finished = bench.run(start(json!({ "n": number }))).await.unwrap();
            let Finished::Result { result, usage } = finished else { panic!("{finished:?}") };
            assert_eq!(
                result,
                json!({ "of": endpoint.dialect.name, "n": number }),
                "an answer is of its question"
            );
            assert!(!usage.presumed, "a refusal costs nothing");
            usage.microdollars
        })
    });
    let jobs: Vec<_> = jobs.collect();
    assert_eq!(jobs.len(), 1_000);
    let charged: u64 = join_all(jobs).await.into_iter().sum();

    let billed: u64 = endpoints.iter().map(|(endpoint, _)| endpoint.billed.load(Ordering::SeqCst)).sum();
    assert_eq!(charged, billed, "to the microdollar");
    for (endpoint, _) in &endpoints {
        let name = endpoint.dialect.name;
        let mut answered = endpoint.answered.lock().clone();
        answered.sort_unstable();
        assert_eq!(answered, (0..QUESTIONS).collect::<Vec<_>>(), "{name} answered each question once");
        assert_eq!(endpoint.refused.load(Ordering::SeqCst), REFUSALS + 1, "{name}");
        let most = endpoint.under_way_most.load(Ordering::SeqCst);
        assert!((2..=PLACES).contains(&most), "{name} had {most} requests at once");
    }
    for account in models.accounts() {
        assert_eq!((account.waiting, account.under_way), (0, 0), "{account:?}");
        assert_eq!((account.rate_limited, account.passed_over), (REFUSALS as u64, 0), "{account:?}");
        assert!(account.open_breakers.is_empty(), "{account:?}");
    }
}

/// An endpoint that holds the answer to the first question with long instructions: the test decides when its first byte
/// and its end are sent.
#[derive(Default)]
struct Holding {
    alike: AtomicUsize,
    others: AtomicUsize,
    begins: Notify,
    ends: Notify,
}

async fn answer_held(State(endpoint): State<Arc<Holding>>, body: Bytes) -> Response {
    let question: Value = serde_json::from_slice(&body).unwrap();
    let is_alike = question["messages"][0]["content"].as_str().unwrap().len() > 4_096;
    let counter = if is_alike { &endpoint.alike } else { &endpoint.others };
    let is_held = counter.fetch_add(1, Ordering::SeqCst) == 0 && is_alike;
    if is_held {
        endpoint.begins.notified().await;
    }
    let begin =
        stream::once(async { Ok::<_, std::convert::Infallible>(event(&json!({ "content": "yes" }), None)) });
    let end = stream::once(async move {
        if is_held {
            endpoint.ends.notified().await;
        }
        Ok(event(&json!({}), Some("stop")) + "data: [DONE]\n\n")
    });
    ([("content-type", "text/event-stream")], Body::from_stream(begin.chain(end))).into_response()
}

fn event(delta: &Value, finish: Option<&str>) -> String {
    let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
    format!("data: {}\n\n", json!({ "model": "m", "choices": [choice] }))
}

#[tokio::test]
async fn questions_that_begin_alike_wait_for_the_first_byte_of_the_first_one() {
    const ALIKE: usize = 12;
    let endpoint = Arc::new(Holding::default());
    let address = serve(Router::new().fallback(post(answer_held)).with_state(endpoint.clone())).await;
    let models = Models::new(Clock::System);
    let provider = models.at(&address, None).unwrap();
    let ask = async |instructions: String, agent: String| {
        let question = ChatRequest {
            model: "m".into(),
            messages: vec![
                json!({ "role": "system", "content": instructions }),
                json!({ "role": "user", "content": agent }),
            ],
            tools: Arc::default(),
            tool_required: false,
            format: Format::Text,
            max_tokens: 10,
            limit_member: None,
            cache_key: None,
            temperature: None,
            timeout: Duration::from_secs(300),
            streaming: Some(Streaming::usual()),
        };
        let deadline = Instant::now() + Duration::from_secs(300);
        let answer = provider.chat(&question, &Caller::new(agent), deadline).await.unwrap();
        assert_eq!(answer.message["content"], "yes");
    };
    let arrived = async |counter: &AtomicUsize, count: usize| {
        crate::daemon::soon("the questions", async {
            while counter.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    let all = join_all((0..ALIKE).map(|n| ask("Be brief. ".repeat(500), format!("acme/{n}"))));
    let steps = async {
        arrived(&endpoint.alike, 1).await;
        // It enters although eleven others came before it: there is a second place, and it is not for them.
        ask("Be brief.".into(), "acme/other".into()).await;
        assert_eq!(endpoint.alike.load(Ordering::SeqCst), 1, "the others wait");
        endpoint.begins.notify_one();
        arrived(&endpoint.alike, ALIKE).await;
        // Only now ends the first one, whose first byte let the others go.
        endpoint.ends.notify_one();
    };
    tokio::join!(all, steps);
    assert_eq!(endpoint.others.load(Ordering::SeqCst), 1);
    assert_eq!(models.accounts()[0].waiting, 0);
}
