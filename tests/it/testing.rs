//! The test kit for users: replies of the scripted model on the wire, and whole daemons that work with it.
use crate::{
    agent::definition,
    daemon::{Running, Up, config, fresh, soon},
    support::{PATIENCE, crypto},
};
use convoke::{
    app::Daemon,
    auth::{MintRequest, Role, mint},
    task::{Request, TaskState},
    testing::{Clock, FaultPoint, ModelServer, Reply, Script, StreamEnd, kill_at},
};
use serde_json::{Value, json};
use std::{os::unix::process::ExitStatusExt, time::Duration};

/// One request with these messages of the model before it.
async fn ask(model: &ModelServer, name: &str, turns: usize) -> reqwest::Result<reqwest::Response> {
    crypto();
    let messages: Vec<Value> = (0..turns).map(|_| json!({ "role": "assistant", "content": "" })).collect();
    let body = json!({ "model": name, "messages": messages });
    let url = format!("{}/chat/completions", model.base_url());
    reqwest::Client::new().post(url).json(&body).send().await
}

async fn message(model: &ModelServer, name: &str, turns: usize) -> Value {
    let body: Value = ask(model, name, turns).await.unwrap().json().await.unwrap();
    body["choices"][0]["message"].clone()
}

#[tokio::test]
async fn replies_come_in_their_order_and_what_deviates_is_told() {
    let script = [
        Reply::status(503, "later").header("retry-after", "2"),
        Reply::calls([("look", json!({ "a": 1 })), ("pay", json!({}))])
            .usage(7, 3)
            .model("m-1")
            .reasoning("hm"),
        Reply::text("done"),
    ];
    let model = ModelServer::start(script).await.unwrap();
    let busy = ask(&model, "m", 0).await.unwrap();
    assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].to_str().unwrap()), (503, "2"));
    let answer: Value = ask(&model, "m", 0).await.unwrap().json().await.unwrap();
    assert_eq!((&answer["model"], &answer["usage"]["total_tokens"]), (&json!("m-1"), &json!(10)));
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["reasoning_content"]),
        (&json!("tool_calls"), &json!("hm"))
    );
    let calls = &choice["message"]["tool_calls"];
    assert_eq!(calls[0]["function"], json!({ "name": "look", "arguments": "{\"a\":1}" }));
    assert_eq!((&calls[0]["id"], &calls[1]["id"]), (&json!("call_0"), &json!("call_1")));
    assert_eq!(model.deviations(), ["reply 3 was not used: the text \"done\""]);
    assert_eq!(message(&model, "m", 1).await["content"], "done");
    model.assert_complete();

    assert_eq!(ask(&model, "m", 2).await.unwrap().status().as_u16(), 400);
    assert_eq!(model.deviations(), ["request 4 of model \"m\", turn 2, had no reply"]);
    model.push(Reply::text("one more")).unwrap();
    assert_eq!(message(&model, "m", 2).await["content"], "one more");
    let requests = model.requests();
    let turns: Vec<usize> = requests.iter().map(|request| request.turn).collect();
    assert_eq!(turns, [0, 0, 1, 2, 2]);
    assert!(requests.iter().all(|request| request.json["model"] == "m" && !request.body.is_empty()));
    assert_eq!(
        requests.iter().filter(|request| request.answered_after.is_none()).count(),
        1,
        "the one without reply"
    );
}

#[tokio::test]
async fn turn_that_is_asked_again_gets_the_same_reply_or_the_next_in_turn() {
    let script = Script::by_turn([
        Reply::in_turn([Reply::status(500, ""), Reply::text("first")]),
        Reply::text("second"),
    ]);
    let model = ModelServer::start(script).await.unwrap();
    assert_eq!(ask(&model, "m", 0).await.unwrap().status().as_u16(), 500);
    assert_eq!(model.deviations().len(), 2);
    for (turn, expected) in [(0, "first"), (0, "first"), (1, "second"), (1, "second"), (9, "second")] {
        assert_eq!(message(&model, "m", turn).await["content"], expected, "{turn}");
    }
    model.assert_complete();
    model.follow(Script::by_turn([Reply::text("third")])).unwrap();
    assert_eq!(message(&model, "m", 0).await["content"], "third");
}

#[tokio::test]
async fn conditions_choose_the_reply_among_agents_of_one_server() {
    let of = |name: &'static str| move |request: &Value| request["model"] == name;
    let script = [
        Reply::text("for big").when(of("big")),
        Reply::text("for small").when(of("small")),
        Reply::text("for any"),
    ];
    let model = ModelServer::start(script).await.unwrap();
    for (name, expected) in [("small", "for small"), ("small", "for any"), ("big", "for big")] {
        assert_eq!(message(&model, name, 0).await["content"], expected);
    }
    model.assert_complete();
}

