//! Random claims through every door: the answer is that of a small model, and no claim reads or says more than its
//! model allows. `PROPTEST_CASES` sets how many, and `FUZZ_SEED` which; a failure tells the claims.
mod model;

use super::Rig;
use crate::{
    realtime::{Got, Message, Socket, http},
    support::{from_environment, is_hostile},
};
use convoke::wire::{Encoding, Frame, client::user_push};
use model::{Bearer, Case, Dash, EXP, certain, claims, model};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

/// Cases of one run.
const CASES: u32 = 64;
const ORGS: [&str; 3] = ["demo", "else", "default"];

/// A daemon with observers by token, in which each org has a task.
struct Doors {
    rig: Rig,
    client: reqwest::Client,
    anon: String,
    service: String,
    /// A task of org `demo` that the service requested.
    task: String,
    /// The service, in the room of agent `near`: gets every message there as text.
    observer: Socket,
}

/// The reply to a join. Rooms that were joined before may have something to say first.
async fn joined(socket: &mut Socket, room: &str, payload: Value) -> Got {
    let first = socket.join_with(room, payload).await;
    if first.event == "phx_reply" { first } else { socket.until("phx_reply").await }
}

impl Doors {
    async fn open() -> Self {
        let rig =
            Rig::with(Vec::new(), |config| config.access.observers = convoke::access::Observers::Token).await;
        let service = rig.sign(&json!({ "role": "service_role", "exp": EXP }));
        let anon = rig.sign(&json!({ "role": "anon", "exp": EXP }));
        let url = format!("ws://{}/realtime/v1/websocket?apikey={service}&vsn=1.0.0", rig.daemon.parts.addr);
        let observer = Socket::open(&url, false).await;
        let mut doors = Self { client: http(), anon, service, task: String::new(), observer, rig };
        for org in ORGS {
            let path = format!("/v1/tasks?org={org}");
            let (status, made) = doors.call(Method::POST, &path, &doors.service, Some(request())).await;
            assert_eq!(status, 201, "{made}");
            if org == "demo" {
                doors.task = made["task"]["id"].as_str().unwrap().to_owned();
            }
        }
        doors.renew().await;
        doors.observer.join("agent:near", json!({})).await.ok();
        joined(&mut doors.observer, "convoke:demo", json!({ "config": {} })).await.ok();
        doors
    }

