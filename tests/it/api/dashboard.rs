//! Sign-in and sessions of the dashboard, and the attacks on them.
use super::Edge;
use convoke::auth::{DashboardRole, Login, MintRequest, Role, mint};
use reqwest::{Method, Response, header};
use serde_json::{Value, json};

/// What a browser of the page itself sends.
const OWN: (&str, &str) = ("sec-fetch-site", "same-origin");

impl Edge {
    fn code(&self, subject: &str) -> String {
        self.code_as(subject, DashboardRole::Viewer)
    }

    fn code_as(&self, subject: &str, role: DashboardRole) -> String {
        let login = Login::new(subject.into(), "demo".parse().unwrap(), role, self.began);
        self.parts.keys.sign_login(&login).unwrap()
    }

    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Response {
        let mut request = self.http.request(method, format!("http://{}/dashboard{path}", self.parts.addr));
        request = request.header("content-type", "application/json").body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// Signs in; returns the cookie.
    async fn sign_in(&self, subject: &str, headers: &[(&str, &str)]) -> String {
        self.sign_in_as(subject, DashboardRole::Viewer, headers).await
    }

    async fn sign_in_as(&self, subject: &str, role: DashboardRole, headers: &[(&str, &str)]) -> String {
        let code = json!({ "code": self.code_as(subject, role) });
        let answer = self.ask(Method::POST, "/session", headers, &code).await;
        assert_eq!(answer.status(), 201);
        cookie(&answer)
    }

    /// The bearer of a new session of this role.
    pub(super) async fn bearer_as(&self, role: DashboardRole) -> String {
        let cookie = self.sign_in_as("ana", role, &[OWN]).await;
        self.bearer(&cookie).await["token"].as_str().unwrap().to_owned()
    }

    /// A request to `/v1` with a bearer: status and body.
    pub(super) async fn act(&self, bearer: &str, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let request = self.http.request(method, format!("http://{}{path}", self.parts.addr));
        let answer = request.bearer_auth(bearer).body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    /// The status of the session that a cookie has.
    async fn session(&self, cookie: &str) -> u16 {
        self.ask(Method::GET, "/session", &[("cookie", cookie)], &Value::Null).await.status().as_u16()
    }

    pub(super) async fn bearer(&self, cookie: &str) -> Value {
        let answer = self.ask(Method::POST, "/session/token", &[OWN, ("cookie", cookie)], &json!({})).await;
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }
}

/// `name=value` of the cookie that an answer sets.
pub(super) fn cookie(answer: &Response) -> String {
    let set = answer.headers()[header::SET_COOKIE].to_str().unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/dashboard", "Max-Age="] {
        assert!(set.contains(attribute), "{set}");
    }
    set.split(';').next().unwrap().to_owned()
}

async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn link_signs_in_once_and_its_session_gives_tokens_that_only_read() {
    let edge = Edge::start().await;
    let link = json!({ "code": edge.code("ana") });
    let first = edge.ask(Method::POST, "/session", &[OWN], &link).await;
    assert_eq!(
        (first.status().as_u16(), &first.headers()[header::CACHE_CONTROL]),
        (201, &"no-store".parse().unwrap())
    );
    let cookie = cookie(&first);
    let shown: Value = first.json().await.unwrap();
    assert_eq!(
        (&shown["user"], &shown["org"], &shown["role"]),
        (&json!("ana"), &json!("demo"), &json!("viewer"))
    );
    let replayed = edge.ask(Method::POST, "/session", &[OWN], &link).await;
    assert!(replayed.headers().get(header::SET_COOKIE).is_none());
    assert_eq!(code(replayed).await, (401, "unauthorized".into()), "the link works once");
    assert_eq!(edge.session(&cookie).await, 200);

    let task = edge.request(super::As::User("demo")).await;
    let given = edge.bearer(&cookie).await;
    let token = given["token"].as_str().unwrap();
    let url = |path: &str| format!("http://{}{path}", edge.parts.addr);
    let read = edge.http.get(url(&format!("/v1/tasks/{task}"))).bearer_auth(token).send().await.unwrap();
    assert_eq!(read.status(), 200);
    for (path, body) in [
        ("/v1/tasks", json!({ "kind": "x" })),
        (&*format!("/v1/tasks/{task}/cancel"), json!({})),
        ("/v1/tasks/requeue", json!({})),
        ("/v1/orgs/demo/messages", json!({ "message": {} })),
    ] {
        let refused =
            edge.http.post(url(path)).bearer_auth(token).body(body.to_string()).send().await.unwrap();
        assert_eq!(code(refused).await, (403, "forbidden".into()), "{path}");
    }
    // The key in the socket's URL is the one of any page.
    let key = given["anon_key"].as_str().unwrap();
    let anon = edge.http.get(url("/v1/tasks")).bearer_auth(key).send().await.unwrap();
    assert_eq!(anon.status(), 403);
    edge.stop().await;
}

#[tokio::test]
async fn link_that_is_opened_by_many_at_once_makes_one_session() {
    let edge = Edge::start().await;
    let link = json!({ "code": edge.code("ana") });
    let opened = (0..8).map(|_| edge.ask(Method::POST, "/session", &[OWN], &link));
    let answers = futures_util::future::join_all(opened).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 7, "{statuses:?}");
    let cookies = answers.iter().filter(|answer| answer.headers().contains_key(header::SET_COOKIE));
    assert_eq!(cookies.count(), 1);
    edge.stop().await;
}

