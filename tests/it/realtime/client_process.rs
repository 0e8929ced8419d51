//! A real client library in a process of its own: takes commands on standard input and prints events.
use crate::support::PATIENCE;
use serde_json::{Value, json};
use std::{path::Path, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// The newest supabase-js, with serializer 2.0.0.
pub const NEW: &str = "@supabase/supabase-js";
/// The last supabase-js version with serializer 1.0.0.
pub const OLD: &str = "supabase-js-v1";

pub struct ClientProcess {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// Broadcasts and row changes received while another event was awaited.
    kept: Vec<Value>,
}

fn clients() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients"))
}

fn installed(stamp: &str) {
    assert!(
        clients().join(stamp).exists(),
        "the real clients are not installed: run `tests/clients/setup.sh`"
    );
}

impl ClientProcess {
    pub async fn js(package: &str, http_url: &str, key: &str, vsn: Option<&str>) -> Self {
        Self::js_as(package, http_url, key, vsn, None).await
    }

    /// With a `client_id`.
    pub async fn js_as(
        package: &str,
        http_url: &str,
        key: &str,
        vsn: Option<&str>,
        client_id: Option<&str>,
    ) -> Self {
        installed("js/node_modules/.installed");
        // The set-up installs Node where the system's version is too old.
        let own = clients().join("node/node_modules/.bin/node");
        let mut command = Command::new(if own.exists() { own } else { "node".into() });
        command
            .arg("client_process.mjs")
            .args([package, http_url, key])
            .args(vsn)
            .current_dir(clients().join("js"));
        command.envs(client_id.map(|id| ("CLIENT_ID", id)));
        Self::start(command).await
    }

    pub async fn python(ws_url: &str, key: &str) -> Self {
        Self::python_as(ws_url, key, None).await
    }

    /// With a `client_id`.
    pub async fn python_as(ws_url: &str, key: &str, client_id: Option<&str>) -> Self {
        installed("python/.venv/.installed");
        let folder = clients().join("python");
        let mut command = Command::new(folder.join(".venv/bin/python"));
        command.arg("client_process.py").args([ws_url, key]).current_dir(folder);
        command.envs(client_id.map(|id| ("CLIENT_ID", id)));
        Self::start(command).await
    }

    async fn start(mut command: Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut client = Self { stdin: child.stdin.take().unwrap(), lines, kept: Vec::new(), _child: child };
        client.until("ready", |_| true).await;
        client
    }

    pub async fn send(&mut self, command: &str, mut rest: Value) {
        rest["command"] = json!(command);
        self.stdin.write_all(format!("{rest}\n").as_bytes()).await.unwrap();
    }

    /// The next event of this name that satisfies `wanted`. Skips other events, except that broadcasts and row changes
    /// are kept for later calls, and an error event fails the test.
    pub async fn until(&mut self, event: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let kept = self.kept.iter().position(|it| it["event"] == event && wanted(it));
        if let Some(at) = kept {
            return self.kept.remove(at);
        }
        let mut seen = Vec::new();
        let found = timeout(PATIENCE * 2, async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the client ended");
                let value: Value = serde_json::from_str(&line).unwrap();
                assert_ne!(value["event"], "error", "{line}");
                if value["event"] == event && wanted(&value) {
                    return value;
                }
                if value["event"] == "broadcast" || value["event"] == "change" {
                    self.kept.push(value);
                }
                seen.push(line);
            }
        });
        let found = found.await.ok();
        found.unwrap_or_else(|| panic!("no {event} as wanted; seen:\n{}", seen.join("\n")))
    }

    /// Joins with presence and waits until subscribed.
    pub async fn join(&mut self, topic: &str, config: Value) {
        self.send("join", json!({"topic": topic, "config": config})).await;
        self.subscribed(topic).await;
    }

    pub async fn subscribed(&mut self, topic: &str) {
        self.until("status", |it| it["topic"] == topic && it["status"] == "SUBSCRIBED").await;
    }

    /// Sends a command and returns the result of the event `event` that ends it.
    pub async fn ask(&mut self, command: &str, rest: Value, event: &str) -> Value {
        self.send(command, rest).await;
        self.until(event, |_| true).await["result"].clone()
    }

    /// Waits until the presence of `key` has this member.
    pub async fn sees(&mut self, key: &str, member: &str, value: &Value) {
        let metas = |state: &Value| state[key].as_array().cloned().unwrap_or_default();
        self.until("sync", |it| metas(&it["state"]).iter().any(|meta| meta[member] == *value)).await;
    }

    /// Waits until no presence has this key.
    pub async fn misses(&mut self, key: &str) {
        self.until("sync", |it| it["state"].get(key).is_none()).await;
    }

    /// The payload of the next broadcast of this name.
    pub async fn broadcast(&mut self, name: &str) -> Value {
        let got = self.until("broadcast", |it| it["name"] == name).await;
        got.get("bytes").or_else(|| got.get("payload")).cloned().unwrap_or_default()
    }
}
