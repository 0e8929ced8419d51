//! The example agents, run as they are: they bid, win, work, die and are replaced.
use super::{Rig, about};
use crate::{
    daemon::{Echo, soon},
    support::example,
};
use convoke::{
    agent::{Agent, Definition},
    hub::{Listener, Room},
    id::{TaskId, Topic},
    task::TaskState,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::mpsc,
    time::Instant,
};

/// A running example; it dies with the value.
struct Example {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _dir: Option<tempfile::TempDir>,
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl Example {
    /// `agent.mjs`, beside the packages of the tests: Node looks for them from the file's own folder.
    fn js(rig: &Rig, id: &str, cost: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(root("examples/agent.mjs"), dir.path().join("agent.mjs")).unwrap();
        std::os::unix::fs::symlink(root("tests/clients/js/node_modules"), dir.path().join("node_modules"))
            .unwrap();
        let mut command = Command::new("node");
        command.arg(dir.path().join("agent.mjs")).args([rig.http(), rig.token(id)]);
        Self::start(command, cost, Some(dir))
    }

    fn python(rig: &Rig, id: &str, cost: u32) -> Self {
        let mut command = Command::new(root("tests/clients/python/.venv/bin/python"));
        let url = format!("ws://{}/realtime/v1", rig.daemon.parts.addr);
        command.arg(root("examples/agent.py")).args([url, rig.token(id)]);
        Self::start(command, cost, None)
    }

    fn http(rig: &Rig, id: &str, cost: u32) -> Self {
        let mut command = Command::new(root("tests/clients/python/.venv/bin/python"));
        command.arg(root("examples/agent_http.py")).args([rig.http(), rig.token(id)]);
        Self::start(command, cost, None)
    }

    /// `rust_agent.rs`, as cargo has built it beside the daemon.
    fn rust(rig: &Rig, id: &str, cost: u32) -> Self {
        let mut command = Command::new(example("rust_agent"));
        command.args([rig.http(), rig.token(id)]);
        Self::start(command, cost, None)
    }

    fn start(mut command: Command, cost: u32, dir: Option<tempfile::TempDir>) -> Self {
        let command = command.env("AGENT_COST", cost.to_string()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines, _dir: dir }
    }

    /// Waits until it says that it is here.
    async fn is_here(&mut self) {
        self.prints_one_of(&["SUBSCRIBED", "PRESENT"]).await;
    }

    /// Waits for a line with this word.
    async fn prints(&mut self, word: &str) {
        self.prints_one_of(&[word]).await;
    }

    async fn prints_one_of(&mut self, words: &[&str]) {
        let mut seen = Vec::new();
        let found = tokio::time::timeout(crate::support::PATIENCE, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if words.iter().any(|word| line.contains(word)) {
                    return;
                }
                seen.push(line);
            }
            panic!("it ended");
        });
        assert!(found.await.is_ok(), "none of {words:?} in:\n{}", seen.join("\n"));
    }
}

/// A hosted agent that can do the same for 500 microdollars.
fn hosted() -> (Definition, Arc<dyn Agent>, mpsc::Receiver<Value>) {
    let (told, inputs) = mpsc::channel(16);
    let definition = "id = \"hosted\"\norg = \"demo\"\ncapabilities = [\"text.count\"]\n\
        [run]\nkind = \"rust\"\n[offer]\ncost_microdollars = 500";
    (toml::from_str(definition).unwrap(), Arc::new(Echo(told)), inputs)
}

fn request(ms: u32) -> Value {
    json!({
        "kind": "text.count", "requires": ["text.count"], "input": { "text": "three little words", "ms": ms },
        // A busy machine may be slow to answer; a round ends as soon as all have.
        "policy": { "award": "cheapest", "bid_window": "10s", "quiet_gap": "10s" },
    })
}

async fn next_message(listener: &mut Listener, kind: &str) -> Value {
    soon(kind, async {
        loop {
            let (_, message) = listener.recv().await.unwrap();
            let Some(object) = message.object() else { continue };
            let object: Value = serde_json::from_slice(&object).unwrap();
            if object["payload"]["type"] == kind {
                return object["payload"].clone();
            }
        }
    })
    .await
}

async fn wins(rig: Rig, start: fn(&Rig, &str, u32) -> Example, mut inputs: mpsc::Receiver<Value>) {
    let mut dear = start(&rig, "dear", 900);
    dear.is_here().await;
    rig.status("dear", "present").await;
    let task = rig.request(request(0)).await;
    assert_eq!(rig.end(&task).await.agent_id, "hosted".parse().ok(), "it asks for less than dear");
    assert!(inputs.recv().await.is_some());

    let mut words = start(&rig, "words", 10);
    words.is_here().await;
    let agent = rig.status("words", "present").await;
    assert_eq!((agent.kind.as_str(), agent.slots, agent.description.as_str()), ("remote", 2, "Counts words"));
    for _ in 0..3 {
        let task = rig.request(request(40)).await;
        let ended = rig.end(&task).await;
        assert_eq!(ended.state, TaskState::Completed);
        assert_eq!(ended.result, Some(json!({ "words": 3, "by": "words" })));
        let why = rig.daemon.parts.tasks.why(task.id).await.unwrap();
        assert_eq!(why["rounds"][0]["offers"].as_array().unwrap().len(), 3, "{why}");
        assert_eq!(why["rounds"][0]["offers"][0]["confidence"], json!(0.9));
    }
    words.process.kill().await.unwrap();
    rig.status("words", "gone").await;
    drop(dear);
    rig.status("dear", "gone").await;
    rig.daemon.stop().await;
}