#[tokio::test]
async fn operators_command_the_tasks_of_their_org_and_the_events_name_them() {
    let edge = Edge::start().await;
    let viewer = edge.bearer_as(DashboardRole::Viewer).await;
    let operator = edge.bearer_as(DashboardRole::Operator).await;
    let admin = edge.bearer_as(DashboardRole::Admin).await;
    let (one, two) = (edge.request(super::As::User("demo")).await, edge.request(super::As::Service).await);
    let cancel = |task: &str| format!("/v1/tasks/{task}/cancel");
    let reason = json!({ "reason": "by hand" });
    assert_eq!(edge.act(&viewer, Method::POST, &cancel(&one), &reason).await.0, 403);
    let (status, update) = edge.act(&operator, Method::POST, &cancel(&one), &reason).await;
    assert_eq!((status, &update["state"]), (200, &json!("canceled")), "{update}");
    let event = edge.event(&one, "cancel").await;
    assert_eq!(event["body"]["by"], "user:convoke#ana");
    let (status, _) =
        edge.act(&operator, Method::POST, &format!("/v1/tasks/{one}/requeue"), &json!({})).await;
    assert_eq!(
        (status, edge.event(&one, "requeued").await["body"]["by"].clone()),
        (200, "user:convoke#ana".into())
    );
    // The task of the service has the org `default`, which an operator of `demo` does not see.
    for path in ["cancel", "requeue", "answer", "budget"] {
        let path = format!("/v1/tasks/{two}/{path}");
        let body = if path.ends_with("answer") { json!({ "answer": 1 }) } else { json!({}) };
        let (status, refused) = edge.act(&admin, Method::POST, &path, &body).await;
        assert_eq!((status, &refused["code"]), (404, &json!("unknown_task")), "{path}");
    }
    // An operator's request is its own, and only an admin sees the channels, which belong to no org.
    let body = json!({ "kind": "x", "requires": ["work"] });
    let (status, made) = edge.act(&operator, Method::POST, "/v1/tasks", &body).await;
    assert_eq!((status, &made["task"]["requester"]), (201, &json!("user:convoke#ana")));
    for (bearer, expected) in [(&viewer, 403), (&operator, 403), (&admin, 200)] {
        assert_eq!(edge.act(bearer, Method::GET, "/v1/channels", &Value::Null).await.0, expected);
    }
    edge.stop().await;
}

