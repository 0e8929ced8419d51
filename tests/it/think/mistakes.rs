//! A model that makes mistakes: it is told, or its run or attempt ends with the reason.
use super::{Say, Thinking, World, call, finish};
use crate::daemon::{Up, fresh, soon};
use serde_json::{Value, json};
use std::{fs, time::Duration};

#[tokio::test]
async fn mistakes_of_the_model_are_told_to_it() {
    let script = vec![
        Say::Calls(vec![
            ("drop_all", json!({})),
            ("note_down", json!({ "words": 7 })),
            ("note_down", json!({ "words": "\u{0}" })),
            ("Functions.LOOK", json!({})),
        ]),
        Say::Text("I am done.".into()),
        call("finish", json!({ "wrong": 1 })),
        Say::Calls(vec![("finish", json!({ "result": 1 })), ("pay", json!({}))]),
        finish(json!(2)),
    ];
    let thinking = Thinking::start(script, "").await;
    thinking.world.status.lock().insert("pay".into(), 404);
    let id = thinking.request(json!({})).await;
    assert_eq!(thinking.in_state(id, "completed").await.result, Some(json!(2)));
    let steps = thinking.steps(id).await;
    let codes: Vec<String> = steps
        .iter()
        .filter_map(|step| serde_json::from_str::<Value>(step["result"].as_str()?).ok())
        .filter_map(|result| Some(result["error"]["code"].as_str()?.to_owned()))
        .collect();
    assert_eq!(codes, ["unknown_tool", "bad_arguments", "failed", "bad_arguments", "failed", "failed"]);
    assert!(steps.iter().any(|step| step["note_kind"] == "nudge"));
    assert!(steps[4]["result"].as_str().unwrap().contains("SQLSTATE 22021"), "{}", steps[4]);
    assert_eq!(thinking.world.calls("look"), 1, "a name with another case is found");
    thinking.stop().await;
}

#[tokio::test]
async fn run_ends_at_its_limit_of_questions() {
    let step = |n: i32| call("look", json!({ "n": n }));
    let thinking = Thinking::start((0..20).map(step).collect(), "[limits]\nsteps_max = 5").await;
    let id = thinking.request(json!({})).await;
    let task = thinking.in_state(id, "failed").await;
    assert!(task.error.unwrap().to_string().contains("used all of its questions"));
    assert_eq!(thinking.world.questions(), 6);
    let last = thinking.world.question(5);
    let tools: Vec<&str> = last["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["function"]["name"].as_str().unwrap())
        .collect();
    assert_eq!((tools, &last["tool_choice"]), (vec!["finish", "give_up"], &json!("required")));
    let notes: Vec<Value> =
        thinking.steps(id).await.into_iter().filter(|step| step["note_kind"] == "limit").collect();
    assert_eq!(notes.len(), 1);
    thinking.stop().await;
}

#[tokio::test]
async fn equal_answers_are_stopped_and_then_end_the_run() {
    let thinking = Thinking::start(vec![call("look", json!({}))], "").await;
    let id = thinking.request(json!({})).await;
    let task = thinking.in_state(id, "failed").await;
    assert!(task.error.unwrap().to_string().contains("the same answer again and again"));
    assert_eq!((thinking.world.questions(), thinking.world.calls("look")), (5, 2));
    thinking.stop().await;
}

#[tokio::test]
async fn rubbish_of_the_endpoint_fails_the_attempt_and_is_charged() {
    for (body, told) in [
        (json!({ "choices": [] }), "it has no choice"),
        (json!({ "error": { "message": "sk-secret" } }), "it is an error with status 200"),
        (
            json!({ "choices": [{ "message": { "content": null }, "finish_reason": "content_filter" }] }),
            "refused to answer",
        ),
    ] {
        let thinking = Thinking::start(vec![Say::Raw(body)], "").await;
        let id = thinking.request(json!({})).await;
        let error = thinking.in_state(id, "failed").await.error.unwrap().to_string();
        assert!(error.contains(told) && !error.contains("sk-secret"), "{error}");
        let why = thinking.running.parts.tasks.why(id).await.unwrap();
        assert!(why["paid"]["tokens"].as_i64().unwrap() > 4_096, "{why}");
        thinking.stop().await;
    }
}

#[tokio::test]
async fn what_the_database_cannot_store_is_told_to_the_model_and_fails_nothing() {
    let odd = |name: &str, args: Value| {
        let function = json!({ "name": name, "arguments": args.to_string() });
        let call = json!({ "id": "c\0", "type": "function", "function": function });
        let message = json!({ "role": "assistant", "content": "\0", "tool_calls": [call] });
        Say::Raw(json!({ "model": "m\0", "choices": [{ "message": message, "finish_reason": "st\0op" }] }))
    };
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let script = vec![
        odd("finish", json!({ "result": { "a\0": "b" } })),
        odd("lo\0ok", json!({})),
        call("look", json!({})),
        odd("ask", json!({ "question": "\0" })),
        odd("finish", json!({ "result": "an \\u0000 that is plain text" })),
    ];
    let thinking = Thinking::start(script, "").await;
    let id = thinking.request(json!({})).await;
    let done = thinking.in_state(id, "completed").await;
    assert_eq!((done.result, done.attempt), (Some(json!("an \\u0000 that is plain text")), 1));
    let told: Vec<String> = thinking
        .steps(id)
        .await
        .iter()
        .filter(|step| step["kind"] == "tool" && step["state"] == "failed")
        .map(|step| step["result"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for (told, why) in told.iter().zip(["U+0000, which cannot be stored", "no such tool", "U+0000"]) {
        assert!(told.contains(why), "{told}");
    }
    thinking.world.clone().says(vec![finish(deep), finish(json!(1))]);
    let deeper = thinking.request(json!({})).await;
    assert_eq!(thinking.in_state(deeper, "completed").await.result, Some(json!(1)));
    thinking.stop().await;
}

#[tokio::test]
async fn answer_that_cannot_be_read_is_not_in_the_process_log() {
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let world = World::start(vec![Say::Raw(json!({ "secret": "PLAINSECRET", "deep": deep }))]).await;
    let (db, folder) = fresh().await;
    let folder = folder.path();
    fs::create_dir(folder.join("agents")).unwrap();
    let agent = format!(
        "id = \"plain\"\norg = \"demo\"\ncapabilities = [\"think\"]\n[run]\nkind = \"llm\"\nmodel = \"m\"\n\
         base_url = \"{}/v1\"\n",
        world.address
    );
    fs::write(folder.join("agents/plain.toml"), agent).unwrap();
    let mut command = Up::command(&db, folder);
    // The loudest level, too.
    command.env("CONVOKE_TELEMETRY__LOG", "trace").stderr(fs::File::create(folder.join("log")).unwrap());
    let up = Up::begin(command).await;
    let client = db.client().await;
    let request =
        "select convoke.request_task(kind => 'k', org => 'demo', requires => '{think}', input => '{}',
        policy => '{\"attempts_max\": 1}')";
    client.batch_execute(request).await.unwrap();
    let log = || fs::read_to_string(folder.join("log")).unwrap();
    soon("the end", async {
        while !log().contains("task failed") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    up.kill().await;
    assert!(!log().contains("PLAINSECRET"), "{}", log());
}
