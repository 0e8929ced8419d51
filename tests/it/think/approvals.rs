//! Approvals of calls before they begin: what is asked, who answers, and kills at every point between.
use super::{ROLE, Say, Thinking, World, call, finish, text};
use crate::daemon::{Up, fresh, soon};
use convoke::id::{OrgId, Requester, TaskId};
use convoke::task::Error;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::Duration};

/// The agent of these tests: `pay`, `send` and `note_down` need an approval, `pay` above 100 only.
fn approving(world: &World) -> String {
    let tool = |text: String, name: &str, rule: &str| {
        text.replace(&format!("name = \"{name}\"\n"), &format!("name = \"{name}\"\napproval = {rule}\n"))
    };
    let text = tool(text(world, ""), "pay", "{ when = \"{{ args.amount > 100 }}\" }");
    tool(tool(text, "send", "\"always\""), "note_down", "\"always\"")
}

async fn thinking(script: Vec<Say>) -> Thinking {
    let world = World::start(script).await;
    let definition = crate::agent::definition(&approving(&world));
    Thinking::with(world, vec![definition]).await
}

/// The calls that a waiting task asks about, by tool.
fn asked(question: &Value) -> BTreeMap<String, Value> {
    let calls = question["calls"].as_array().unwrap().iter();
    calls.map(|call| (call["tool"].as_str().unwrap().to_owned(), call.clone())).collect()
}

fn ids(question: &Value) -> Vec<String> {
    let calls = question["calls"].as_array().unwrap().iter();
    calls.map(|call| call["id"].as_str().unwrap().to_owned()).collect()
}

/// An answer with one decision for all calls of a question.
fn all(question: &Value, decision: &Value) -> Value {
    Value::Object(ids(question).into_iter().map(|id| (id, decision.clone())).collect::<Map<_, _>>())
}

#[tokio::test]
async fn calls_that_need_approval_wait_together_and_run_with_exactly_what_was_shown() {
    let script = vec![
        Say::Calls(vec![
            ("send", json!({ "to": "ada" })),
            ("look", json!({})),
            ("pay", json!({ "amount": 500 })),
            ("pay", json!({ "amount": 5 })),
            ("note_down", json!({ "words": "a note" })),
        ]),
        call("send", json!({ "to": "ada" })),
        finish(json!(1)),
    ];
    let thinking = thinking(script).await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({})).await;
    let question = thinking.in_state(id, "waiting").await.question.unwrap();
    let world = &thinking.world;
    assert_eq!((world.calls("look"), world.calls("pay"), world.calls("send")), (1, 1, 0), "others run first");
    assert_eq!(question["for"], "approval");
    let calls = asked(&question);
    assert_eq!(calls.keys().collect::<Vec<_>>(), ["note_down", "pay", "send"]);
    assert_eq!(calls["pay"]["arguments"], "{\"amount\":500}");
    let steps = thinking.steps(id).await;
    assert_eq!(
        calls["pay"]["args_sha256"], steps[4]["args_sha256"],
        "the hash that is shown is that of the row"
    );
    let told = question["question"].as_str().unwrap();
    assert!(
        told.contains(calls["pay"]["args_sha256"].as_str().unwrap()) && told.contains("{\"amount\":500}"),
        "{told}"
    );
    let slots = "select slots_used from convoke.agents";
    let slots: i32 = thinking.db.client().await.query_one(slots, &[]).await.unwrap().get(0);
    assert_eq!(slots, 0, "a wait holds no slot");

    let answer = json!({
        calls["send"]["id"].as_str().unwrap(): "approve",
        calls["pay"]["id"].as_str().unwrap(): { "deny": "too much" },
        calls["note_down"]["id"].as_str().unwrap(): { "edit": { "words": "another note" } },
    });
    tasks.answer(id, "ada", answer).await.unwrap();
    // An approval is of one call: the same call again needs another one.
    let second = thinking.in_state(id, "waiting").await.question.unwrap();
    assert_eq!((ids(&second).len(), world.calls("send")), (1, 1));
    assert_ne!(ids(&second)[0], calls["send"]["id"].as_str().unwrap());
    tasks.answer(id, "ada", all(&second, &json!({ "deny": "once is enough" }))).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!((world.calls("pay"), world.calls("send"), world.questions()), (1, 1, 3));

    let steps = thinking.steps(id).await;
    let send = &steps[2];
    assert_eq!(
        (&send["state"], &send["approval"], &send["approved_by"]),
        (&json!("done"), &json!("used"), &json!("ada"))
    );
    let denied = &steps[4];
    assert_eq!((&denied["state"], &denied["tries"]), (&json!("denied"), &json!(0)));
    let words: String =
        thinking.db.client().await.query_one("select words from notes", &[]).await.unwrap().get(0);
    assert_eq!(words, "another note");
    let messages = world.question(1)["messages"].clone();
    let told = |at: usize| messages[at]["content"].as_str().unwrap().to_owned();
    assert!(told(5).contains("denied") && told(5).contains("too much"), "{messages}");
    assert!(
        told(7).starts_with("A person changed the arguments to {\"words\":\"another note\"}\n{"),
        "{messages}"
    );
    let sent = &messages[2]["tool_calls"][4]["function"]["arguments"];
    assert_eq!(sent, "{\"words\":\"a note\"}", "the model's own words stay its own");
    thinking.stop().await;
}

