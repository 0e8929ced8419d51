//! What each role may do at each door: measured, and compared with the table in SECURITY.md.
//! `UPDATE_TABLES=1` writes the table.
use super::Rig;
use crate::realtime::{Socket, http};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use convoke::auth::Role;
use reqwest::Method;
use serde_json::{Value, json};
use std::fmt::Write;

const EXP: u64 = 4_000_000_000;
const BEGIN: &str = "<!-- rights: begin -->\n";
const END: &str = "<!-- rights: end -->";

struct Prober<'a> {
    rig: &'a Rig,
    /// Nothing where no token is sent.
    token: Option<String>,
    role: &'static str,
}

impl Prober<'_> {
    async fn status(&self, method: Method, path: &str, body: Value) -> u16 {
        let request = http().request(method, format!("{}{path}", self.rig.http()));
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let request = request.header("content-type", "application/json").body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    }

    async fn may(&self, method: Method, path: &str, body: Value) -> bool {
        let status = self.status(method, path, body).await;
        assert!(status < 500 || status == 503, "{path}: {status}");
        // A conflict is reported only to callers with the right to the command.
        status < 400 || status == 409
    }

    async fn joins(&self, room: &str, private: bool) -> bool {
        let Some(token) = &self.token else { return false };
        let url =
            format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", self.rig.daemon.parts.addr);
        let mut socket = Socket::open(&url, true).await;
        socket.join(room, json!({ "private": private })).await.payload["status"] == "ok"
    }

    /// The claims of the token, as PostgREST gives them to the database.
    fn claims(&self) -> Value {
        let token = self.token.as_deref().unwrap_or_default();
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap_or_default()).unwrap();
        serde_json::from_slice(&payload).unwrap()
    }

    /// Whether rows of tasks of this org are read as the role of the token.
    async fn reads(&self, org: &str) -> bool {
        if self.role.is_empty() {
            return false;
        }
        let client = self.rig.daemon.parts.database.client().await.unwrap();
        let claims = self.claims();
        let begin =
            format!("begin; set local role {}; set local request.jwt.claims to '{claims}'", self.role);
        client.batch_execute(&begin).await.unwrap();
        let rows = client.query("select 1 from convoke.tasks where org = $1", &[&org]).await;
        client.batch_execute("rollback").await.unwrap();
        rows.is_ok_and(|rows| !rows.is_empty())
    }

    /// Whether it may be present as this agent in the agent's room.
    async fn attends(&self, agent: &str) -> bool {
        let Some(token) = &self.token else { return false };
        let url =
            format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", self.rig.daemon.parts.addr);
        let (mut socket, room) = (Socket::open(&url, true).await, format!("agent:{agent}"));
        if socket.join(&room, json!({ "presence": { "key": agent } })).await.payload["status"] != "ok" {
            return false;
        }
        let own = socket.push(&room, "presence", json!({ "event": "track", "payload": {} })).await;
        loop {
            let reply = socket.until("phx_reply").await;
            if reply.reference == json!(own) {
                return reply.payload["status"] == "ok";
            }
        }
    }

    /// Whether the role of the token makes this SQL true.
    async fn sql(&self, calls: &str, query: &str) -> bool {
        if self.role.is_empty() {
            return false;
        }
        let client = self.rig.daemon.parts.database.client().await.unwrap();
        let claims = json!({ "role": self.role, "org": "demo" });
        let begin =
            format!("begin; set local role {}; set local request.jwt.claims to '{claims}'", self.role);
        client.batch_execute(&begin).await.unwrap();
        let called = client.batch_execute(calls).await;
        let rows = match called {
            Ok(()) => {
                client.batch_execute("reset role").await.and(Ok(client.query(query, &[]).await.unwrap()))
            }
            Err(refused) => Err(refused),
        };
        client.batch_execute("rollback").await.unwrap();
        rows.is_ok_and(|rows| !rows.is_empty())
    }

    /// What it may do, door by door.
    async fn row(&self, others: &str) -> Vec<(&'static str, bool)> {
        let request = || json!({ "kind": "k", "requires": ["missing"] });
        let lease = || json!({ "lease": "30s" });
        let own = "/api/broadcast/org%3Ademo/events/agent_message";
        let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
        let request_task = ("select convoke.request_task('k', org => 'demo')", "select 1");
        let send = (
            "select realtime.send('{}'::jsonb, 'e', 'lobby', true)",
            "select 1 from realtime.messages where topic = 'lobby'",
        );
        vec![
            ("HTTP: `/`, `/health`, `/metrics`", self.may(get.clone(), "/metrics", Value::Null).await),
            ("HTTP: the page of the dashboard", self.may(get.clone(), "/dashboard", Value::Null).await),
            (
                "HTTP: sessions of the dashboard, for its cookie alone",
                self.may(get.clone(), "/dashboard/session", Value::Null).await,
            ),
            (
                "HTTP: see tasks and agents of its org",
                self.may(get.clone(), "/v1/tasks?org=demo", Value::Null).await,
            ),
            (
                "HTTP: see those of another org",
                self.may(get.clone(), "/v1/tasks?org=else", Value::Null).await,
            ),
            ("HTTP: request a task in its org", self.may(post.clone(), "/v1/tasks", request()).await),
            (
                "HTTP: request a task in another org",
                self.may(post.clone(), "/v1/tasks?org=else", request()).await,
            ),
            ("HTTP: command a task that another requested", self.may(post.clone(), others, json!({})).await),
            (
                "HTTP: be the agent of its token",
                self.may(put.clone(), "/v1/agents/near/presence", lease()).await,
            ),
            (
                "HTTP: read the inbox of the agent of its token",
                self.may(get.clone(), "/v1/agents/near/inbox?wait=0s", Value::Null).await,
            ),
            (
                "HTTP: read the inbox of another agent",
                self.may(get.clone(), "/v1/agents/other/inbox?wait=0s", Value::Null).await,
            ),
            (
                "HTTP: put its own failed tasks back",
                self.may(post.clone(), "/v1/tasks/requeue", json!({})).await,
            ),
            ("HTTP: be another agent", self.may(put, "/v1/agents/other/presence", lease()).await),
            (
                "HTTP: see channels and who is on them",
                self.may(get.clone(), "/v1/channels", Value::Null).await,
            ),
            ("HTTP: see the accounts of the models", self.may(get, "/v1/providers", Value::Null).await),
            (
                "HTTP or websocket: speak to the agents of its org",
                self.may(post.clone(), own, json!({})).await,
            ),
            (
                "HTTP or websocket: speak as another agent",
                self.may(post, own, json!({ "agent_id": "other" })).await,
            ),
            ("websocket: enter a public room", self.joins("lobby", false).await),
            ("websocket: enter a private room without a policy", self.joins("lobby", true).await),
            ("websocket: enter `org:` and `agent:` rooms of its org", self.joins("org:demo", false).await),
            ("websocket: enter those of another org", self.joins("org:else", false).await),
            ("websocket: be present as the agent of its token", self.attends("near").await),
            ("websocket: be present as another agent", self.attends("other").await),
            ("SQL: `convoke.request_task`", self.sql(request_task.0, request_task.1).await),
            ("SQL: `realtime.send` to a room without a policy", self.sql(send.0, send.1).await),
            ("SQL and row changes: see tasks of its org", self.reads("demo").await),
            ("SQL and row changes: see those of another org", self.reads("else").await),
        ]
    }
}

