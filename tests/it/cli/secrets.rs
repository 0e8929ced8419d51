//! No secret of a run leaks: not into any output, process log, metric or error, not into the list of processes, the
//! environment of children or a core file.
use super::{convoke, text};
use crate::{
    agent::{http::Server, llm::completion},
    support::{PATIENCE, crypto, database},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tokio::time::Instant;

const JWT_SECRET: &str = "jwt-5ecret-0123456789abcdef0123456789abcdef";
const MODEL_KEY: &str = "sk-model-5ecret-key";
const HOOK_SECRET: &str = "hook-5ecret-value";
const API_KEY: &str = "sb_secret_5ecret0123456789";

/// What is asked with the service's token, and with refused keys.
const PATHS: [&str; 16] = [
    "/health",
    "/metrics",
    "/v1/agents",
    "/v1/agents/model/definition",
    "/v1/agents/web/definition",
    "/v1/agents/web/definition?version=1",
    "/v1/channels",
    "/v1/doctor",
    "/v1/events",
    "/v1/overview",
    "/v1/providers",
    "/v1/series",
    "/v1/settings",
    "/v1/spend",
    "/v1/tasks",
    "/v1/triggers",
];

/// A daemon with a secret of each kind that logs at the most verbose level.
struct VerboseDaemon {
    folder: tempfile::TempDir,
    child: Child,
    told: Value,
    rest: BufReader<std::process::ChildStdout>,
}

impl VerboseDaemon {
    fn start(server: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agents = folder.path().join("agents");
        fs::create_dir(&agents).unwrap();
        let model = format!(
            "id = 'model'\ncapabilities = ['think']\n[run]\nkind = 'llm'\nmodel = 'm'\nbase_url = '{server}/v1'\napi_key_env = 'MODEL_KEY'\n"
        );
        let web = format!(
            "id = 'web'\ncapabilities = ['post']\n[run]\nkind = 'http'\nurl = '{server}/work'\nsecret_env = 'HOOK_SECRET'\n"
        );
        // Runs long enough for its environment to be inspected.
        let shell = "id = 'shell'\ncapabilities = ['shell']\n[run]\nkind = 'command'\nargv = ['/bin/sh', '-c', 'sleep 1; echo 1']\n";
        for (name, text) in [("model.toml", model.as_str()), ("web.toml", &web), ("shell.toml", shell)] {
            fs::write(agents.join(name), text).unwrap();
        }
        let settings = format!("[[auth.api_keys]]\nkey = '{API_KEY}'\nrole = 'service_role'\n");
        fs::write(folder.path().join("convoke.toml"), settings).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        command.args(["up", "--json", "--listen", "127.0.0.1:0", "--log", "trace"]).args(arguments);
        command.env("CONVOKE_AUTH__JWT_SECRET", JWT_SECRET);
        command.env("MODEL_KEY", MODEL_KEY).env("HOOK_SECRET", HOOK_SECRET);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut rest = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        rest.read_line(&mut line).unwrap();
        let told = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { folder, child, told, rest }
    }

    fn url(&self) -> &str {
        self.told["url"].as_str().unwrap()
    }

    fn run(&self, arguments: &[&str], token: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        command.args(arguments).current_dir(self.folder.path());
        command.env("CONVOKE_AUTH__JWT_SECRET", JWT_SECRET).env("CONVOKE_TOKEN", token);
        let output = command.env("CONVOKE_URL", self.url()).output().unwrap();
        text(&output.stdout) + &text(&output.stderr)
    }

    /// The process and its descendants.
    fn family(&self) -> BTreeSet<u32> {
        let mut family = BTreeSet::from([self.child.id()]);
        loop {
            let before = family.len();
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else {
                    continue;
                };
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                let parent =
                    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
                if parent.is_some_and(|parent| family.contains(&parent)) {
                    family.insert(pid);
                }
            }
            if family.len() == before {
                return family;
            }
        }
    }

    /// Stops the daemon and returns its whole output and process log.
    fn stop(mut self) -> (String, tempfile::TempDir) {
        assert!(
            Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success()
        );
        self.child.wait().unwrap();
        let mut said = self.told.to_string();
        self.rest.read_to_string(&mut said).unwrap();
        said.push_str(&String::from_utf8_lossy(&fs::read(self.folder.path().join("log")).unwrap()));
        (said, self.folder)
    }
}

fn check(place: &str, text: &str, secrets: &[(&str, String)]) {
    for (name, secret) in secrets {
        let at = text.find(secret.as_str());
        let around = at.map(|at| text.get(at.saturating_sub(120)..at).unwrap_or_default());
        assert!(at.is_none(), "{place} contains the {name} after: {}", around.unwrap_or_default());
    }
}

