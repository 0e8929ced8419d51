//! Every command through both doors, HTTP and a websocket: the same result, code and message.
use super::Rig;
use crate::realtime::{Socket, client_process::ClientProcess, http};
use serde_json::{Value, json};

const UNKNOWN_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// One bearer at one door.
enum Door {
    Http { base: String, token: String },
    Websocket { socket: Box<Socket>, room: &'static str, sent: u32 },
}

impl Door {
    async fn open(rig: &Rig, by_http: bool, agent: &'static str, room: &'static str) -> Self {
        let token = rig.token(agent);
        if by_http {
            return Self::Http { base: rig.http(), token };
        }
        let url = format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", rig.daemon.parts.addr);
        let mut socket = Box::new(Socket::open(&url, true).await);
        socket.join(room, json!({})).await.ok();
        Self::Websocket { socket, room, sent: 0 }
    }

    /// Gives a command: its message, and the path of the same over HTTP.
    async fn give(&mut self, mut message: Value, path: &str) -> Value {
        match self {
            Self::Http { base, token } => {
                let request = http().post(format!("{base}/v1/{path}")).bearer_auth(token);
                let body = match path.rsplit('/').next() {
                    Some("tasks") => message["task"].clone(),
                    Some("offers") => {
                        let mut offer = message["offer"].clone();
                        offer["round"] = message["round"].clone();
                        offer
                    }
                    Some("choose") => json!({ "agent_id": message["chosen"] }),
                    Some("answer") => json!({ "answer": message["answer"] }),
                    Some("cancel") => json!({ "reason": message["reason"] }),
                    Some("decline") => json!({ "round": message["round"] }),
                    Some("requeue") => json!({}),
                    _ => message,
                };
                let answer = request.body(body.to_string()).send().await.unwrap();
                serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default()
            }
            Self::Websocket { socket, room, sent } => {
                *sent += 1;
                let (id, last) = (format!("c{sent}"), format!("last{sent}"));
                message["command_id"] = json!(id);
                // Messages of one socket are carried out in their order: an answer to this one comes after any other.
                for payload in [message, json!({ "type": "dance", "command_id": last })] {
                    let event = json!({ "type": "broadcast", "event": "coordination", "payload": payload });
                    socket.push(room, "broadcast", event).await;
                }
                let mut answer = Value::Null;
                loop {
                    let said = socket.until("broadcast").await.payload["payload"].clone();
                    if said["in_reply_to"] == json!(id) {
                        answer = said;
                    } else if said["in_reply_to"] == json!(last) {
                        return answer;
                    }
                }
            }
        }
    }
}

/// What an answer says, in the same form for both doors, without ids.
fn outcome(answer: &Value) -> Value {
    let text = answer.get("detail").or_else(|| answer.get("message")).and_then(Value::as_str);
    if let (Some(code), Some(text)) = (answer.get("code"), text) {
        let words = text.split_whitespace().map(|word| if word.contains("-7") { "ID" } else { word });
        return json!([code, words.collect::<Vec<_>>().join(" ")]);
    }
    let task = answer.get("task").unwrap_or(answer);
    json!([task.get("state"), answer.get("replayed"), answer.get("input"), answer.get("attempt")])
}

/// The next message to the agent about this task.
async fn message_about(near: &mut ClientProcess, kind: &str, task: &str) -> Value {
    let is = |it: &Value| {
        let payload = &it["payload"];
        payload["type"] == kind && (payload["task_id"] == task || payload["task"]["id"] == task)
    };
    near.until("broadcast", is).await["payload"].clone()
}

struct Script<'a> {
    near: &'a mut ClientProcess,
    agent: Door,
    boss: Door,
    outcomes: Vec<(String, Value)>,
}

