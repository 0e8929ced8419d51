//! `convoke task why`: prints the rounds, offers and attempts of a task.
#![expect(clippy::indexing_slicing, reason = "indexing a JSON value returns null for a missing member")]
use super::{output, steps};
use serde_json::{Value, json};

pub(super) fn print(why: &Value) {
    let task = &why["task"];
    let reason = task["state_reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
    output::line(format!("{} is {}{reason}", output::text(&task["kind"]), output::text(&task["state"])));
    if let Some(waits_for) = why["waits_for"].as_str() {
        output::line(format!("it waits {waits_for}"));
    }
    for round in list(&why["rounds"]) {
        let winner = match (round["winner"].as_str(), round["because"].as_str()) {
            (Some(winner), Some(because)) => format!("winner {winner}: {because}"),
            (Some(winner), None) => format!("winner {winner}"),
            (None, _) => "no winner".to_owned(),
        };
        output::line(format!("\nround {}: {winner}", round["round"]));
        let row = |offer: &Value| {
            let part = |name: &str| output::fraction(&offer["score"][name]);
            [
                format!("  {}", output::text(&offer["agent_id"])),
                output::text(&offer["state"]),
                output::dollars(&offer["cost_microdollars"]),
                format!("{} ms", offer["eta_ms"]),
                output::fraction(&offer["confidence"]),
                part("total"),
                ["cost", "speed", "confidence", "load", "reputation"].map(part).join(" "),
            ]
        };
        let offers = list(&round["offers"]);
        if !offers.is_empty() {
            let header =
                ["  OFFER OF", "STATE", "COST", "TIME", "SURE", "SCORE", "COST SPEED SURE LOAD REPUTE"];
            output::table(header, offers.iter().map(row));
        }
        if let Some(reason) = round["silent"].as_str() {
            output::line(format!("  no offers: {reason}"));
        }
        for silent in list(&round["silent"]) {
            let (agent, reason) = (output::text(&silent["agent_id"]), output::text(&silent["reason"]));
            output::line(format!("  {agent} did not offer: {reason}"));
        }
    }
    let attempts = list(&why["attempts"]);
    if !attempts.is_empty() {
        output::line("\nattempts:");
    }
    for attempt in attempts {
        let (agent, state) = (output::text(&attempt["agent_id"]), output::text(&attempt["state"]));
        let message = attempt["error"].as_str().map(|message| format!(": {message}"));
        let paid = paid(&attempt["paid"]);
        output::line(format!("  {agent}: {state}{}{paid}", message.unwrap_or_default()));
    }
    steps::print(&why["runs"]);
    let all = paid(&why["paid"]);
    if !all.is_empty() {
        output::line(format!("\ntotal cost{all}"));
    }
}

/// The cost, like ` (1500 tokens, $0.000450, presumed)`; empty if there is none.
fn paid(paid: &Value) -> String {
    if paid["tokens"].as_i64().unwrap_or(0) == 0 && paid["microdollars"].as_i64().unwrap_or(0) == 0 {
        return String::new();
    }
    let presumed = if paid["presumed"] == true { ", presumed" } else { "" };
    format!(" ({} tokens, {}{presumed})", paid["tokens"], output::dollars(&paid["microdollars"]))
}

/// Adds members of the explanation to a task: what it waits for, its costs and its attempts.
pub(super) fn add_to(task: &mut Value, why: &Value) {
    let Some(members) = task.as_object_mut() else { return };
    let mut add = |name: &str, value: Value| {
        members.insert(name.to_owned(), value);
    };
    add("waits_for", why["waits_for"].clone());
    add("paid", why["paid"].clone());
    let attempts = list(&why["attempts"]);
    if !attempts.is_empty() {
        let line = |attempt: &Value| {
            json!({ "agent_id": attempt["agent_id"], "state": attempt["state"], "error": attempt["error"],
                "paid": attempt["paid"] })
        };
        add("attempts", attempts.iter().map(line).collect());
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}