#[tokio::test]
async fn answer_of_another_form_or_for_another_question_runs_nothing() {
    let script = vec![call("note_down", json!({ "words": "x" })), finish(json!(1))];
    let thinking = thinking(script).await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({})).await;
    let question = thinking.in_state(id, "waiting").await.question.unwrap();
    let call = ids(&question).remove(0);
    for answer in [json!("yes"), json!({}), json!({ "3-00": "approve" }), json!({ call.clone(): "yes" })] {
        let refused = tasks.answer(id, "ada", answer.clone()).await;
        assert!(
            matches!(&refused, Err(Error::BadRequest(why)) if why.starts_with("answer: ")),
            "{answer} {refused:?}"
        );
    }
    // Arguments of a person are checked like those of the model, and the question says what is wrong.
    tasks.answer(id, "ada", json!({ call.clone(): { "edit": { "words": 7 } } })).await.unwrap();
    let again = soon("the question with the reason", async {
        loop {
            let task = tasks.get(id).await.unwrap();
            let question =
                task.question.filter(|it| it["question"].as_str().unwrap().contains("was not used"));
            match question {
                Some(question) => return question,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert!(again["question"].as_str().unwrap().contains("/words breaks"), "{again}");
    assert_eq!(ids(&again), std::slice::from_ref(&call));
    let notes = "select count(*) from notes";
    let count: i64 = thinking.db.client().await.query_one(notes, &[]).await.unwrap().get(0);
    assert_eq!(count, 0);
    tasks.answer(id, "ada", json!({ call: "approve" })).await.unwrap();
    thinking.in_state(id, "completed").await;
    thinking.stop().await;
}

#[tokio::test]
async fn agents_of_the_tree_cannot_approve() {
    let thinking = thinking(vec![call("send", json!({})), finish(json!(1))]).await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({})).await;
    let question = thinking.in_state(id, "waiting").await.question.unwrap();
    let agent =
        |name: &str| Requester::Agent { org: OrgId::try_from("demo").unwrap(), id: name.parse().unwrap() };
    let approve = all(&question, &json!("approve"));
    let refused = tasks.answer(id, agent("thinker"), approve.clone()).await;
    assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
    // Another agent that has a part of the same tree.
    let client = thinking.db.client().await;
    client
        .batch_execute(
            "insert into convoke.tasks select (jsonb_populate_record(t, jsonb_build_object('id', gen_random_uuid(),
                 'parent_id', t.id, 'state', 'completed', 'question', null, 'due_at', null))).* from convoke.tasks t;
             insert into convoke.assignments select (jsonb_populate_record(a, jsonb_build_object('id', gen_random_uuid(),
                 'agent_id', 'helper', 'state', 'finished', 'ended_at', clock_timestamp(), 'task_id', (select id from convoke.tasks where parent_id is not null)))).*
                 from convoke.assignments a limit 1",
        )
        .await
        .unwrap();
    let refused = tasks.answer(id, agent("helper"), approve.clone()).await;
    assert!(matches!(&refused, Err(Error::Forbidden(why)) if why.contains("tree")), "{refused:?}");
    assert_eq!(thinking.world.calls("send"), 0);
    tasks.answer(id, agent("stranger"), approve).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!(thinking.world.calls("send"), 1);
    thinking.stop().await;
}

