//! `kind = "llm"` with a real server that speaks OpenAI's protocol, or fails to.
use super::{
    Bench, definition,
    http::{Reply, Server, reply},
    result, start,
};
use convoke::{
    agent::{Definition, Env, Finished},
    task::Usage,
};
use serde_json::{Value, json};
use std::time::Duration;

pub fn completion(text: &str) -> Reply {
    let body = json!({
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500 },
    });
    reply(200, &body.to_string())
}

fn agent(server: &Server) -> Definition {
    definition(&format!(
        r#"
        id = "thinker"
        [run]
        kind = "llm"
        model = "gpt-4o-mini"
        base_url = "{}/v1"
        api_key_env = "KEY"
        instructions = "You sort tickets."
        price = {{ input_microdollars_per_million_tokens = 150_000, output_microdollars_per_million_tokens = 600_000 }}
        [run.result_schema]
        type = "object"
        required = ["urgency"]
        properties.urgency = {{ type = "integer", maximum = 5 }}
        "#,
        server.address
    ))
}

fn bench(definition: Definition) -> Bench {
    let mut bench = Bench::new(definition).env([("KEY", "sk-secret")]);
    bench.timeout = Duration::from_secs(4);
    bench
}

async fn failure(reply: Reply) -> (String, bool, Usage, usize) {
    let server = Server::start([reply]).await;
    let failure = bench(agent(&server)).run(start(json!({}))).await.unwrap_err();
    assert!(!failure.message.contains("sk-secret"));
    (failure.message, failure.retryable, failure.usage, server.seen().len())
}

#[tokio::test]
async fn answer_is_the_result_and_its_usage_is_priced() {
    let server = Server::start([completion("```json\n{\"urgency\": 4}\n```")]).await;
    let outcome = bench(agent(&server)).run(start(json!({ "title": "Fire" }))).await.unwrap();
    let usage = Usage { tokens: 1500, microdollars: 450, presumed: false };
    assert_eq!(outcome, Finished::Result { result: json!({ "urgency": 4 }), usage });

    let (headers, body) = server.seen().remove(0);
    assert_eq!(headers["authorization"], "Bearer sk-secret");
    let sent: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(sent["model"], "gpt-4o-mini");
    assert_eq!(sent["messages"][0]["role"], "system");
    assert!(sent["messages"][0]["content"].as_str().unwrap().starts_with("You sort tickets."));
    assert_eq!(sent["messages"][1], json!({ "role": "user", "content": "{\"title\":\"Fire\"}" }));
    assert_eq!(sent["response_format"]["type"], "json_schema");
    assert_eq!(sent["response_format"]["json_schema"]["schema"]["required"], json!(["urgency"]));
}

#[tokio::test]
async fn prompt_token_limit_and_schema_of_the_task_are_sent() {
    let server = Server::start([completion("[1]")]).await;
    let mut definition = agent(&server);
    definition.run.prompt = Some("Ticket: {{ input.title }} ({{ attempt }})".into());
    definition.run.response_format = Some(convoke::agent::ResponseFormat::Text);
    definition.run.temperature = Some(0.2);
    definition.limits.tokens_per_task = Some(1_000);
    let mut start = start(json!({ "title": "Fire" }));
    start.result_schema = Some(json!({ "type": "array" }));
    assert_eq!(result(bench(definition).run(start).await), json!([1]));
    let sent: Value = serde_json::from_slice(&server.seen()[0].1).unwrap();
    assert_eq!(sent["messages"][1]["content"], "Ticket: Fire (1)");
    assert!(sent["messages"][0]["content"].as_str().unwrap().contains("{\"type\":\"array\"}"));
    assert_eq!(sent["temperature"], json!(0.2));
    assert!((900..1_000).contains(&sent["max_tokens"].as_u64().unwrap()), "{}", sent["max_tokens"]);
    assert!(sent.get("response_format").is_none());
}

