//! `kind = "llm"` with a real server that speaks OpenAI's protocol, or fails to.
use super::{
    Bench, definition,
    http::{Reply, Server, say},
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
    say(200, &body.to_string())
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
async fn the_answer_is_the_result_and_its_usage_becomes_money() {
    let server = Server::start([completion("```json\n{\"urgency\": 4}\n```")]).await;
    let outcome = bench(agent(&server)).run(start(json!({ "title": "Fire" }))).await.unwrap();
    let usage = Usage { tokens: 1500, microdollars: 450 };
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
async fn a_prompt_a_token_limit_and_the_tasks_own_schema_are_sent() {
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
async fn a_refused_key_fails_at_once() {
    let (message, retryable, _, tries) =
        failure(say(401, "{\"error\":{\"message\":\"bad key sk-secret\"}}")).await;
    assert_eq!((message.as_str(), retryable, tries), ("model endpoint refused the key (401)", false, 1));
}

#[tokio::test]
async fn a_rate_limit_is_waited_for_and_then_the_answer_counts() {
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
async fn trouble_at_the_endpoint_is_tried_again_and_then_told() {
    let (message, retryable, _, tries) = failure(say(500, "stack trace")).await;
    assert_eq!((message.as_str(), retryable), ("model endpoint failed (500)", true));
    assert!(tries >= 3, "{tries}");
}

#[tokio::test]
async fn rubbish_is_told_for_what_it_is() {
    let message = |reply| async { failure(reply).await.0 };
    let rubbish = "model endpoint gave an answer that is no chat completion: ";
    assert_eq!(message(say(200, "<html>")).await, format!("{rubbish}it is no JSON"));
    assert_eq!(message(say(200, "{\"a\": 1}")).await, format!("{rubbish}it has no choices with messages"));
    assert_eq!(message(say(200, "{\"choices\": []}")).await, format!("{rubbish}it has no choice"));
    assert_eq!(message(say(404, "what?")).await, "model endpoint rejected the request (404)");
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_charged_and_tried_again() {
    let usage = Usage { tokens: 1500, microdollars: 450 };
    let told = |message: &str| (message.to_owned(), true, usage, 1);
    assert_eq!(failure(completion("I think it is urgent")).await, told("result is no JSON"));
    let no_member = "result does not satisfy its schema: / breaks /required";
    assert_eq!(failure(completion("{\"secret\": 4}")).await, told(no_member));
    let too_much = "result does not satisfy its schema: /urgency breaks /properties/urgency/maximum";
    assert_eq!(failure(completion("{\"urgency\": 9}")).await, told(too_much));
}

#[tokio::test]
async fn a_model_that_hangs_ends_with_the_attempt() {
    let server = Server::start([Reply::Hang]).await;
    let mut bench = bench(agent(&server));
    bench.timeout = Duration::from_millis(300);
    let failure = bench.run(start(json!({}))).await.unwrap_err();
    assert!(failure.message.starts_with("model endpoint did not answer within 2"), "{}", failure.message);
    assert!(failure.retryable);
}

#[tokio::test]
async fn a_question_over_the_token_limit_is_never_sent() {
    let server = Server::start([completion("{}")]).await;
    let mut definition = agent(&server);
    definition.limits.tokens_per_task = Some(100);
    let failure = bench(definition).run(start(json!("x".repeat(4_000)))).await.unwrap_err();
    assert!(failure.message.ends_with("over limits.tokens_per_task, 100") && !failure.retryable);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_endpoint_from_the_environment_needs_no_key() {
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