/// Checks everything that other users can read about the daemon's processes.
fn check_processes(daemon: &VerboseDaemon, secrets: &[(&str, String)]) -> usize {
    let family = daemon.family();
    for pid in &family {
        let read = |name: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let line = read("cmdline");
        check(&format!("the command line of {line}"), &line, secrets);
        // The daemon's own environment holds the secrets: the operator sets them there.
        if *pid != daemon.child.id() {
            check(&format!("the environment of {line}"), &read("environ"), secrets);
        }
        let limits = read("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let core: Vec<_> = core.unwrap_or("0 0 0 0 0 0").split_whitespace().skip(4).take(2).collect();
        assert_eq!(core, ["0", "0"], "no core file of {line}");
    }
    family.len()
}

async fn get(url: &str, token: &str) -> String {
    let answer = reqwest::Client::new().get(url).bearer_auth(token).timeout(PATIENCE).send().await.unwrap();
    answer.text().await.unwrap()
}

/// Uses every part that has a secret, with success and with errors, and searches all output for secrets.
async fn check_all_output(daemon: VerboseDaemon, mut secrets: Vec<(&'static str, String)>) {
    let token = text(&convoke_with(&daemon, &["token", "--role", "service"]));
    let token = token.trim().to_owned();
    let mut own =
        vec![("token", token.clone()), ("signature of the token", token.rsplit('.').next().unwrap().into())];
    secrets.extend([
        ("secret of tokens", JWT_SECRET.to_owned()),
        ("key of the model", MODEL_KEY.to_owned()),
        ("secret of the hook", HOOK_SECRET.to_owned()),
        ("opaque key", API_KEY.to_owned()),
    ]);
    secrets.append(&mut own);
    let url = daemon.url().to_owned();
    for (kind, capability) in [("a", "think"), ("b", "post"), ("c", "shell")] {
        let told = daemon.run(&["task", "request", kind, "--requires", capability], &token);
        assert_eq!(told.trim().len(), 36, "{told}");
    }
    // The command runs for a second, so that its environment can be inspected.
    let began = Instant::now();
    let shell = || {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.starts_with(b"/bin/sh\0-c\0sleep 1; echo 1")
        })
    };
    while !shell() {
        assert!(began.elapsed() < PATIENCE, "the command runs");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(check_processes(&daemon, &secrets) >= 2);
    let mut said = String::new();
    for path in PATHS {
        said.push_str(&get(&format!("{url}{path}"), &token).await);
        // Errors must not repeat refused keys.
        let key = if path.contains('?') { "&apikey" } else { "?apikey" };
        said.push_str(&get(&format!("{url}{path}{key}={token}"), &format!("{token}x")).await);
        said.push_str(&get(&format!("{url}{path}"), &format!("{API_KEY}x")).await);
    }
    let socket = format!("{url}/realtime/v1/websocket?apikey={token}&vsn=1.0.0");
    said.push_str(&get(&socket, API_KEY).await);
    // The settings and the definitions were shown, and name what they do not tell.
    for shown in ["jwt_secret", "MODEL_KEY", "HOOK_SECRET", "\"findings\""] {
        assert!(said.contains(shown), "{shown}");
    }
    for command in [
        &["task", "list"][..],
        &["agent", "list"],
        &["agent", "show", "model"],
        &["agent", "show", "model", "--version"],
        &["agent", "show", "web", "--version", "1"],
        &["doctor"],
        &["check"],
        &["spend"],
        &["reload"],
        &["task", "show", "0000"],
    ] {
        said.push_str(&daemon.run(command, &token));
        said.push_str(&daemon.run(command, "wrong"));
    }
    let signed_in = sign_in(&daemon, &token).await;
    // A second daemon fails because the address or the data folder is in use.
    let address = url.trim_start_matches("http://").to_owned();
    let listen = if daemon.told["database"]["password_file"].is_null() { &address } else { "127.0.0.1:0" };
    let second = ["up", "--log", "trace", "--listen", listen];
    said.push_str(&text(&convoke(daemon.folder.path(), &second).stderr));
    check("an answer", &said, &secrets);
    let (said, folder) = daemon.stop();
    secrets.extend(signed_in);
    check("the output or the log", &said, &secrets);
    assert!(said.contains("TRACE"), "the log is verbose");
    check_files(&folder.path().join(".convoke"), &secrets);
    assert!(
        !fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .any(|f| f.file_name().to_string_lossy().contains("core"))
    );
}

/// Signs in to the dashboard: its code, its cookie and its token, which no log may contain.
async fn sign_in(daemon: &VerboseDaemon, token: &str) -> Vec<(&'static str, String)> {
    let link = daemon.run(&["dashboard", "--org", "default"], token);
    let code = link.trim().rsplit_once("#code=").unwrap_or_else(|| panic!("{link}")).1.to_owned();
    let url = format!("{}/dashboard/session", daemon.url());
    let client = reqwest::Client::new();
    let post = |path: &str| client.post(format!("{url}{path}")).header("content-type", "application/json");
    let answer = post("").body(serde_json::json!({ "code": code }).to_string()).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let secret = cookie.split_once('=').unwrap().1.to_owned();
    let given = post("/token").header("cookie", &cookie).body("{}").send().await.unwrap();
    let given: Value = given.json().await.unwrap();
    let bearer = given["token"].as_str().unwrap().to_owned();
    for path in ["", "/all"] {
        let shown = client.get(format!("{url}{path}")).header("cookie", &cookie).send().await.unwrap();
        let shown = shown.text().await.unwrap();
        check("the session", &shown, &[("secret of the cookie", secret.clone())]);
    }
    let used = get(&format!("{}/v1/overview", daemon.url()), &bearer).await;
    check("the overview", &used, &[("token of the page", bearer.clone())]);
    vec![("code of the link", code), ("secret of the cookie", secret), ("token of the page", bearer)]
}

fn convoke_with(daemon: &VerboseDaemon, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.args(arguments).current_dir(daemon.folder.path()).env("CONVOKE_AUTH__JWT_SECRET", JWT_SECRET);
    command.output().unwrap().stdout
}

/// Checks that other users cannot read the daemon's files, and that its logs hold no secret.
fn check_files(folder: &Path, secrets: &[(&str, String)]) {
    let mut left: Vec<PathBuf> = vec![folder.to_owned()];
    let mut files = 0;
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            // As root the server runs as another user, which must be able to enter the topmost folder.
            let allowed = if path == folder && metadata.uid() == 0 { 0o711 } else { 0o700 };
            assert_eq!(mode & !allowed, 0, "{} has mode {mode:o}", path.display());
            assert!(path != folder || mode == allowed, "{} has mode {mode:o}", path.display());
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        files += 1;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        if path.extension().is_some_and(|extension| extension == "log") {
            check(&path.display().to_string(), &String::from_utf8_lossy(&fs::read(&path).unwrap()), secrets);
        }
    }
    assert!(files > 0);
}