    async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.rig.http())).bearer_auth(token);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    /// Both agents are here by HTTP, as their own tokens say, until their leases end.
    async fn renew(&self) {
        for agent in ["near", "other"] {
            let (path, token) = (format!("/v1/agents/{agent}/presence"), self.rig.token(agent));
            let (status, answer) =
                self.call(Method::PUT, &path, &token, Some(json!({ "lease": "60s" }))).await;
            assert_eq!(status, 200, "{answer}");
        }
    }

    async fn check(&mut self, case: &Case) {
        self.renew().await;
        self.reads_by_http(case).await;
        self.commands_by_http(case).await;
        let heard = self.by_socket(case).await + self.sends_by_http(case).await;
        self.observer_receives(case, heard).await;
        self.by_sql(case).await;
    }

    async fn reads_by_http(&self, case: &Case) {
        let Case { bearer, token, .. } = case;
        for org in ORGS {
            for door in ["tasks", "agents"] {
                let (status, list) =
                    self.call(Method::GET, &format!("/v1/{door}?org={org}"), token, None).await;
                assert_eq!(status, bearer.status(bearer.sees(org), 403), "{}", case.label(door));
                let found = list[door].as_array().into_iter().flatten();
                assert!(found.clone().all(|it| it["org"] == org), "{}: {list}", case.label(door));
                assert!(status != 200 || door != "tasks" || found.count() > 0, "{}", case.label(door));
            }
        }
        let (status, list) = self.call(Method::GET, "/v1/tasks", token, None).await;
        assert_eq!(status, bearer.status(true, 200), "{}", case.label("list"));
        let every_org = *bearer == Bearer::Service && !case.claims.contains_key("org");
        let mut found = list["tasks"].as_array().into_iter().flatten();
        assert!(every_org || found.all(|it| it["org"] == case.org()), "{}: {list}", case.label("list"));
        // A task and an agent of another org are not there.
        let demo = bearer.status(bearer.sees("demo"), 404);
        for path in [
            format!("/v1/tasks/{}", self.task),
            format!("/v1/tasks/{}/events", self.task),
            format!("/v1/tasks/{}/why", self.task),
            "/v1/agents/near".to_owned(),
        ] {
            let (status, _) = self.call(Method::GET, &path, token, None).await;
            assert_eq!(status, demo, "{}", case.label(&path));
        }
        for (path, may) in [
            ("/v1/channels", case.administers()),
            ("/v1/channels/agent%3Anear", case.administers()),
            ("/v1/settings", case.administers()),
            ("/v1/providers", *bearer == Bearer::Service),
            ("/v1/spend?by=org", *bearer == Bearer::Service),
            ("/v1/series", true),
            ("/v1/agents/near/inbox?wait=0s", bearer.is("near")),
            ("/v1/agents/other/inbox?wait=0s", bearer.is("other")),
        ] {
            let (status, _) = self.call(Method::GET, path, token, None).await;
            assert_eq!(status, bearer.status(may, 403), "{}", case.label(path));
        }
        self.reads_of_an_org_by_http(case).await;
    }

    /// What pages read.
    async fn reads_of_an_org_by_http(&self, case: &Case) {
        let Case { bearer, token, .. } = case;
        for org in ORGS {
            for door in ["overview", "events", "lanes", "spend", "triggers"] {
                let path = format!("/v1/{door}?org={org}");
                let (status, answer) = self.call(Method::GET, &path, token, None).await;
                assert_eq!(status, bearer.status(bearer.sees(org), 403), "{}: {answer}", case.label(&path));
            }
            let path = format!("/v1/agents?view=line&org={org}");
            let (status, list) = self.call(Method::GET, &path, token, None).await;
            assert_eq!(status, bearer.status(bearer.sees(org), 403), "{}", case.label(&path));
            let mut found = list["agents"].as_array().into_iter().flatten();
            assert!(found.all(|it| it["org"] == org), "{}: {list}", case.label(&path));
        }
        for part in ["steps", "tree"] {
            let path = format!("/v1/tasks/{}/{part}", self.task);
            let (status, _) = self.call(Method::GET, &path, token, None).await;
            assert_eq!(status, bearer.status(bearer.sees("demo"), 404), "{}", case.label(part));
        }
        // It has no file, which only its operators are told.
        let (status, answer) = self.call(Method::GET, "/v1/agents/near/definition", token, None).await;
        let refused = if bearer.sees("demo") && !case.operates("demo") { 403 } else { 404 };
        assert_eq!(status, bearer.status(false, refused), "{}: {answer}", case.label("definition"));
        assert_eq!(answer["code"] == "no_definition", case.operates("demo"), "{}", case.label("definition"));
        if !case.administers() {
            // It reads whole tables, so it is not run for each bearer that may.
            let (status, _) = self.call(Method::GET, "/v1/doctor", token, None).await;
            assert_eq!(status, bearer.status(false, 403), "{}", case.label("doctor"));
        }
    }

    async fn commands_by_http(&self, case: &Case) {
        let Case { bearer, token, .. } = case;
        let made = |status| if status == 200 { 201 } else { status };
        let (status, answer) = self.call(Method::POST, "/v1/tasks", token, Some(request())).await;
        let expected = case.request(made(bearer.status(true, 200)));
        assert_eq!(status, expected, "{}: {answer}", case.label("request"));
        if status == 201 {
            let task = &answer["task"];
            assert_eq!(task["org"], case.org(), "{}: {task}", case.label("request"));
            let shown = task["requester"].as_str().unwrap();
            match case.requester() {
                Some(requester) => assert_eq!(shown, requester, "{}", case.label("requester")),
                None => assert!(shown.starts_with("token:"), "{}: {shown}", case.label("requester")),
            }
        }
        let (status, _) = self.call(Method::POST, "/v1/tasks?org=else", token, Some(request())).await;
        let expected = case.request(made(bearer.status(bearer.sees("else"), 403)));
        assert_eq!(status, expected, "{}", case.label("request in else"));
        // The task is the service's: 403 to bearers that see it, 404 to those that do not. It is canceled only once.
        let path = format!("/v1/tasks/{}/cancel", self.task);
        let (status, _) = self.call(Method::POST, &path, token, Some(json!({}))).await;
        let refused = if bearer.sees("demo") { 403 } else { 404 };
        let expected = case.change(bearer.status(case.operates("demo"), refused));
        let again = expected == 200 && status == 409;
        assert!(status == expected || again, "{status}: {}", case.label("cancel"));
        // No agent has worked on the task, which only its operators are told.
        let path = format!("/v1/tasks/{}/fork", self.task);
        let (status, _) = self.call(Method::POST, &path, token, Some(json!({ "at": 1 }))).await;
        let may = if case.operates("demo") { 400 } else { refused };
        assert_eq!(status, case.change(bearer.status(false, may)), "{}", case.label(&path));
        let lease = || Some(json!({ "lease": "60s" }));
        for agent in ["near", "other"] {
            let path = format!("/v1/agents/{agent}/presence");
            let (status, _) = self.call(Method::PUT, &path, token, lease()).await;
            let expected = case.change(bearer.status(bearer.is(agent), 403));
            assert_eq!(status, expected, "{}", case.label(&path));
        }
        // Drained and resumed again by who may; the next case finds it as it was.
        for verb in ["drain", "resume"] {
            let path = format!("/v1/agents/other/{verb}");
            let (status, _) = self.call(Method::POST, &path, token, Some(json!({}))).await;
            let expected = case.change(bearer.status(case.operates("demo"), refused));
            assert_eq!(status, expected, "{}", case.label(&path));
        }
        for org in ORGS {
            let path = format!("/v1/tasks/bulk?org={org}");
            let body = json!({ "action": "cancel", "filter": { "kind": "none" }, "dry_run": true });
            let (status, answer) = self.call(Method::POST, &path, token, Some(body)).await;
            let expected = case.change(bearer.status(case.operates(org), 403));
            assert_eq!(status, expected, "{}: {answer}", case.label(&path));
        }
        // Nobody has this wake, which only admins are told.
        let path = "/v1/triggers/near%230/try";
        let (status, _) = self.call(Method::POST, path, token, Some(json!({ "row": {} }))).await;
        let may = if case.administers() { 404 } else { 403 };
        assert_eq!(status, case.change(bearer.status(false, may)), "{}", case.label(path));
        // This daemon reads no files, which only its admins are told.
        let (status, _) = self.call(Method::POST, "/v1/reload", token, Some(json!({}))).await;
        let may = if case.administers() { 409 } else { 403 };
        assert_eq!(status, case.change(bearer.status(false, may)), "{}", case.label("reload"));
    }

    /// Joins, broadcasts as text and as bytes, and presence. Gives how many messages the room of `near` must hear.
    async fn by_socket(&self, case: &Case) -> usize {
        let Case { bearer, token, .. } = case;
        let addr = self.rig.daemon.parts.addr;
        let url = format!("ws://{addr}/realtime/v1/websocket?apikey={}&vsn=2.0.0", self.anon);
        let mut socket = Socket::open(&url, true).await;
        let config = json!({ "presence": { "key": "near" } });
        let join = |config: Value| json!({ "config": config, "access_token": token });
        for (room, may) in [
            ("org:demo", bearer.sees("demo")),
            ("org:else", bearer.sees("else")),
            ("org:default", bearer.sees("default")),
            ("agent:near", bearer.sees("demo")),
            ("agent:other", bearer.sees("demo")),
            ("convoke:demo", bearer.sees("demo")),
            ("convoke:else", bearer.sees("else")),
            ("convoke:default", bearer.sees("default")),
            ("lobby", *bearer != Bearer::NoToken),
        ] {
            let reply = joined(&mut socket, room, join(config.clone())).await;
            assert_eq!(reply.payload["status"] == "ok", may, "{}: {reply:?}", case.label(room));
        }
        let reply = joined(&mut socket, "den", join(json!({ "private": true }))).await;
        assert_eq!(
            reply.payload["status"] == "ok",
            *bearer == Bearer::Service,
            "{}",
            case.label("a private room")
        );
        if !bearer.sees("demo") {
            return 0;
        }
        socket.so_far().await;
        // Present as the agent, under its key or under its id, in its room and in its org's.
        for (room, meta) in [("agent:near", json!({})), ("org:demo", json!({ "agent_id": "near" }))] {
            let own = socket.push(room, "presence", json!({ "event": "track", "payload": meta })).await;
            let reply = loop {
                let reply = socket.until("phx_reply").await;
                if reply.reference == json!(own) {
                    break reply;
                }
            };
            let ok = reply.payload["status"] == "ok";
            assert_eq!(ok, case.acts_as("near"), "{}: {reply:?}", case.label("presence"));
        }
        // The room of digests is the daemon's own: nobody is heard or present in it.
        let forged = json!({ "n": 1, "case": case.number });
        for event in ["digest", "agent_message"] {
            let said = json!({ "type": "broadcast", "event": event, "payload": forged });
            socket.push("convoke:demo", "broadcast", said).await;
        }
        let own = socket.push("convoke:demo", "presence", json!({ "event": "track", "payload": {} })).await;
        let reply = loop {
            let reply = socket.until("phx_reply").await;
            if reply.reference == json!(own) {
                break reply;
            }
        };
        assert_eq!(reply.payload["status"], "error", "{}", case.label("presence among digests"));
        let named = json!({ "agent_id": "near", "case": case.number });
        for event in ["agent_message", "AGENT_MESSAGE"] {
            socket
                .push(
                    "agent:near",
                    "broadcast",
                    json!({ "type": "broadcast", "event": event, "payload": named }),
                )
                .await;
            for encoding in [Encoding::Json, Encoding::Binary] {
                let text = named.to_string();
                let push = user_push(4, 90, "realtime:agent:near", event, encoding, text.as_bytes());
                let Some(Frame::Binary(bytes)) = push else { panic!("fits") };
                socket.message(Message::binary(bytes)).await;
            }
        }
        let unnamed =
            json!({ "type": "broadcast", "event": "agent_message", "payload": { "case": case.number } });
        socket.push("agent:near", "broadcast", unnamed).await;
        socket.so_far().await;
        // Four of those that name their sender: binary ones are not. And the one that names no sender. A viewer says
        // nothing.
        match (case.acts_as("near"), *bearer != Bearer::Service && case.dash == Dash::Viewer) {
            (true, _) => 5,
            (false, false) => 1,
            (false, true) => 0,
        }
    }

    async fn sends_by_http(&self, case: &Case) -> usize {
        let Case { bearer, token, .. } = case;
        let named = || Some(json!({ "agent_id": "near", "case": case.number }));
        let mut heard = 0;
        for (path, is_api) in
            [("/api/broadcast/agent%3Anear/events/Agent_Message", false), ("/v1/agents/near/messages", true)]
        {
            let (status, _) = self.call(Method::POST, path, token, named()).await;
            let expected = bearer.status(case.acts_as("near"), 403);
            let expected = if is_api { case.change(expected) } else { expected };
            assert_eq!(status, if expected == 200 { 202 } else { expected }, "{}", case.label(path));
            heard += usize::from(expected == 200);
        }
        let message = json!({ "topic": "agent:near", "event": "agent_message", "payload": named() });
        let batch = Some(json!({ "messages": [message] }));
        // A batch leaves out in silence what is not permitted.
        let (status, _) = self.call(Method::POST, "/api/broadcast", token, batch).await;
        let expected = if *bearer == Bearer::NoToken { 401 } else { 202 };
        assert_eq!(status, expected, "{}", case.label("batch"));
        let path = "/api/broadcast/convoke%3Ademo/events/digest";
        let (status, _) = self.call(Method::POST, path, token, named()).await;
        assert_eq!(status, if *bearer == Bearer::NoToken { 401 } else { 403 }, "{}", case.label(path));
        heard + usize::from(case.acts_as("near"))
    }

    /// The room of `near` hears as many messages of this case, and the service's mark after them.
    async fn observer_receives(&mut self, case: &Case, expected: usize) {
        let mark = Some(json!({ "mark": case.number }));
        let path = "/api/broadcast/agent%3Anear/events/mark";
        assert_eq!(self.call(Method::POST, path, &self.service, mark).await.0, 202);
        let mut heard = 0;
        loop {
            let said = self.observer.until("broadcast").await.payload["payload"].take();
            if said["mark"] == case.number {
                break;
            }
            assert!(said.get("case").is_none_or(|number| *number == case.number), "{said}");
            heard += usize::from(said["case"] == case.number);
        }
        assert_eq!(heard, expected, "{}", case.label("messages that an observer hears"));
    }

    /// As role `authenticated`, whatever role the claims name: the rows of its org and no others, and no request.
    async fn by_sql(&self, case: &Case) {
        let client = self.rig.daemon.parts.database.client().await.unwrap();
        let claims = Value::Object(case.claims.clone()).to_string();
        // PostgreSQL reads no JSON with U+0000, so such a token sees nothing.
        let readable = !claims.contains("\\u0000");
        client.batch_execute("begin; set local role authenticated").await.unwrap();
        let set = client.execute("select set_config('request.jwt.claims', $1, true)", &[&claims]).await;
        if is_hostile() && !model::is_latin1(&claims) {
            // Its encoding lacks a character, so no session can have these claims.
            assert_eq!(set.unwrap_err().code(), Some(&SqlState::UNTRANSLATABLE_CHARACTER));
            client.batch_execute("rollback").await.unwrap();
            return;
        }
        set.unwrap();
        let rows = client.query("select distinct org from convoke.tasks order by 1", &[]).await;
        client.batch_execute("rollback").await.unwrap();
        assert!(rows.is_ok() || !readable, "{}: {rows:?}", case.label("sql"));
        let found: Vec<String> = rows.unwrap_or_default().iter().map(|row| row.get(0)).collect();
        let own = match case.claims.get("org") {
            None => Some("default"),
            Some(Value::String(org)) => Some(org.as_str()),
            Some(_) => None,
        };
        // By SQL the database's own role counts, and the claim only tells an anon key without an org.
        let role = &case.claims["role"];
        let named = case.claims.contains_key("org") || !(role.is_null() || *role == "anon");
        // A viewer reads through the daemon alone.
        let views = case.dash == Dash::Viewer && *role != "service_role";
        let mut expected: Vec<&str> =
            ORGS.into_iter().filter(|org| readable && named && !views && own == Some(org)).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "{}", case.label("sql"));
        for role in ["anon", "authenticated", "service_role"] {
            client.batch_execute(&format!("begin; set local role {role}")).await.unwrap();
            client.execute("select set_config('request.jwt.claims', $1, true)", &[&claims]).await.unwrap();
            let refused = client.batch_execute("select convoke.request_task('k', org => 'demo')").await;
            client.batch_execute("rollback").await.unwrap();
            let code = refused.unwrap_err().code().map(|code| code.code().to_owned());
            assert_eq!(code.as_deref(), Some("42501"), "{}", case.label("request by sql"));
        }
    }
}