#[tokio::test]
async fn role_that_the_tool_names_may_approve() {
    let world = World::start(vec![
        call("send", json!({})),
        call("note_down", json!({ "words": "x" })),
        finish(json!(1)),
    ])
    .await;
    let named = "approval = { approvers = [\"authenticated\"] }\n";
    let text = approving(&world)
        .replace("name = \"send\"\napproval = \"always\"\n", &format!("name = \"send\"\n{named}"));
    assert!(text.contains(named));
    let thinking = Thinking::with(world, vec![crate::agent::definition(&text)]).await;
    let id = thinking.request(json!({})).await;
    let parts = &thinking.running.parts;
    let mut wish = convoke::auth::MintRequest::new(convoke::auth::Role::Authenticated);
    wish.org = Some("demo".parse().unwrap());
    let token = convoke::auth::mint(&parts.keys, &wish, convoke::clock::Clock::System.now()).unwrap();
    let post = async |question: &Value| {
        let url = format!("http://{}/v1/tasks/{id}/answer", parts.addr);
        let posted = reqwest::Client::new().post(url).bearer_auth(&token);
        posted
            .json(&json!({ "answer": all(question, &json!("approve")) }))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let question = thinking.in_state(id, "waiting").await.question.unwrap();
    assert_eq!(post(&question).await, 200, "{question}");
    // The next question is about a tool that names no role.
    let question = thinking.in_state(id, "waiting").await.question.unwrap();
    assert_eq!(asked(&question).keys().collect::<Vec<_>>(), ["note_down"]);
    assert_eq!(post(&question).await, 403, "{question}");
    parts.tasks.answer(id, "ada", all(&question, &json!("approve"))).await.unwrap();
    thinking.in_state(id, "completed").await;
    thinking.stop().await;
}

/// One answer whose calls of every class need an approval.
fn script() -> Vec<Say> {
    vec![
        Say::Calls(vec![
            ("look", json!({})),
            ("pay", json!({ "amount": 500 })),
            ("send", json!({})),
            ("note_down", json!({ "words": "a note" })),
        ]),
        finish(json!({ "ok": true })),
    ]
}

struct Killed {
    world: World,
    db: crate::support::TestDb,
    folder: tempfile::TempDir,
}

impl Killed {
    async fn prepared() -> Self {
        let world = World::start(script()).await;
        let (db, folder) = fresh().await;
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        std::fs::write(folder.path().join("agents/thinker.toml"), approving(&world)).unwrap();
        db.client().await.batch_execute(ROLE).await.unwrap();
        Self { world, db, folder }
    }

    /// Answers the questions until the task has ended or the daemon is gone. A person approves everything, and knows
    /// the truth about calls of unknown outcome. Returns how often each kind of question was answered.
    async fn answered(&self, up: &mut Up) -> (u32, u32) {
        let (client, token) = (self.db.client().await, super::kills::token(self.folder.path()));
        let (mut approvals, mut doubts) = (0, 0);
        let state = "select id::text, state, question from convoke.tasks";
        soon("the end, or the end of the daemon", async {
            loop {
                let row = client.query_one(state, &[]).await.unwrap();
                let (id, state): (String, String) = (row.get(0), row.get(1));
                match state.as_str() {
                    "completed" => return,
                    "failed" | "canceled" => panic!("the task is {state}"),
                    _ if !up.lives() => return,
                    "waiting" => {
                        let question: Value = row.get(2);
                        let answer = if question.get("calls").is_some() {
                            approvals += 1;
                            all(&question, &json!("approve"))
                        } else {
                            doubts += 1;
                            let text = question["question"].as_str().unwrap();
                            let tool = ["pay", "send"].into_iter().find(|it| text.contains(&format!("the tool {it}")));
                            match self.world.calls(tool.unwrap()) {
                                0 => json!({ "outcome": "not_done" }),
                                _ => json!({ "outcome": "done", "result": format!("answer of {}", tool.unwrap()) }),
                            }
                        };
                        let url = format!("{}/v1/tasks/{id}/answer", up.url);
                        let posted = reqwest::Client::new().post(url).bearer_auth(&token);
                        // The daemon may die while it answers.
                        let _ = posted.json(&json!({ "answer": answer })).send().await;
                    }
                    _ => {}
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        })
        .await;
        (approvals, doubts)
    }

    async fn count(&self, sql: &str) -> i64 {
        self.db.client().await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

async fn survives(point: &str, expected: &BTreeMap<usize, Vec<bytes::Bytes>>) {
    let killed = Killed::prepared().await;
    let mut first = Up::start(&killed.db, killed.folder.path(), Some(point)).await;
    super::kills::request(&killed.db).await;
    let (before, doubts) = killed.answered(&mut first).await;
    assert_eq!(doubts, 0, "{point}");
    first.dies_at(point).await;
    let mut second = Up::start(&killed.db, killed.folder.path(), None).await;
    let (after, doubts) = killed.answered(&mut second).await;
    let world = &killed.world;
    assert_eq!((world.calls("pay"), world.calls("send")), (1, 1), "{point}: no approval is used twice");
    assert_eq!(killed.count("select count(*) from notes").await, 1, "{point}");
    let is_doubtful = point.starts_with("tool.intended") || point.starts_with("tool.done");
    assert_eq!(
        doubts,
        u32::from(is_doubtful),
        "{point}: a call that began with its approval is not repeated"
    );
    let answers = killed.count("select jsonb_array_length(answers)::bigint from convoke.tasks").await;
    assert_eq!(answers, 1 + i64::from(doubts), "{point}: one question about all calls ({before}, {after})");
    assert_eq!(
        killed.count("select count(*) from convoke.steps where approval = 'used'").await,
        3,
        "{point}"
    );
    for (entry, bodies) in &world.asked() {
        assert_eq!(bodies.len(), 1, "{point}");
        assert_eq!(bodies[0], expected[entry][0], "{point}: question {entry} has the same bytes");
    }
    for (name, query) in convoke::task::INVARIANTS {
        let rows = killed.db.client().await.query(*query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{point}: {name} is broken by {rows:?}");
    }
}

async fn survive(points: &[&str]) {
    let killed = Killed::prepared().await;
    let mut up = Up::start(&killed.db, killed.folder.path(), None).await;
    super::kills::request(&killed.db).await;
    assert_eq!(killed.answered(&mut up).await, (1, 0));
    let expected = killed.world.asked();
    for point in points {
        survives(point, &expected).await;
    }
}

#[tokio::test]
async fn killed_while_a_person_is_asked_the_question_stays() {
    survive(&["run.asked:1", "run.asked:2", "task.waiting", "task.answered"]).await;
}

#[tokio::test]
async fn killed_after_an_approval_each_call_runs_once_with_it() {
    survive(&[
        "run.answered",
        "tool.intended:2",
        "tool.done:2",
        "tool.intended:3",
        "tool.done:3",
        "tool.recorded:4",
    ])
    .await;
}

#[tokio::test]
async fn approval_that_has_expired_is_asked_for_again() {
    let killed = Killed::prepared().await;
    let mut first = Up::start(&killed.db, killed.folder.path(), Some("run.answered")).await;
    super::kills::request(&killed.db).await;
    killed.answered(&mut first).await;
    first.dies_at("run.answered").await;
    let expire =
        "update convoke.steps set approval_expires_at = now() - interval '1 second' where name = 'send'";
    killed.db.client().await.batch_execute(expire).await.unwrap();
    let mut second = Up::start(&killed.db, killed.folder.path(), None).await;
    let (approvals, doubts) = killed.answered(&mut second).await;
    assert_eq!((approvals, doubts), (1, 0), "one more question, about the call that expired");
    assert_eq!((killed.world.calls("pay"), killed.world.calls("send")), (1, 1));
    let asked: i64 = killed.count("select jsonb_array_length(answers)::bigint from convoke.tasks").await;
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn approval_expires_in_the_database_whatever_the_daemon_believes() {
    let thinking = thinking(vec![call("send", json!({})), finish(json!(1))]).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "waiting").await;
    let at = run_of(&thinking, id).await;
    let tasks = &thinking.running.parts.tasks;
    // The assignment waits, so nothing is written by it.
    let begun = tasks.begin_calls(&at, &[3]).await;
    assert!(matches!(begun, Err(Error::Fenced)), "{begun:?}");
    let client = thinking.db.client().await;
    client.batch_execute("update convoke.assignments set state = 'running'").await.unwrap();
    let begun = tasks.begin_calls(&at, &[3]).await;
    assert!(matches!(begun, Err(Error::Fenced)), "no approval: {begun:?}");
    let granted = "update convoke.steps set approval = 'granted', approval_expires_at = now() - interval '1 ms' where seq = 3";
    client.batch_execute(granted).await.unwrap();
    assert!(matches!(tasks.begin_calls(&at, &[3]).await, Err(Error::Fenced)), "an expired one");
    client
        .batch_execute(
            "update convoke.steps set approval_expires_at = now() + interval '1 day' where seq = 3",
        )
        .await
        .unwrap();
    assert!(tasks.begin_calls(&at, &[3]).await.is_ok());
    assert!(matches!(tasks.begin_calls(&at, &[3]).await, Err(Error::Fenced)), "a used one");
    thinking.stop().await;
}

async fn run_of(thinking: &Thinking, id: TaskId) -> convoke::task::RunKey {
    let row = "select id, epoch from convoke.assignments where task_id = $1 order by epoch desc limit 1";
    let row = thinking.db.client().await.query_one(row, &[&id.as_uuid()]).await.unwrap();
    let key = convoke::task::AssignmentKey {
        task_id: id,
        assignment_id: row.get::<_, uuid::Uuid>(0).into(),
        epoch: convoke::id::Epoch(row.get(1)),
    };
    convoke::task::RunKey { key, agent: "thinker".parse().unwrap(), run: 1 }
}