#[tokio::test]
async fn cookie_is_no_credential_for_v1_and_a_bearer_is_none_for_a_session() {
    let edge = Edge::start().await;
    let cookie = edge.sign_in("ana", &[OWN]).await;
    for path in ["/v1/tasks", "/v1/overview", "/v1/agents"] {
        let url = format!("http://{}{path}", edge.parts.addr);
        let answer = edge.http.get(url).header("cookie", &cookie).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{path}");
    }
    let bearer = edge.bearer(&cookie).await["token"].as_str().unwrap().to_owned();
    let service = mint(&edge.parts.keys, &MintRequest::new(Role::ServiceRole), edge.began).unwrap();
    for token in [bearer, service] {
        let as_code = edge.ask(Method::POST, "/session", &[OWN], &json!({ "code": token })).await;
        assert_eq!(code(as_code).await.0, 401);
        let header = format!("Bearer {token}");
        let as_bearer = edge.ask(Method::GET, "/session", &[("authorization", &header)], &Value::Null).await;
        assert_eq!(as_bearer.status(), 401);
    }
    // Nor is a code a token.
    let code = edge.code("ana");
    let url = format!("http://{}/v1/tasks", edge.parts.addr);
    assert_eq!(edge.http.get(url).bearer_auth(code).send().await.unwrap().status(), 401);
    edge.stop().await;
}

#[tokio::test]
async fn sign_in_replaces_the_session_that_the_browser_had() {
    let edge = Edge::start().await;
    let planted = edge.sign_in("mallory", &[OWN]).await;
    let own = edge.sign_in("ana", &[OWN, ("cookie", &planted)]).await;
    assert_ne!(own, planted);
    assert_eq!((edge.session(&planted).await, edge.session(&own).await), (401, 200));
    // A value that no session has becomes none.
    let (name, _) = own.split_once('=').unwrap();
    let invented = format!("{name}=AAAA");
    let second = edge.sign_in("ana", &[OWN, ("cookie", &invented)]).await;
    assert_eq!(edge.session(&invented).await, 401);
    assert_eq!((edge.session(&own).await, edge.session(&second).await), (200, 200), "two browsers");
    edge.stop().await;
}

