//! Hosted agents that think before they offer: by command, by URL, by model, and all that can go wrong with it.
use super::parts::{Hosted, command};
use crate::agent::{
    http::{Reply, Server, reply},
    llm::completion,
};
use crate::support::crypto;
use convoke::{agent::Definition, id::TaskId, task::TaskState};
use serde_json::{Value, json};

const WORK: &str = "cat > /dev/null; echo 1";

/// An agent that can `work`, whose hook is this command.
fn thinks(id: &str, script: &str, more: &str) -> Definition {
    let mut definition = command(id, "work", WORK, &format!("[offer]\nby = \"command\"\n{more}"));
    definition.offer.argv = Some(vec!["/bin/sh".into(), "-c".into(), script.into()]);
    definition
}

/// The one round of a task that was completed: its offers by agent, and who said nothing.
async fn round(hosted: &Hosted, task: TaskId) -> Value {
    hosted.in_state(task, TaskState::Completed).await;
    hosted.parts.tasks.why(task).await.unwrap()["rounds"][0].clone()
}

fn offer_of(round: &Value, agent: &str) -> Value {
    let offers = round["offers"].as_array().unwrap();
    offers.iter().find(|offer| offer["agent_id"] == agent).unwrap_or_else(|| panic!("{round}")).clone()
}

#[tokio::test]
async fn offer_command_makes_an_offer_or_declines() {
    let eager = thinks(
        "eager",
        r#"read task; case "$task" in *'"input_preview"'*) ;; *) exit 1;; esac
           echo "{\"offer\": {\"cost\": 7, \"eta_ms\": 30, \"confidence\": 0.9, \"note\": \"for $CONVOKE_AGENT_ID\"}}""#,
        "",
    );
    let shy = thinks("shy", r#"echo '{"decline": "not my kind"}'"#, "");
    let hosted = Hosted::start(vec![eager, shy], vec![]).await;
    let round = round(&hosted, hosted.request("work").await).await;
    let offer = offer_of(&round, "eager");
    assert_eq!((&offer["cost_microdollars"], &offer["note"]), (&json!(7), &json!("for eager")), "{round}");
    assert_eq!(round["silent"], json!([{ "agent_id": "shy", "reason": "it declined: not my kind" }]));
    hosted.stop().await;
}

#[tokio::test]
async fn offer_url_gets_a_signed_post_and_offer_model_its_instructions() {
    crypto();
    let hook = Server::start([reply(200, r#"{"offer": {"cost": 3, "confidence": 0.5}}"#)]).await;
    let web = format!(
        "id = \"web\"\norg = \"demo\"\ncapabilities = [\"work\"]\n[run]\nkind = \"http\"\nurl = \"{0}/work\"\n\
         secret_env = \"PATH\"\n[offer]\nby = \"http\"\nurl = \"{0}/offer\"",
        hook.address
    );
    let model =
        Server::start([completion(r#"{"offer": {"cost": 2, "eta_ms": 5, "confidence": 0.8}}"#)]).await;
    let text = format!(
        "id = \"llm\"\norg = \"demo\"\ncapabilities = [\"work\"]\n[run]\nkind = \"llm\"\nmodel = \"m\"\n\
         base_url = \"{}/v1\"\ninstructions = \"You are terse.\"\n[offer]\nby = \"model\"\ntokens = 111",
        model.address
    );
    let hosted =
        Hosted::start(vec![toml::from_str(&web).unwrap(), toml::from_str(&text).unwrap()], vec![]).await;
    let round = round(&hosted, hosted.request("work").await).await;
    assert_eq!(offer_of(&round, "web")["cost_microdollars"], 3);
    assert_eq!(offer_of(&round, "llm")["cost_microdollars"], 2, "{round}");
    let (headers, body) = hook.seen().remove(0);
    assert_eq!(headers["convoke-event"], "offer");
    assert!(headers["convoke-signature"].to_str().unwrap().starts_with("sha256="));
    let asked: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&asked["agent_id"], &asked["round"]), (&json!("web"), &json!(1)));
    let asked: Value = serde_json::from_slice(&model.seen().remove(0).1).unwrap();
    assert!(asked.to_string().contains("You are terse.") && asked.to_string().contains("111"), "{asked}");
    hosted.stop().await;
}

#[tokio::test]
async fn broken_offer_hook_gets_the_computed_offer() {
    crypto();
    let late = Server::start([Reply::Hang]).await;
    let mut slow = command("slow", "work", WORK, "[offer]\nby = \"http\"\ntimeout = \"50ms\"");
    slow.offer.url = Some(format!("{}/offer", late.address));
    let cases = [
        (thinks("fails", "exit 3", ""), "the command failed: exit status: 3"),
        (thinks("floods", "yes", ""), "its answer is over 65536 bytes"),
        (thinks("babbles", "echo hello", ""), "its answer is not an offer: line 1 column 1"),
        (
            thinks("both", r#"echo '{"offer": {}, "decline": "x"}'"#, ""),
            "its answer must be an offer or a decline",
        ),
        (thinks("lies", r#"echo '{"offer": {"confidence": 7}}'"#, ""), "confidence is not between 0 and 1"),
        (thinks("poor", "echo never", "microdollars_per_hour = 0"), "offer.microdollars_per_hour is used up"),
        (slow, "no answer within 50ms"),
    ];
    let (definitions, reasons): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let ids: Vec<String> = definitions.iter().map(|definition| definition.id.to_string()).collect();
    let hosted = Hosted::start(definitions, vec![]).await;
    let round = round(&hosted, hosted.request("work").await).await;
    for (id, reason) in ids.iter().zip(reasons) {
        let note = offer_of(&round, id)["note"].to_string();
        assert!(note.contains("computed by the runtime") && note.contains(reason), "{id}: {note}");
    }
    hosted.stop().await;
}

#[tokio::test]
async fn cost_of_offers_counts_to_the_hourly_limit() {
    let pays = r#"echo '{"offer": {"cost": 0, "confidence": 0.5}, "microdollars": 80}'"#;
    let mut one = thinks("one", pays, "");
    one.limits.microdollars_per_hour = Some(100);
    let mut other = command("other", "work", WORK, "[offer]\nconfidence = 0.1\ncost_microdollars = 5");
    other.slots = 1;
    let hosted = Hosted::start(vec![one, other], vec![]).await;
    let mut declined = false;
    for _ in 0..3 {
        let round = round(&hosted, hosted.request("work").await).await;
        declined |= round["silent"].to_string().contains("the agent's budget for this hour is used up");
    }
    assert!(declined, "two thoughts cost more than the hour has");
    hosted.stop().await;
}

#[tokio::test]
async fn offer_hook_runs_for_few_tasks_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // Each question leaves a file; none is answered until there is one called go.
    let script = format!(
        "touch {0}/asked.$$; while [ ! -e {0}/go ]; do sleep 0.01; done; echo '{{\"offer\": {{\"confidence\": 0.5}}}}'",
        dir.path().display()
    );
    let hosted = Hosted::start(vec![thinks("careful", &script, "")], vec![]).await;
    let mut tasks = Vec::new();
    for _ in 0..12 {
        tasks.push(hosted.request("work").await);
    }
    let asked = || std::fs::read_dir(dir.path()).unwrap().count();
    super::soon("three questions", async {
        while asked() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    // One slot is free, and two more: the fourth waits until one of them is answered.
    assert_eq!(asked(), 3);
    std::fs::write(dir.path().join("go"), "").unwrap();
    for task in tasks {
        hosted.in_state(task, TaskState::Completed).await;
    }
    hosted.stop().await;
}
