//! Calls of tools that cost something: reserved before they begin, recorded as rows, and counted once.
use super::{
    ROLE, Say, Thinking, World, call, finish, kills,
    money::{PRICE, deferred, invariants_hold, spent},
    text,
};
use crate::{
    agent::definition,
    daemon::{Up, fresh, soon},
};
use convoke::{id::TaskId, task::SpendBy};
use serde_json::{Value, json};

/// The agent with a price on one of its services, and with programs that cost something.
fn costing(world: &World, service: &str, cost: u64, more: &str) -> String {
    let program = |name: &str, program: &str, cost: &str| {
        format!(
            "[[tool]]\nname = \"{name}\"\nkind = \"command\"\nargv = {program}\nenv = [\"PATH\"]\neffect = \"read\"\n\
             {cost}\nparameters = {{ type = \"object\" }}\n"
        )
    };
    let named = format!("name = \"{service}\"\n");
    let text = text(world, more)
        .replacen(&named, &format!("{named}cost_microdollars = {cost}\n"), 1)
        .replace("\"ask\"]", "\"ask\", \"bill\", \"greedy\", \"mute\", \"broken\"]");
    let most = "max_cost_microdollars = 5000";
    let tools = [
        program("bill", r#"["echo", '{ "microdollars": 777, "ok": true }']"#, most),
        program("greedy", r#"["echo", '{ "microdollars": 999999 }']"#, most),
        program("mute", r#"["echo", "done"]"#, most),
        program("broken", r#"["false"]"#, "cost_microdollars = 5000"),
    ];
    text + &tools.concat()
}

/// Provider, model, state and money of what a task has paid, in the order of its steps.
async fn paid(thinking: &Thinking, task: TaskId) -> Vec<(String, String, String, i64)> {
    let rows = "select provider, model, state, microdollars from convoke.model_questions where task_id = $1 \
                order by seq, asked_at";
    let rows = thinking.db.client().await.query(rows, &[&task.as_uuid()]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

#[tokio::test]
async fn calls_cost_what_is_declared_or_what_they_say() {
    let calls = ["look", "bill", "greedy", "mute", "broken"].map(|name| (name, json!({}))).to_vec();
    let world = World::start(vec![Say::Calls(calls), finish(json!(1))]).await;
    let agent = definition(&costing(&world, "look", 1_000, ""));
    let thinking = Thinking::with(world, vec![agent]).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let paid = paid(&thinking, id).await;
    let tools: Vec<(&str, &str, i64)> = paid
        .iter()
        .filter(|(provider, ..)| provider == "(tool)")
        .map(|(_, model, state, money)| (model.as_str(), state.as_str(), *money))
        .collect();
    let expected = [
        ("look", "exact", 1_000),
        ("bill", "exact", 777),
        // At most what was reserved.
        ("greedy", "exact", 5_000),
        // It does not say what it cost.
        ("mute", "presumed", 5_000),
        // It failed, and had no effect.
        ("broken", "exact", 0),
    ];
    assert_eq!(tools, expected);
    assert_eq!(paid.len(), 7, "and two questions: {paid:?}");
    // The run and its steps show it.
    let steps = thinking.steps(id).await;
    let of_steps: Vec<&Value> = steps[2..7].iter().map(|step| &step["microdollars"]).collect();
    assert_eq!(of_steps, [&json!(1_000), &json!(777), &json!(5_000), &json!(5_000), &json!(0)]);
    assert_eq!(steps[5]["presumed"], true);
    let runs = thinking.running.parts.tasks.steps(id, false).await.unwrap();
    assert_eq!(runs[0]["microdollars"], 11_777);
    // And so does what is counted as spent.
    let rows = spent(&thinking, &[SpendBy::Provider]).await;
    let row = rows.iter().find(|row| row["provider"] == "(tool)").unwrap();
    assert_eq!(
        (&row["microdollars"], &row["presumed_microdollars"], &row["questions"]),
        (&json!(11_777), &json!(5_000), &json!(5))
    );
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn call_for_which_the_budget_has_no_room_does_not_begin() {
    let world = World::start(vec![call("look", json!({})), finish(json!(1))]).await;
    let agent = definition(&costing(&world, "look", 1_000, ""));
    let thinking = Thinking::with(world, vec![agent]).await;
    let id = thinking.request(json!({ "budget": { "microdollars": 999 } })).await;
    let waiting = thinking.in_state(id, "waiting").await;
    assert_eq!(waiting.state_reason.as_deref(), Some("budget"));
    assert_eq!((thinking.world.questions(), thinking.world.calls("look")), (1, 0));
    assert_eq!(thinking.steps(id).await[2]["state"], "planned");
    invariants_hold(&thinking).await;
    let more = serde_json::from_value(json!({ "microdollars": 1_000 })).unwrap();
    thinking.running.parts.tasks.set_budget(id, "boss", more).await.unwrap();
    let task = thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.questions(), thinking.world.calls("look")), (2, 1));
    let budget = task.budget.unwrap()["task"]["microdollars"].clone();
    assert_eq!((&budget["spent"], &budget["reserved"]), (&json!(1_000), &json!(0)));
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

#[tokio::test]
async fn call_for_which_the_day_of_the_org_has_no_room_begins_the_next_day() {
    // A question holds about 40,000 and uses 140, so the call does not fit after one.
    let world = World::start(vec![call("look", json!({})), finish(json!(1))]).await;
    let agent = definition(&costing(&world, "look", 139_900, PRICE));
    let thinking = Thinking::with_settings(world, vec![agent], |settings| {
        let limit = toml::from_str("microdollars_per_day = 140_000").unwrap();
        settings.llm.orgs.insert("demo".into(), limit);
    })
    .await;
    let id = thinking.request(json!({})).await;
    let client = thinking.db.client().await;
    for calls in [0, 1] {
        // The task was deferred before too: the second time it is after the call.
        soon("the call", async {
            while thinking.world.calls("look") < calls {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
        deferred(&thinking, id).await;
        assert_eq!((thinking.world.questions(), thinking.world.calls("look")), (1, calls));
        invariants_hold(&thinking).await;
        // The next day. The second time it is the next question that has no room.
        let next = "update convoke.allowances set microdollars = 0; \
                    update convoke.tasks set due_at = clock_timestamp()";
        client.batch_execute(next).await.unwrap();
        thinking.running.parts.tasks.notify_arbiter();
    }
    thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.questions(), thinking.world.calls("look")), (2, 1));
    let tools: Vec<_> = paid(&thinking, id).await.into_iter().filter(|row| row.0 == "(tool)").collect();
    assert_eq!(tools, [("(tool)".to_owned(), "look".to_owned(), "exact".to_owned(), 139_900)]);
    invariants_hold(&thinking).await;
    thinking.stop().await;
}

/// The daemon dies around a call with a key that costs 1,000. The service sees one effect.
async fn survives(point: &str, expected: &[(&str, i64)]) {
    let world = World::start(vec![call("pay", json!({})), finish(json!(1))]).await;
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/thinker.toml"), costing(&world, "pay", 1_000, "")).unwrap();
    db.client().await.batch_execute(ROLE).await.unwrap();
    let first = Up::start(&db, folder.path(), Some(point)).await;
    kills::request(&db).await;
    first.dies_at(point).await;
    let second = Up::start(&db, folder.path(), None).await;
    assert_eq!(kills::completed(&second, &db, folder.path(), &world).await, 0);
    assert_eq!(world.keys("pay").len(), 1);
    let client = db.client().await;
    let rows =
        "select state, microdollars from convoke.model_questions where provider = '(tool)' order by asked_at";
    let rows = client.query(rows, &[]).await.unwrap();
    let found: Vec<(&str, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, expected, "{point}");
    for (name, query) in convoke::task::INVARIANTS {
        assert!(client.query(*query, &[]).await.unwrap().is_empty(), "{point}: {name}");
    }
}

#[tokio::test]
async fn killed_around_a_call_it_is_never_counted_for_less_than_it_cost() {
    // Whether the service was called is not known: the first call counts as its most, and the second one, too.
    survives("tool.intended", &[("presumed", 1_000), ("exact", 1_000)]).await;
    survives("tool.done", &[("presumed", 1_000), ("exact", 1_000)]).await;
    survives("tool.recorded", &[("exact", 1_000)]).await;
}
