//! The commands and snippets of the README work.
use crate::{
    daemon::{Echo, Running, config, definition, fresh, soon},
    support::PATIENCE,
};
use convoke::{
    auth::{MintRequest, Role, mint},
    clock::Clock,
    id::OrgId,
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Stdio, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::mpsc,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The first block of the README in this language that contains `word`.
fn snippet(language: &str, word: &str) -> String {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let fence = format!("```{language}\n");
    let mut blocks = text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .find(|block| block.contains(word))
        .unwrap_or_else(|| panic!("no {language} with {word}"))
        .to_owned()
}

#[test]
fn documented_versions_are_those_that_the_tests_run() {
    let package: Value =
        serde_json::from_str(&fs::read_to_string(root().join("tests/clients/js/package.json")).unwrap())
            .unwrap();
    let js = format!(
        "@supabase/supabase-js@{}",
        package["dependencies"]["@supabase/supabase-js"].as_str().unwrap()
    );
    let python = fs::read_to_string(root().join("tests/clients/python/requirements.txt")).unwrap();
    let python = python.lines().find(|line| line.starts_with("realtime==")).unwrap();
    let mut named = (0, 0);
    for file in [
        "README.md",
        "docs/PROTOCOL.md",
        "docs/REMOTE.md",
        "examples/agent.mjs",
        "src/cli/serve.rs",
        "src/cli/up.rs",
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        for line in text.lines().filter(|line| line.contains("npm install") && line.contains("supabase-js")) {
            assert!(line.contains(&js), "{file}: {line}");
            named.0 += 1;
        }
        for line in text.lines().filter(|line| line.contains("pip install")) {
            assert!(line.contains(python), "{file}: {line}");
            named.1 += 1;
        }
    }
    assert!(named.0 >= 3 && named.1 >= 1, "{named:?}");
}

/// A running snippet, killed on drop.
struct Snippet {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _folder: tempfile::TempDir,
}

impl Snippet {
    fn start(mut command: Command, folder: tempfile::TempDir) -> Self {
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, lines, _folder: folder }
    }

    fn js(url: &str, key: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = snippet("js", "createClient").replace("http://127.0.0.1:7700", url);
        fs::write(folder.path().join("watch.mjs"), text.replace("ANON_KEY", &format!("'{key}'"))).unwrap();
        let modules = root().join("tests/clients/js/node_modules");
        assert!(modules.exists(), "the real clients are not installed: run `tests/clients/setup.sh`");
        std::os::unix::fs::symlink(modules, folder.path().join("node_modules")).unwrap();
        let own = root().join("tests/clients/node/node_modules/.bin/node");
        let mut command = Command::new(if own.exists() { own } else { "node".into() });
        // Node.js 20, which the tests run too, has no websocket of its own.
        let websocket = folder.path().join("websocket.mjs");
        fs::write(&websocket, "import ws from 'ws'\nglobalThis.WebSocket ??= ws\n").unwrap();
        command.arg("--import").arg(websocket).arg(folder.path().join("watch.mjs"));
        Self::start(command, folder)
    }

    fn python(url: &str, key: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = url.replacen("http", "ws", 1);
        let text = snippet("python", "AsyncRealtimeClient").replace("ws://127.0.0.1:7700", &socket);
        fs::write(folder.path().join("watch.py"), text.replace("ANON_KEY", &format!("{key:?}"))).unwrap();
        let mut command = Command::new(root().join("tests/clients/python/.venv/bin/python"));
        command.env("PYTHONUNBUFFERED", "1").arg(folder.path().join("watch.py"));
        Self::start(command, folder)
    }

    async fn until(&mut self, word: &str) {
        let found = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.contains(word) {
                    return;
                }
            }
            panic!("it ended before {word}");
        };
        soon(word, found).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snippets_of_the_readme_show_presence_and_coordination() {
    let (db, folder) = fresh().await;
    let (echo, _heard) = mpsc::channel(16);
    let daemon =
        Running::start(config(&db, folder.path()), vec![(definition("echo", ""), Arc::new(Echo(echo)))])
            .await;
    let url = format!("http://{}", daemon.parts.addr);
    let key = mint(&daemon.parts.keys, &MintRequest::new(Role::Anon), Clock::System.now()).unwrap();
    let mut snippets = [Snippet::js(&url, &key), Snippet::python(&url, &key)];
    for snippet in &mut snippets {
        snippet.until("echo").await;
    }
    let wish = serde_json::from_value(json!({ "kind": "readme.snippet", "requires": ["work"] })).unwrap();
    let made = daemon.parts.tasks.request(&OrgId::try_from("demo").unwrap(), "test", wish).await.unwrap();
    for snippet in &mut snippets {
        snippet.until(&made.task.id.to_string()).await;
    }
    drop(snippets);
    daemon.stop().await;
}

#[tokio::test]
async fn statements_of_the_readme_request_a_task_and_write_its_result_back() {
    let (db, folder) = fresh().await;
    let client = db.client().await;
    client.batch_execute(&snippet("sql", "create trigger")).await.unwrap();
    client.execute("insert into tickets values (7)", &[]).await.unwrap();
    let agent = toml::from_str(
        "id = \"triage\"\norg = \"demo\"\ncapabilities = [\"support.triage\"]\n[run]\nkind = \"command\"\n\
         argv = [\"/bin/sh\", \"-c\", \"echo '{\\\"urgency\\\": 4}'\"]",
    )
    .unwrap();
    let daemon = Running::start_with(config(&db, folder.path()), vec![agent]).await;
    let request = snippet("sql", "request_task").replace("\"subject\"", "\"id\": 7, \"subject\"");
    client.batch_execute(&request).await.unwrap();
    client.batch_execute(&request).await.unwrap();
    let written = async {
        let sql = "select urgency from tickets where id = 7 and urgency is not null";
        while client.query_opt(sql, &[]).await.unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("the result is written back");
    let tasks = client.query_one("select count(*) from convoke.tasks", &[]).await.unwrap();
    assert_eq!(tasks.get::<_, i64>(0), 1, "the same key gives the same task");
    daemon.stop().await;
}