#[tokio::test]
async fn streams_are_whole_cut_broken_or_left_open() {
    let call = || Reply::call("look", json!({ "a": "\u{1f600}" }));
    let script = [
        call().streamed().pause(Duration::from_millis(1)),
        call().cut(StreamEnd::Body),
        call().cut(StreamEnd::Reset),
        Reply::reset(),
        call().left_open(),
        Reply::hang(),
    ];
    let model = ModelServer::start(script).await.unwrap();
    let whole = ask(&model, "m", 0).await.unwrap().text().await.unwrap();
    let events: Vec<&str> = whole.split_terminator("\n\n").collect();
    assert_eq!((events.len(), events.last()), (7, Some(&"data: [DONE]")));
    let parsed = |event: &str| serde_json::from_str::<Value>(event.strip_prefix("data: ").unwrap()).unwrap();
    let pieces: String = events[1..4]
        .iter()
        .map(|event| {
            let piece = &parsed(event)["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"];
            piece.as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(pieces, "{\"a\":\"\u{1f600}\"}");
    assert_eq!(parsed(events[5])["usage"]["prompt_tokens"], 100);

    let cut = ask(&model, "m", 0).await.unwrap().text().await.unwrap();
    assert_eq!(cut.split_terminator("\n\n").collect::<Vec<_>>(), events[..4]);
    for _ in 0..2 {
        let broken = ask(&model, "m", 0).await;
        assert!(match broken {
            Ok(answer) => answer.text().await.is_err(),
            Err(error) => !error.is_builder(),
        });
    }
    for waits in 1..=2 {
        let asked = tokio::time::timeout(Duration::from_millis(200), async {
            ask(&model, "m", 0).await.unwrap().text().await
        });
        assert!(asked.await.is_err(), "no end");
        soon("the closed connection", model.closed(waits)).await;
    }
    model.assert_complete();
}

#[tokio::test]
async fn script_with_a_mistake_is_refused_when_it_is_made() {
    let nothing = std::iter::empty::<Reply>;
    let bad: [(Script, &str); 6] = [
        ([Reply::text("x"), Reply::status(99, "")].into(), "reply 2: 99 is not a status"),
        (
            [Reply::status(429, "").header("a b", "1")].into(),
            "reply 1: \"a b\" is not a header, or has a bad value",
        ),
        (Script::by_turn(nothing()), "a script by turn needs a reply"),
        (
            Script::by_turn([Reply::hang().when(|_| true)]),
            "reply 1: only a reply of a script in order has a condition",
        ),
        ([Reply::in_turn(nothing())].into(), "reply 1: it has no replies"),
        (
            [Reply::in_turn([Reply::in_turn([Reply::hang()])])].into(),
            "reply 1: replies in turn are not replies in turn themselves",
        ),
    ];
    for (script, expected) in bad {
        let error = ModelServer::start(script).await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (std::io::ErrorKind::InvalidInput, expected));
    }
}

fn thinker(model: &ModelServer) -> String {
    format!(
        "id = \"thinker\"\norg = \"demo\"\ncapabilities = [\"think\"]\n\
         [run]\nkind = \"llm\"\nmodel = \"m\"\nbase_url = \"{}\"\ninstructions = \"Be brief.\"\ntools = [\"ask\"]\n",
        model.base_url()
    )
}

#[tokio::test]
async fn daemon_in_this_process_works_with_a_scripted_model() {
    let script = [
        Reply::limited(Duration::from_millis(1)),
        Reply::ask("Which one?").streamed(),
        Reply::finish(json!("the red one")).after(Duration::from_millis(10)),
    ];
    let model = ModelServer::start(script).await.unwrap();
    let (db, folder) = fresh().await;
    let daemon = Running::start_with(config(&db, folder.path()), vec![definition(&thinker(&model))]).await;
    let tasks = daemon.parts.tasks.clone();
    let request: Request =
        serde_json::from_value(json!({ "kind": "think.it", "requires": ["think"], "input": {} })).unwrap();
    let id = tasks.request(&"demo".parse().unwrap(), "test", request).await.unwrap().task.id;
    soon("the question to a person", async {
        while tasks.get(id).await.unwrap().state != TaskState::Waiting {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    soon("both requests", model.asked(2)).await;
    tasks.answer(id, "ada", json!("the red one")).await.unwrap();
    let task = tasks.wait(id, PATIENCE).await.unwrap();
    assert_eq!((task.state, task.result), (TaskState::Completed, Some(json!("the red one"))));
    model.assert_complete();
    daemon.stop().await;
}

#[tokio::test]
async fn daemon_judges_tokens_by_the_clock_of_the_test() {
    let (db, folder) = fresh().await;
    let clock = Clock::manual(Clock::System.now());
    let builder = Daemon::builder(config(&db, folder.path())).definitions(Vec::new()).clock(clock.clone());
    let daemon = Running::launch(builder).await;
    daemon.parts.ready(PATIENCE).await.unwrap();
    let wish = MintRequest { ttl: Duration::from_secs(60), ..MintRequest::new(Role::ServiceRole) };
    let token = mint(&daemon.parts.keys, &wish, clock.now()).unwrap();
    let status = || async {
        let url = format!("http://{}/v1/agents", daemon.parts.addr);
        reqwest::Client::new().get(url).bearer_auth(&token).send().await.unwrap().status().as_u16()
    };
    assert_eq!(status().await, 200);
    clock.advance(chrono::TimeDelta::hours(1));
    assert_eq!(status().await, 401);
    daemon.stop().await;
}

#[tokio::test]
async fn daemon_dies_at_the_fault_point_that_a_test_names() {
    let model = ModelServer::start(Script::by_turn([Reply::finish(json!(1))])).await.unwrap();
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/thinker.toml"), thinker(&model)).unwrap();
    let request = "select convoke.request_task('think.it', '{\"q\": 1}', '{think}', 'demo')";
    db.client().await.query_one(request, &[]).await.unwrap();
    let mut command = Up::command(&db, folder.path());
    kill_at(command.as_std_mut(), FaultPoint::StepAnswered, 1);
    let status = soon("the death", command.spawn().unwrap().wait()).await.unwrap();
    assert_eq!((status.signal(), model.requests().len()), (Some(9), 1));
    let _up = Up::start(&db, folder.path(), None).await;
    soon("the question asked again", model.asked(2)).await;
    let asked = model.requests();
    assert_eq!(asked[0].body, asked[1].body, "the same bytes");
    model.assert_complete();
}
