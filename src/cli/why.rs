//! `convoke task why`: the rounds of a task as a table.
#![expect(clippy::indexing_slicing, reason = "a member that JSON does not have is null, not a panic")]
use super::screen;
use serde_json::Value;

pub(super) fn print(why: &Value) {
    let task = &why["task"];
    let reason = task["state_reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
    screen::line(format!("{} is {}{reason}", screen::text(&task["kind"]), screen::text(&task["state"])));
    for round in list(&why["rounds"]) {
        let winner = match (round["winner"].as_str(), round["because"].as_str()) {
            (Some(winner), Some(because)) => format!("winner {winner}: {because}"),
            (Some(winner), None) => format!("winner {winner}"),
            (None, _) => "no winner".to_owned(),
        };
        screen::line(format!("\nround {}: {winner}", round["round"]));
        let row = |offer: &Value| {
            let part = |name: &str| screen::fraction(&offer["score"][name]);
            [
                format!("  {}", screen::text(&offer["agent_id"])),
                screen::text(&offer["state"]),
                screen::dollars(&offer["cost_microdollars"]),
                format!("{} ms", offer["eta_ms"]),
                screen::fraction(&offer["confidence"]),
                part("total"),
                ["cost", "speed", "confidence", "load", "reputation"].map(part).join(" "),
            ]
        };
        let offers = list(&round["offers"]);
        if !offers.is_empty() {
            let header =
                ["  OFFER OF", "STATE", "COST", "TIME", "SURE", "SCORE", "COST SPEED SURE LOAD REPUTE"];
            screen::table(header, offers.iter().map(row));
        }
        if let Some(reason) = round["silent"].as_str() {
            screen::line(format!("  nobody offered: {reason}"));
        }
        for silent in list(&round["silent"]) {
            let (agent, reason) = (screen::text(&silent["agent_id"]), screen::text(&silent["reason"]));
            screen::line(format!("  {agent} did not offer: {reason}"));
        }
    }
    let attempts = list(&why["attempts"]);
    if !attempts.is_empty() {
        screen::line("\nattempts:");
    }
    for attempt in attempts {
        let (agent, state) = (screen::text(&attempt["agent_id"]), screen::text(&attempt["state"]));
        let message = attempt["outcome"].pointer("/body/message").and_then(Value::as_str);
        let message = message.map(|message| format!(": {message}"));
        screen::line(format!("  {agent}: {state}{}", message.unwrap_or_default()));
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}
