//! Runs of agents with several models: outages, pauses, and kills between two models.
use super::{
    ROLE, Say, Thinking, World, call, finish,
    kills::{completed, request},
    text,
};
use crate::{
    agent::definition,
    daemon::{Up, fresh, soon},
};
use convoke::{
    auth::{MintRequest, Role, mint},
    clock::Clock,
    id::TaskId,
    task::SpendBy,
};
use serde_json::{Value, json};
use std::time::Duration;

/// The file of an agent whose models are `a` and `b` of these two worlds. Tools are services of the second.
fn two_models(a: &str, b: &World, more: &str) -> String {
    let one = format!("model = \"m\"\nbase_url = \"{}/v1\"", b.address);
    let price = |rate: u64| format!("price = {{ input = {rate}, output = {rate} }}");
    let two = format!(
        "models = [{{ model = \"a\", base_url = \"{a}/v1\", {} }}, {{ model = \"b\", base_url = \"{}/v1\", {} }}]",
        price(1_000_000),
        b.address,
        price(2_000_000)
    );
    let text = text(b, more);
    assert!(text.contains(&one));
    text.replace(&one, &two)
}

/// A daemon whose agent asks the model of the first world, and that of the second.
async fn start(a: &World, b: World, more: &str) -> Thinking {
    let agent = definition(&two_models(&a.address, &b, more));
    Thinking::with(b, vec![agent]).await
}

