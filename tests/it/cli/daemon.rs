//! The daemon as a process: where it says it is, how it stops, and the commands that ask it.
use super::{convoke, text};
use crate::support::open_to_all;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
};

/// `convoke up --json` in a folder of its own, on a private PostgreSQL.
struct Up {
    folder: tempfile::TempDir,
    child: Child,
    told: Value,
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A process that says something on standard output, and the first line that it says.
fn first_line(folder: &Path, args: &[&str]) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.args(args).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

impl Up {
    fn start(agents: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        for (name, text) in agents {
            std::fs::write(folder.path().join("agents").join(name), text).unwrap();
        }
        let (child, line) = first_line(folder.path(), &["up", "--json", "--listen", "127.0.0.1:0"]);
        let told = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { folder, child, told }
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = convoke(self.folder.path(), args);
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, told) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, Some(0), "{args:?}: {told}");
        serde_json::from_str(&told).unwrap_or_else(|e| panic!("{args:?}: {e}: {told}"))
    }

    fn stop(mut self) {
        signal(self.child.id(), "-TERM");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert!(!self.folder.path().join(".convoke/url").exists(), "nobody is sent to a daemon that stopped");
    }
}

const UPPER: &str = r#"
id = "upper"
capabilities = ["text"]
[run]
kind = "command"
argv = ["/bin/sh", "-c", "tr '[:lower:]' '[:upper:]'"]
"#;

#[test]
fn a_task_is_requested_done_and_explained_from_the_command_line() {
    let up = Up::start(&[("upper.toml", UPPER)]);
    assert_eq!(up.told["agents"], 1);
    let request = ["task", "request", "shout", "--requires", "text", "--input", "\"hello\"", "--wait"];
    assert_eq!(up.run(&request), (Some(0), "\"HELLO\"\n".to_owned()));
    let listed = up.json(&["task", "list"]);
    let id = listed["tasks"][0]["id"].as_str().unwrap();
    assert_eq!(up.json(&["task", "show", id])["result"], "HELLO");
    assert_eq!(up.json(&["task", "why", id])["rounds"][0]["winner"], "upper");
    let (code, why) = up.run(&["task", "why", id]);
    assert!(code == Some(0) && why.contains("shout is completed") && why.contains("winner upper"), "{why}");
    let (code, events) = up.run(&["task", "watch", id]);
    assert!(code == Some(0) && events.contains("requested") && events.contains("finished"), "{events}");
    let (code, told) = up.run(&["task", "cancel", id]);
    assert_eq!((code, told.as_str()), (Some(1), "convoke: the task is completed\n"));
    assert_eq!(up.json(&["agent", "list"])["agents"][0]["id"], "upper");
    assert_eq!(up.json(&["agent", "show", "upper"])["statistics"]["shout"]["completed"], 1);

    let nobody = up.json(&["task", "request", "x", "--requires", "flying"]);
    let id = nobody["task"]["id"].as_str().unwrap();
    assert_eq!(up.run(&["task", "cancel", id]), (Some(0), format!("{id} is canceled\n")));
    assert_eq!(up.run(&["task", "watch", id]).0, Some(1), "a task that did not complete is no success");
    // The events alone make the rows again.
    let looked = up.json(&["doctor", "--replay"]);
    assert!(looked["ok"] == true && looked.to_string().contains("2 tasks made again from"), "{looked}");
    up.stop();
}

#[test]
fn the_doctor_looks_beside_a_running_daemon_and_without_one() {
    let up = Up::start(&[]);
    let told = up.json(&["doctor"]);
    assert_eq!((&told["ok"], &told["database"]["private"]), (&true.into(), &true.into()), "{told}");
    let url = told["database"]["url"].as_str().unwrap();
    assert!(url.starts_with("postgres://convoke:***@127.0.0.1:"), "{url}");
    let password = up.folder.path().join(told["database"]["password_file"].as_str().unwrap());
    let password = std::fs::read_to_string(password).unwrap();
    assert!(!told.to_string().contains(password.trim()), "a password is not shown");
    let findings = told["findings"].as_array().unwrap();
    for name in ["wal_level", "replication_slot", "I1", "I6", "daemon"] {
        assert!(findings.iter().any(|f| f["name"] == name && f["ok"] == true), "{name}: {told}");
    }
    let daemon = findings.iter().find(|f| f["name"] == "daemon").unwrap()["found"].as_str().unwrap();
    assert!(daemon.starts_with("ready at"), "{daemon}");
    let folder = up.folder.path().to_owned();
    signal(up.child.id(), "-INT");
    let mut up = up;
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
    let output = convoke(&folder, &["doctor", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &told["ok"]), (Some(0), &true.into()), "{told}");
}

#[test]
fn a_wake_without_its_table_is_named_by_the_doctor() {
    let wake = "\n[[wake]]\ntable = 'nothing'\nrequest = { kind = 'x' }\n";
    let up = Up::start(&[("upper.toml", &format!("{UPPER}{wake}"))]);
    let (code, told) = up.run(&["doctor"]);
    assert!(code == Some(1) && told.contains("wake.0 of agent upper names table public.nothing"), "{told}");
    up.stop();
}

#[test]
fn a_port_or_a_folder_in_use_is_one_clear_line() {
    let up = Up::start(&[]);
    let listen = up.told["url"].as_str().unwrap().trim_start_matches("http://");
    let (code, told) = up.run(&["up", "--listen", listen, "--data-dir", "other"]);
    assert!(code == Some(1) && told.contains(&format!("cannot listen on {listen}")), "{told}");
    assert!(told.contains("--listen") && told.lines().count() == 1, "{told}");
    let (code, told) = up.run(&["up", "--listen", "127.0.0.1:0"]);
    assert!(code == Some(1) && told.contains(".convoke") && told.lines().count() == 1, "{told}");
    up.stop();
}

#[test]
fn the_demo_ends_by_itself_and_runs_again_after_it_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/triage").display().to_string();
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

#[test]
fn a_measurement_that_is_interrupted_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    open_to_all(folder.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.args(["bench", "tasks", "--tasks", "1000000"]).current_dir(folder.path()).stderr(Stdio::piped());
    let mut bench = command.env("TMPDIR", folder.path()).spawn().unwrap();
    let port = folder.path().join(format!("convoke-bench-{}/postgres.port", bench.id()));
    let started = (0..3000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        port.exists()
    });
    assert!(started, "no server within a minute");
    let server = format!("127.0.0.1:{}", std::fs::read_to_string(&port).unwrap().trim());
    signal(bench.id(), "-INT");
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    let mut told = String::new();
    bench.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told, "convoke: interrupted\n");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(std::net::TcpStream::connect(server).is_err(), "its server is stopped");
}
