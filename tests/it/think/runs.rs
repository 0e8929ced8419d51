//! Runs without crashes: every kind of tool, limits, people, budgets, and models that misbehave.
use super::{Say, Thinking, World, call, finish, thinker};
use crate::daemon::soon;
use convoke::task::Budget;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

fn words(steps: &[Value]) -> Vec<String> {
    let one = |step: &Value| {
        let what = ["tool", "ending", "note_kind"].into_iter().find_map(|name| step[name].as_str());
        format!("{} {}", what.unwrap_or("?"), step["state"].as_str().unwrap())
    };
    steps.iter().map(one).collect()
}

#[tokio::test]
async fn run_with_every_class_of_effects_finishes_with_the_result() {
    let script = vec![
        Say::Calls(vec![("look", json!({})), ("look", json!({ "b": 1 })), ("send", json!({}))]),
        Say::Calls(vec![("note_down", json!({ "words": "x'); drop table notes; --" })), ("pay", json!({}))]),
        finish(json!({ "ok": true })),
    ];
    let price = "price = { input_microdollars_per_million_tokens = 1_000_000, output_microdollars_per_million_tokens = 1_000_000 }";
    let thinking = Thinking::start(script, price).await;
    let id = thinking.request(json!({})).await;
    let task = thinking.in_state(id, "completed").await;
    assert_eq!(task.result, Some(json!({ "ok": true })));
    let steps = thinking.steps(id).await;
    assert_eq!(
        words(&steps),
        [
            "input done",
            "calls done",
            "look done",
            "look done",
            "send done",
            "calls done",
            "note_down done",
            "pay done",
            "calls done",
            "finish done",
        ]
    );
    assert_eq!(
        steps[6]["result"],
        "{\"more\":false,\"rows\":[{\"id\":1,\"words\":\"x'); drop table notes; --\"}]}"
    );
    assert_eq!((steps[1]["tokens"].as_i64(), steps[1]["model"].as_str()), (Some(110), Some("m-1")));
    let world = &thinking.world;
    assert_eq!(
        (world.calls("look"), world.calls("send"), world.calls("pay"), world.questions()),
        (2, 1, 1, 3)
    );
    assert_eq!(world.keys("pay"), [steps[7]["key"].as_str().unwrap().to_owned()].into());
    let why = thinking.running.parts.tasks.why(id).await.unwrap();
    assert_eq!((&why["paid"]["tokens"], &why["paid"]["microdollars"]), (&json!(330), &json!(330)));
    assert_eq!(why["runs"][0]["steps"][2]["tool"], "look");
    assert!(why["runs"][0]["steps"][2].get("result").is_none(), "no contents: {why}");
    // What the model is told.
    let question = world.question(2);
    let roles: Vec<&str> = question["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "tool", "assistant", "tool", "tool"]);
    assert_eq!(question["messages"][1]["content"], "{\"q\":1}");
    assert_eq!(question["messages"][2]["reasoning_content"], "hm");
    let tools: Vec<&str> = question["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["function"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(tools, ["ask", "finish", "give_up", "look", "note_down", "pay", "send"]);
    thinking.stop().await;
}

#[tokio::test]
async fn question_begins_with_the_bytes_of_the_question_before() {
    let script = vec![call("look", json!({})), call("pay", json!({})), finish(json!(1))];
    let thinking = Thinking::start(script, "").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    for entry in 1..3 {
        let (before, after) = (thinking.world.question(entry - 1), thinking.world.question(entry));
        let (before, after) = (before["messages"].as_array().unwrap(), after["messages"].as_array().unwrap());
        assert_eq!(before[..], after[..before.len()], "nothing before the new messages changes");
    }
    thinking.stop().await;
}

#[tokio::test]
async fn statement_of_a_tool_has_only_the_rights_of_its_role() {
    let world = World::start(vec![
        call("read_tasks", json!({})),
        call("write_in_read", json!({})),
        call("slow", json!({})),
        call("many", json!({})),
        finish(json!(1)),
    ])
    .await;
    let tool = |name: &str, effect: &str, statement: &str| {
        format!(
            "[[tool]]\nname = \"{name}\"\nkind = \"sql\"\nrole = \"think_writer\"\neffect = \"{effect}\"\n\
             timeout = \"300ms\"\nstatement = \"{statement}\"\n"
        )
    };
    let mut text = super::text(&world, "");
    text = text.replace("\"ask\"]", "\"ask\", \"read_tasks\", \"write_in_read\", \"slow\", \"many\"]");
    text.push_str(&tool("read_tasks", "read", "select id from convoke.tasks"));
    text.push_str(&tool("write_in_read", "read", "insert into notes (words) values ('x') returning id"));
    text.push_str(&tool("slow", "database", "select pg_sleep(5)"));
    text.push_str(&tool("many", "read", "select n from generate_series(1, 100000) n"));
    let thinking = Thinking::with(world, vec![crate::agent::definition(&text)]).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let results: Vec<&str> = steps
        .iter()
        .filter(|step| step["kind"] == "tool")
        .map(|step| step["result"].as_str().unwrap())
        .collect();
    for (result, sqlstate) in results.iter().zip(["42501", "25006", "57014"]) {
        assert!(result.contains(&format!("SQLSTATE {sqlstate}")), "{result}");
    }
    let many: Value = serde_json::from_str(results[3]).unwrap();
    assert_eq!((many["rows"].as_array().unwrap().len(), &many["more"]), (200, &json!(true)));
    thinking.stop().await;
}

#[tokio::test]
async fn cancel_closes_the_connection_to_the_model_at_once() {
    let thinking = Thinking::start(vec![Say::Hang], "").await;
    let id = thinking.request(json!({})).await;
    soon("the question", async {
        while thinking.world.questions() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let began = Instant::now();
    thinking.running.parts.tasks.cancel(id, "no longer needed").await.unwrap();
    soon("the closed connection", thinking.world.dropped.notified()).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    thinking.in_state(id, "canceled").await;
    assert_eq!(thinking.world.questions(), 1);
    thinking.stop().await;
}

#[tokio::test]
async fn canceled_run_has_ended_and_a_requeue_begins_another() {
    let script = vec![call("ask", json!({ "question": "Which one?" })), finish(json!(1))];
    let thinking = Thinking::start(script, "").await;
    let id = thinking.request(json!({})).await;
    let tasks = thinking.running.parts.tasks.clone();
    thinking.in_state(id, "waiting").await;
    tasks.cancel(id, "no longer needed").await.unwrap();
    let ended = || async {
        tasks.steps(id, false).await.unwrap().iter().map(|run| run["ended_as"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ended().await, [json!("canceled")]);
    tasks.requeue(id, "ada").await.unwrap();
    thinking.in_state(id, "waiting").await;
    assert_eq!(ended().await, [json!("canceled"), Value::Null]);
    tasks.answer(id, "ada", json!("the red one")).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!(ended().await, [json!("canceled"), json!("finish")]);
    thinking.stop().await;
}

#[tokio::test]
async fn person_answers_the_agent_and_the_run_goes_on() {
    let script =
        vec![call("look", json!({})), call("ask", json!({ "question": "Which one?" })), finish(json!(1))];
    let thinking = Thinking::start(script, "").await;
    let id = thinking.request(json!({})).await;
    let waiting = thinking.in_state(id, "waiting").await;
    assert_eq!(waiting.question.unwrap()["question"], "Which one?");
    thinking.running.parts.tasks.answer(id, "ada", json!("the red one")).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!(thinking.world.questions(), 3, "no question was asked again");
    assert_eq!(thinking.world.calls("look"), 1);
    let messages = thinking.world.question(2);
    assert_eq!(messages["messages"].as_array().unwrap().last().unwrap()["content"], "\"the red one\"");
    thinking.stop().await;
}

#[tokio::test]
async fn unknown_outcome_of_a_tool_waits_for_a_person() {
    let script = vec![call("send", json!({ "to": "x" })), call("pay", json!({})), finish(json!(1))];
    let thinking = Thinking::start(script, "").await;
    thinking.world.status.lock().insert("send".into(), 502);
    let id = thinking.request(json!({})).await;
    let tasks = thinking.running.parts.tasks.clone();
    let waiting = thinking.in_state(id, "waiting").await;
    let question = waiting.question.unwrap();
    let told = question["question"].as_str().unwrap();
    assert!(told.contains("the tool send") && told.contains("{\"to\":\"x\"}"), "{told}");
    assert_eq!((&question["for"], thinking.world.calls("send")), (&json!("approval"), 1));
    // An answer of another form asks again; then the call runs again with the same key.
    tasks.answer(id, "ada", json!("yes")).await.unwrap();
    thinking.in_state(id, "waiting").await;
    thinking.world.status.lock().clear();
    tasks.answer(id, "ada", json!({ "outcome": "not_done" })).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.calls("send"), thinking.world.keys("send").len()), (2, 1));
    thinking.stop().await;
}

#[tokio::test]
async fn call_with_a_key_is_repeated_with_the_same_key() {
    let thinking = Thinking::start(vec![call("pay", json!({})), finish(json!(1))], "").await;
    thinking.world.status.lock().insert("pay".into(), 503);
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "waiting").await;
    assert_eq!((thinking.world.calls("pay"), thinking.world.keys("pay").len()), (3, 1));
    let answer = json!({ "outcome": "skip" });
    thinking.running.parts.tasks.answer(id, "ada", answer).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!(thinking.steps(id).await[2]["state"], "skipped");
    thinking.stop().await;
}

#[tokio::test]
async fn run_waits_for_budget_and_goes_on_after_the_raise() {
    let script = vec![call("look", json!({})), call("pay", json!({})), finish(json!(1))];
    let thinking = Thinking::start(script, "").await;
    // A question reserves its bytes and 4,096 tokens of the answer: two fit, with 110 used by the first.
    let id = thinking.request(json!({ "budget": { "tokens": 7_000 } })).await;
    let tasks = &thinking.running.parts.tasks;
    let spent = || async {
        let row = "select tokens_reserved, tokens_spent from convoke.budgets";
        let row = thinking.db.client().await.query_one(row, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    let state = soon("the end of the first part", async {
        loop {
            let task = tasks.get(id).await.unwrap();
            if matches!(task.state.as_str(), "waiting" | "completed") {
                return task.state.as_str();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let asked = thinking.world.questions();
    if state == "waiting" {
        assert!(asked < 3);
        assert_eq!(spent().await, (0, 110 * i64::try_from(asked).unwrap()), "finished steps are charged");
        let more = Budget { tokens: Some(100_000), ..Budget::default() };
        tasks.set_budget(id, "ada", more).await.unwrap();
    }
    thinking.in_state(id, "completed").await;
    assert_eq!(
        (thinking.world.questions(), spent().await),
        (3, (0, 330)),
        "each question once, and paid once"
    );
    let small = thinking.request(json!({ "budget": { "tokens": 100 } })).await;
    thinking.in_state(small, "waiting").await;
    assert_eq!(thinking.world.questions(), 3, "a question that does not fit is not asked");
    thinking.stop().await;
}

#[tokio::test]
async fn answers_have_the_limit_of_their_agent_and_at_most_half_of_the_context() {
    for (keys, expected) in
        [("", 4_096), ("answer_tokens = 300", 300), ("answer_tokens = 3000\ncontext_tokens = 4000", 2_000)]
    {
        let thinking = Thinking::start(vec![finish(json!(1))], keys).await;
        let id = thinking.request(json!({})).await;
        thinking.in_state(id, "completed").await;
        assert_eq!(thinking.world.question(0)["max_tokens"], expected, "{keys}");
        thinking.stop().await;
    }
}

#[tokio::test]
async fn new_run_after_a_failed_one_does_not_repeat_an_effect() {
    // The first run gives up after the effect; the second calls the same tool with the same arguments.
    let script = vec![
        call("pay", json!({ "n": 1 })),
        call("give_up", json!({ "reason": "tired", "retryable": true })),
    ];
    let thinking = Thinking::start(script, "").await;
    let id = thinking.request(json!({ "policy": { "attempts_max": 2, "backoff": "10ms" } })).await;
    let task = thinking.in_state(id, "failed").await;
    assert!(!task.error.unwrap().to_string().contains("tired"), "no text of the model in a failure");
    assert_eq!(thinking.world.calls("pay"), 1, "the effect belongs to the task");
    let runs = thinking.running.parts.tasks.steps(id, true).await.unwrap();
    assert_eq!(runs.len(), 2);
    let steps = runs[1]["steps"].as_array().unwrap();
    assert!(steps[0]["note"].as_str().unwrap().contains("Earlier runs of this task"), "{}", steps[0]);
    assert!(steps[2]["result"].as_str().unwrap().contains("already_done"), "{}", steps[2]);
    thinking.stop().await;
}

#[tokio::test]
async fn rejected_result_goes_on_in_the_same_run() {
    let world = World::start(vec![finish(json!("short")), finish(json!("a long result"))]).await;
    let mut judge = crate::agent::definition(
        "id = \"judge\"\norg = \"demo\"\ncapabilities = [\"judge\"]\n[run]\nkind = \"command\"\n\
         argv = [\"/bin/sh\", \"-c\", \"case $(cat) in *'a long'*) echo '{\\\"accepted\\\": true}';; *) echo '{\\\"accepted\\\": false, \\\"reason\\\": \\\"too short\\\"}';; esac\"]\nenv = [\"PATH\"]",
    );
    judge.slots = 2;
    let definitions = vec![thinker(&world, ""), judge];
    let thinking = Thinking::with(world, definitions).await;
    let policy = json!({ "attempts_max": 3, "backoff": "10ms", "verifier": { "kind": "judge.it", "requires": ["judge"] } });
    let id = thinking.request(json!({ "policy": policy })).await;
    let task = thinking.in_state(id, "completed").await;
    assert_eq!(task.result, Some(json!("a long result")));
    let runs = thinking.running.parts.tasks.steps(id, true).await.unwrap();
    assert_eq!((runs.len(), thinking.world.questions()), (1, 2));
    let steps = runs[0]["steps"].as_array().unwrap();
    assert!(
        steps
            .iter()
            .any(|step| step["note_kind"] == "rejected"
                && step["note"].as_str().unwrap().contains("too short"))
    );
    thinking.stop().await;
}

#[tokio::test]
async fn tools_are_called_by_schema_where_the_endpoint_has_no_calls() {
    let one =
        |tool: &str, arguments: Value| Say::Text(json!({ "tool": tool, "arguments": arguments }).to_string());
    let script = vec![one("look", json!({})), one("finish", json!({ "result": 7 }))];
    let thinking = Thinking::start(script, "tools_by = \"schema\"").await;
    let id = thinking.request(json!({})).await;
    assert_eq!(thinking.in_state(id, "completed").await.result, Some(json!(7)));
    let question = thinking.world.question(1);
    assert!(question.get("tools").is_none());
    let forms = question["response_format"]["json_schema"]["schema"]["anyOf"].as_array().unwrap();
    assert_eq!((forms.len(), &forms[1]["properties"]["tool"]["const"]), (7, &json!("finish")));
    let last = question["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last, json!({ "role": "user", "content": "Result of look:\nanswer of look" }));
    thinking.stop().await;
}

#[tokio::test]
async fn command_tool_gets_its_arguments_and_key_and_its_output_is_cut() {
    let world = World::start(vec![
        call("program", json!({ "a": 1 })),
        call("program", json!({ "fail": 1 })),
        finish(json!(1)),
    ])
    .await;
    let mut text = super::text(&world, "").replace("\"ask\"]", "\"ask\", \"program\"]");
    text.push_str(
        "[[tool]]\nname = \"program\"\nkind = \"command\"\neffect = \"read\"\noutput_bytes = 256\nenv = [\"CARGO_MANIFEST_DIR\", \"PATH\"]\n\
         parameters = { type = \"object\" }\n\
         argv = [\"/bin/sh\", \"-c\", \"args=$(cat); case $args in *fail*) echo oops $CARGO_MANIFEST_DIR >&2; exit 3;; esac; \
         echo $args $CONVOKE_IDEMPOTENCY_KEY $CARGO_MANIFEST_DIR; head -c 2000 /dev/zero | tr '\\\\0' x\"]\n",
    );
    let definition = crate::agent::definition(&text);
    let thinking = Thinking::with(world, vec![definition]).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let result = steps[2]["result"].as_str().unwrap();
    assert!(
        result.starts_with(&format!(
            "{{\"a\":1}} {} [secret CARGO_MANIFEST_DIR]",
            steps[2]["key"].as_str().unwrap()
        )),
        "{result}"
    );
    assert!(result.contains("bytes are left out here") && result.len() < 400, "{result}");
    assert_eq!((&steps[2]["cut"], steps[4]["state"].as_str()), (&json!(true), Some("failed")));
    assert!(
        steps[4]["result"].as_str().unwrap().contains("exit code 3: oops [secret CARGO_MANIFEST_DIR]"),
        "{}",
        steps[4]
    );
    thinking.stop().await;
}

#[tokio::test]
async fn steps_show_contents_to_the_service_only() {
    let thinking = Thinking::start(vec![finish(json!(1))], "").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let parts = &thinking.running.parts;
    let read = |role: convoke::auth::Role| {
        let mut wish = convoke::auth::MintRequest::new(role);
        wish.org = Some("demo".parse().unwrap());
        let token = convoke::auth::mint(&parts.keys, &wish, convoke::clock::Clock::System.now()).unwrap();
        let url = format!("http://{}/v1/tasks/{id}/steps", parts.addr);
        async move {
            reqwest::Client::new()
                .get(url)
                .bearer_auth(token)
                .send()
                .await
                .unwrap()
                .json::<Value>()
                .await
                .unwrap()
        }
    };
    let all = read(convoke::auth::Role::ServiceRole).await;
    assert_eq!(all["runs"][0]["steps"][0]["note"], "{\"q\":1}", "{all}");
    let shape = read(convoke::auth::Role::Authenticated).await;
    let step = &shape["runs"][0]["steps"][2];
    assert_eq!((step["tool"].as_str(), step.get("args")), (Some("finish"), None), "{shape}");
    assert!(!shape.to_string().contains("\"q\""), "{shape}");
    thinking.stop().await;
}

#[tokio::test]
async fn presence_shows_thinking() {
    let thinking = Thinking::start(vec![Say::Hang], "").await;
    let id = thinking.request(json!({})).await;
    let room = convoke::hub::Room::public(convoke::id::Topic::org(&"demo".parse().unwrap()));
    soon("presence", async {
        loop {
            let state = thinking.running.parts.tracker.snapshot(room.clone()).await;
            let state: Value = serde_json::from_slice(&state).unwrap();
            if state["thinker"]["metas"][0]["activity"] == "thinking" {
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

/// Waits for the question of a new task. Returns the task, and the id and the epoch of its assignment.
async fn asked(thinking: &Thinking) -> (convoke::id::TaskId, (uuid::Uuid, i64)) {
    let id = thinking.request(json!({})).await;
    soon("the question", async {
        while thinking.world.questions() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // On a busy machine an award may expire before it is accepted, so there may be an earlier one.
    let row = "select id, epoch from convoke.assignments where task_id = $1 order by epoch desc limit 1";
    let row = thinking.db.client().await.query_one(row, &[&id.as_uuid()]).await.unwrap();
    (id, (row.get(0), row.get(1)))
}

fn run_key(id: convoke::id::TaskId, assignment: uuid::Uuid, epoch: i64) -> convoke::task::RunKey {
    let key = convoke::task::AssignmentKey {
        task_id: id,
        assignment_id: assignment.into(),
        epoch: convoke::id::Epoch(epoch),
    };
    convoke::task::RunKey { key, agent: "thinker".parse().unwrap(), run: 1 }
}

fn question_record() -> convoke::task::ModelQuestion {
    convoke::task::ModelQuestion {
        id: uuid::Uuid::new_v4(),
        provider: "p".into(),
        model: "m".into(),
        most: convoke::task::Usage { tokens: 9, microdollars: 9, presumed: false },
        price_from: None,
        limits: Vec::new(),
    }
}

fn question(record: &convoke::task::ModelQuestion) -> convoke::task::NewQuestion<'_> {
    convoke::task::NewQuestion { again: None, request_sha256: "x", last: false, passed_over: None, record }
}

#[tokio::test]
async fn step_is_written_by_the_assignment_that_holds_the_task_only() {
    let thinking = Thinking::start(vec![Say::Hang], "").await;
    let (id, row) = asked(&thinking).await;
    let tasks = &thinking.running.parts.tasks;
    let at = |epoch| run_key(id, row.0, epoch);
    let epoch = row.1;
    let note = |at: convoke::task::RunKey, head| async move {
        tasks.append_note(&at, head, convoke::task::NoteKind::Nudge, "x").await
    };
    let fenced =
        |outcome: Result<(), convoke::task::Error>| matches!(outcome, Err(convoke::task::Error::Fenced));
    assert!(fenced(note(at(epoch - 1), 2).await), "an old epoch");
    assert!(fenced(note(at(epoch), 1).await), "another writer has appended");
    assert!(note(at(epoch), 2).await.is_ok());
    let record = question_record();
    let again = tasks.begin_question(&at(epoch), 2, question(&record)).await;
    assert!(fenced(again.map(drop)));
    let end = convoke::task::CallEnd {
        state: convoke::task::StepState::Done,
        result: "x".into(),
        bytes: 1,
        cut: false,
    };
    assert!(fenced(tasks.end_call(&at(epoch), 1, &end, None).await), "not a call");
    tasks.cancel(id, "enough").await.unwrap();
    thinking.in_state(id, "canceled").await;
    assert!(fenced(note(at(epoch), 3).await), "the assignment is over");
    thinking.stop().await;
}

/// A crash of Postgres may lose the result of a call that the daemon has read: then its call is open again.
#[tokio::test]
async fn nothing_is_asked_while_a_call_is_open_and_nothing_is_counted_that_is_not_written() {
    let thinking = Thinking::start(vec![Say::Hang], "").await;
    let (id, (assignment, epoch)) = asked(&thinking).await;
    let tasks = &thinking.running.parts.tasks;
    let at = run_key(id, assignment, epoch);
    let client = thinking.db.client().await;
    let record = question_record();
    let fenced =
        |outcome: Option<convoke::task::Error>| matches!(outcome, Some(convoke::task::Error::Fenced));
    let counted = async |id: &uuid::Uuid| -> Option<String> {
        let state = "select state from convoke.model_questions where id = $1";
        client.query_opt(state, &[id]).await.unwrap().map(|row| row.get(0))
    };
    assert_eq!(tasks.begin_question(&at, 2, question(&record)).await.unwrap(), Ok(3));
    let call = convoke::task::NewCall {
        wire_id: None,
        name: "look".into(),
        args: json!({}),
        args_sha256: "x".into(),
        effect: convoke::task::Effect::Read,
        state: convoke::task::StepState::Planned,
        result: None,
    };
    let end = convoke::task::ModelEnd {
        answer: json!({ "role": "assistant" }),
        ending: convoke::task::Ending::Calls,
        finish: None,
        request_id: None,
        question: record.id,
        used: convoke::task::ModelUsage::none(),
        calls: vec![call],
    };
    let old = run_key(id, assignment, epoch - 1);
    assert!(fenced(tasks.end_question(&old, 3, 3, &end).await.err()), "an old epoch");
    assert_eq!(counted(&record.id).await.as_deref(), Some("sent"));
    let after = tasks.end_question(&at, 3, 3, &end).await.unwrap().unwrap();
    assert_eq!(counted(&record.id).await.as_deref(), Some("exact"));
    let states: Vec<_> = after.run.steps.iter().map(|step| (step.seq, step.state)).skip(2).collect();
    assert_eq!(states, [(3, convoke::task::StepState::Done), (4, convoke::task::StepState::Planned)]);
    let next = question_record();
    assert!(fenced(tasks.begin_question(&at, 4, question(&next)).await.err()), "the call is open");
    assert_eq!(counted(&next.id).await, None);
    let read = convoke::task::CallEnd {
        state: convoke::task::StepState::Done,
        result: "x".into(),
        bytes: 1,
        cut: false,
    };
    tasks.end_call(&at, 4, &read, None).await.unwrap();
    assert_eq!(tasks.begin_question(&at, 4, question(&next)).await.unwrap(), Ok(5));
    assert_eq!(counted(&next.id).await.as_deref(), Some("sent"));
    thinking.stop().await;
}
