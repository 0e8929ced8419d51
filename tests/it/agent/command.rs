//! `kind = "command"` with real processes.
use super::{Bench, definition, result, start};
use crate::support::PATIENCE;
use convoke::{
    agent::{Definition, Finished},
    task::WaitFor,
};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

fn shell(script: &str) -> Definition {
    let mut definition = definition("id = \"sh\"\n[run]\nkind = \"command\"");
    definition.run.argv = Some(vec!["sh".into(), "-c".into(), script.into()]);
    definition
}

async fn failure(definition: Definition) -> (String, bool) {
    let failure = Bench::new(definition).run(start(json!({}))).await.unwrap_err();
    (failure.message, failure.retryable)
}

/// Waits until the process is gone, or dead and not yet buried.
async fn gone(pid: &str) {
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
    };
    let wait = async {
        while alive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the process is still there");
}

#[tokio::test]
async fn input_is_standard_input_and_result_is_standard_output() {
    let script = r#"read -r input; printf '{"got": %s, "task": "%s", "agent": "%s", "attempt": %s}' \
        "$input" "$CONVOKE_TASK_ID" "$CONVOKE_AGENT_ID" "$CONVOKE_ATTEMPT""#;
    let start = start(json!({ "ticket": "Où?\n" }));
    let task = start.key.task_id.to_string();
    let expected = json!({ "got": { "ticket": "Où?\n" }, "task": task, "agent": "sh", "attempt": 1 });
    assert_eq!(result(Bench::new(shell(script)).run(start).await), expected);
}

#[tokio::test]
async fn command_gets_the_trace_of_its_assignment() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut traced = start(json!({}));
    traced.traceparent = Some(trace.parse().unwrap());
    let bench = Bench::new(shell("echo \"\\\"$TRACEPARENT\\\"\""));
    assert_eq!(result(bench.run(traced).await), json!(trace));
    assert_eq!(result(bench.run(start(json!({}))).await), json!(""), "no trace, no variable");
}

#[tokio::test]
async fn command_may_ignore_its_input() {
    let big = json!("x".repeat(500_000));
    assert_eq!(result(Bench::new(shell("echo 42")).run(start(big)).await), json!(42));
}

#[tokio::test]
async fn environment_has_only_the_variables_of_the_definition() {
    let mut definition = shell(
        "env | sed 's/=.*//' | grep -v '^\\(PWD\\|SHLVL\\|_\\|CONVOKE_.*\\)$' | sort | tr '\\n' ' ' | sed 's/^/\"/; s/$/\"/'",
    );
    definition.run.env = vec!["PATH".into(), "NOT_THERE".into()];
    definition.run.env_set.insert("GREETING".into(), "hello".into());
    assert_eq!(result(Bench::new(definition).run(start(json!({}))).await), json!("GREETING PATH "));
}

#[tokio::test]
async fn progress_lines_on_standard_error_are_reported() {
    let script = r#"echo 'starting up' >&2
        echo '{"progress": 0.25, "activity": "reading"}' >&2
        echo '{"progress": 0.5, "checkpoint": {"page": 7}}' >&2
        echo '{"not": "progress"}' >&2
        echo '{}'"#;
    let (outcome, told) = Bench::new(shell(script)).run_with_progress(start(json!({}))).await;
    assert_eq!(result(outcome), json!({}));
    let told = told.unwrap();
    assert_eq!((told.progress, told.activity.as_deref()), (Some(0.5), Some("reading")));
    assert_eq!(told.checkpoint, Some(json!({ "page": 7 })));
}

#[tokio::test]
async fn command_may_ask_and_gets_the_answers() {
    let script = r#"if [ -n "$CONVOKE_ANSWERS" ]; then echo "$CONVOKE_ANSWERS"; exit 0; fi
        echo '{"checkpoint": {"page": 7}}' >&2
        echo '{"question": "may I?", "for": "approval"}' >&2"#;
    let Ok(Finished::Waits(asked)) = Bench::new(shell(script)).run(start(json!({}))).await else {
        panic!("it did not ask");
    };
    assert_eq!((asked.question.as_str(), asked.wait_for), ("may I?", WaitFor::Approval));
    assert_eq!(asked.checkpoint, Some(json!({ "page": 7 })));
    let mut answered = start(json!({}));
    answered.answers = vec![json!({ "question": "may I?", "answer": true })];
    let expected = json!([{ "question": "may I?", "answer": true }]);
    assert_eq!(result(Bench::new(shell(script)).run(answered).await), expected);
}

