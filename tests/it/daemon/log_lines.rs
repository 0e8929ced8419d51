//! What the daemon writes at its default level about work that failed: one line each, with ids and the reason.
use super::{Up, fresh, soon};
use crate::support::TestDb;
use std::{fs, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A model endpoint that refuses every key.
async fn refusing_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _read = socket.read(&mut request).await;
            let answer = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _written = socket.write_all(answer.as_bytes()).await;
        }
    });
    url
}

/// An agent that is woken by the table of its name.
fn agent(id: &str, run: &str, input: &str) -> String {
    format!(
        "id = '{id}'\norg = 'demo'\ncapabilities = ['{id}']\n[run]\n{run}\n[[wake]]\ntable = 'public.{id}'\n\
         events = ['INSERT']\n\
         request = {{ kind = '{id}', requires = ['{id}'], input = {{ n = '{input}' }}, policy = {{ attempts_max = 1 }} }}\n"
    )
}

async fn prepared() -> (TestDb, tempfile::TempDir) {
    let (db, folder) = fresh().await;
    let endpoint = refusing_endpoint().await;
    let shell = |script: &str| format!("kind = 'command'\nargv = ['/bin/sh', '-c', '{script}']");
    let model = format!("kind = 'llm'\nmodel = 'm'\nbase_url = '{endpoint}/v1'\napi_key_env = 'MODEL_KEY'");
    let agents = [
        ("breaks", shell("cat > /dev/null; exit 3"), "{{ new.id }}"),
        ("thinks", model, "{{ new.id }}"),
        ("unfit", shell("cat"), "{{ new.nothing }}"),
        ("good", shell("cat > /dev/null; echo 1"), "{{ new.id }}"),
    ];
    fs::create_dir(folder.path().join("agents")).unwrap();
    let mut sql = String::from("set search_path = public;");
    for (id, run, input) in agents {
        fs::write(folder.path().join(format!("agents/{id}.toml")), agent(id, &run, input)).unwrap();
        sql.push_str(&format!("create table {id} (id bigint primary key);"));
    }
    sql.push_str(
        "create function public.refuse() returns trigger language plpgsql as
            $$ begin raise exception 'not this one'; end $$;
         create trigger refuse before update on convoke.tasks for each row
            when (new.state = 'completed' and new.kind = 'good') execute function public.refuse();",
    );
    db.client().await.batch_execute(&sql).await.unwrap();
    (db, folder)
}

/// The lines with this message.
fn lines(log: &Path, message: &str) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().filter(|line| line.contains(message)).map(str::to_owned).collect()
}

#[tokio::test]
async fn failed_work_is_one_line_each_with_ids_and_the_reason() {
    let (db, folder) = prepared().await;
    let log = folder.path().join("log");
    let mut command = Up::command(&db, folder.path());
    command.env_remove("CONVOKE_TELEMETRY__LOG").env("MODEL_KEY", "key-of-the-model").env("NO_COLOR", "1");
    command.stderr(fs::File::create(&log).unwrap());
    let up = Up::begin(command).await;
    let sql = db.client().await;
    for table in ["breaks", "thinks", "unfit", "good"] {
        sql.batch_execute(&format!("insert into public.{table} values (1)")).await.unwrap();
    }
    let failed = "select kind, id::text from convoke.tasks where state = 'failed' order by kind";
    let failed: Vec<(String, String)> = soon("three failed tasks", async {
        loop {
            let rows = sql.query(failed, &[]).await.unwrap();
            if rows.len() == 3 && lines(&log, "wake made no task").len() == 1 {
                return rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let id = |kind: &str| failed.iter().find(|(it, _)| it == kind).unwrap().1.clone();
    // A task can have failed before the line about it is written, and each part of the daemon writes its own line.
    let one = async |message: &str, task: String, parts: &[&str]| {
        let of_task =
            || lines(&log, message).into_iter().filter(|line| line.contains(&task)).collect::<Vec<_>>();
        soon(message, async {
            while of_task().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let found = of_task();
        let [line] = &found[..] else { panic!("{message} of {task}: {found:?}") };
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} in {line}");
    };
    one("job failed", id("breaks"), &["agent=breaks", "reason=", "exit code 3"]).await;
    one("job failed", id("thinks"), &["agent=thinks", "refused the key (401)"]).await;
    one("task failed", id("breaks"), &["org=demo", "agent=\"breaks\"", "attempts_exhausted"]).await;
    one("task failed", id("thinks"), &["org=demo", "agent=\"thinks\""]).await;
    one("task failed", id("good"), &["agent=\"good\"", "result_refused"]).await;
    one("result refused by the database", id("good"), &["agent=good", "sqlstate=\"P0001\""]).await;
    one("wake made no task", "unfit#0".into(), &["lsn=", "reason=", "nothing"]).await;

    sql.batch_execute("insert into public.unfit select generate_series(2, 60)").await.unwrap();
    soon("all refused wakes are counted", async {
        let url = format!("{}/metrics", up.url);
        loop {
            let metrics = reqwest::get(&url).await.unwrap().text().await.unwrap();
            if metrics.contains("convoke_task_wakes_refused_total 60") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(lines(&log, "wake made no task").len(), 20, "twenty lines of a kind a minute");
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains("key-of-the-model") && !text.contains("not this one"), "{text}");
    up.kill().await;
}
