//! Remote agents on a database whose encoding lacks most characters: what it cannot hold is refused by that reason, and
//! the assignment continues.
use super::{
    Rig,
    values::{Caller, channel, held},
};
use crate::{
    daemon::soon,
    realtime::Socket,
    support::{crypto, database_in},
};
use convoke::auth::Role;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// A letter that LATIN1 lacks.
const ODD: &str = "\u{1d11e}";
const REASON: &str = "encoding of the database lacks";

/// Each report of an agent, with the character in one of its texts.
fn reports() -> Vec<(&'static str, Value)> {
    vec![
        ("progress", json!({ "activity": ODD })),
        ("progress", json!({ "checkpoint": { "text": [ODD] } })),
        ("question", json!({ "question": ODD })),
        ("question", json!({ "question": "which?", "checkpoint": ODD })),
        ("failure", json!({ "error": { "message": ODD } })),
        ("release", json!({ "reason": ODD })),
        ("release", json!({ "reason": "later", "checkpoint": { ODD: 1 } })),
        ("request", json!({ "task": { "kind": ODD, "requires": ["nothing here"] } })),
        ("result", json!({ "result": { ODD: 1 } })),
        ("result", json!({ "result": ODD, "usage": { "tokens": 1 } })),
    ]
}

/// Statements that the database has refused so far, as its statistics count them.
async fn failed_statements(rig: &Rig) -> i64 {
    let client = rig.daemon.parts.database.client().await.unwrap();
    let sql = "select xact_rollback from pg_stat_database where datname = current_database()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Sends a command on the agent's channel, and returns the error that answers it.
async fn refused_by_websocket(socket: &mut Socket, mut command: Value) -> Value {
    command["command_id"] = json!(socket.next_ref());
    let payload = json!({ "type": "broadcast", "event": "coordination", "payload": &command });
    socket.push("agent:near", "broadcast", payload).await;
    soon("the error", async {
        loop {
            let said = socket.next().await.payload["payload"].take();
            if said["in_reply_to"] == command["command_id"] {
                assert_eq!(said["type"], "error", "{command}: {said}");
                return said;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn characters_that_the_encoding_lacks_are_refused_by_both_doors_and_the_work_goes_on() {
    crypto();
    let (db, dir) = (database_in("LATIN1").await, tempfile::tempdir().unwrap());
    let rig = Rig::on(db, dir, Vec::new(), |_| ()).await;
    let service = Caller::new(&rig, rig.mint(Role::ServiceRole, "demo", None));
    let near = Caller::new(&rig, rig.token("near"));
    let presence = json!({ "capabilities": ["work"], "slots": 2, "lease": "60s" });
    let present = near.call(Method::PUT, "/v1/agents/near/presence", presence.to_string()).await;
    assert_eq!(present.0, 200, "{}", present.1);
    let odd = json!({ "capabilities": ["work"], "description": ODD });
    rig.status("near", "present").await;
    // A problem with the presence comes in the inbox, once, although the registration is tried again every second.
    assert_eq!(near.call(Method::PUT, "/v1/agents/near/presence", odd.to_string()).await.0, 200);
    let problems = async |wait: &str| {
        let (_, inbox) =
            near.call(Method::GET, &format!("/v1/agents/near/inbox?wait={wait}"), String::new()).await;
        let problem = |mail: &&Value| mail["payload"].to_string().contains(REASON);
        inbox["messages"].as_array().unwrap().iter().filter(problem).count()
    };
    let told = async {
        while problems("1s").await == 0 {}
        let before = failed_statements(&rig).await;
        while failed_statements(&rig).await < before + 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        problems("0s").await
    };
    assert_eq!(soon("the problem in the inbox", told).await, 1);
    assert_eq!(near.call(Method::PUT, "/v1/agents/near/presence", presence.to_string()).await.0, 200);
    let mut socket = channel(&rig).await;
    for by_http in [true, false] {
        let request = json!({ "kind": "k", "requires": ["work"], "policy": { "attempts_max": 1 } });
        let (_, made) = service.call(Method::POST, "/v1/tasks", request.to_string()).await;
        let task = made["task"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        let (path, key) = held(&near, &rig.daemon.parts.database, &task).await;
        let key: Value = serde_json::from_str(&format!("{{{key}}}")).unwrap();
        for (report, members) in reports() {
            let mut body = key.clone();
            body.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
            let problem = if by_http {
                let (status, told) =
                    near.call(Method::POST, &format!("{path}/{report}"), body.to_string()).await;
                assert_eq!(status, 400, "{report}: {told}");
                told
            } else {
                body["assignment_id"] = json!(path.rsplit('/').next());
                body["type"] = json!(format!("task_{report}"));
                refused_by_websocket(&mut socket, body).await
            };
            assert_eq!(problem["code"], "bad_request", "{report}: {problem}");
            assert!(problem.to_string().contains(REASON), "{report}: {problem}");
        }
        let mut body = key;
        body["result"] = json!({ "word": "caf\u{e9}" });
        let (status, ended) = near.call(Method::POST, &format!("{path}/result"), body.to_string()).await;
        assert_eq!((status, &ended["state"]), (200, &json!("completed")), "{ended}");
        let (_, shown) = service.call(Method::GET, &format!("/v1/tasks/{task}"), String::new()).await;
        assert_eq!(
            (&shown["attempt"], &shown["result"]["word"]),
            (&json!(1), &json!("caf\u{e9}")),
            "{shown}"
        );
    }
    rig.daemon.stop().await;
}