#[tokio::test]
async fn answer_has_the_most_tokens_that_its_agent_wants_and_its_limit_leaves() {
    for (wanted, limit, sent) in
        [(Some(300), None, json!(300)), (Some(300), Some(400), json!(300)), (None, None, json!(null))]
    {
        let server = Server::start([completion("{\"urgency\": 4}")]).await;
        let mut definition = agent(&server);
        definition.run.answer_tokens = wanted;
        definition.limits.tokens_per_task = limit;
        bench(definition).run(start(json!({}))).await.unwrap();
        let body: Value = serde_json::from_slice(&server.seen()[0].1).unwrap();
        assert_eq!(body["max_tokens"], sent, "{wanted:?} {limit:?}");
    }
}

#[tokio::test]
async fn refused_key_fails_without_retry() {
    let (message, retryable, _, tries) =
        failure(reply(401, "{\"error\":{\"message\":\"bad key sk-secret\"}}")).await;
    assert_eq!((message.as_str(), retryable, tries), ("model endpoint refused the key (401)", false, 1));
}

#[tokio::test]
async fn rate_limit_is_waited_for() {
    let limited = Reply::Say(429, vec![("Retry-After", "1".into())], "slow down".into());
    let server = Server::start([limited, completion("{\"urgency\": 1}")]).await;
    let began = tokio::time::Instant::now();
    assert_eq!(result(bench(agent(&server)).run(start(json!({}))).await), json!({ "urgency": 1 }));
    assert!(began.elapsed() >= Duration::from_secs(1));
    let forever = Reply::Say(429, vec![("Retry-After", "60".into())], "slow down".into());
    let (message, retryable, ..) = failure(forever).await;
    assert_eq!((message.as_str(), retryable), ("model endpoint is over its rate limit (429)", true));
}

#[tokio::test]
async fn endpoint_error_is_retried_and_then_reported() {
    let (message, retryable, _, tries) = failure(reply(500, "stack trace")).await;
    assert_eq!((message.as_str(), retryable), ("model endpoint failed (500)", true));
    assert!(tries >= 3, "{tries}");
}

#[tokio::test]
async fn malformed_answer_is_reported_with_its_kind() {
    let message = |reply| async { failure(reply).await.0 };
    let rubbish = "model endpoint gave an answer that is no chat completion: ";
    assert_eq!(message(reply(200, "<html>")).await, format!("{rubbish}it is no JSON"));
    assert_eq!(message(reply(200, "{\"a\": 1}")).await, format!("{rubbish}it has no choices with messages"));
    assert_eq!(message(reply(200, "{\"choices\": []}")).await, format!("{rubbish}it has no choice"));
    assert_eq!(message(reply(404, "what?")).await, "model endpoint rejected the request (404)");
}

#[tokio::test]
async fn answer_that_does_not_fit_the_schema_is_charged_and_retried() {
    let usage = Usage { tokens: 1500, microdollars: 450, presumed: false };
    let told = |message: &str| (message.to_owned(), true, usage, 1);
    assert_eq!(failure(completion("I think it is urgent")).await, told("result is no JSON"));
    let no_member = "result does not satisfy its schema: / breaks /required";
    assert_eq!(failure(completion("{\"secret\": 4}")).await, told(no_member));
    let too_much = "result does not satisfy its schema: /urgency breaks /properties/urgency/maximum";
    assert_eq!(failure(completion("{\"urgency\": 9}")).await, told(too_much));
}

#[tokio::test]
async fn model_that_hangs_ends_with_the_attempt() {
    let server = Server::start([Reply::Hang]).await;
    let mut bench = bench(agent(&server));
    bench.timeout = Duration::from_millis(300);
    let failure = bench.run(start(json!({}))).await.unwrap_err();
    assert!(failure.message.starts_with("model endpoint did not answer within 2"), "{}", failure.message);
    assert!(failure.retryable);
}