fn request() -> Value {
    json!({ "kind": "k", "requires": ["missing"] })
}

#[tokio::test]
async fn no_claim_reads_or_sends_more_than_its_model_allows() {
    let mut doors = Doors::open().await;
    let seed: u64 = from_environment("FUZZ_SEED", 1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut seen, mut certain) = (Vec::new(), certain().into_iter());
    for number in 0..from_environment("PROPTEST_CASES", CASES) {
        let random = || claims().new_tree(&mut runner).unwrap().current();
        let claims = certain.next().unwrap_or_else(random);
        let token = doors.rig.sign(&Value::Object(claims.clone()));
        let (bearer, dash) = (model(&claims), Dash::of(&claims));
        let case = Case { number, claims, token, bearer, dash };
        doors.check(&case).await;
        seen.push(case.bearer);
    }
    // Enough of each kind that the run means something.
    for kind in [Bearer::NoToken, Bearer::Public, Bearer::Service] {
        assert!(seen.contains(&kind), "no {kind:?} among {} cases", seen.len());
    }
    assert!(seen.iter().any(|it| it.is("near") && *it != Bearer::Service), "the agent itself is among them");
    // Nothing changed hands.
    for agent in ["near", "other"] {
        let status = doors.rig.daemon.parts.tasks.agent(&agent.parse().unwrap()).await.unwrap();
        assert_eq!(status.org.as_str(), "demo", "{agent}");
    }
    doors.rig.daemon.stop().await;
}
