//! Money of runs: every form of usage, tries that are lost, and budgets that have no room for another try.
use super::{Say, StreamEnd, Thinking, World, finish, stream_end, streamed_call, thinker};
use convoke::{id::TaskId, task::SpendBy};
use serde_json::{Value, json};

pub(super) const PRICE: &str = "price = { input = 1_000_000, cached_input = 100_000, cache_write = 2_000_000, output = 4_000_000, \
                     reasoning = 8_000_000 }";

/// An answer that calls `look` and reports this usage.
fn answer(n: usize, usage: Value) -> Say {
    let call = json!({ "id": "c", "type": "function",
        "function": { "name": "look", "arguments": json!({ "n": n }).to_string() } });
    let message = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
    let choice = json!({ "index": 0, "message": message, "finish_reason": "tool_calls" });
    Say::Raw(json!({ "model": "m-1", "choices": [choice], "usage": usage }))
}

/// State, money and the model that answered, of the questions of a task in their order.
async fn questions(thinking: &Thinking, task: TaskId) -> Vec<(String, i64, String)> {
    let rows = "select state, microdollars, coalesce(model_said, '-') from convoke.model_questions where task_id = $1 \
                order by seq, asked_at";
    let rows = thinking.db.client().await.query(rows, &[&task.as_uuid()]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

pub(super) async fn invariants_hold(thinking: &Thinking) {
    let client = thinking.db.client().await;
    for (name, query) in convoke::task::INVARIANTS {
        let rows = client.query(*query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{name} is broken by {rows:?}");
    }
}

pub(super) async fn spent(thinking: &Thinking, by: &[SpendBy]) -> Vec<Value> {
    let from = convoke::clock::Clock::System.now() - chrono::TimeDelta::hours(1);
    thinking.running.parts.tasks.spend_by(None, from, by).await.unwrap().0
}

#[tokio::test]
async fn every_form_of_usage_is_charged_to_the_microdollar() {
    let parts = json!({ "prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100,
        "prompt_tokens_details": { "cached_tokens": 400, "cache_write_tokens": 100 },
        "completion_tokens_details": { "reasoning_tokens": 30 } });
    let forms = [
        (parts, 500 + 40 + 200 + 280 + 240),
        (json!({ "prompt_tokens": 10, "completion_tokens": 10, "cost": 0.000_5 }), 500),
        (json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 25 }), 10 + 60),
        (json!({ "prompt_tokens": "7", "completion_tokens": 2.2 }), 7 + 12),
        (
            json!({ "prompt_tokens": 3, "completion_tokens": 0, "prompt_tokens_details": { "cached_tokens": 9 } }),
            1,
        ),
        (json!({ "prompt_tokens": 0, "completion_tokens": 0 }), 0),
    ];
    let silent = [json!({}), json!(null), json!("many"), json!({ "prompt_tokens": 5 })];
    let all = forms.iter().map(|(usage, _)| usage).chain(&silent).cloned();
    let script = all.enumerate().map(|(n, usage)| answer(n, usage)).chain([finish(json!(1))]).collect();
    let thinking = Thinking::start(script, PRICE).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let asked = questions(&thinking, id).await;
    let exact: Vec<_> =
        asked.iter().filter(|(state, ..)| state == "exact").map(|(_, money, _)| *money).collect();
    let expected: Vec<i64> = forms.iter().map(|(_, money)| *money).chain([100 + 40]).collect();
    assert_eq!(exact, expected, "{asked:?}");
    let presumed: Vec<_> = asked.iter().filter(|(state, ..)| state == "presumed").collect();
    assert_eq!(presumed.len(), silent.len());
    // The most of the answer alone, 4,096 tokens at the rate of reasoning.
    assert!(presumed.iter().all(|(_, money, said)| *money > 4_096 * 8 && said == "m-1"), "{presumed:?}");

    let total: i64 = asked.iter().map(|(_, money, _)| money).sum();
    let by_model = spent(&thinking, &[SpendBy::Provider, SpendBy::Model]).await;
    let row = by_model.iter().find(|row| row["model"] == "m").unwrap();
    assert_eq!((&row["provider"], &row["microdollars"]), (&json!("127.0.0.1"), &json!(total)));
    assert_eq!((&row["questions"], &row["presumed"]), (&json!(11), &json!(4)));
    let counted =
        ["cached_tokens", "written_tokens", "reasoning_tokens"].map(|name| row[name].as_i64().unwrap());
    assert_eq!(counted, [403, 100, 30]);
    let why = thinking.running.parts.tasks.why(id).await.unwrap();
    assert_eq!(why["paid"]["microdollars"], json!(total));
    assert_eq!(spent(&thinking, &[SpendBy::Tree]).await[0]["root_id"], json!(id));
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn price_of_the_model_that_answered_goes_before_that_of_the_model_that_was_asked() {
    let world = World::start(vec![
        answer(0, json!({ "prompt_tokens": 10, "completion_tokens": 0 })),
        finish(json!(1)),
    ]);
    let world = world.await;
    let definition = thinker(&world, "");
    let price = |input: u64| toml::from_str(&format!("input = {input}\noutput = 0")).unwrap();
    let thinking = Thinking::with_settings(world, vec![definition], |settings| {
        settings.llm.prices.insert("m".into(), price(3_000_000));
        settings.llm.prices.insert("m-1".into(), price(7_000_000));
    })
    .await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let asked = questions(&thinking, id).await;
    assert_eq!((asked[0].1, &*asked[0].2), (70, "m-1"), "{asked:?}");
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn price_of_the_day_is_charged_and_its_first_day_is_kept_with_the_question() {
    let world = World::start(vec![
        answer(0, json!({ "prompt_tokens": 10, "completion_tokens": 0 })),
        finish(json!(1)),
    ])
    .await;
    let definition = thinker(&world, "");
    let thinking = Thinking::with_settings(world, vec![definition], |settings| {
        let changing = "input = 1_000_000\noutput = 0\n\
            [[changes]]\nfrom = \"2020-01-01\"\ninput = 3_000_000\noutput = 0\n\
            [[changes]]\nfrom = \"2999-01-01\"\ninput = 9_000_000\noutput = 0\n";
        settings.llm.prices.insert("m".into(), toml::from_str(changing).unwrap());
    })
    .await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let asked = questions(&thinking, id).await;
    assert_eq!(asked.iter().map(|(_, money, _)| *money).collect::<Vec<_>>(), [30, 300], "{asked:?}");
    let days = "select distinct price_from::text from convoke.model_questions where task_id = $1";
    let rows = thinking.db.client().await.query(days, &[&id.as_uuid()]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<Option<&str>>>(), [Some("2020-01-01")]);
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn model_whose_price_has_not_begun_has_none() {
    let later = "price = { input = 1_000_000, output = 4_000_000, from = \"2999-01-01\" }";
    let thinking = limited(vec![finish(json!(1))], 60_000, later).await;
    let id = thinking.request(json!({})).await;
    let failed = thinking.in_state(id, "failed").await;
    assert!(failed.error.unwrap()["message"].to_string().contains("unpriced"));
    assert_eq!(thinking.world.questions(), 0);
    thinking.stop().await;
}

#[tokio::test]
async fn try_that_was_cut_counts_as_its_most_and_the_next_one_is_charged_too() {
    let cut = |end| Say::Stream(streamed_call("send", &json!({})), end);
    let whole = Say::Stream([streamed_call("look", &json!({})), stream_end()].concat(), StreamEnd::Body);
    let script =
        vec![Say::InTurn(vec![cut(StreamEnd::Body), cut(StreamEnd::Reset), whole]), finish(json!(1))];
    let thinking = Thinking::start(script, PRICE).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let asked = questions(&thinking, id).await;
    let states: Vec<&str> = asked.iter().map(|(state, ..)| state.as_str()).collect();
    assert_eq!(states, ["presumed", "presumed", "exact", "exact"]);
    assert!(asked[0].1 == asked[1].1 && asked[0].1 > 4_096 * 8, "{asked:?}");
    assert_eq!((asked[2].1, asked[3].1), (140, 140));
    let total: i64 = asked.iter().map(|(_, money, _)| money).sum();
    let row = &spent(&thinking, &[SpendBy::Agent]).await[0];
    assert_eq!((&row["microdollars"], &row["presumed"]), (&json!(total), &json!(2)));
    assert_eq!(row["presumed_microdollars"], json!(asked[0].1 * 2));
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn try_for_which_the_budget_has_no_room_is_not_sent() {
    let cut = || Say::Stream(streamed_call("send", &json!({})), StreamEnd::Body);
    let thinking = Thinking::start(vec![Say::InTurn(vec![cut(), finish(json!(1))])], PRICE).await;
    // Room for the most of one try, which is about 33,000 for the answer and twice the bytes of the question.
    let id = thinking.request(json!({ "budget": { "microdollars": 60_000 } })).await;
    let waiting = thinking.in_state(id, "waiting").await;
    assert_eq!(waiting.state_reason.as_deref(), Some("budget"));
    assert_eq!(thinking.world.questions(), 1);
    let asked = questions(&thinking, id).await;
    assert_eq!(asked.len(), 1, "{asked:?}");
    invariants_hold(&thinking).await;
    let more = serde_json::from_value(json!({ "microdollars": 200_000 })).unwrap();
    thinking.running.parts.tasks.set_budget(id, "boss", more).await.unwrap();
    thinking.in_state(id, "completed").await;
    let asked = questions(&thinking, id).await;
    assert_eq!(asked.iter().map(|(state, ..)| state.as_str()).collect::<Vec<_>>(), ["presumed", "exact"]);
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

/// A thinking agent at a provider with a limit of a day.
async fn limited(script: Vec<Say>, microdollars_per_day: u64, more: &str) -> Thinking {
    let world = World::start(script).await;
    let definition = thinker(&world, more);
    let provider =
        format!("base_url = \"{}/v1\"\nmicrodollars_per_day = {microdollars_per_day}", world.address);
    Thinking::with_settings(world, vec![definition], |settings| {
        settings.llm.providers.insert("local".into(), toml::from_str(&provider).unwrap());
    })
    .await
}

/// Waits until the task is open again and holds no slot; returns how many seconds it waits, and its attempts.
pub(super) async fn deferred(thinking: &Thinking, task: TaskId) -> (f64, i32) {
    let found =
        "select extract(epoch from t.due_at - clock_timestamp())::float8, t.attempt from convoke.tasks t
        where t.id = $1 and t.state = 'open' and t.prefer = 'thinker' and t.due_at is not null
            and (select g.slots_used from convoke.agents g where g.id = 'thinker') = 0";
    let client = thinking.db.client().await;
    crate::daemon::soon("the deferral", async {
        loop {
            if let Some(row) = client.query_opt(found, &[&task.as_uuid()]).await.unwrap() {
                return (row.get(0), row.get(1));
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn limit_of_a_day_is_kept_and_the_run_goes_on_later() {
    let dear = answer(0, json!({ "prompt_tokens": 40_000, "completion_tokens": 0 }));
    // The most of a question is about 40,000, so there is room for one of them, and not for two.
    let thinking = limited(vec![dear, finish(json!(1))], 60_000, PRICE).await;
    let id = thinking.request(json!({})).await;
    let (seconds, attempts) = deferred(&thinking, id).await;
    assert!(seconds > 0.0 && seconds <= 601.0, "{seconds}: it is tried again within ten minutes");
    assert_eq!(
        (attempts, thinking.world.questions()),
        (0, 1),
        "it is no attempt, and the question was not sent"
    );
    let client = thinking.db.client().await;
    let spent = "select scope || ' ' || name, microdollars::bigint from convoke.allowances";
    let row = client.query_one(spent, &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i64>(1)), ("provider local", 40_000));
    let events = thinking.running.parts.tasks.events(id, 0, 100).await.unwrap();
    let released = events.iter().find(|event| event.event_type == "released").unwrap();
    assert_eq!(released.body["message"], "the limit of a day of provider local is used up");
    invariants_hold(&thinking).await;
    // The next day.
    let next =
        "update convoke.allowances set microdollars = 0; update convoke.tasks set due_at = clock_timestamp()";
    client.batch_execute(next).await.unwrap();
    thinking.running.parts.tasks.notify_arbiter();
    thinking.in_state(id, "completed").await;
    let runs = client.query_one("select count(*) from convoke.runs", &[]).await.unwrap();
    assert_eq!((runs.get::<_, i64>(0), thinking.world.questions()), (1, 2), "the same run went on");
    let row = client.query_one(spent, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(1), 140);
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn question_without_a_price_is_not_sent_where_money_of_a_day_is_limited() {
    let thinking = limited(vec![finish(json!(1))], 60_000, "").await;
    let id = thinking.request(json!({})).await;
    let failed = thinking.in_state(id, "failed").await;
    let message = failed.error.unwrap()["message"].to_string();
    assert!(message.contains("unpriced") && message.contains("llm.prices"), "{message}");
    assert_eq!(thinking.world.questions(), 0);
    thinking.stop().await;
}

/// Waits until `/health` gives the models this state.
async fn models_are(thinking: &Thinking, state: &str) {
    let url = format!("http://{}/health", thinking.running.parts.addr);
    crate::daemon::soon("the state of the models", async {
        loop {
            let health: Value =
                serde_json::from_slice(&reqwest::get(&url).await.unwrap().bytes().await.unwrap()).unwrap();
            if health["parts"]["models"]["state"] == state {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn key_that_is_revoked_in_the_middle_ends_the_attempt_and_costs_nothing_more() {
    let refused_then_accepted = Say::InTurn(vec![Say::Status(401), finish(json!(1))]);
    let script =
        vec![answer(0, json!({ "prompt_tokens": 100, "completion_tokens": 10 })), refused_then_accepted];
    let thinking = Thinking::start(script, PRICE).await;
    let id = thinking.request(json!({})).await;
    let failed = thinking.in_state(id, "failed").await;
    let message = failed.error.unwrap()["message"].to_string();
    assert!(message.contains("refused the key"), "{message}");
    let asked = questions(&thinking, id).await;
    let states: Vec<(&str, i64)> = asked.iter().map(|(state, money, _)| (state.as_str(), *money)).collect();
    assert_eq!(states, [("exact", 140), ("exact", 0)]);
    assert_eq!((thinking.world.questions(), thinking.world.calls("look")), (2, 1), "it is not asked again");
    models_are(&thinking, "degraded").await;
    invariants_hold(&thinking).await;
    // Requests are held until one of them finds that the key is accepted again.
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    models_are(&thinking, "ready").await;
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn long_wait_for_the_account_gives_the_slot_back() {
    let thinking = Thinking::start(vec![Say::Limited(3_600), finish(json!(1))], PRICE).await;
    let id = thinking.request(json!({})).await;
    let (seconds, attempts) = deferred(&thinking, id).await;
    assert!(seconds > 3_000.0 && attempts == 0, "{seconds} {attempts}");
    assert_eq!(
        questions(&thinking, id).await.iter().map(|(_, money, _)| money).sum::<i64>(),
        0,
        "429 costs nothing"
    );
    invariants_hold(&thinking).await;
    thinking.stop().await;
}
