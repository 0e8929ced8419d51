//! Query plans: every statement is planned once for each connection, possibly on empty tables.
use super::{Harness, profile};
use deadpool_postgres::Client;

/// Statements that run for every task or continuously; others, like `clear_timer`, read one row by its key.
const STATEMENTS: [&str; 31] = [
    "announce",
    "award",
    "awaited",
    "classes",
    "confirm",
    "due",
    "empty_round",
    "ends",
    "facts",
    "followers",
    "keep_offers",
    "retry_unattended",
    "lock_tasks",
    "next_due",
    "offers",
    "orphan",
    "outlooks",
    "parent",
    "parents",
    "past_deadline",
    "ready",
    "renew_lease",
    "set_due",
    "request",
    "mark_ready",
    "reserve",
    "settle",
    "standing_offers",
    "start",
    "verify",
    "why_offers",
];

/// Indexes that are read in order for the next rows.
const QUEUES: [&str; 4] = ["tasks_due", "tasks_deadline", "tasks_followed", "tasks_cascading"];

/// Six hundred finished tasks, with their assignments and offers.
const FINISHED: &str = "
    set session_replication_role = replica;
    with made as (
        insert into convoke.tasks (id, org, kind, class, input, requester, root_id, state, agent_id, epoch)
        select id, 'demo', 'k', 1, '{}', 'r', id, 'completed', 'a', 1
        from (select gen_random_uuid() as id from generate_series(1, 600)) new returning id
    ), offered as (
        insert into convoke.offer_rows (task_id, round, agent_id, incarnation, state, valid_until)
        select id, 1, 'a', 1, 'confirmed', now() from made
    )
    insert into convoke.assignments (id, task_id, epoch, agent_id, incarnation, state, confirm_by, ended_at)
    select gen_random_uuid(), id, 1, 'a', 1, 'finished', now(), now() from made;
    analyze convoke.tasks; analyze convoke.offer_rows; analyze convoke.assignments";

/// The plan of each statement, line by line.
async fn plans(client: &Client, names: &[&'static str]) -> Vec<(&'static str, Vec<String>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/task/sql");
    let mut plans = Vec::new();
    for &name in names {
        let sql = std::fs::read_to_string(format!("{folder}/{name}.sql")).unwrap();
        let nulls = vec!["null"; client.prepare(&sql).await.unwrap().params().len()].join(", ");
        let call = if nulls.is_empty() { String::new() } else { format!("({nulls})") };
        client.batch_execute(&format!("prepare planned as {sql}")).await.unwrap();
        let plan = client.query(&format!("explain execute planned{call}"), &[]).await.unwrap();
        client.batch_execute("deallocate planned").await.unwrap();
        plans.push((name, plan.iter().map(|row| row.get(0)).collect()));
    }
    plans
}

#[tokio::test]
async fn plan_made_on_empty_tables_has_no_sequential_scan() {
    let world = Harness::new(vec![profile("a", 1)]).await;
    let client = world.database.client().await.unwrap();
    for (name, plan) in plans(&client, &STATEMENTS).await {
        for table in ["tasks", "offer_rows", "assignments", "events"] {
            let whole = format!("Seq Scan on {table} ");
            assert!(!plan.iter().any(|line| line.contains(&whole)), "{name}:\n{}", plan.join("\n"));
        }
    }
    drop(client);
    world.check().await;
}

/// With only finished tasks, an index of the others looks empty, and reading all of it seems cheaper than by key.
#[tokio::test]
async fn plan_made_with_only_finished_tasks_reads_by_key() {
    let world = Harness::new(vec![profile("a", 1)]).await;
    // Only a superuser may switch triggers off for a session.
    world.db.admin().await.batch_execute(FINISHED).await.unwrap();
    let client = world.database.client().await.unwrap();
    let mut scans = 0;
    for (name, plan) in plans(&client, &STATEMENTS).await {
        let next = plan.iter().skip(1).map(String::as_str).chain([""]);
        for (line, next) in plan.iter().zip(next) {
            let Some((_, index)) = line.split_once(" using ") else { continue };
            let (index, table) = index.split_once(" on ").unwrap();
            if !["tasks ", "offer_rows ", "assignments ", "events "].iter().any(|big| table.starts_with(big))
            {
                continue;
            }
            scans += 1;
            let by_key = next.contains("Index Cond") || QUEUES.contains(&index);
            assert!(by_key, "{name} reads all of {index}:\n{}", plan.join("\n"));
        }
    }
    assert!(scans > 20, "{scans}");
    client
        .batch_execute(
            "delete from convoke.tasks; delete from convoke.offer_rows; delete from convoke.assignments",
        )
        .await
        .unwrap();
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn list_of_all_agents_is_hashed_and_not_searched_for_each_of_them() {
    let world = Harness::new(vec![profile("a", 1)]).await;
    let client = world.database.client().await.unwrap();
    for (name, plan) in plans(&client, &["retire", "expect"]).await {
        assert!(plan.iter().any(|line| line.contains("hashed SubPlan")), "{name}: {plan:#?}");
    }
}