#[tokio::test]
async fn failure_names_the_exit_code_and_the_last_line() {
    let script = "echo first >&2; echo 'the disk is full' >&2; echo '{\"progress\": 1}' >&2; exit 3";
    let told = ("the command failed with exit code 3: the disk is full".to_owned(), true);
    assert_eq!(failure(shell(script)).await, told);
    assert_eq!(failure(shell("exit 4")).await.0, "the command failed with exit code 4");
    assert_eq!(failure(shell("kill -9 $$")).await.0, "the command was ended by signal 9");
    let long = failure(shell("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1")).await.0;
    assert!(long.len() < 400, "{}", long.len());
}

#[tokio::test]
async fn result_that_is_not_json_is_a_failure() {
    assert_eq!(failure(shell("echo hello")).await, ("result is no JSON: line 1 column 1".into(), true));
    let nothing = "result is no JSON: the command wrote nothing on standard output";
    assert_eq!(failure(shell("true")).await.0, nothing);
    assert!(failure(shell("echo '{} {}'")).await.0.starts_with("result is no JSON"));
}

#[tokio::test]
async fn output_over_the_limit_is_cut_off() {
    let mut flood = shell("yes");
    flood.limits.output_bytes = 10_000;
    let (message, retryable) = failure(flood).await;
    assert_eq!((message.as_str(), retryable), ("the result is over limits.output_bytes, 10000 bytes", false));
}

#[tokio::test]
async fn missing_command_is_named_and_not_retried() {
    let mut missing = shell("");
    missing.run.argv = Some(vec!["convoke-no-such-program".into()]);
    let told = ("there is no command convoke-no-such-program on PATH".to_owned(), false);
    assert_eq!(failure(missing.clone()).await, told);
    missing.run.argv = Some(vec!["./nothing.sh".into()]);
    missing.folder = Some("/tmp".into());
    assert_eq!(failure(missing.clone()).await.0, "there is no command /tmp/nothing.sh");
    missing.run.argv = Some(vec!["/etc/passwd".into()]);
    assert_eq!(failure(missing).await.0, "/etc/passwd is not executable");
}

#[tokio::test]
async fn command_runs_in_the_folder_of_its_definition() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("here.json"), "\"found\"").unwrap();
    let mut definition = shell("cat here.json");
    definition.folder = Some(folder.path().to_owned());
    assert_eq!(result(Bench::new(definition.clone()).run(start(json!({}))).await), json!("found"));
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    definition.run.cwd = Some("sub".into());
    assert!(failure(definition).await.0.contains("exit code 1"));
}

#[tokio::test]
async fn memory_over_the_limit_is_refused() {
    let hungry = "x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo ${#x}";
    let mut definition = shell(hungry);
    definition.limits.memory_bytes = Some(50 << 20);
    let (message, _) = failure(definition).await;
    assert!(message.starts_with("the command "), "{message}");
    let mut enough = shell("echo '\"small\"'");
    enough.limits.memory_bytes = Some(50 << 20);
    assert_eq!(result(Bench::new(enough).run(start(json!({}))).await), json!("small"));
}

/// Stops a job once its script has written a child's process id, and gives that id.
async fn stopped(script: &str, folder: &Path) -> (String, String) {
    let mut definition = shell(script);
    definition.folder = Some(folder.to_owned());
    let bench = Bench::new(definition);
    let stop = bench.stop.clone();
    let file = folder.join("pid");
    let stopper = async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(bench.run(start(json!({}))), stopper);
    (std::fs::read_to_string(file).unwrap(), outcome.unwrap_err().message)
}

#[tokio::test]
async fn stop_ends_the_command_and_its_descendants() {
    let folder = tempfile::tempdir().unwrap();
    let (pid, message) = stopped("sleep 300 & echo $! > pid; wait", folder.path()).await;
    assert_eq!(message, "the command was stopped");
    gone(&pid).await;
}

#[tokio::test]
async fn command_that_ignores_sigterm_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (pid, _) =
        stopped("trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > pid; sleep 300; sleep 300'", folder.path())
            .await;
    gone(&pid).await;
}

#[tokio::test]
async fn dropped_job_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut definition = shell("sh -c 'sleep 300 & echo $! > pid; wait' & wait");
    definition.folder = Some(folder.path().to_owned());
    let file = folder.path().join("pid");
    let bench = Bench::new(definition);
    let started = async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        outcome = bench.run(start(json!({}))) => panic!("{outcome:?}"),
        () = started => {}
    }
    gone(&std::fs::read_to_string(file).unwrap()).await;
}

#[tokio::test]
async fn remaining_descendants_do_not_delay_the_result() {
    let result = result(Bench::new(shell("sleep 300 & echo '\"done\"'")).run(start(Value::Null)).await);
    assert_eq!(result, json!("done"));
}
