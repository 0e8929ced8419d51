//! The demo as a new user runs it.
use super::{
    convoke, convoke_in,
    daemon::{first_line, signal},
    text,
};
use crate::agent::{http::Server, llm::completion};
use serde_json::Value;
use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

fn example() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/triage").display().to_string()
}

/// The tickets and the summary of `--json`.
fn read(stdout: &[u8]) -> (Vec<Value>, Value) {
    let mut lines: Vec<Value> =
        text(stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap();
    (lines, summary)
}

#[test]
fn demo_exits_by_itself_and_runs_again_after_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let example = example();
    let args = ["demo", "--dir", &example, "--listen", "127.0.0.1:0", "--json", "--once"];
    let (mut child, first) = first_line(folder.path(), &args);
    signal(child.id(), "-KILL");
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(first.contains("\"state\":\"completed\""), "killed after its first ticket: {first}");

    let output = convoke(folder.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, tickets) = lines.split_last().unwrap();
    assert_eq!((&summary["tickets"], &summary["done"]), (&40.into(), &40.into()));
    assert_eq!(tickets.len(), 40);
    assert!(tickets.iter().all(|ticket| ticket["result"].is_string()), "{tickets:?}");
    for agent in ["keyword", "classifier"] {
        assert!(tickets.iter().any(|ticket| ticket["agent_id"] == agent), "{agent} won nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_wins_tickets_that_word_matching_agents_cannot_classify() {
    let answer = r#"{"category":"question","urgency":2,"reason":"read by the model"}"#;
    let server = Server::start([completion(answer)]).await;
    let folder = tempfile::tempdir().unwrap();
    let (example, base) = (example(), format!("{}/v1", server.address));
    let path = folder.path().to_owned();
    let run = move || {
        let args = ["demo", "--dir", &example, "--listen", "127.0.0.1:0", "--json", "--once"];
        convoke_in(&path, &args, &[("CONVOKE_LLM_BASE_URL", &base)])
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let (tickets, summary) = read(&output.stdout);
    assert_eq!((&summary["tickets"], &summary["done"]), (&40.into(), &40.into()));
    let won = |agent: &str| tickets.iter().filter(|ticket| ticket["agent_id"] == agent).count();
    let (keyword, classifier, thinker) = (won("keyword"), won("classifier"), won("thinker"));
    println!("keyword {keyword}, classifier {classifier}, thinker {thinker}");
    assert!(
        keyword > 0 && classifier > 0,
        "cheap agents with high confidence still win: {keyword}, {classifier}"
    );
    assert!(thinker >= 5, "the model won {thinker}");
    for ticket in &tickets {
        let (result, offers) = (ticket["result"].as_str().unwrap(), ticket["offers"].as_str().unwrap());
        assert!(!result.contains("no word"), "{ticket}");
        // The script declines tickets without a known word, so it never wins them.
        assert!(!(offers.contains("keyword declined") && ticket["agent_id"] == "keyword"), "{ticket}");
        if ticket["agent_id"] == "thinker" {
            assert!(result.contains("read by the model"), "{ticket}");
        }
    }
}

#[test]
fn hints_of_the_demo_are_working_commands_without_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.args(["demo", "--dir", &example(), "--listen", "127.0.0.1:0"]).current_dir(folder.path());
    let mut demo = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(demo.stdout.take().unwrap()));
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.contains("room.subscribe()")) {
        said.push(lines.next().expect("the demo prints all hints").unwrap());
    }
    let password = std::fs::read_to_string(folder.path().join(".convoke-demo/postgres.password")).unwrap();
    assert!(said.iter().all(|line| !line.contains(password.trim())), "{said:?}");
    let mut tried = 0;
    for hint in said.iter().map(|line| line.trim()) {
        let works = ["/convoke ", "curl ", "PGPASSWORD="].iter().any(|part| hint.contains(part));
        let needs = hint.split_whitespace().next().unwrap_or_default();
        let there = needs != "curl" || Command::new("curl").arg("--version").output().is_ok();
        let psql = !hint.contains("psql") || Command::new("psql").arg("--version").output().is_ok();
        if !works || !there || !psql {
            continue;
        }
        let output = Command::new("sh").args(["-c", hint]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{hint}: {}{}", text(&output.stdout), text(&output.stderr));
        tried += 1;
    }
    assert!(tried >= 4, "{said:?}");
    // Two tickets ask for a refund, and an agent asks a person about each.
    let list = said.iter().map(|line| line.trim()).find(|line| line.ends_with("task list")).unwrap();
    let asked = format!("{list} --state waiting --kind support.refund");
    let until = tokio::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let output = Command::new("sh").args(["-c", &asked]).current_dir(folder.path()).output().unwrap();
        let tasks = text(&output.stdout).matches("support.refund").count();
        if tasks == 2 {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{tasks} of 2 questions: {}", text(&output.stderr));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    signal(demo.id(), "-INT");
    assert_eq!(demo.wait().unwrap().code(), Some(0));
}