impl Script<'_> {
    fn note(&mut self, what: &str, answer: &Value) {
        self.outcomes.push((what.to_owned(), outcome(answer)));
    }

    async fn boss(&mut self, kind: &str, task: &str, path: &str, more: Value) -> Value {
        let mut message = json!({ "type": kind, "task_id": task });
        message.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        let answer = self.boss.give(message, path).await;
        self.note(kind, &answer);
        answer
    }

    async fn task_command(&mut self, kind: &str, task: &str, name: &str, more: Value) {
        self.boss(kind, task, &format!("tasks/{task}/{name}"), more).await;
    }

    async fn report(&mut self, kind: &str, won: &Value, name: &str, more: Value) {
        let path = format!("assignments/{}/{name}", won["assignment_id"].as_str().unwrap());
        let answer = self.agent.give(super::about(kind, won, more), &path).await;
        self.note(kind, &answer);
    }

    async fn request(&mut self, policy: Value) -> String {
        let request = json!({ "kind": "k", "requires": ["work"], "input": 7, "policy": policy });
        let made = self.boss("task_request", UNKNOWN_ID, "tasks", json!({ "task": request })).await;
        made["task"]["id"].as_str().unwrap().to_owned()
    }

    async fn offer(&mut self, task: &str) {
        let asked = message_about(self.near, "task_request", task).await;
        let offer = json!({
            "type": "task_offer", "task_id": task, "round": asked["task"]["round"], "offer": { "eta_ms": 5 },
        });
        let answer = self.agent.give(offer, &format!("tasks/{task}/offers")).await;
        self.note("task_offer", &answer);
    }

    async fn won(&mut self) -> (String, Value) {
        let task = self.request(json!({ "bid_window": "60s", "attempts_max": 9 })).await;
        self.offer(&task).await;
        let won = message_about(self.near, "task_assignment", &task).await;
        (task, won)
    }

    async fn run(mut self) -> Vec<(String, Value)> {
        let (task, won) = self.won().await;
        self.report("task_confirm", &won, "confirm", json!({})).await;
        self.report("task_accept", &won, "accept", json!({})).await;
        self.report("task_progress", &won, "progress", json!({ "progress": 0.5 })).await;
        self.report("task_progress", &won, "progress", json!({ "progress": 5 })).await;
        self.report("heartbeat", &won, "heartbeat", json!({})).await;
        let part = json!({ "task": { "kind": "part", "requires": ["missing"] } });
        self.report("task_request", &won, "request", part).await;
        self.report("task_question", &won, "question", json!({ "question": "?" })).await;
        self.task_command("task_answer", &task, "answer", json!({ "answer": 1 })).await;
        let again = message_about(self.near, "task_assignment", &task).await;
        self.report("task_accept", &won, "accept", json!({})).await;
        self.report("task_accept", &again, "accept", json!({})).await;
        self.report("task_result", &again, "result", json!({ "result": 1 })).await;
        self.task_command("task_cancel", &task, "cancel", json!({ "reason": "late" })).await;
        self.task_command("task_requeue", &task, "requeue", json!({})).await;

        let (task, won) = self.won().await;
        self.report("task_refuse", &won, "refuse", json!({ "reason": "no" })).await;
        self.task_command("task_cancel", &task, "cancel", json!({ "reason": "enough" })).await;

        for (kind, name, more) in [
            ("task_failure", "failure", json!({ "error": { "message": "broken" } })),
            ("task_release", "release", json!({ "reason": "tired" })),
        ] {
            let (task, won) = self.won().await;
            self.report("task_accept", &won, "accept", json!({})).await;
            self.report(kind, &won, name, more).await;
            self.task_command("task_cancel", &task, "cancel", json!({ "reason": "enough" })).await;
            self.task_command("task_requeue", &task, "requeue", json!({})).await;
            self.task_command("task_cancel", &task, "cancel", json!({ "reason": "enough" })).await;
        }

        let task = self.request(json!({ "award": "requester", "choose_within": "60s" })).await;
        self.offer(&task).await;
        self.task_command("task_choose", &task, "choose", json!({ "chosen": "near" })).await;
        let won = message_about(self.near, "task_assignment", &task).await;
        self.report("task_accept", &won, "accept", json!({})).await;
        self.task_command("task_choose", &task, "choose", json!({ "chosen": "near" })).await;
        self.report("task_result", &won, "result", json!({ "result": 1 })).await;

        let task = self.request(json!({ "bid_window": "60s" })).await;
        let asked = message_about(self.near, "task_request", &task).await;
        let decline = json!({ "type": "task_refuse", "task_id": task, "round": asked["task"]["round"] });
        let answer = self.agent.give(decline, &format!("tasks/{task}/decline")).await;
        self.note("task_refuse", &answer);
        self.task_command("task_cancel", &task, "cancel", json!({ "reason": "enough" })).await;

        for (kind, name, more) in [
            ("task_cancel", "cancel", json!({ "reason": "r" })),
            ("task_choose", "choose", json!({ "chosen": "near" })),
            ("task_answer", "answer", json!({ "answer": 1 })),
            ("task_requeue", "requeue", json!({})),
        ] {
            self.task_command(kind, UNKNOWN_ID, name, more).await;
        }
        let offer = json!({ "type": "task_offer", "task_id": UNKNOWN_ID, "round": 1, "offer": {} });
        let answer = self.agent.give(offer, &format!("tasks/{UNKNOWN_ID}/offers")).await;
        self.note("task_offer", &answer);
        self.outcomes
    }
}

#[tokio::test]
async fn every_command_has_the_same_outcome_through_both_doors() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = rig.agent("near").await;
    let mut outcomes = Vec::new();
    for by_http in [true, false] {
        let agent = Door::open(&rig, by_http, "near", "agent:near").await;
        let boss = Door::open(&rig, by_http, "boss", "agent:boss").await;
        outcomes.push(Script { near: &mut near, agent, boss, outcomes: Vec::new() }.run().await);
    }
    let (by_socket, by_http) = (outcomes.pop().unwrap(), outcomes.pop().unwrap());
    assert!(by_http.len() > 40, "{}", by_http.len());
    for (http, socket) in by_http.iter().zip(&by_socket) {
        assert_eq!(http, socket);
    }
    assert_eq!(by_http.len(), by_socket.len());
    rig.daemon.stop().await;
}