#[tokio::test]
async fn run_on_a_private_database_leaks_no_secret() {
    crypto();
    let server = Server::start([completion("{}")]).await;
    let daemon = VerboseDaemon::start(&server.address, &[]);
    let file = daemon.told["database"]["password_file"].as_str().unwrap();
    let password = fs::read_to_string(daemon.folder.path().join(file)).unwrap();
    let url = daemon.told["database"]["url"].as_str().unwrap();
    assert!(url.starts_with("postgres://convoke:***@127.0.0.1:"), "{url}");
    check_all_output(daemon, vec![("password of the database", password.trim().to_owned())]).await;
}

#[tokio::test]
async fn password_of_the_database_flag_does_not_leak() {
    crypto();
    let db = database().await;
    let password = "pa55word-of-the-flag";
    let role = format!("{}_role", db.name);
    let client = db.client().await;
    client.batch_execute(&format!("create role {role} superuser login password '{password}'")).await.unwrap();
    let target = convoke::db::Target::parse(&db.url).unwrap();
    let url = format!("postgres://{role}:{password}@{}/{}", target.address(), db.name);
    let server = Server::start([completion("{}")]).await;
    let slot = format!("[wal]\nslot = '{}'\n", db.slot());
    let settings = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        settings.path(),
        format!("{slot}[[auth.api_keys]]\nkey = '{API_KEY}'\nrole = 'service_role'\n"),
    )
    .unwrap();
    let config = settings.path().to_str().unwrap().to_owned();
    let daemon = VerboseDaemon::start(&server.address, &["--database-url", &url, "--config", &config]);
    assert_eq!(daemon.told["database"]["password_file"], Value::Null);
    check_all_output(daemon, vec![("password of the database", password.to_owned())]).await;
    client
        .batch_execute(&format!(
            "reassign owned by {role} to current_user; drop owned by {role}; drop role {role}"
        ))
        .await
        .unwrap();
}