async fn providers(thinking: &Thinking) -> Value {
    let parts = &thinking.running.parts;
    let wish = MintRequest { ttl: Duration::from_secs(60), ..MintRequest::new(Role::ServiceRole) };
    let token = mint(&parts.keys, &wish, Clock::System.now()).unwrap();
    let url = format!("http://{}/v1/providers", parts.addr);
    let answer = reqwest::Client::new().get(url).bearer_auth(token).send().await.unwrap();
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

/// The invariants of money, and what each question of a task cost: `(model, state, microdollars)`.
async fn questions(thinking: &Thinking, task: TaskId) -> Vec<(String, String, i64)> {
    let client = thinking.db.client().await;
    for (name, query) in convoke::task::INVARIANTS {
        let rows = client.query(*query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{name} is broken by {rows:?}");
    }
    let asked =
        "select model, state, microdollars from convoke.model_questions where task_id = $1 order by asked_at";
    let rows = client.query(asked, &[&task.as_uuid()]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test]
async fn outage_in_the_middle_of_a_run_goes_to_the_next_model_and_the_run_stays_with_it() {
    let a = World::start(vec![call("look", json!({})), Say::Status(500)]).await;
    let b = World::start(vec![Say::Status(500), call("pay", json!({})), finish(json!(1))]).await;
    let thinking = start(&a, b, "").await;
    let id = thinking.request(json!({})).await;
    let task = thinking.in_state(id, "completed").await;
    assert_eq!(task.result, Some(json!(1)));
    let b = &thinking.world;
    let count = |world: &World| {
        world.asked().iter().map(|(entry, bodies)| (*entry, bodies.len())).collect::<Vec<_>>()
    };
    assert_eq!(count(&a), [(0, 1), (1, 2)], "the failure is repeated once");
    assert_eq!(count(b), [(1, 1), (2, 1)]);
    let moved = b.question(1);
    assert_eq!(moved["model"], "b");
    assert!(moved["messages"][2].get("reasoning_content").is_none(), "{moved}");
    assert_eq!(b.question(2)["messages"][4]["reasoning_content"], "hm", "its own");

    let steps = thinking.steps(id).await;
    let models: Vec<&Value> =
        steps.iter().map(|step| &step["model_asked"]).filter(|it| !it.is_null()).collect();
    assert_eq!(models, ["a", "b", "b"]);
    assert_eq!(steps[3]["passed_over"], "a at 127.0.0.1: model endpoint failed (500)");
    assert!(steps[5].get("passed_over").is_none() && steps[3]["tries"] == 1, "{steps:?}");
    assert_eq!(b.keys("pay"), [steps[4]["key"].as_str().unwrap().to_owned()].into());
    let why = thinking.running.parts.tasks.why(id).await.unwrap();
    assert_eq!(why["runs"][0]["steps"][3]["passed_over"], steps[3]["passed_over"]);

    // 110 tokens each, at the price of the model that answered. What failed cost nothing.
    let of = |model: &str, money| (model.to_owned(), "exact".to_owned(), money);
    assert_eq!(questions(&thinking, id).await, [of("a", 110), of("a", 0), of("b", 220), of("b", 220)]);
    let from = Clock::System.now() - chrono::TimeDelta::hours(1);
    let (spent, _) = thinking.running.parts.tasks.spend_by(None, from, &[SpendBy::Model]).await.unwrap();
    let spent: Vec<(&Value, &Value)> =
        spent.iter().take(2).map(|row| (&row["model"], &row["microdollars"])).collect();
    assert_eq!(spent, [(&json!("b"), &json!(440)), (&json!("a"), &json!(110))]);
    let accounts = providers(&thinking).await;
    let passed: Vec<&Value> =
        accounts["accounts"].as_array().unwrap().iter().map(|it| &it["passed_over"]).collect();
    assert_eq!(passed.iter().filter(|it| **it == &json!(1)).count(), 1, "{accounts}");
    thinking.stop().await;
}

#[tokio::test]
async fn unreachable_model_is_passed_over_and_presence_says_which_one_thinks() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let b = World::start(vec![Say::Hang]).await;
    let agent = definition(&two_models(&format!("http://{closed}"), &b, ""));
    let thinking = Thinking::with(b, vec![agent]).await;
    let id = thinking.request(json!({})).await;
    let room = convoke::hub::Room::public(convoke::id::Topic::org(&"demo".parse().unwrap()));
    soon("presence", async {
        loop {
            let state = thinking.running.parts.tracker.snapshot(room.clone()).await;
            let state: Value = serde_json::from_slice(&state).unwrap();
            if state["thinker"]["metas"][0]["activity"] == "thinking with b" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    thinking.running.parts.tasks.cancel(id, "enough").await.unwrap();
    thinking.in_state(id, "canceled").await;
    thinking.stop().await;
}

#[tokio::test]
async fn rate_limit_pauses_and_only_a_long_one_goes_to_the_next_model() {
    let a =
        World::start(vec![Say::InTurn(vec![Say::Limited(1), call("look", json!({}))]), Say::Limited(3_600)])
            .await;
    let b = World::start(vec![Say::Status(500), finish(json!(1))]).await;
    let thinking = start(&a, b, "").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!((a.asked()[&0].len(), a.asked()[&1].len()), (2, 1));
    assert_eq!(thinking.world.asked().keys().collect::<Vec<_>>(), [&1], "a pause of a second was waited for");
    let steps = thinking.steps(id).await;
    assert_eq!(steps[3]["passed_over"], "a at 127.0.0.1: model endpoint is over its rate limit (429)");
    assert_eq!(questions(&thinking, id).await.len(), 3);
    thinking.stop().await;
}

#[tokio::test]
async fn task_fails_as_an_outage_only_if_no_model_can_answer() {
    // The second model has no such endpoint, which is permanent; the outage of the first is not.
    let a = World::start(vec![Say::Status(500)]).await;
    let b = World::start(vec![Say::Status(404)]).await;
    let thinking = start(&a, b, "").await;
    let id = thinking.request(json!({})).await;
    let failed = soon("the first attempt", async {
        loop {
            let why = thinking.running.parts.tasks.why(id).await.unwrap();
            if let Some(error) = why["attempts"][0]["error"].as_str() {
                return error.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(failed, "model endpoint failed (500)");
    assert!(thinking.world.questions() >= 1);
    thinking.stop().await;
}

/// Kills the daemon at this point of a question that the first model cannot answer, and starts it again.
async fn survives(point: &str, presumed: usize) {
    let a = World::start(vec![Say::Status(500)]).await;
    let b =
        World::start(vec![call("pay", json!({})), call("send", json!({})), finish(json!({ "ok": true }))])
            .await;
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/thinker.toml"), two_models(&a.address, &b, "")).unwrap();
    db.client().await.batch_execute(ROLE).await.unwrap();
    let first = Up::start(&db, folder.path(), Some(point)).await;
    request(&db).await;
    first.dies_at(point).await;
    let second = Up::start(&db, folder.path(), None).await;
    assert_eq!(completed(&second, &db, folder.path(), &b).await, 0, "{point}");

    assert_eq!((b.calls("pay"), b.keys("pay").len(), b.calls("send")), (1, 1, 1), "{point}");
    let again: usize = b.asked().values().map(|bodies| bodies.len() - 1).sum();
    assert_eq!(again, usize::from(point.starts_with("step.answered")), "{point}");
    let client = db.client().await;
    let rows = "select model_asked, state, tokens from convoke.steps where kind = 'model' order by seq";
    let rows = client.query(rows, &[]).await.unwrap();
    let steps: Vec<(&str, &str, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(steps, [("b", "done", 110); 3], "{point}");
    // Each answer is charged once; what was under way at the death counts as its most.
    let asked =
        "select state, microdollars from convoke.model_questions where microdollars > 0 order by asked_at";
    let asked = client.query(asked, &[]).await.unwrap();
    let charged: Vec<(&str, i64)> = asked.iter().map(|row| (row.get(0), row.get(1))).collect();
    let exact = charged.iter().filter(|one| **one == ("exact", 220)).count();
    assert_eq!((exact, charged.len()), (3, 3 + presumed), "{point}: {charged:?}");
    for (name, query) in convoke::task::INVARIANTS {
        let rows = client.query(*query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{point}: {name} is broken by {rows:?}");
    }
}

#[tokio::test]
async fn killed_between_two_models_the_question_is_charged_once() {
    survives("step.passed_over:1", 0).await;
    survives("step.begun:2", 1).await;
}

#[tokio::test]
async fn killed_around_the_answer_of_the_next_model_the_run_stays_with_it() {
    survives("step.answered:1", 1).await;
    survives("step.recorded:1", 0).await;
}