#[tokio::test]
async fn session_ends_by_sign_out_by_idleness_and_by_age() {
    let edge = Edge::start().await;
    let [one, two, other] = [
        edge.sign_in("ana", &[OWN]).await,
        edge.sign_in("ana", &[OWN]).await,
        edge.sign_in("ben", &[OWN]).await,
    ];
    let out = edge.ask(Method::DELETE, "/session", &[OWN, ("cookie", &one)], &Value::Null).await;
    assert_eq!(out.status(), 204);
    assert!(out.headers()[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!((edge.session(&one).await, edge.session(&two).await), (401, 200));
    let three = edge.sign_in("ana", &[OWN]).await;
    edge.ask(Method::DELETE, "/session?everywhere=true", &[OWN, ("cookie", &three)], &Value::Null).await;
    assert_eq!(
        (edge.session(&two).await, edge.session(&three).await, edge.session(&other).await),
        (401, 401, 200)
    );

    let client = edge.parts.database.client().await.unwrap();
    client.batch_execute("update convoke.sessions set seen_at = now() - interval '12 hours'").await.unwrap();
    assert_eq!(edge.session(&other).await, 401, "idle for too long");
    let last = edge.sign_in("ben", &[OWN]).await;
    let left: i64 = client.query_one("select count(*) from convoke.sessions", &[]).await.unwrap().get(0);
    assert_eq!(left, 1, "sessions that have ended are deleted by the next sign-in");
    client.batch_execute("update convoke.sessions set expires_at = now()").await.unwrap();
    assert_eq!(edge.session(&last).await, 401, "too old");
    let hashed: bool = client
        .query_one("select bool_and(octet_length(token_hash) = 32) from convoke.sessions", &[])
        .await
        .unwrap()
        .get(0);
    assert!(hashed, "the table has no cookie");
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn requests_of_other_sites_are_refused() {
    let edge = Edge::start().await;
    let cookie = edge.sign_in("ana", &[OWN]).await;
    let host = edge.parts.addr.to_string();
    let own_origin = format!("http://{host}");
    for foreign in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:1"),
    ] {
        for (method, path, body) in [
            (Method::POST, "/session", json!({ "code": edge.code("mallory") })),
            (Method::POST, "/session/token", json!({})),
            (Method::DELETE, "/session", Value::Null),
        ] {
            let answer = edge.ask(method.clone(), path, &[foreign, ("cookie", &cookie)], &body).await;
            assert_eq!(code(answer).await, (403, "cross_site".into()), "{foreign:?} {method} {path}");
        }
    }
    assert_eq!(edge.session(&cookie).await, 200, "nothing ended the session");
    let headers = [("origin", &*own_origin), ("cookie", &cookie)];
    let same = edge.ask(Method::POST, "/session/token", &headers, &json!({})).await;
    assert_eq!(same.status(), 200, "an older browser names its origin");
    // A form cannot send JSON.
    let url = format!("http://{host}/dashboard/session/token");
    let form = edge.http.post(url).header("content-type", "text/plain").header("cookie", &cookie).body("{}");
    assert_eq!(code(form.send().await.unwrap()).await, (415, "unsupported_media_type".into()));
    // No page of another origin reads an answer.
    let headers = [("origin", "http://evil.example"), ("cookie", &*cookie)];
    let read = edge.ask(Method::GET, "/session", &headers, &Value::Null).await;
    assert!(read.headers().get("access-control-allow-origin").is_none());
    edge.stop().await;
}

#[tokio::test]
async fn names_that_were_rebound_to_this_machine_get_nothing() {
    let edge = Edge::start().await;
    let cookie = edge.sign_in("ana", &[OWN]).await;
    for path in ["", "/session", "/demo/tasks"] {
        let headers = [("host", "evil.example:7700"), ("cookie", &*cookie)];
        let answer = edge.ask(Method::GET, path, &headers, &Value::Null).await;
        assert_eq!(code(answer).await, (421, "bad_host".into()), "{path}");
    }
    let headers = [("host", "evil.example"), OWN];
    let answer = edge.ask(Method::POST, "/session", &headers, &json!({ "code": edge.code("ana") })).await;
    assert!(answer.headers().get(header::SET_COOKIE).is_none());
    assert_eq!(code(answer).await.0, 421);
    let headers = [("host", "localhost:7700"), ("cookie", &*cookie)];
    let local = edge.ask(Method::GET, "/session", &headers, &Value::Null).await;
    assert_eq!(local.status(), 200);
    edge.stop().await;
}

#[tokio::test]
async fn every_answer_forbids_frames_and_foreign_scripts() {
    let edge = Edge::start().await;
    for path in ["", "/demo/tasks", "/session", "/assets/none.js"] {
        let answer = edge.ask(Method::GET, path, &[], &Value::Null).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self';",
            "style-src 'self';",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {part} is not in {policy}");
        }
        assert!(
            policy.contains(&format!("ws://{}", edge.parts.addr)) && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cross-origin-opener-policy"), "same-origin");
    }
    edge.stop().await;
}

#[tokio::test]
async fn one_address_signs_in_ten_times_a_minute() {
    let edge = Edge::start().await;
    for _ in 0..10 {
        let wrong = edge.ask(Method::POST, "/session", &[OWN], &json!({ "code": "x" })).await;
        assert_eq!(wrong.status(), 401);
    }
    let code_of_ana = json!({ "code": edge.code("ana") });
    let limited = edge.ask(Method::POST, "/session", &[OWN], &code_of_ana).await;
    let wait: u32 = limited.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    assert_eq!(code(limited).await, (429, "rate_limited".into()));
    edge.stop().await;
}

#[tokio::test]
async fn cookie_in_no_valid_form_costs_no_query_and_those_in_one_are_limited_by_address() {
    let edge = Edge::start().await;
    let own = edge.sign_in("ana", &[OWN]).await;
    let (name, secret) = own.split_once('=').unwrap();
    let client = edge.parts.database.client().await.unwrap();
    // A query of the table fails from now on, and its request is answered with 503.
    client.batch_execute("alter table convoke.sessions rename to hidden").await.unwrap();
    assert_eq!(edge.session(&own).await, 503);
    for value in
        ["", "x", &secret[1..], &format!("{secret}x"), &secret.replace(|_| true, "."), &"é".repeat(43)]
    {
        let cookie = format!("{name}={value}");
        for (method, path) in [
            (Method::GET, "/session"),
            (Method::GET, "/session/all"),
            (Method::POST, "/session/token"),
            (Method::DELETE, "/session/0190c9a5-1e3b-7000-8000-000000000000"),
        ] {
            let answer = edge.ask(method.clone(), path, &[OWN, ("cookie", &cookie)], &json!({})).await;
            assert_eq!(answer.status(), 401, "{method} {path} {value:?}");
        }
        let out = edge.ask(Method::DELETE, "/session", &[OWN, ("cookie", &cookie)], &Value::Null).await;
        assert_eq!(out.status(), 204, "{value:?}");
    }
    client.batch_execute("alter table convoke.hidden rename to sessions").await.unwrap();
    drop(client);
    // More than the limit, in case a minute ends on the way.
    let mut asked = 0;
    while edge.session(&format!("{name}={}", "A".repeat(43))).await == 401 {
        asked += 1;
        assert!(asked < 1000, "never refused");
    }
    for (method, path) in [
        (Method::GET, "/session"),
        (Method::GET, "/session/all"),
        (Method::POST, "/session/token"),
        (Method::DELETE, "/session"),
        (Method::DELETE, "/session/0190c9a5-1e3b-7000-8000-000000000000"),
    ] {
        let limited = edge.ask(method.clone(), path, &[OWN, ("cookie", &own)], &json!({})).await;
        assert_eq!(code(limited).await, (429, "rate_limited".into()), "{method} {path}");
    }
    assert_eq!(
        edge.session(&format!("{name}=x")).await,
        401,
        "not counted, and not refused for others' sake"
    );
    edge.stop().await;
}

#[tokio::test]
async fn bad_bodies_and_methods_are_refused_with_a_reason() {
    let edge = Edge::start().await;
    for body in [json!({}), json!({ "code": 1 }), json!([]), json!({ "code": "x", "more": 1 })] {
        let answer = edge.ask(Method::POST, "/session", &[OWN], &body).await;
        assert_eq!(code(answer).await, (400, "bad_request".into()), "{body}");
    }
    let large = json!({ "code": "x".repeat(9000) });
    assert_eq!(edge.ask(Method::POST, "/session", &[OWN], &large).await.status(), 413);
    let put = edge.ask(Method::PUT, "/session", &[OWN], &json!({})).await;
    assert_eq!(code(put).await, (405, "method_not_allowed".into()));
    let expired = Login::new(
        "ana".into(),
        "demo".parse().unwrap(),
        DashboardRole::Admin,
        edge.began - chrono::TimeDelta::minutes(11),
    );
    let expired = json!({ "code": edge.parts.keys.sign_login(&expired).unwrap() });
    assert_eq!(edge.ask(Method::POST, "/session", &[OWN], &expired).await.status(), 401);
    edge.stop().await;
}

#[tokio::test]
async fn people_see_and_end_their_sessions_and_admins_those_of_the_org() {
    let edge = Edge::start().await;
    let agent = |name: &'static str| [OWN, ("user-agent", name)];
    let laptop = edge.sign_in("ana", &agent("Firefox on a laptop")).await;
    let phone = edge.sign_in("ana", &agent("Safari on a phone")).await;
    let other = edge.sign_in("bob", &[OWN]).await;
    let admin = edge.sign_in_as("root", DashboardRole::Admin, &[OWN]).await;
    let list = async |cookie: &str| -> Vec<Value> {
        let answer = edge.ask(Method::GET, "/session/all", &[("cookie", cookie)], &Value::Null).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()[header::CACHE_CONTROL]),
            (200, &"no-store".parse().unwrap())
        );
        answer.json::<Value>().await.unwrap()["sessions"].as_array().unwrap().clone()
    };
    let own = list(&laptop).await;
    assert_eq!(own.len(), 2, "those of ana alone: {own:?}");
    let of = |sessions: &[Value], browser: &str| -> Value {
        sessions
            .iter()
            .find(|line| line["browser"] == browser)
            .unwrap_or_else(|| panic!("{browser}: {sessions:?}"))
            .clone()
    };
    let (here, there) = (of(&own, "Firefox on a laptop"), of(&own, "Safari on a phone"));
    assert_eq!((&here["is_own"], &there["is_own"]), (&json!(true), &json!(false)));
    assert!(!json!(own).to_string().contains(laptop.split_once('=').unwrap().1), "a list has no secret");
    let everybody = list(&admin).await;
    assert_eq!(everybody.len(), 4, "{everybody:?}");
    let of_bob = everybody.iter().find(|line| line["user"] == "bob").unwrap()["id"].clone();

    let end = async |cookie: &str, id: &Value, headers: &[(&str, &str)]| {
        let path = format!("/session/{}", id.as_str().unwrap());
        let headers: Vec<_> = headers.iter().copied().chain([("cookie", cookie)]).collect();
        edge.ask(Method::DELETE, &path, &headers, &Value::Null).await.status().as_u16()
    };
    assert_eq!(end(&laptop, &of_bob, &[OWN]).await, 404, "another person's");
    assert_eq!(end(&laptop, &there["id"], &[("sec-fetch-site", "cross-site")]).await, 403);
    assert_eq!(end("", &there["id"], &[OWN]).await, 401);
    assert_eq!(end(&laptop, &json!("seven"), &[OWN]).await, 404);
    assert_eq!(edge.session(&phone).await, 200, "nothing has ended yet");
    assert_eq!(end(&laptop, &there["id"], &[OWN]).await, 204);
    assert_eq!((edge.session(&phone).await, edge.session(&laptop).await), (401, 200));
    assert_eq!(end(&admin, &of_bob, &[OWN]).await, 204);
    assert_eq!((edge.session(&other).await, end(&admin, &of_bob, &[OWN]).await), (401, 404));
    for method in [Method::GET, Method::POST] {
        let path = format!("/session/{}", here["id"].as_str().unwrap());
        let refused = edge.ask(method, &path, &[OWN, ("cookie", &laptop)], &json!({})).await.status();
        assert_eq!(refused, 405);
    }
    edge.stop().await;
}