#[tokio::test]
async fn javascript_agent_offers_and_wins_by_its_cost() {
    let (definition, agent, inputs) = hosted();
    wins(Rig::start(vec![(definition, agent)]).await, Example::js, inputs).await;
}

#[tokio::test]
async fn python_agent_offers_and_wins_by_its_cost() {
    let (definition, agent, inputs) = hosted();
    wins(Rig::start(vec![(definition, agent)]).await, Example::python, inputs).await;
}

#[tokio::test]
async fn rust_agent_offers_and_wins_by_its_cost() {
    let (definition, agent, inputs) = hosted();
    wins(Rig::start(vec![(definition, agent)]).await, Example::rust, inputs).await;
}

#[tokio::test]
async fn rust_agent_that_is_killed_during_a_job_is_replaced_at_once() {
    let (definition, agent, _inputs) = hosted();
    let rig = Rig::start(vec![(definition, agent)]).await;
    let words = Example::rust(&rig, "words", 10);
    dies(rig, words, "rust_agent.rs").await;
}

#[tokio::test]
async fn hosted_agent_example_finishes_its_own_task() {
    let dir = tempfile::tempdir().unwrap();
    let ran = Command::new(example("hosted_agent")).env("TMPDIR", dir.path()).kill_on_drop(true).output();
    let ran = tokio::time::timeout(std::time::Duration::from_secs(60), ran).await.unwrap().unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("words did it: {\"words\":10}"), "{said}");
}

#[tokio::test]
async fn http_agent_offers_and_wins_by_its_cost() {
    let (definition, agent, inputs) = hosted();
    wins(Rig::start(vec![(definition, agent)]).await, Example::http, inputs).await;
}

#[tokio::test]
async fn http_agent_that_is_killed_during_a_job_is_replaced() {
    let (definition, agent, _inputs) = hosted();
    let rig = Rig::start(vec![(definition, agent)]).await;
    let mut words = Example::http(&rig, "words", 10);
    words.prints("PRESENT").await;
    rig.status("words", "present").await;
    let task = rig.request(request(600_000)).await;
    words.prints("task_start").await;
    words.process.start_kill().unwrap();
    rig.status("words", "gone").await;
    let ended = rig.end(&task).await;
    assert_eq!((ended.agent_id, ended.attempt), ("hosted".parse().ok(), 2));
    rig.daemon.stop().await;
}

/// Until another holds the task.
async fn taken_over(rig: &Rig, task: TaskId, from: &str) {
    let mut changed = rig.daemon.parts.tasks.changed();
    soon("another agent", async {
        loop {
            changed.borrow_and_update();
            let now = rig.daemon.parts.tasks.get(task).await.unwrap();
            if now.agent_id.is_some_and(|agent| agent.as_str() != from) {
                return;
            }
            changed.changed().await.unwrap();
        }
    })
    .await;
}

async fn dies(rig: Rig, mut words: Example, what: &str) {
    words.prints("SUBSCRIBED").await;
    rig.status("words", "present").await;
    let room = Room::public(Topic::new("agent:words").unwrap());
    let mut ear = rig.daemon.parts.hub.listen(room, 1000);
    let task = rig.request(request(600_000)).await;
    let assignment = next_message(&mut ear, "task_assignment").await;
    words.prints("task_start").await;
    assert_eq!(rig.daemon.parts.tasks.get(task.id).await.unwrap().state, TaskState::Running);

    let killed = Instant::now();
    words.process.start_kill().unwrap();
    taken_over(&rig, task.id, "words").await;
    let took = killed.elapsed();
    println!("{what}: kill -9 in mid-work to the next award: {} ms", took.as_millis());
    assert!(took.as_millis() < 2_000, "{took:?}");
    let ended = rig.end(&task).await;
    assert_eq!((ended.agent_id, ended.attempt), ("hosted".parse().ok(), 2));

    // It returns with a result of an assignment that is over.
    let mut late = rig.agent("words").await;
    late.send_message(
        "agent:words",
        about("task_result", &assignment, json!({ "result": 1, "command_id": "c1" })),
    )
    .await;
    let error = late.message("error").await;
    assert_eq!((&error["code"], &error["in_reply_to"]), (&json!("fenced"), &json!("c1")), "{error}");
    assert_eq!(rig.end(&task).await.agent_id, "hosted".parse().ok());
    rig.daemon.stop().await;
}

#[tokio::test]
async fn javascript_agent_that_is_killed_during_a_job_is_replaced_at_once() {
    let (definition, agent, _inputs) = hosted();
    let rig = Rig::start(vec![(definition, agent)]).await;
    let words = Example::js(&rig, "words", 10);
    dies(rig, words, "agent.mjs").await;
}

#[tokio::test]
async fn python_agent_that_is_killed_during_a_job_is_replaced_at_once() {
    let (definition, agent, _inputs) = hosted();
    let rig = Rig::start(vec![(definition, agent)]).await;
    let words = Example::python(&rig, "words", 10);
    dies(rig, words, "agent.py").await;
}

#[test]
fn each_example_is_short() {
    for name in ["agent.mjs", "agent.py", "agent_http.py", "rust_agent.rs", "hosted_agent.rs"] {
        let lines = std::fs::read_to_string(root("examples").join(name)).unwrap().lines().count();
        assert!(lines < 80, "{name} has {lines} lines");
    }
}
