//! Whatever Postgres can hold comes in by every door: each says the same of it, none panics, nothing stalls.
//!
//! `CONVOKE_VALUES` makes it longer, `CONVOKE_VALUES_SEED` draws the same values again.
use super::Rig;
use crate::{
    daemon::soon,
    realtime::Socket,
    support::{PATIENCE, from_environment},
};
use convoke::{auth::Role, db::Database};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const ROOM: &str = "agent:near";
/// Where presence says nothing about an agent.
const LOBBY: &str = "lobby";

/// Draws values as JSON text: what a parser makes of them is a part of what is tested.
struct Draw(StdRng);

impl Draw {
    fn new() -> Self {
        let seed = from_environment("CONVOKE_VALUES_SEED", rand::random_range(0..1_000_000));
        println!("CONVOKE_VALUES_SEED={seed} draws these values again");
        Self(StdRng::seed_from_u64(seed))
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.0.random_range(0..words.len())]
    }

    fn number(&mut self) -> String {
        let edges = [
            "0",
            "-0",
            "-0.0",
            "1",
            "-1",
            "0.10",
            "1e400",
            "-1e400",
            "1e308",
            "1.8e308",
            "1e-300",
            "2147483648",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "123456789012345678901234567890",
            "0.1234567890123456789",
        ];
        match self.0.random_range(0..4) {
            0 => self.0.random_range(i64::MIN..i64::MAX).to_string(),
            1 => format!("{:e}", self.0.random_range(-1e300..1e300)),
            _ => self.pick(&edges).to_owned(),
        }
    }

    /// Text without U+0000, which Postgres cannot hold.
    fn text(&mut self) -> String {
        let length = [0, 1, 3, 20, 199, 200, 201][self.0.random_range(0..7)];
        let alphabet = [
            'a', 'b', '-', ' ', '"', '\\', '\u{1}', '\n', '\u{7f}', '\u{85}', 'ß', '𝄞', '\u{2028}',
            '\u{feff}',
        ];
        let plain = self.0.random_range(0..3) > 0;
        let draw = |rng: &mut StdRng| if plain { 'x' } else { alphabet[rng.random_range(0..alphabet.len())] };
        (0..length).map(|_| draw(&mut self.0)).collect()
    }

    fn json(&mut self, depth: usize) -> String {
        match self.0.random_range(0..8) {
            0 => self.pick(&["null", "true", "false", "[]", "{}"]).to_owned(),
            1 | 2 => self.number(),
            3 => json!(self.text()).to_string(),
            4 => {
                let depth = [1, 50, 99, 100, 101, 126, 127, 128, 129, 200, 3000][self.0.random_range(0..11)];
                let (open, close) =
                    if self.0.random_range(0..2) == 0 { ("[", "]") } else { ("{\"a\":", "}") };
                format!("{}{}{}", open.repeat(depth), self.number(), close.repeat(depth))
            }
            _ if depth == 0 => "7".into(),
            5 | 6 => {
                let items: Vec<String> =
                    (0..self.0.random_range(0..4)).map(|_| self.json(depth - 1)).collect();
                format!("[{}]", items.join(","))
            }
            _ => {
                // Of a member given twice, a jsonb keeps the last one before any function sees it, while HTTP and the
                // websocket refuse it: names differ here.
                let members: Vec<String> = (0..self.0.random_range(0..4))
                    .map(|at| format!("{}:{}", json!(format!("{at}{}", self.text())), self.json(depth - 1)))
                    .collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }

    fn time(&mut self) -> String {
        let year = match self.0.random_range(0..4) {
            0 => self.0.random_range(-5000..300_000),
            _ => self.0.random_range(1900..2200),
        };
        let odd = [
            "infinity",
            "-infinity",
            "2024-02-30T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "2300-01-01T00:00:00+14:00",
            "294276-12-31T23:59:59Z",
            "",
        ];
        match self.0.random_range(0..3) {
            0 => self.pick(&odd).to_owned(),
            _ => format!(
                "{year:04}-0{}-1{}T1{}:00:00Z",
                self.0.random_range(1..10),
                self.0.random_range(0..10),
                self.0.random_range(0..10)
            ),
        }
    }

    fn policy(&mut self) -> String {
        let names = [
            "award",
            "fallback",
            "weights",
            "agent",
            "choose_within",
            "attempts_max",
            "rounds_max",
            "bid_window",
            "offers_min",
            "good_enough",
            "lease",
            "input",
            "backoff",
            "on_input_timeout",
            "result_schema",
            "verifier",
            "colour",
        ];
        let values = [
            "\"first\"",
            "\"direct\"",
            "\"requester\"",
            "\"banana\"",
            "\"fail\"",
            "\"escalate\"",
            "\"near\"",
            "\"No\"",
            "\"30s\"",
            "\"1h 30m\"",
            "\"1.5h\"",
            "\"0\"",
            "\"0s\"",
            "\"7days\"",
            "\"8days\"",
            "\"52w\"",
            "\"soon\"",
            "\"1h30\"",
            "\"5ms 3s\"",
            "\"5us\"",
            "\"5\u{b5}s\"",
            "\"5\u{a0}s\"",
            "null",
            "0",
            "1",
            "3",
            "3.0",
            "-1",
            "9999",
            "10000",
            "4294967296",
            "[]",
            "{}",
            "true",
            "{\"cost\":1}",
            "{\"cost\":0}",
            "{\"cost\":1001}",
            "{\"speed\":70000}",
            "{\"cost\":1,\"x\":1}",
            "{\"confidence\":0.5}",
            "{\"confidence\":1.5}",
            "{\"eta_ms\":18446744073709551615}",
            "{\"cost\":null}",
            "{\"type\":\"object\"}",
            "{\"$ref\":\"http://example.com\"}",
            "{\"kind\":\"k\"}",
            "{\"kind\":\"\"}",
            "{\"kind\":\"k\",\"policy\":{\"lease\":\"soon\"}}",
            "{\"kind\":\"k\",\"requires\":[1]}",
            "{\"kind\":\"k\",\"policy\":{\"verifier\":null}}",
            "{\"kind\":\"k\",\"policy\":{\"attempts_max\":2}}",
        ];
        // No name is drawn twice, for the reason that `json` gives.
        let count = self.0.random_range(0..3);
        let members: Vec<String> = names
            .sample(&mut self.0, count)
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .map(|name| format!("\"{name}\":{}", self.pick(&values)))
            .collect();
        format!("{{{}}}", members.join(","))
    }

    /// A request as JSON text in which one member may be anything of its type.
    fn request(&mut self) -> String {
        let (mut kind, mut more) = (json!("k").to_string(), String::new());
        match self.0.random_range(0..8) {
            0 => kind = json!(self.text()).to_string(),
            1 => more = format!(",\"deadline\":{}", json!(self.time())),
            2 => more = format!(",\"run_at\":{}", json!(self.time())),
            3 => more = format!(",\"priority\":{}", self.0.random_range(-40_000..40_000)),
            4 => more = format!(",\"requires\":[\"nothing here\",{}]", json!(self.text())),
            5 => more = format!(",\"policy\":{}", self.policy()),
            _ => more = format!(",\"input\":{}", self.json(4)),
        }
        if !more.contains("requires") {
            more.push_str(",\"requires\":[\"nothing here\"]");
        }
        format!("{{\"kind\":{kind}{more}}}")
    }
}

/// Somebody who speaks HTTP, in texts that no value could hold.
pub struct Caller {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Caller {
    pub fn new(rig: &Rig, token: String) -> Self {
        Self { http: reqwest::Client::new(), base: rig.http(), token }
    }

    pub async fn call(&self, method: Method, path: &str, body: String) -> (u16, Value) {
        let request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        let answer = request.body(body.clone()).timeout(PATIENCE).send().await.unwrap();
        let status = answer.status().as_u16();
        assert!(status < 500, "{path}: {status} for {}", body.chars().take(500).collect::<String>());
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }
}

/// Whether SQL takes the request.
async fn by_sql(database: &Database, request: &str) -> Result<(), String> {
    let client = database.client().await.unwrap();
    let call = "with asked as (select $1::text::jsonb as j)
        select convoke.request_task(j ->> 'kind', coalesce(j -> 'input', 'null'),
            array(select jsonb_array_elements_text(j -> 'requires')), org => 'demo',
            priority => coalesce((j ->> 'priority')::integer, 0), run_at => (j ->> 'run_at')::timestamptz,
            deadline => (j ->> 'deadline')::timestamptz, policy => coalesce(j -> 'policy', '{}'))
        from asked";
    let refused = match client.query_one(call, &[&request]).await {
        Ok(_) => return Ok(()),
        Err(refused) => refused,
    };
    let told = refused.as_db_error().unwrap_or_else(|| panic!("{refused:?} for {request}"));
    let class = told.code().code().get(..2).unwrap();
    assert!(matches!(class, "22" | "54"), "{told:?} for {request}");
    Err(told.message().to_owned())
}

/// Whether the websocket takes the request.
async fn by_websocket(socket: &mut Socket, request: &str) -> Result<(), String> {
    let id = socket.next_ref();
    let message = format!("{{\"type\":\"task_request\",\"command_id\":\"{id}\",\"task\":{request}}}");
    socket
        .message(format!(
            "[null,\"{id}\",\"realtime:{ROOM}\",\"broadcast\",{{\"type\":\"broadcast\",\"event\":\"coordination\",\"payload\":{message}}}]"
        ))
        .await;
    loop {
        let got = socket.next().await;
        let said = &got.payload["payload"];
        if said["type"] == "task_update" && said["in_reply_to"] == id.as_str() {
            return Ok(());
        }
        if said["type"] == "error" || got.payload["status"] == "error" {
            return Err(got.payload.to_string());
        }
    }
}

pub async fn channel(rig: &Rig) -> Socket {
    let url = format!(
        "ws://{}/realtime/v1/websocket?apikey={}&vsn=2.0.0",
        rig.daemon.parts.addr,
        rig.token("near")
    );
    let mut socket = Socket::open(&url, true).await;
    socket.join(ROOM, json!({ "broadcast": { "ack": false } })).await.ok();
    socket
}

async fn still_ready(rig: &Rig) {
    let (status, health) =
        Caller::new(rig, String::new()).call(Method::GET, "/health/ready", String::new()).await;
    assert_eq!(status, 200, "{health}");
    assert_eq!(rig.daemon.parts.tasks.arbiter_stalled(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_door_answers_a_request_alike() {
    let rig = Rig::start(Vec::new()).await;
    let service = Caller::new(&rig, rig.mint(Role::ServiceRole, "demo", None));
    let mut socket = channel(&rig).await;
    let mut draw = Draw::new();
    for _ in 0..from_environment("CONVOKE_VALUES", 150) {
        let request = draw.request();
        let short: String = request.chars().take(400).collect();
        let sql = by_sql(&rig.daemon.parts.database, &request).await;
        let (status, answer) = service.call(Method::POST, "/v1/tasks", request.clone()).await;
        let told = soon("an answer on the channel", by_websocket(&mut socket, &request)).await;
        assert_eq!(status < 300, told.is_ok(), "HTTP: {status} {answer}, websocket: {told:?}, of {short}");
        assert_eq!(sql.is_ok(), status < 300, "SQL: {sql:?}, HTTP: {status} {answer}, of {short}");
    }
    let (status, listed) = service.call(Method::GET, "/v1/tasks?limit=1000", String::new()).await;
    assert_eq!(status, 200, "{listed}");
    still_ready(&rig).await;
    rig.daemon.stop().await;
}

/// The edges of what is kept, which a draw seldom meets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_door_refuses_the_same_numbers_and_keeps_all_digits_of_the_others() {
    let rig = Rig::start(Vec::new()).await;
    let service = Caller::new(&rig, rig.mint(Role::ServiceRole, "demo", None));
    let mut socket = channel(&rig).await;
    let numbers = [
        ("0.1234567890123456789012345", false),
        ("123456789012345678901234567890", false),
        ("18446744073709551615", true),
        ("18446744073709551616", false),
        ("-9223372036854775808", true),
        ("-9223372036854775809", false),
        ("18446744073709551615.0", false),
        ("100000000000000000000", true),
        ("0.30000000000000004", true),
        ("0.300000000000000040", true),
        ("0.30000000000000003", true),
        ("0.300000000000000035", false),
        ("123456789.00000000000000000000", true),
        ("0.00000000000000000000", true),
        ("1.7976931348623157e308", true),
        ("1.7976931348623159e308", false),
        ("1e309", false),
        ("5e-324", true),
        ("3e-324", true),
        ("2e-324", false),
        ("1e-400", false),
    ];
    for (number, kept) in numbers {
        let request =
            format!("{{\"kind\":\"k\",\"input\":{{\"n\":[{number}]}},\"requires\":[\"nothing here\"]}}");
        let sql = by_sql(&rig.daemon.parts.database, &request).await;
        let (status, answer) = service.call(Method::POST, "/v1/tasks", request.clone()).await;
        let told = soon("an answer on the channel", by_websocket(&mut socket, &request)).await;
        assert_eq!(
            (sql.is_ok(), status < 300, told.is_ok()),
            (kept, kept, kept),
            "{number}: {sql:?}, {answer}, {told:?}"
        );
        if !kept {
            for said in [sql.unwrap_err(), answer.to_string(), told.unwrap_err()] {
                assert!(said.contains("has more digits than can be kept"), "{number}: {said}");
            }
        }
    }
    rig.daemon.stop().await;
}

/// A jsonb keeps the last one before any function sees it; the other doors see the text, and refuse it alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_given_twice_is_refused_by_http_and_the_websocket_at_any_depth() {
    let rig = Rig::start(Vec::new()).await;
    let service = Caller::new(&rig, rig.mint(Role::ServiceRole, "demo", None));
    let mut socket = channel(&rig).await;
    let rest = "\"requires\":[\"nothing here\"]";
    for (members, place) in [
        ("\"kind\":\"k\",\"kind\":\"k\"", "kind"),
        ("\"kind\":\"k\",\"input\":{\"n\":1,\"n\":2}", "input.n"),
        ("\"kind\":\"k\",\"input\":[0,{\"n\":1e400,\"m\":0,\"n\":1}]", "input.1.n"),
        ("\"kind\":\"k\",\"input\":{\"\\u006e\":\"\",\"n\":null}", "input.n"),
        ("\"kind\":\"k\",\"policy\":{\"lease\":\"5s\",\"lease\":\"9s\"}", "policy.lease"),
    ] {
        let request = format!("{{{members},{rest}}}");
        let (status, answer) = service.call(Method::POST, "/v1/tasks", request.clone()).await;
        let told = soon("an answer on the channel", by_websocket(&mut socket, &request)).await.unwrap_err();
        assert_eq!((status, &answer["code"]), (400, &json!("bad_request")), "{request}: {answer}");
        for told in [answer.to_string(), told] {
            let twice = told.contains(&format!("{place}: the member is given twice"));
            assert!(twice || told.contains("1e400 has more digits"), "{request}: {told}");
        }
    }
    // The same name in different objects is no duplicate.
    let request = format!("{{\"kind\":\"k\",\"input\":[{{\"n\":{{\"n\":1}}}},{{\"n\":2}}],{rest}}}");
    assert_eq!(service.call(Method::POST, "/v1/tasks", request.clone()).await.0, 201);
    soon("an answer on the channel", by_websocket(&mut socket, &request)).await.unwrap();
    rig.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_value_of_an_agent_is_accepted_or_refused() {
    let rig = Rig::start(Vec::new()).await;
    let service = Caller::new(&rig, rig.mint(Role::ServiceRole, "demo", None));
    let near = Caller::new(&rig, rig.token("near"));
    let mut socket = channel(&rig).await;
    socket.join(LOBBY, json!({})).await.ok();
    let mut draw = Draw::new();
    for _ in 0..from_environment("CONVOKE_VALUES", 150) / 5 {
        let presence = format!(
            "{{\"capabilities\":[\"work\"],\"slots\":2,\"lease\":\"60s\",\"description\":{}}}",
            json!(draw.text())
        );
        near.call(Method::PUT, "/v1/agents/near/presence", presence).await;
        let plain = json!({ "capabilities": ["work"], "slots": 2, "lease": "60s" }).to_string();
        assert_eq!(near.call(Method::PUT, "/v1/agents/near/presence", plain).await.0, 200);
        rig.status("near", "present").await;
        let request = json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "30s", "attempts_max": 9 } });
        let (_, made) = service.call(Method::POST, "/v1/tasks", request.to_string()).await;
        let task = made["task"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        let offers = format!("/v1/tasks/{task}/offers");
        soon("its round", async {
            loop {
                // An agent that has just come may miss the first round.
                let shown = service.call(Method::GET, &format!("/v1/tasks/{task}"), String::new()).await.1;
                let round = shown["round"].as_i64().unwrap();
                let odd = format!(
                    "{{\"round\":{round},\"cost\":{},\"eta_ms\":{},\"confidence\":{},\"note\":{}}}",
                    draw.number(),
                    draw.number(),
                    draw.number(),
                    json!(draw.text())
                );
                if near.call(Method::POST, &offers, odd).await.0 == 202 {
                    return;
                }
                let offer = json!({ "round": round, "cost": u64::MAX, "eta_ms": u64::MAX, "confidence": 1 });
                if near.call(Method::POST, &offers, offer.to_string()).await.0 == 202 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let award = "select id::text, epoch from convoke.assignments where task_id = $1 and ended_at is null";
        let client = rig.daemon.parts.database.client().await.unwrap();
        let (assignment, epoch): (String, i64) = soon("an award", async {
            loop {
                let id: uuid::Uuid = task.parse().unwrap();
                if let Some(row) = client.query_opt(award, &[&id]).await.unwrap() {
                    return (row.get(0), row.get(1));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        drop(client);
        let path = format!("/v1/assignments/{assignment}");
        let key = format!("\"task_id\":\"{task}\",\"epoch\":{epoch}");
        assert_eq!(near.call(Method::POST, &format!("{path}/accept"), format!("{{{key}}}")).await.0, 200);
        let progress = format!(
            "{{{key},\"progress\":{},\"activity\":{},\"checkpoint\":{}}}",
            draw.number(),
            json!(draw.text()),
            draw.json(3)
        );
        near.call(Method::POST, &format!("{path}/progress"), progress).await;
        let track = draw.json(3);
        socket
            .message(format!(
                "[null,null,\"realtime:{LOBBY}\",\"presence\",{{\"type\":\"presence\",\"event\":\"track\",\"payload\":{track}}}]"
            ))
            .await;
        let result = format!(
            "{{{key},\"result\":{},\"usage\":{{\"tokens\":18446744073709551615,\"microdollars\":18446744073709551615}}}}",
            draw.json(4)
        );
        let (status, ended) = near.call(Method::POST, &format!("{path}/result"), result).await;
        if status >= 300 {
            let result = format!("{{{key},\"result\":1}}");
            let (status, again) = near.call(Method::POST, &format!("{path}/result"), result).await;
            assert_eq!((status, &again["state"]), (200, &json!("completed")), "after {ended}: {again}");
        }
        let (status, shown) = service.call(Method::GET, &format!("/v1/tasks/{task}"), String::new()).await;
        assert_eq!((status, &shown["state"]), (200, &json!("completed")), "{shown}");
    }
    still_ready(&rig).await;
    rig.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_answer_to_a_question_is_accepted_or_refused() {
    let rig = Rig::start(Vec::new()).await;
    let service = Caller::new(&rig, rig.mint(Role::ServiceRole, "demo", None));
    let near = Caller::new(&rig, rig.token("near"));
    let mut draw = Draw::new();
    let plain = json!({ "capabilities": ["work"], "slots": 2, "lease": "60s" }).to_string();
    assert_eq!(near.call(Method::PUT, "/v1/agents/near/presence", plain).await.0, 200);
    rig.status("near", "present").await;
    let database = &rig.daemon.parts.database;
    for _ in 0..from_environment("CONVOKE_VALUES", 150) / 10 {
        let request = json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "30s" } });
        let (_, made) = service.call(Method::POST, "/v1/tasks", request.to_string()).await;
        let task = made["task"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        let (path, key) = held(&near, database, &task).await;
        // The question is drawn too; a plain one follows a refused one.
        let question =
            format!("{{{key},\"question\":{},\"checkpoint\":{}}}", json!(draw.text()), draw.json(3));
        if near.call(Method::POST, &format!("{path}/question"), question).await.0 >= 300 {
            let question = format!("{{{key},\"question\":\"which?\"}}");
            let (status, asked) = near.call(Method::POST, &format!("{path}/question"), question).await;
            assert_eq!((status, &asked["state"]), (200, &json!("waiting")), "{asked}");
        }
        let answers = format!("/v1/tasks/{task}/answer");
        let answer = format!("{{\"answer\":{}}}", draw.json(4));
        if service.call(Method::POST, &answers, answer).await.0 >= 300 {
            let (status, answered) = service.call(Method::POST, &answers, "{\"answer\":42}".into()).await;
            assert_eq!(status, 200, "{answered}");
        }
        // The next start carries the answer, and the task ends like any other.
        let (path, key) = held(&near, database, &task).await;
        let result = format!("{{{key},\"result\":1}}");
        let (status, ended) = near.call(Method::POST, &format!("{path}/result"), result).await;
        assert_eq!((status, &ended["state"]), (200, &json!("completed")), "{ended}");
    }
    still_ready(&rig).await;
    rig.daemon.stop().await;
}

/// Offers on a task until it is awarded, and accepts. Returns the path of the assignment, and its key in a body.
pub async fn held(near: &Caller, database: &Database, task: &str) -> (String, String) {
    let id: uuid::Uuid = task.parse().unwrap();
    let client = database.client().await.unwrap();
    let award = "select id::text, epoch from convoke.assignments
        where task_id = $1 and ended_at is null and state = 'awarded'";
    let round = "select round from convoke.tasks where id = $1";
    let (assignment, epoch): (String, i64) = soon("an award", async {
        loop {
            if let Some(row) = client.query_opt(award, &[&id]).await.unwrap() {
                return (row.get(0), row.get(1));
            }
            let round: i32 = client.query_one(round, &[&id]).await.unwrap().get(0);
            let offer = json!({ "round": round, "cost": 1, "eta_ms": 1, "confidence": 1 }).to_string();
            near.call(Method::POST, &format!("/v1/tasks/{task}/offers"), offer).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let key = format!("\"task_id\":\"{task}\",\"epoch\":{epoch}");
    let path = format!("/v1/assignments/{assignment}");
    let (status, started) = near.call(Method::POST, &format!("{path}/accept"), format!("{{{key}}}")).await;
    assert_eq!(status, 200, "{started}");
    (path, key)
}
