//! The agents' files change while the daemon runs: they are applied as a whole, and jobs keep what they began with.
use super::{Running, Up, config, fresh, soon};
use crate::support::{PATIENCE, TestDb};
use convoke::{
    app::{Daemon, NotReloaded},
    id::TaskId,
    task::{Request, Task, TaskState},
    testing::{ModelServer, Reply},
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command, time::Duration};

/// A daemon with the files of a folder.
struct Files {
    running: Running,
    db: TestDb,
    folder: tempfile::TempDir,
}

impl Files {
    async fn start(files: &[(&str, String)]) -> Self {
        let (db, folder) = fresh().await;
        fs::create_dir(folder.path().join("agents")).unwrap();
        let mut config = config(&db, &folder.path().join("data"));
        config.agents.dir = folder.path().join("agents");
        for (name, text) in files {
            fs::write(config.agents.dir.join(name), text).unwrap();
        }
        let running = Running::launch(Daemon::builder(config)).await;
        running.parts.ready(PATIENCE).await.unwrap();
        Self { running, db, folder }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join("agents").join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join("agents").join(name)).unwrap();
    }

    /// Reads the files again. Returns what changed, as JSON.
    async fn reload(&self) -> Value {
        json!(self.running.parts.reload.now().await.unwrap().unwrap())
    }

    async fn request(&self, capability: &str) -> TaskId {
        let body = json!({ "kind": "work.it", "requires": [capability], "input": {} });
        let request: Request = serde_json::from_value(body).unwrap();
        let made = self.running.parts.tasks.request(&"demo".parse().unwrap(), "test", request).await;
        made.unwrap().task.id
    }

    async fn ended(&self, id: TaskId) -> Task {
        self.running.parts.tasks.wait(id, PATIENCE).await.unwrap()
    }

    async fn result_of(&self, capability: &str) -> Value {
        self.ended(self.request(capability).await).await.result.unwrap()
    }

    async fn in_state(&self, id: TaskId, state: TaskState) {
        soon("the state", async {
            while self.running.parts.tasks.get(id).await.unwrap().state != state {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Assignments that the task had.
    async fn assignments(&self, id: TaskId) -> i64 {
        let count = "select count(*) from convoke.assignments where task_id = $1";
        self.db.client().await.query_one(count, &[&id.as_uuid()]).await.unwrap().get(0)
    }

    async fn health(&self, part: &str) -> Value {
        let url = format!("http://{}/health", self.running.parts.addr);
        reqwest::get(url).await.unwrap().json::<Value>().await.unwrap()["parts"][part].clone()
    }
}

/// An agent with two slots whose result is this JSON, after this part of a shell script.
fn agent(id: &str, before: &str, result: &str) -> String {
    format!(
        "id = \"{id}\"\norg = \"demo\"\ncapabilities = [\"{id}\"]\nslots = 2\n[run]\nkind = \"command\"\n\
         argv = [\"/bin/sh\", \"-c\", '''cat > /dev/null; {before} echo '{result}' ''']\n"
    )
}

#[tokio::test]
async fn changed_added_and_removed_files_are_applied_and_a_running_job_keeps_its_definition() {
    let flag = tempfile::tempdir().unwrap();
    let flag = flag.path().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done;", flag.display());
    let files = Files::start(&[("clerk.toml", agent("clerk", &waits, "1"))]).await;
    let first = files.request("clerk").await;
    files.in_state(first, TaskState::Running).await;

    files.write("clerk.toml", &agent("clerk", "", "2"));
    files.write("helper.toml", &agent("helper", "", "3"));
    assert_eq!(files.reload().await, json!({ "added": ["helper"], "changed": ["clerk"], "removed": [] }));
    assert_eq!(files.result_of("clerk").await, json!(2));
    assert_eq!(files.result_of("helper").await, json!(3));
    assert_eq!(files.reload().await, json!({ "added": [], "changed": [], "removed": [] }));

    files.remove("clerk.toml");
    assert_eq!(files.reload().await["removed"], json!(["clerk"]));
    let later = files.request("clerk").await;
    assert_eq!(files.running.parts.tasks.get(first).await.unwrap().state, TaskState::Running);
    fs::write(flag, "").unwrap();
    let done = files.ended(first).await;
    assert_eq!((done.result, files.assignments(first).await), (Some(json!(1)), 1));
    assert_eq!(files.assignments(later).await, 0, "a removed agent gets nothing");
    files.write("clerk.toml", &agent("clerk", "", "4"));
    assert_eq!(files.reload().await["added"], json!(["clerk"]));
    assert_eq!(files.ended(later).await.result, Some(json!(4)), "an agent that comes back is hosted again");
    files.running.stop().await;
}

#[tokio::test]
async fn files_with_problems_change_nothing_and_all_problems_are_named() {
    let files = Files::start(&[("clerk.toml", agent("clerk", "", "1"))]).await;
    files.write("clerk.toml", &agent("clerk", "", "2"));
    files.write("a.toml", "id = \"a\"\nslots = 0\n[run]\nkind = \"command\"\n");
    files.write("b.toml", "id = ");
    let problems = files.running.parts.reload.now().await.unwrap().unwrap_err();
    let places: Vec<String> = problems
        .0
        .iter()
        .map(|problem| format!("{}: {}", problem.file.rsplit('/').next().unwrap(), problem.key))
        .collect();
    assert!(places.contains(&"a.toml: slots".to_owned()), "{places:?}");
    assert!(places.contains(&"a.toml: run.argv".to_owned()), "{places:?}");
    assert!(places.iter().any(|place| place.starts_with("b.toml")), "{places:?}");
    let health = files.health("definitions").await;
    assert_eq!(health["state"], "degraded", "{health}");
    assert!(health["detail"].as_str().unwrap().contains("a.toml:2: slots"), "{health}");
    assert_eq!(files.result_of("clerk").await, json!(1), "the good file beside them is not applied either");

    files.remove("a.toml");
    files.remove("b.toml");
    assert_eq!(files.reload().await["changed"], json!(["clerk"]));
    assert_eq!(files.health("definitions").await["state"], "ready");
    assert_eq!(files.result_of("clerk").await, json!(2));
    let (dir, elsewhere) = (files.folder.path().join("agents"), files.folder.path().join("elsewhere"));
    fs::rename(&dir, &elsewhere).unwrap();
    let gone = files.running.parts.reload.now().await.unwrap().unwrap_err().to_string();
    assert!(gone.contains("the folder is gone"), "{gone}");
    // The programs of agents run in this folder.
    fs::rename(&elsewhere, &dir).unwrap();
    assert_eq!(files.result_of("clerk").await, json!(2), "no agent was removed");
    files.running.stop().await;
}

#[tokio::test]
async fn jobs_survive_many_reloads() {
    let files =
        Files::start(&[("clerk.toml", agent("clerk", "sleep 0.2;", "1").replace("slots = 2", "slots = 4"))])
            .await;
    let mut tasks = Vec::new();
    for round in 0..20 {
        tasks.push(files.request("clerk").await);
        let text = agent("clerk", "sleep 0.2;", "1").replace("slots = 2", "slots = 4");
        files.write("clerk.toml", &format!("description = \"{round}\"\n{text}"));
        assert_eq!(files.reload().await["changed"], json!(["clerk"]));
    }
    for task in tasks {
        let ended = files.ended(task).await;
        assert_eq!(ended.state, TaskState::Completed, "{:?}", ended.error);
        let failed =
            "select count(*) from convoke.assignments where task_id = $1 and state in ('failed', 'lost')";
        let client = files.db.client().await;
        assert_eq!(client.query_one(failed, &[&task.as_uuid()]).await.unwrap().get::<_, i64>(0), 0);
    }
    let version = "select definition_version from convoke.agents where id = 'clerk'";
    let version: i64 = files.db.client().await.query_one(version, &[]).await.unwrap().get(0);
    let kept = "select count(*) from convoke.definition_versions where agent_id = 'clerk'";
    let kept: i64 = files.db.client().await.query_one(kept, &[]).await.unwrap().get(0);
    assert_eq!((version, kept), (21, 21));
    files.running.stop().await;
}

#[tokio::test]
async fn wake_of_a_new_file_wakes_its_agent() {
    let files = Files::start(&[]).await;
    let client = files.db.client().await;
    client.batch_execute("create table tickets (id bigint primary key)").await.unwrap();
    let wake = "[[wake]]\ntable = \"public.tickets\"\nevents = [\"INSERT\"]\n\
                request = { kind = \"work.it\", requires = [\"clerk\"], input = { id = \"{{ new.id }}\" } }\n";
    files.write("clerk.toml", &format!("{}{wake}", agent("clerk", "", "1")));
    files.reload().await;
    let published = "select exists (select from pg_publication_tables where pubname = 'convoke' and tablename = 'tickets')";
    soon("the publication", async {
        while !client.query_one(published, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    client.batch_execute("insert into tickets values (7)").await.unwrap();
    let done = "select count(*) from convoke.tasks where state = 'completed' and input = '{\"id\": 7}'";
    soon("the task", async {
        while client.query_one(done, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    files.running.stop().await;
}

#[tokio::test]
async fn run_that_waits_for_a_person_goes_on_by_the_definition_that_it_began_with() {
    let model = ModelServer::start([Reply::ask("Which one?"), Reply::finish(json!(1))]).await.unwrap();
    let text = |instructions: &str| {
        format!(
            "id = \"thinker\"\norg = \"demo\"\ncapabilities = [\"thinker\"]\n[run]\nkind = \"llm\"\nmodel = \"m\"\n\
             base_url = \"{}\"\ninstructions = \"{instructions}\"\ntools = [\"ask\"]\n",
            model.base_url()
        )
    };
    let files = Files::start(&[("thinker.toml", text("Be brief."))]).await;
    let id = files.request("thinker").await;
    files.in_state(id, TaskState::Waiting).await;
    files.write("thinker.toml", &text("Be verbose."));
    assert_eq!(files.reload().await["changed"], json!(["thinker"]));
    files.running.parts.tasks.answer(id, "ada", json!("this one")).await.unwrap();
    assert_eq!(files.ended(id).await.state, TaskState::Completed);
    let system = |at: usize| model.requests()[at].json["messages"][0].clone();
    assert!(system(0)["content"].as_str().unwrap().starts_with("Be brief."));
    assert_eq!(system(0), system(1));
    model.push(Reply::finish(json!(2))).unwrap();
    assert_eq!(files.result_of("thinker").await, json!(2));
    assert!(
        system(2)["content"].as_str().unwrap().starts_with("Be verbose."),
        "a later task has the new one"
    );
    files.running.stop().await;
}

#[tokio::test]
async fn daemon_with_agents_of_a_program_reads_no_files() {
    let (db, folder) = fresh().await;
    let running = Running::start_with(config(&db, folder.path()), Vec::new()).await;
    assert_eq!(running.parts.reload.now().await.unwrap_err(), NotReloaded::NoFiles);
    running.stop().await;
}

fn convoke(folder: &Path, db: &TestDb, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.args(args).current_dir(folder).env("CONVOKE_DATABASE__URL", &db.url);
    let output = command.env("CONVOKE_DATABASE__DATA_DIR", folder.join("data")).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(told).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn folder_is_followed_by_itself_by_a_signal_and_by_a_command() {
    let (db, folder) = fresh().await;
    let dir = folder.path().join("agents");
    fs::create_dir(&dir).unwrap();
    let write =
        |id: &str, result: &str| fs::write(dir.join(format!("{id}.toml")), agent(id, "", result)).unwrap();
    write("one", "1");
    let mut command = Up::command(&db, folder.path());
    command.env("CONVOKE_TELEMETRY__LOG", "info");
    let up = Up::begin(command).await;
    let client = db.client().await;
    let present = async |id: &str| {
        let sql = "select exists (select from convoke.agents where id = $1 and status = 'present')";
        soon(id, async {
            while !client.query_one(sql, &[&id]).await.unwrap().get::<_, bool>(0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    present("one").await;
    write("two", "1");
    present("two").await;
    write("three", "1");
    assert!(Command::new("kill").args(["-HUP", &up.pid().to_string()]).status().unwrap().success());
    present("three").await;

    write("one", "2");
    fs::remove_file(dir.join("two.toml")).unwrap();
    let reloaded = convoke(folder.path(), &db, &["reload"]);
    // The daemon may have looked by itself just before.
    assert!(
        reloaded.0 == Some(0) && (reloaded.1.contains("changed: one") || reloaded.1.contains("nothing")),
        "{reloaded:?}"
    );
    let shown = convoke(folder.path(), &db, &["agent", "show", "one", "--version"]);
    assert!(shown.0 == Some(0) && shown.1.contains("VERSION") && shown.1.contains("echo '2'"), "{shown:?}");
    let shown = convoke(folder.path(), &db, &["agent", "show", "one", "--version", "1"]);
    assert!(shown.0 == Some(0) && shown.1.contains("echo '1'"), "{shown:?}");
    let history = convoke(folder.path(), &db, &["agent", "history", "one"]);
    assert!(
        history.0 == Some(0) && history.1.contains("in use") && !history.1.contains("echo"),
        "{history:?}"
    );
    for args in
        [&["agent", "diff", "one"][..], &["agent", "diff", "one", "1"], &["agent", "diff", "one", "1", "2"]]
    {
        let (code, told) = convoke(folder.path(), &db, args);
        let is_told =
            told.starts_with("~ run.argv: ") && told.contains("echo '1'") && told.contains("echo '2'");
        assert!(code == Some(0) && is_told && told.lines().count() == 1, "{args:?}: {told}");
    }
    let same = convoke(folder.path(), &db, &["agent", "diff", "one", "2", "2"]);
    assert!(same.0 == Some(0) && same.1.contains("there is no difference"), "{same:?}");
    let three = convoke(folder.path(), &db, &["agent", "diff", "three"]);
    assert!(three.0 == Some(64) && three.1.contains("no earlier version"), "{three:?}");
    let none = convoke(folder.path(), &db, &["agent", "show", "one", "--version", "77"]);
    assert!(none.0 == Some(1) && none.1.contains("no usable definition 77"), "{none:?}");
    fs::write(dir.join("bad.toml"), "id = ").unwrap();
    let refused = convoke(folder.path(), &db, &["reload"]);
    assert!(refused.0 == Some(1) && refused.1.contains("bad.toml:1"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn filter_of_the_log_is_applied_and_other_settings_are_named_until_they_are_back() {
    let (db, folder) = fresh().await;
    fs::create_dir(folder.path().join("agents")).unwrap();
    let settings = |text: &str| fs::write(folder.path().join("convoke.toml"), text).unwrap();
    settings("[telemetry]\nlog = \"warn\"\n");
    let log = folder.path().join("log");
    let mut command = Up::command(&db, folder.path());
    command.env_remove("CONVOKE_TELEMETRY__LOG").stderr(fs::File::create(&log).unwrap());
    let up = Up::begin(command).await;
    let token = crate::think::kills::token(folder.path());
    let post = async || {
        let posted = reqwest::Client::new().post(format!("{}/v1/reload", up.url)).bearer_auth(&token);
        let answer = posted.json(&json!({})).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let shown = async || {
        let get = reqwest::Client::new().get(format!("{}/v1/settings", up.url)).bearer_auth(&token);
        get.send().await.unwrap().json::<Value>().await.unwrap()
    };
    assert_eq!(post().await.1["settings"], json!({ "applied": [], "needs_restart": [] }));

    // A look may find the change before the command: the key is in use then, and the answer names the others only.
    settings("[telemetry]\nlog = \"debug\"\n[database]\npool_size_max = 5\n[task]\n");
    let (status, told) = post().await;
    assert_eq!(
        (status, &told["settings"]["needs_restart"]),
        (200, &json!(["database.pool_size_max"])),
        "{told}"
    );
    let now = shown().await;
    assert_eq!((&now["telemetry"]["log"], &now["database"]["pool_size_max"]), (&json!("debug"), &json!(8)));
    let text = fs::read_to_string(&log).unwrap();
    // The filter before it would have left this record out.
    assert!(text.contains("setting telemetry.log is in use"), "{text}");
    assert!(
        text.contains("not in use before a restart") && text.contains("database.pool_size_max"),
        "{text}"
    );
    let told = convoke(folder.path(), &db, &["reload"]);
    assert!(
        told.0 == Some(0) && told.1.contains("settings that need a restart: database.pool_size_max"),
        "{told:?}"
    );

    // Files with a problem change nothing, and every problem is named.
    settings("[telemetry]\nlog = \"error\"\nwish = 1\n");
    fs::write(folder.path().join("agents/bad.toml"), "id = ").unwrap();
    let (status, refused) = post().await;
    let detail = refused["detail"].as_str().unwrap();
    assert_eq!(status, 422, "{refused}");
    assert!(detail.contains("convoke.toml:3") && detail.contains("bad.toml:1"), "{detail}");
    assert_eq!(shown().await["telemetry"]["log"], "debug");

    fs::remove_file(folder.path().join("agents/bad.toml")).unwrap();
    settings("[telemetry]\nlog = \"debug\"\n");
    assert_eq!(
        post().await,
        (
            200,
            json!({ "added": [], "changed": [], "removed": [],
        "settings": { "applied": [], "needs_restart": [] } })
        )
    );
    up.kill().await;
}