#[tokio::test]
async fn admin_reads_other_orgs_as_a_viewer_and_nobody_else_does() {
    let edge = Edge::start().await;
    let ours = edge.request(super::As::User("demo")).await;
    let body = json!({ "kind": "x", "requires": ["work"] });
    let (_, theirs) = edge.post(super::As::User("elsewhere"), "/v1/tasks", &body).await;
    let theirs = theirs["task"]["id"].as_str().unwrap();
    let token = async |role: DashboardRole, body: Value| {
        let cookie = edge.sign_in_as("ana", role, &[OWN]).await;
        let answer = edge.ask(Method::POST, "/session/token", &[OWN, ("cookie", &cookie)], &body).await;
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap()["token"].as_str().unwrap_or_default().to_owned())
    };
    for role in [DashboardRole::Viewer, DashboardRole::Operator] {
        assert_eq!(token(role, json!({ "org": "elsewhere" })).await.0, 403);
        assert_eq!(token(role, json!({ "org": "demo" })).await.0, 200, "its own");
    }
    for bad in [json!({ "org": "Else Where" }), json!({ "orgs": [] }), json!([1])] {
        assert_eq!(token(DashboardRole::Admin, bad.clone()).await.0, 400, "{bad}");
    }
    let (_, bearer) = token(DashboardRole::Admin, json!({ "org": "elsewhere" })).await;
    let see = |task: &str| format!("/v1/tasks/{task}");
    assert_eq!(edge.act(&bearer, Method::GET, &see(theirs), &Value::Null).await.0, 200);
    assert_eq!(edge.act(&bearer, Method::GET, &see(&ours), &Value::Null).await.0, 404);
    for path in [format!("/v1/tasks/{theirs}/cancel"), "/v1/tasks".into()] {
        assert_eq!(edge.act(&bearer, Method::POST, &path, &body).await.0, 403, "{path}");
    }
    assert_eq!(edge.act(&bearer, Method::GET, "/v1/channels", &Value::Null).await.0, 403);
    edge.stop().await;
}