#[tokio::test]
async fn question_over_the_token_limit_is_not_sent() {
    let server = Server::start([completion("{}")]).await;
    let mut definition = agent(&server);
    definition.limits.tokens_per_task = Some(100);
    let failure = bench(definition).run(start(json!("x".repeat(4_000)))).await.unwrap_err();
    assert!(failure.message.ends_with("over limits.tokens_per_task, 100") && !failure.retryable);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn endpoint_from_the_environment_needs_no_key() {
    let server = Server::start([completion("{\"urgency\": 2}")]).await;
    let mut definition = agent(&server);
    definition.run.base_url = None;
    definition.run.base_url_env = Some("BASE".into());
    let address = format!("{}/v1/", server.address);
    assert!(definition.unavailable(&Env::of([])).is_some());
    let bench = Bench::new(definition).env([("BASE", &address)]);
    assert_eq!(result(bench.run(start(json!({}))).await), json!({ "urgency": 2 }));
    assert!(!server.seen()[0].0.contains_key("authorization"));
}

/// An answer with these words and this usage.
fn answer(content: Value, usage: Value) -> Reply {
    reply(200, &json!({ "choices": [{ "message": { "content": content } }], "usage": usage }).to_string())
}

#[tokio::test]
async fn missing_or_implausible_usage_is_presumed() {
    let content = json!("{\"urgency\": 4}");
    let known = Usage { tokens: 12, microdollars: 6, presumed: false };
    let huge = 1_000_000_000_000_000;
    let cases = [
        (json!({ "prompt_tokens": 4, "completion_tokens": 8 }), Some(known)),
        (json!({ "prompt_tokens": 3.2, "completion_tokens": "8" }), Some(known)),
        (
            json!({ "prompt_tokens": u64::MAX, "completion_tokens": 1e300 }),
            Some(Usage { tokens: 2 * huge, microdollars: huge / 4 * 3, presumed: false }),
        ),
        (json!({ "prompt_tokens": 4 }), None),
        (json!({ "prompt_tokens": 4, "completion_tokens": -8 }), None),
        (json!({ "prompt_tokens": null, "completion_tokens": "many" }), None),
        (json!(null), None),
        (json!("free"), None),
    ];
    for (usage, expected) in cases {
        let server = Server::start([answer(content.clone(), usage.clone())]).await;
        let Finished::Result { result, usage: told } =
            bench(agent(&server)).run(start(json!({}))).await.unwrap()
        else {
            panic!("{usage}")
        };
        assert_eq!(result, json!({ "urgency": 4 }), "{usage}");
        match expected {
            Some(expected) => assert_eq!(told, expected, "{usage}"),
            None => assert!(
                told.presumed && told.tokens > 4_096 && told.microdollars > 2_400,
                "{usage}: {told:?}"
            ),
        }
    }
    // Without any usage member at all, and of a question that was cut off by its time.
    let server =
        Server::start([reply(200, "{\"choices\":[{\"message\":{\"content\":\"{\\\"urgency\\\":4}\"}}]}")])
            .await;
    let outcome = bench(agent(&server)).run(start(json!({}))).await.unwrap();
    assert!(matches!(outcome, Finished::Result { usage, .. } if usage.presumed && usage.microdollars > 0));
    let server = Server::start([Reply::Hang]).await;
    let mut hanging = bench(agent(&server));
    hanging.timeout = Duration::from_millis(300);
    let failure = hanging.run(start(json!({}))).await.unwrap_err();
    assert!(failure.usage.presumed && failure.usage.microdollars > 0, "{failure:?}");
}

#[tokio::test]
async fn answer_is_found_in_parts_fences_and_reasoning() {
    let usage = json!({ "prompt_tokens": 4, "completion_tokens": 8 });
    for content in [
        json!([{ "type": "text", "text": "{\"urgency\":" }, { "type": "text", "text": " 4}" }]),
        json!([{ "type": "reasoning", "text": "{\"urgency\": 1}" }, { "type": "text", "text": "{\"urgency\": 4}" }]),
        json!("```JSON\n{\"urgency\": 4}\n```"),
        json!("<think>Perhaps {\"urgency\": 1}?</think>\nIt is urgent:\n```\n{\"urgency\": 4}\n```\nDone."),
        // The schema tells the answer from the example before it.
        json!("The form is {\"urgency\": \"number\"}. So {\"urgency\": 4}, as in [1]. {\"note\": true}"),
    ] {
        let server = Server::start([answer(content.clone(), usage.clone())]).await;
        assert_eq!(
            result(bench(agent(&server)).run(start(json!({}))).await),
            json!({ "urgency": 4 }),
            "{content}"
        );
    }
    let number = "{\"urgency\": 4, \"id\": 123456789012345678901234567890}";
    let (message, ..) = failure(answer(json!(number), usage)).await;
    assert!(message.contains("id: the number 123456789012345678901234567890 has more digits"), "{message}");
}

#[tokio::test]
async fn endpoint_error_is_an_outage_and_a_refused_key_is_not() {
    let of = |reply| async {
        let server = Server::start([reply]).await;
        bench(agent(&server)).run(start(json!({}))).await.unwrap_err().outage
    };
    assert!(of(reply(500, "down")).await);
    assert!(of(Reply::Say(429, vec![("Retry-After", "60".into())], "slow down".into())).await);
    assert!(!of(reply(401, "no")).await);
    assert!(!of(completion("no JSON")).await);
    let server = Server::start([reply(200, "{}")]).await;
    let mut gone = agent(&server);
    gone.run.base_url = Some("http://127.0.0.1:1/v1".into());
    let failure = bench(gone).run(start(json!({}))).await.unwrap_err();
    assert!(failure.outage && failure.usage == Usage::default(), "{failure:?}");
}

/// An agent with two models, and the second one's price.
fn two_models(a: &str, b: &Server) -> Definition {
    definition(&format!(
        r#"
        id = "thinker"
        [run]
        kind = "llm"
        models = [
            {{ model = "a", base_url = "{a}/v1", api_key_env = "KEY" }},
            {{ model = "b", base_url = "{}/v1", price = {{ input = 1_000_000, output = 2_000_000 }} }},
        ]
        "#,
        b.address
    ))
}

#[tokio::test]
async fn question_that_one_model_cannot_answer_goes_to_the_next() {
    let later = vec![("retry-after", "90".to_owned())];
    let cannot = [
        reply(401, "{}"),
        reply(402, "{}"),
        reply(403, "{}"),
        reply(404, "{}"),
        reply(500, "{}"),
        reply(502, "no json"),
        Reply::Say(429, later, "{}".into()),
    ];
    for first in cannot {
        let Reply::Say(status, ..) = first.clone() else { unreachable!() };
        let (a, b) = (Server::start([first]).await, Server::start([completion("{\"n\": 1}")]).await);
        let mut bench = bench(two_models(&a.address, &b));
        bench.timeout = Duration::from_secs(60);
        let Ok(Finished::Result { result, usage }) = bench.run(start(json!({}))).await else {
            panic!("{status}")
        };
        assert_eq!(result, json!({ "n": 1 }));
        assert_eq!(
            (usage.tokens, usage.microdollars),
            (1_500, 2_000),
            "the price of the model that answered"
        );
        assert!((1..=2).contains(&a.seen().len()) && b.seen().len() == 1, "{status}");
        let (headers, body) = b.seen().remove(0);
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["model"], "b");
        assert!(headers.get("authorization").is_none(), "the key of the first model stays with it");
    }
    let b = Server::start([completion("{}")]).await;
    let outcome = bench(two_models("http://127.0.0.1:1", &b)).run(start(json!({}))).await;
    assert!(outcome.is_ok() && b.seen().len() == 1, "no connection");
}

#[tokio::test]
async fn question_that_is_wrong_goes_to_no_other_model() {
    for status in [400, 413, 422] {
        let (a, b) = (Server::start([reply(status, "{}")]).await, Server::start([completion("{}")]).await);
        let failure = bench(two_models(&a.address, &b)).run(start(json!({}))).await.unwrap_err();
        assert!(!failure.retryable, "{status}");
        assert_eq!((a.seen().len(), b.seen().len()), (1, 0), "{status}");
    }
}

#[tokio::test]
async fn question_that_is_too_large_goes_to_a_larger_context_only() {
    for (second, asked) in [(8_000, 1), (2_000, 0)] {
        let (a, b) = (Server::start([reply(413, "{}")]).await, Server::start([completion("{}")]).await);
        let mut definition = two_models(&a.address, &b);
        definition.run.models[0].context_tokens = Some(4_000);
        definition.run.models[1].context_tokens = Some(second);
        let outcome = bench(definition).run(start(json!({}))).await;
        assert_eq!((outcome.is_ok(), b.seen().len()), (asked == 1, asked));
    }
}
