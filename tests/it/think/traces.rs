//! The trace of a task: from a row, a request by HTTP or SQL through the wake, the model, tools and parts.
use super::{Say, Thinking, World, call, finish, text};
use crate::{agent::definition, daemon::soon};
use convoke::{
    auth::{MintRequest, Role, mint},
    clock::Clock,
    id::{TaskId, TraceContext},
};
use serde_json::{Value, json};
use std::time::Duration;

pub(super) const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A thinking agent that rows of `traced` wake, with a command that answers with its trace.
pub(super) fn woken(world: &World) -> String {
    let wake = "[[wake]]\ntable = \"public.traced\"\nevents = [\"INSERT\"]\n\
                request = { kind = \"think.it\", requires = [\"think\"], input = { id = \"{{ new.id }}\" }, \
                traceparent = \"{{ new.trace }}\" }\n";
    let tool = "[[tool]]\nname = \"trace\"\nkind = \"command\"\nargv = [\"sh\", \"-c\", \"echo $TRACEPARENT\"]\n\
                env = [\"PATH\"]\neffect = \"read\"\nparameters = { type = \"object\" }\n";
    let text = text(world, "").replace("\"note_down\", \"ask\"]", "\"note_down\", \"ask\", \"trace\"]");
    format!("{text}\n{tool}\n{wake}")
}

async fn start(script: Vec<Say>) -> Thinking {
    let world = World::start(script).await;
    let agent = definition(&woken(&world));
    Thinking::with(world, vec![agent]).await
}

/// The task that the row with this trace requests.
pub(super) async fn woken_by(thinking: &Thinking, trace: Option<&str>) -> TaskId {
    let client = thinking.db.client().await;
    let insert = "insert into traced (trace) values ($1) returning id";
    let row: i64 = client.query_one(insert, &[&trace]).await.unwrap().get(0);
    let task = "select id from convoke.tasks where input ->> 'id' = $1::bigint::text";
    soon("the task of the row", async {
        loop {
            if let Some(found) = client.query_opt(task, &[&row]).await.unwrap() {
                return TaskId::from(found.get::<_, uuid::Uuid>(0));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test]
async fn trace_of_a_row_reaches_the_model_and_every_tool() {
    let script = vec![Say::Calls(vec![("look", json!({})), ("trace", json!({}))]), finish(json!(1))];
    let thinking = start(script).await;
    let id = woken_by(&thinking, Some(TRACE)).await;
    thinking.in_state(id, "completed").await;
    let trace: TraceContext = TRACE.parse().unwrap();
    let span = |seq| Some(trace.step(id, 1, seq).to_string());
    let of = |what: &str, seq| (what.to_owned(), span(seq));
    assert_eq!(thinking.world.traces(), [of("model", 2), of("look", 3), of("model", 5)]);
    let steps = thinking.steps(id).await;
    assert_eq!(steps[3]["result"].as_str().map(str::trim), span(4).as_deref(), "the command's own span");
    assert_eq!(steps[3]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    let ids: Vec<&Value> = steps.iter().map(|step| &step["span_id"]).collect();
    assert_eq!(ids[1], &json!(format!("{:016x}", trace.step(id, 1, 2).span_id())));
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), steps.len(), "each has its own");
    thinking.stop().await;
}

#[tokio::test]
async fn row_without_a_readable_trace_requests_its_task_all_the_same() {
    let thinking = start(vec![finish(json!(1))]).await;
    for trace in [None, Some("nonsense")] {
        let id = woken_by(&thinking, trace).await;
        thinking.in_state(id, "completed").await;
        assert!(thinking.steps(id).await[0].get("trace_id").is_none());
    }
    assert!(thinking.world.traces().iter().all(|(_, trace)| trace.is_none()));
    thinking.stop().await;
}

#[tokio::test]
async fn trace_of_an_http_request_is_that_of_its_task_unless_it_cannot_be_read() {
    let thinking = start(vec![call("look", json!({})), finish(json!(1))]).await;
    let parts = &thinking.running.parts;
    let wish = MintRequest { ttl: Duration::from_secs(60), ..MintRequest::new(Role::ServiceRole) };
    let token = mint(&parts.keys, &wish, Clock::System.now()).unwrap();
    let ask = async |header: &str, member: Option<&str>| {
        let mut body = json!({ "kind": "think.it", "requires": ["think"], "idempotency_key": header });
        if let Some(member) = member {
            body["traceparent"] = json!(member);
        }
        let url = format!("http://{}/v1/tasks?org=demo", parts.addr);
        let request = reqwest::Client::new().post(url).bearer_auth(&token).header("traceparent", header);
        let answer = request.json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap())
    };
    let other = TRACE.replace("4bf9", "4bf8");
    let stored = "select traceparent from convoke.tasks where id = $1";
    let client = thinking.db.client().await;
    let unread = "00-xyz";
    for (header, member, trace) in
        [(TRACE, None, Some(TRACE)), (unread, None, None), ("x", Some(&*other), Some(&*other))]
    {
        let (status, made) = ask(header, member).await;
        assert_eq!(status, 201, "{made}");
        let id: TaskId = made["task"]["id"].as_str().unwrap().parse().unwrap();
        let row = client.query_one(stored, &[&id.as_uuid()]).await.unwrap();
        assert_eq!(row.get::<_, Option<&str>>(0), trace);
        thinking.in_state(id, "completed").await;
    }
    // A repeated request is the same, whatever its trace.
    let (status, again) = ask(TRACE, Some(&other)).await;
    assert_eq!((status, &again["replayed"]), (200, &json!(true)));
    let (status, refused) = ask("y", Some("nonsense")).await;
    assert_eq!(status, 400, "{refused}");
    thinking.stop().await;
}