#[tokio::test]
async fn security_md_lists_the_rights_of_each_role_at_each_door() {
    let rig =
        Rig::with(Vec::new(), |config| config.access.observers = convoke::access::Observers::Token).await;
    let mut tasks = Vec::new();
    // One of another org, one that nobody commands, and one for each bearer.
    for org in ["demo", "else"].into_iter().chain(["demo"; 9]) {
        let request = serde_json::from_value(json!({ "kind": "k", "requires": ["missing"] })).unwrap();
        let made = rig.daemon.parts.tasks.request(&org.parse().unwrap(), "tester", request).await.unwrap();
        tasks.push(format!("/v1/tasks/{}/cancel", made.task.id));
    }
    let dash = |role: &str| {
        let claims =
            json!({ "role": "authenticated", "sub": "ana", "exp": EXP, "org": "demo", "dash": role });
        rig.sign(&claims)
    };
    let bearers = [
        ("no token", None, ""),
        ("`anon`", Some(rig.mint(Role::Anon, "demo", None)), "anon"),
        (
            "a role not in `auth.roles`",
            Some(rig.sign(&json!({ "role": "pg_monitor", "exp": EXP, "org": "demo" }))),
            "",
        ),
        ("a user", Some(rig.mint(Role::Authenticated, "demo", None)), "authenticated"),
        ("an agent", Some(rig.token("near")), "authenticated"),
        ("a viewer", Some(dash("viewer")), "authenticated"),
        ("an operator", Some(dash("operator")), "authenticated"),
        ("an admin", Some(dash("admin")), "authenticated"),
        ("`service_role`", Some(rig.mint(Role::ServiceRole, "demo", None)), "service_role"),
    ];
    let mut table = "| at the door |".to_owned();
    let mut rows: Vec<(&str, String)> = Vec::new();
    for ((name, token, role), task) in bearers.into_iter().zip(&tasks[2..]) {
        let _ = write!(table, " {name} |");
        let prober = Prober { rig: &rig, token, role };
        for (at, (door, may)) in prober.row(task).await.into_iter().enumerate() {
            if rows.len() == at {
                rows.push((door, String::new()));
            }
            rows[at].1 += if may { " yes |" } else { " – |" };
        }
    }
    table += "\n|---|---|---|---|---|---|---|---|---|---|\n";
    for (door, cells) in &rows {
        let _ = writeln!(table, "| {door} |{cells}");
    }
    rig.daemon.stop().await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (told, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_TABLES").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(told, table, "SECURITY.md is not what was measured: UPDATE_TABLES=1 writes it");
}

/// The door of each route of the daemon. The rights of a door are measured at one of its routes; what they have in
/// common is the extractor of the caller and the rule that it asks.
const ROUTES: [(&str, &str); 52] = [
    // The routes of the dashboard, below its path.
    ("{PATH}", "HTTP: the page of the dashboard"),
    ("{PATH}/{{*path}}", "HTTP: the page of the dashboard"),
    ("{PATH}/session", "HTTP: sessions of the dashboard, for its cookie alone"),
    ("{PATH}/session/token", "HTTP: sessions of the dashboard, for its cookie alone"),
    ("{PATH}/session/all", "HTTP: sessions of the dashboard, for its cookie alone"),
    ("{PATH}/session/{{id}}", "HTTP: sessions of the dashboard, for its cookie alone"),
    ("/", "HTTP: `/`, `/health`, `/metrics`"),
    ("/healthcheck", "HTTP: `/`, `/health`, `/metrics`"),
    ("/health", "HTTP: `/`, `/health`, `/metrics`"),
    ("/health/ready", "HTTP: `/`, `/health`, `/metrics`"),
    ("/metrics", "HTTP: `/`, `/health`, `/metrics`"),
    ("/ping", "HTTP: `/`, `/health`, `/metrics`"),
    ("/tasks", "HTTP: request a task in its org"),
    ("/tasks/requeue", "HTTP: put its own failed tasks back"),
    ("/tasks/bulk", "HTTP: command a task that another requested"),
    ("/agents/{id}/drain", "HTTP: command a task that another requested"),
    ("/agents/{id}/resume", "HTTP: command a task that another requested"),
    ("/agents/{id}/definition", "HTTP: command a task that another requested"),
    ("/tasks/{id}/tree", "HTTP: see tasks and agents of its org"),
    ("/lanes", "HTTP: see tasks and agents of its org"),
    ("/spend", "HTTP: see tasks and agents of its org"),
    ("/triggers", "HTTP: see tasks and agents of its org"),
    ("/events", "HTTP: see tasks and agents of its org"),
    ("/series", "HTTP: see tasks and agents of its org"),
    ("/tasks/{id}", "HTTP: see tasks and agents of its org"),
    ("/tasks/{id}/events", "HTTP: see tasks and agents of its org"),
    ("/tasks/{id}/why", "HTTP: see tasks and agents of its org"),
    ("/tasks/{id}/steps", "HTTP: see tasks and agents of its org"),
    ("/tasks/{id}/cancel", "HTTP: command a task that another requested"),
    ("/tasks/{id}/budget", "HTTP: command a task that another requested"),
    ("/tasks/{id}/choose", "HTTP: command a task that another requested"),
    ("/tasks/{id}/answer", "HTTP: command a task that another requested"),
    ("/tasks/{id}/fork", "HTTP: command a task that another requested"),
    ("/tasks/{id}/requeue", "HTTP: command a task that another requested"),
    ("/tasks/{id}/offers", "HTTP: be the agent of its token"),
    ("/tasks/{id}/decline", "HTTP: be the agent of its token"),
    ("/assignments/{id}/{report}", "HTTP: be the agent of its token"),
    ("/overview", "HTTP: see tasks and agents of its org"),
    ("/agents", "HTTP: see tasks and agents of its org"),
    ("/agents/{id}", "HTTP: see tasks and agents of its org"),
    ("/agents/{id}/presence", "HTTP: be the agent of its token"),
    ("/agents/{id}/inbox", "HTTP: read the inbox of the agent of its token"),
    ("/agents/{id}/messages", "HTTP or websocket: speak to the agents of its org"),
    ("/orgs/{org}/messages", "HTTP or websocket: speak to the agents of its org"),
    ("/providers", "HTTP: see the accounts of the models"),
    ("/channels", "HTTP: see channels and who is on them"),
    ("/doctor", "HTTP: see channels and who is on them"),
    ("/triggers/{trigger}/try", "HTTP: see channels and who is on them"),
    ("/settings", "HTTP: see channels and who is on them"),
    ("/reload", "HTTP: see channels and who is on them"),
    ("/channels/{topic}", "HTTP: see channels and who is on them"),
    ("/broadcast", "HTTP or websocket: speak to the agents of its org"),
];

/// A new route needs a row in the table.
#[test]
fn every_route_has_its_door_in_the_table() {
    let table = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap();
    for (route, door) in ROUTES {
        assert!(table.contains(&format!("| {door} |")), "{route}: no row {door:?}");
    }
    let sources = [
        include_str!("../../../src/api/mod.rs"),
        include_str!("../../../src/api/tasks.rs"),
        include_str!("../../../src/gateway/mod.rs"),
        include_str!("../../../src/dashboard/mod.rs"),
    ];
    let of = |begin: &'static str| sources.iter().flat_map(move |source| source.split(begin).skip(1));
    let literals = of(".route(\"").chain(of(".route(&format!(\""));
    let routes: Vec<&str> = literals.filter_map(|rest| rest.split('"').next()).collect();
    assert!(routes.len() > 45 && routes.contains(&"{PATH}/session"), "{routes:?}");
    for route in routes {
        let known = ROUTES.iter().any(|(known, _)| *known == route)
            // The parts of one door, and the sockets, whose rooms are rows of their own.
            || [
                "/broadcast/{topic}/events/{event}",
                "/socket/longpoll",
                "/realtime/v1/longpoll",
                "{url}/websocket",
            ]
            .contains(&route);
        assert!(
            known,
            "{route} has no door in ROUTES: add it, and a row to the table if none says who may use it"
        );
    }
}
