//! Runs whose answers are streamed, by endpoints that keep to the protocol and by those that do not.
use super::{Say, StreamEnd, Thinking, finish, stream_end, streamed_call};
use crate::daemon::soon;
use serde_json::json;

fn whole(name: &str, args: serde_json::Value) -> Say {
    Say::Stream([streamed_call(name, &args), stream_end()].concat(), StreamEnd::Body)
}

/// The end of a stream is not waited for once everything has come.
fn whole_and_open(name: &str, args: serde_json::Value) -> Say {
    Say::Stream([streamed_call(name, &args), stream_end()].concat(), StreamEnd::Hang)
}

#[tokio::test]
async fn streamed_answers_are_put_together_and_their_usage_is_charged() {
    let script = vec![
        whole("look", json!({ "a": "\u{1f600}" })),
        whole_and_open("pay", json!({ "b": [1, 2] })),
        whole("finish", json!({ "result": 1 })),
    ];
    let thinking = Thinking::start(script, "").await;
    let id = thinking.request(json!({})).await;
    let task = thinking.in_state(id, "completed").await;
    assert_eq!(task.result, Some(json!(1)));
    let steps = thinking.steps(id).await;
    assert_eq!(
        (&steps[2]["args"], &steps[4]["args"]),
        (&json!({ "a": "\u{1f600}" }), &json!({ "b": [1, 2] }))
    );
    assert_eq!((&steps[1]["tokens"], &steps[1]["model"]), (&json!(110), &json!("m-1")));
    let question = thinking.world.question(1);
    assert_eq!(
        (&question["stream"], &question["stream_options"]["include_usage"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(question["messages"][2]["tool_calls"][0]["function"]["arguments"], "{\"a\":\"\u{1f600}\"}");
    thinking.stop().await;
}

#[tokio::test]
async fn nothing_of_a_stream_that_is_cut_is_used() {
    // Complete but for its end, and so indistinguishable from one of two calls.
    let cut = |end| Say::Stream(streamed_call("send", &json!({})), end);
    let late = Say::Stream(vec![": thinking\n\n".to_owned()], StreamEnd::Hang);
    let error = vec!["data: {\"error\": {\"code\": 502, \"message\": \"x\"}}\n\n".to_owned()];
    let script = vec![
        Say::InTurn(vec![cut(StreamEnd::Body), cut(StreamEnd::Reset), late, whole("look", json!({}))]),
        Say::InTurn(vec![Say::Stream(error, StreamEnd::Body), finish(json!(1))]),
    ];
    let thinking = Thinking::start(script, "stream = { silence = \"300ms\" }").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.calls("send"), thinking.world.calls("look")), (0, 1));
    let asked = thinking.world.asked();
    assert_eq!((asked[&0].len(), asked[&1].len()), (4, 2));
    assert!(asked[&0].iter().all(|body| *body == asked[&0][0]), "the same bytes again");
    thinking.stop().await;
}

#[tokio::test]
async fn cancel_closes_the_socket_of_a_stream_at_once() {
    let begun = Say::Stream(streamed_call("send", &json!({})), StreamEnd::Hang);
    let thinking = Thinking::start(vec![begun], "").await;
    let id = thinking.request(json!({})).await;
    soon("the question", async {
        while thinking.world.questions() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    thinking.running.parts.tasks.cancel(id, "no longer needed").await.unwrap();
    soon("the connection is closed", thinking.world.dropped.notified()).await;
    thinking.in_state(id, "canceled").await;
    assert_eq!((thinking.world.questions(), thinking.world.calls("send")), (1, 0));
    thinking.stop().await;
}

#[tokio::test]
async fn endpoint_can_be_asked_for_whole_answers() {
    let thinking = Thinking::start(vec![finish(json!(1))], "stream = { enabled = false }").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let question = thinking.world.question(0);
    assert_eq!((&question["stream"], question.get("stream_options")), (&json!(false), None));
    thinking.stop().await;
}

#[tokio::test]
async fn stream_that_repeats_itself_is_closed_and_the_run_goes_on() {
    let part = json!({ "choices": [{ "index": 0, "delta": { "content": "I will look at it again. " } }] });
    let circles = vec![format!("data: {part}\n\n"); 200];
    let script = vec![Say::Stream(circles, StreamEnd::Hang), finish(json!(1))];
    let thinking = Thinking::start(script, "").await;
    let id = thinking.request(json!({})).await;
    soon("the connection is closed", thinking.world.dropped.notified()).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    assert_eq!((&steps[1]["ending"], &steps[1]["finish"]), (&json!("cut"), &json!("length")));
    assert_eq!(steps[1]["presumed"], true, "what it wrote behind that is not known");
    assert_eq!(steps[2]["note_kind"], "smaller");
    thinking.stop().await;
}
