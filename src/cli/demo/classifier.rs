//! The demo's HTTP agent: a small service that classifies a ticket by weighted words. It stands for any service that an
//! agent of `kind = "http"` calls.
use crate::{
    agent::{Definition, Kind},
    scope::{OnExit, Scope},
};
use axum::{
    Json, Router,
    http::{HeaderName, HeaderValue},
    routing::post,
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::net::TcpListener;

/// The agent of the example whose service this is.
const AGENT: &str = "classifier";
/// The port that the example's file names.
const PORT: u16 = 7711;
/// Simulated time of a model.
const TAKES: Duration = Duration::from_millis(80);
/// Cost of one answer. Offers are free.
const MICRODOLLARS: u64 = 40;
/// Confidence if two categories have the highest weight.
const CONFIDENCE_MIN: f64 = 0.2;
/// Confidence for each point that the best category is ahead of the next.
const CONFIDENCE_PER_WEIGHT: f64 = 0.05;
const CONFIDENCE_MAX: f64 = 0.85;

/// A category, its usual urgency, and the weight of each word.
type Weights = (&'static str, i32, &'static [(&'static str, i32)]);

const WEIGHTS: &[Weights] = &[
    (
        "outage",
        5,
        &[
            ("down", 6),
            ("503", 6),
            ("500", 5),
            ("cannot work", 5),
            ("data loss", 7),
            ("missing", 2),
            ("every", 1),
            ("redirected", 4),
            ("loop", 3),
            ("production", 3),
            ("backups", 3),
            ("429", 2),
            ("stops", 2),
        ],
    ),
    (
        "security",
        5,
        &[
            ("breach", 7),
            ("suspicious", 5),
            ("security", 5),
            ("another client", 7),
            ("of others", 6),
            ("other guests", 7),
            ("somebody else", 5),
            ("audit", 3),
            ("do not know", 2),
        ],
    ),
    (
        "bug",
        3,
        &[
            ("crash", 5),
            ("closes", 3),
            ("blank", 4),
            ("error", 3),
            ("cuts off", 4),
            ("wrong", 3),
            ("twice on", 3),
            ("late", 4),
            ("slow", 4),
            ("no results", 5),
            ("two times", 3),
            ("typo", 3),
            ("empty page", 3),
            ("limit reached", 2),
            ("instead of", 2),
        ],
    ),
    (
        "account",
        3,
        &[
            ("password", 5),
            ("log in", 4),
            ("locked out", 5),
            ("delete my account", 7),
            ("verif", 4),
            ("invite", 4),
            ("avatar", 3),
            ("unsubscribe", 4),
            ("expired", 3),
            ("seats", 2),
            ("signing in", 2),
        ],
    ),
    (
        "billing",
        3,
        &[
            ("invoice", 5),
            ("charged", 6),
            ("refund", 6),
            ("payment", 4),
            ("card", 3),
            ("vat", 4),
            ("billing", 6),
            ("eur", 2),
        ],
    ),
    (
        "sales",
        2,
        &[
            ("upgrade", 5),
            ("price", 4),
            ("discount", 5),
            ("student plan", 6),
            ("account manager", 6),
            ("cost us", 4),
            ("agreement", 3),
            ("compliance", 2),
        ],
    ),
    (
        "question",
        2,
        &[
            ("how do", 5),
            ("how can", 5),
            ("where is", 4),
            ("can i", 4),
            ("is there", 3),
            ("import", 2),
            ("share", 2),
        ],
    ),
    (
        "feedback",
        1,
        &[("love", 6), ("thanks", 5), ("idea", 6), ("dark mode", 6), ("would save", 4), ("keep going", 4)],
    ),
];

/// Starts the service on the port of the example's file, or on a free one if that is in use.
pub(super) async fn start(scope: &Scope) -> anyhow::Result<SocketAddr> {
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?,
    };
    let address = listener.local_addr()?;
    let routes = Router::new().route("/triage", post(answer)).route("/offer", post(offer));
    scope.spawn("classifier", OnExit::Log, |stop| async move {
        Ok(axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await?)
    });
    Ok(address)
}

/// Writes the service's address into the agent's definition.
pub(super) fn point_to(definitions: &mut [Definition], service: SocketAddr) {
    for agent in definitions.iter_mut().filter(|agent| agent.id.as_str() == AGENT) {
        if agent.run.kind == Kind::Http {
            agent.run.url = Some(format!("http://{service}/triage"));
            agent.offer.url = Some(format!("http://{service}/offer"));
        }
    }
}

async fn answer(Json(job): Json<Value>) -> ([(HeaderName, HeaderValue); 1], Json<Value>) {
    tokio::time::sleep(TAKES).await;
    let ticket = job.pointer("/input/ticket").cloned().unwrap_or_default();
    let cost = [(HeaderName::from_static("convoke-microdollars"), HeaderValue::from(MICRODOLLARS))];
    (cost, Json(classify(&ticket)))
}

/// Offers with a confidence that rises with the distance of the best category to the next.
async fn offer(Json(asked): Json<Value>) -> Json<Value> {
    // A prefix of the input as text, which may be cut anywhere.
    let text =
        asked.pointer("/task/input_preview").and_then(Value::as_str).unwrap_or_default().to_lowercase();
    let mut weights: Vec<i32> = WEIGHTS.iter().map(|category| weigh(category, &text)).collect();
    weights.sort_unstable_by(|a, b| b.cmp(a));
    let (first, second) = match weights.as_slice() {
        [first, second, ..] => (*first, *second),
        _ => (0, 0),
    };
    let confidence = (CONFIDENCE_MIN + f64::from(first - second) * CONFIDENCE_PER_WEIGHT).min(CONFIDENCE_MAX);
    let note = format!("best weight {first}, next {second}");
    Json(json!({ "offer": { "cost": MICRODOLLARS, "eta_ms": 120, "confidence": confidence, "note": note } }))
}

/// The weight of a category for a text.
fn weigh((_, _, words): &Weights, text: &str) -> i32 {
    let count = |word: &str| i32::try_from(text.matches(word).count()).unwrap_or(0);
    words.iter().map(|(word, weight)| weight * count(word)).sum()
}

fn classify(ticket: &Value) -> Value {
    let member = |name: &str| ticket.get(name).and_then(Value::as_str).unwrap_or_default().to_lowercase();
    // The subject is the summary, so it counts twice.
    let text = format!("{0} {0} {1}", member("subject"), member("body"));
    let best =
        WEIGHTS.iter().map(|category| (weigh(category, &text), category)).max_by_key(|(weight, _)| *weight);
    let Some((weight, (category, usual, words))) = best.filter(|(weight, _)| *weight > 0) else {
        return json!({ "category": "question", "urgency": 2, "reason": "no word has a weight" });
    };
    let found: Vec<_> = words.iter().filter(|(word, _)| text.contains(word)).map(|(word, _)| *word).collect();
    let plan = match member("plan").as_str() {
        "enterprise" if *usual > 1 => 1,
        "free" if *usual > 2 => -1,
        _ => 0,
    };
    let pressing = i32::from(["urgent", "within the hour", "at once"].iter().any(|word| text.contains(word)));
    let urgency = (usual + plan + pressing).clamp(1, 5);
    json!({ "category": category, "urgency": urgency, "reason": format!("{} (weight {weight})", found.join(", ")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(plan: &str, subject: &str, body: &str) -> (String, i64) {
        let result = classify(&json!({ "plan": plan, "subject": subject, "body": body }));
        (result["category"].as_str().unwrap().to_owned(), result["urgency"].as_i64().unwrap())
    }

    #[test]
    fn ticket_is_classified_by_the_highest_weight() {
        assert_eq!(sorted("enterprise", "Production is down", "503 since 07:40"), ("outage".into(), 5));
        assert_eq!(sorted("team", "Charged twice", "Please refund"), ("billing".into(), 3));
        assert_eq!(sorted("free", "Love the new editor", "thanks"), ("feedback".into(), 1));
        assert_eq!(sorted("free", "Hm", ""), ("question".into(), 2));
    }
}
