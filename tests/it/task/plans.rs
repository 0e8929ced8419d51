//! How Postgres carries the statements out: planned once a connection, before there are rows.
use super::{World, profile};

/// Those that run for every task, or all the time; `rest` and the like are one row by its key.
const STATEMENTS: [&str; 24] = [
    "announce",
    "award",
    "classes",
    "confirm",
    "due",
    "empty_round",
    "ends",
    "facts",
    "followers",
    "lock_tasks",
    "next_due",
    "offers",
    "orphan",
    "outlooks",
    "past_deadline",
    "progress",
    "ready",
    "rearm",
    "request",
    "reready",
    "settle",
    "standing_offers",
    "start",
    "verify",
];

#[tokio::test]
async fn a_statement_that_is_planned_on_empty_tables_does_not_read_them_from_end_to_end_later() {
    let world = World::new(vec![profile("a", 1)]).await;
    let client = world.database.client().await.unwrap();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/task/sql");
    for name in STATEMENTS {
        let sql = std::fs::read_to_string(format!("{folder}/{name}.sql")).unwrap();
        let nulls = vec!["null"; client.prepare(&sql).await.unwrap().params().len()].join(", ");
        let call = if nulls.is_empty() { String::new() } else { format!("({nulls})") };
        client.batch_execute(&format!("prepare planned as {sql}")).await.unwrap();
        let plan = client.query(&format!("explain execute planned{call}"), &[]).await.unwrap();
        client.batch_execute("deallocate planned").await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        for table in ["tasks", "offers", "assignments", "events"] {
            let whole = format!("Seq Scan on {table} ");
            assert!(!plan.iter().any(|line| line.contains(&whole)), "{name}:\n{}", plan.join("\n"));
        }
    }
    drop(client);
    world.check().await;
}
