//! Guards: what judges the input, the calls, their results and the result of a run.
use super::{Say, Thinking, call, finish};
use serde_json::{Value, json};

/// A guard and a tool that judge by what they read: one denies what has the word `blocked`, the other one fails.
const JUDGES: &str = r#"
[[tool]]
name = "judge"
kind = "command"
effect = "read"
argv = ["/bin/sh", "-c", '''if grep -q blocked; then echo '{"deny": "not today"}'; else echo '{"allow": true}'; fi''']
[[tool]]
name = "rewriter"
kind = "command"
effect = "read"
argv = ["/bin/sh", "-c", '''cat > /dev/null; echo '{"replace": "other words"}' ''']
[[tool]]
name = "broken"
kind = "command"
effect = "read"
argv = ["/bin/sh", "-c", "cat > /dev/null; exit 3"]
"#;

fn results(steps: &[Value], tool: &str) -> Vec<(String, String)> {
    let of = steps.iter().filter(|step| step["tool"] == tool);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    of.map(|step| (text(&step["state"]), text(&step["result"]))).collect()
}

#[tokio::test]
async fn patterns_and_schemas_judge_input_calls_results_and_the_answer() {
    let guards = r#"
        [[guard]]
        name = "wording"
        on = "input"
        regex = '"q"'
        replace = '"question"'
        [[guard]]
        name = "small"
        on = "call"
        tools = ["pa*"]
        schema = { properties = { amount = { maximum = 100 } } }
        [[guard]]
        name = "masked"
        on = "result"
        tools = ["look"]
        regex = 'answer of (\w+)'
        replace = "$1 says nothing"
        [[guard]]
        name = "polite"
        on = "answer"
        regex = "damn"
        [[guard]]
        name = "signed"
        on = "answer"
        regex = "fine"
        replace = "fine, signed"
    "#;
    let script = vec![
        Say::Calls(vec![
            ("pay", json!({ "amount": 500 })),
            ("look", json!({})),
            ("pay", json!({ "amount": 5 })),
        ]),
        finish(json!("damn")),
        finish(json!("fine")),
    ];
    let thinking = Thinking::start(script, guards).await;
    let id = thinking.request(json!({})).await;
    let task = thinking.in_state(id, "completed").await;
    assert_eq!(task.result, Some(json!("fine, signed")));
    let asked = thinking.world.question(0)["messages"].to_string();
    assert!(asked.contains("question") && !asked.contains("\\\"q\\\""), "{asked}");
    let steps = thinking.steps(id).await;
    let paid = results(&steps, "pay");
    assert_eq!(paid[0].0, "denied");
    assert!(paid[0].1.contains("the guard small does not allow it: "), "{}", paid[0].1);
    assert_eq!((paid[1].0.as_str(), thinking.world.calls("pay")), ("done", 1));
    assert_eq!(results(&steps, "look"), [("done".into(), "look says nothing".into())]);
    let finished = results(&steps, "finish");
    assert_eq!((finished[0].0.as_str(), finished[1].0.as_str()), ("failed", "done"));
    assert!(finished[0].1.contains("the guard polite does not allow it"), "{}", finished[0].1);
    thinking.stop().await;
}

#[tokio::test]
async fn tools_judge_and_one_that_fails_denies() {
    let guards = format!(
        "{JUDGES}\n[[guard]]\nname = \"calls\"\non = \"call\"\ntools = [\"send\"]\ntool = \"judge\"\n\
         [[guard]]\nname = \"words\"\non = \"result\"\ntools = [\"look\"]\ntool = \"rewriter\"\n\
         [[guard]]\nname = \"lost\"\non = \"result\"\ntools = [\"pay\"]\ntool = \"broken\"\n"
    );
    let script = vec![
        Say::Calls(vec![
            ("send", json!({ "to": "blocked" })),
            ("send", json!({ "to": "ada" })),
            ("look", json!({})),
            ("pay", json!({ "amount": 1 })),
        ]),
        finish(json!(1)),
    ];
    let thinking = Thinking::start(script, &guards).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let sent = results(&steps, "send");
    assert_eq!((sent[0].0.as_str(), sent[1].0.as_str()), ("denied", "done"));
    assert!(sent[0].1.contains("the guard calls does not allow it: not today"), "{}", sent[0].1);
    assert_eq!(thinking.world.calls("send"), 1);
    assert_eq!(results(&steps, "look"), [("done".into(), "other words".into())]);
    // The effect has happened, and is not repeated; what it returned is not shown.
    let paid = results(&steps, "pay");
    assert_eq!((paid[0].0.as_str(), thinking.world.calls("pay")), ("failed", 1));
    assert!(paid[0].1.contains("denied") && paid[0].1.contains("it failed to judge"), "{}", paid[0].1);
    assert!(!paid[0].1.contains("answer of pay"));
    thinking.stop().await;
}

#[tokio::test]
async fn denied_input_fails_the_attempt_before_a_question() {
    let guard = "[[guard]]\nname = \"closed\"\non = \"input\"\nregex = '\"q\"'\n";
    let thinking = Thinking::start(vec![call("look", json!({})), finish(json!(1))], guard).await;
    let id = thinking.request(json!({})).await;
    let task = thinking.in_state(id, "failed").await;
    let error = json!(task.error).to_string();
    assert!(error.contains("the guard closed denied the input"), "{error}");
    assert_eq!(thinking.world.questions(), 0);
    thinking.stop().await;
}
