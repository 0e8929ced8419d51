//! The daemon as a process: its address, its stop, and the commands that talk to it.
use super::{convoke, text};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// `convoke up --json` in a folder of its own, on a private PostgreSQL.
struct Up {
    folder: tempfile::TempDir,
    child: Child,
    told: Value,
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// Starts a process and returns the first line of its standard output.
pub fn first_line(folder: &Path, args: &[&str]) -> (Child, String) {
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
        assert!(
            !self.folder.path().join(".convoke/url").exists(),
            "the address of a stopped daemon is removed"
        );
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
fn task_is_requested_completed_and_explained_from_the_command_line() {
    let up = Up::start(&[("upper.toml", UPPER)]);
    assert_eq!(up.told["agents"], 1);
    let page = up.told["dashboard"].as_str().unwrap();
    assert!(
        page.starts_with(up.told["url"].as_str().unwrap()) && page.contains("/dashboard/#code="),
        "{page}"
    );
    let socket = up.told["websocket"].as_str().unwrap();
    assert!(socket.starts_with("ws://127.0.0.1:") && socket.ends_with("/realtime/v1"), "{socket}");
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

    let spent = up.json(&["spend", "--by", "agent,kind"]);
    let row = &spent["rows"][0];
    assert_eq!(
        (&row["agent_id"], &row["kind"], &row["attempts"]),
        (&"upper".into(), &"shout".into(), &1.into())
    );
    let (code, table) = up.run(&["spend"]);
    assert!(code == Some(0) && table.contains("AGENT  MODEL") && table.contains("upper  -"), "{table}");
    assert_eq!(up.run(&["spend", "--by", "color"]).0, Some(64));

    let unallocatable = up.json(&["task", "request", "x", "--requires", "flying"]);
    let id = unallocatable["task"]["id"].as_str().unwrap();
    assert_eq!(up.run(&["task", "cancel", id]), (Some(0), format!("{id} is canceled\n")));
    assert_eq!(up.run(&["task", "watch", id]).0, Some(1), "watch fails if the task does");
    // The rows can be rebuilt from the event log alone.
    let checked = up.json(&["doctor", "--replay"]);
    assert!(checked["ok"] == true && checked.to_string().contains("2 tasks rebuilt from"), "{checked}");
    up.stop();
}

#[test]
fn task_is_named_by_a_prefix_of_its_id() {
    let up = Up::start(&[("upper.toml", UPPER)]);
    let request = |more: &[&str]| {
        let words = ["task", "request", "shout", "--requires", "flying", "--input", "\"a\""];
        let made = up.json(&[&words, more].concat());
        made["task"]["id"].as_str().unwrap().to_owned()
    };
    let first = request(&[]);
    // The first digits of an id are its time; only the digits after the version differ between the two tasks.
    let short = first.get(..18).unwrap();
    assert_eq!(up.json(&["task", "show", &format!("{short}…")])["id"], first.as_str());
    assert_eq!(up.run(&["task", "show", &short.to_uppercase()]).0, Some(0));
    assert!(up.run(&["task", "why", short]).1.contains("shout is"));
    let second = request(&["--after", short, "--parent", short]);
    assert_eq!(up.json(&["task", "show", &second])["depends_on"][0], first.as_str());
    assert_eq!(up.json(&["task", "show", &second])["parent_id"], first.as_str());
    let (code, told) = up.run(&["task", "cancel", first.get(..4).unwrap()]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("several tasks") && told.contains(&first) && told.contains(&second), "{told}");
    assert_eq!(
        up.json(&["task", "list", "--state", "canceled"])["tasks"],
        serde_json::json!([]),
        "none of them"
    );
    let (code, told) = up.run(&["task", "show", "ffff"]);
    assert!(code == Some(1) && told.contains("no task has an id that begins with ffff"), "{told}");
    assert_eq!(up.run(&["task", "budget", short, "--tokens", "9"]).0, Some(0));
    let canceled = (Some(0), format!("{first} is canceled\n"));
    assert_eq!(up.run(&["task", "cancel", short, "--reason", "enough"]), canceled);
    assert_eq!(up.run(&["task", "watch", short]).0, Some(1));
    assert_eq!(up.run(&["task", "requeue", short]).0, Some(0));
    up.stop();
}

#[test]
fn doctor_recognizes_the_daemon_of_another_project() {
    let up = Up::start(&[]);
    let other = tempfile::tempdir().unwrap();
    assert_eq!(convoke(other.path(), &["token"]).status.code(), Some(0));
    let listen = up.told["url"].as_str().unwrap().trim_start_matches("http://");
    let output = convoke(other.path(), &["doctor", "--json", "--listen", listen]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let daemon = told["findings"].as_array().unwrap().iter().find(|f| f["name"] == "daemon").unwrap();
    assert!(daemon["found"].as_str().unwrap().contains("is of another project"), "{daemon}");
    up.stop();
}

#[test]
fn doctor_runs_with_and_without_a_running_daemon() {
    let up = Up::start(&[]);
    let told = up.json(&["doctor"]);
    assert_eq!((&told["ok"], &told["database"]["private"]), (&true.into(), &true.into()), "{told}");
    let url = told["database"]["url"].as_str().unwrap();
    assert!(url.starts_with("postgres://convoke:***@127.0.0.1:"), "{url}");
    let password = up.folder.path().join(told["database"]["password_file"].as_str().unwrap());
    let password = std::fs::read_to_string(password).unwrap();
    assert!(!told.to_string().contains(password.trim()), "the password is not printed");
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
fn doctor_names_a_wake_without_its_table() {
    let wake = "\n[[wake]]\ntable = 'nothing'\nrequest = { kind = 'x' }\n";
    let up = Up::start(&[("upper.toml", &format!("{UPPER}{wake}"))]);
    let (code, told) = up.run(&["doctor"]);
    assert!(code == Some(1) && told.contains("wake.0 of agent upper names table public.nothing"), "{told}");
    up.stop();
}

/// The process id of the private PostgreSQL in a data folder, once it runs.
fn postgres_pid(data_dir: &Path) -> u32 {
    let file = data_dir.join("postgres/postmaster.pid");
    for _ in 0..60_000 {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        // While the folder is filled, the file has a negative number.
        if let Some(pid) = text.lines().next().and_then(|line| line.parse().ok()) {
            return pid;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("no PostgreSQL in {}", data_dir.display());
}

#[test]
fn signal_before_the_daemon_is_ready_stops_its_postgres_too() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join(".convoke");
    let args = ["up", "--json", "--listen", "127.0.0.1:0"];
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        command.args(args).current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    for name in ["-INT", "-TERM"] {
        let up = start();
        let postgres = postgres_pid(&data_dir);
        // PostgreSQL runs, so most of the start is still to come; on a slow machine the signals may come after it, which
        // ends in the same way. The first one means nothing at this time, and must not end the process.
        signal(up.id(), "-HUP");
        signal(up.id(), name);
        let output = up.wait_with_output().unwrap();
        let (said, told) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{name}: {said}{told}");
        assert!(told.contains("stopping"), "{name}: {told}");
        assert!(!data_dir.join("postgres/postmaster.pid").exists(), "{name}: PostgreSQL stopped in order");
        assert!(!Path::new(&format!("/proc/{postgres}")).exists(), "{name}: PostgreSQL has ended");
    }
    let (up, line) = first_line(folder.path(), &args);
    let told = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    Up { folder, child: up, told }.stop();
}

#[test]
fn port_or_folder_in_use_is_reported_in_one_line() {
    let up = Up::start(&[]);
    let listen = up.told["url"].as_str().unwrap().trim_start_matches("http://");
    let (code, told) = up.run(&["up", "--listen", listen, "--data-dir", "other"]);
    assert!(code == Some(1) && told.contains(&format!("cannot listen on {listen}")), "{told}");
    assert!(told.contains("--listen") && told.lines().count() == 1, "{told}");
    let (code, told) = up.run(&["up", "--listen", "127.0.0.1:0"]);
    assert!(code == Some(1) && told.contains(".convoke") && told.lines().count() == 1, "{told}");
    up.stop();
}
