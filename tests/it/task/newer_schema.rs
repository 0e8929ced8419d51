//! Rows with a state of a newer schema: an error that says so, and the row stays as it is.
use super::{Harness, profile, request};
use convoke::{
    id::TaskId,
    task::{Error, Filter, TaskState, Usage},
};
use serde_json::json;

const NEWER: &str = "the schema is newer than this daemon";

/// A migration of a later version: no check knows the states any more.
async fn without_checks(world: &Harness) -> deadpool_postgres::Client {
    let client = world.database.client().await.unwrap();
    let drop_checks = "do $$ declare c record; begin
        for c in select conrelid::regclass as relation, conname from pg_constraint
            where contype = 'c' and conrelid::regclass::text in
                ('convoke.tasks', 'convoke.assignments', 'convoke.offer_rows')
        loop execute format('alter table %s drop constraint %I', c.relation, c.conname); end loop;
    end $$";
    client.batch_execute(drop_checks).await.unwrap();
    client
}

fn is_newer<T: std::fmt::Debug>(answer: Result<T, Error>) {
    match answer {
        Err(error @ Error::NewerSchema(_)) => assert!(error.to_string().contains(NEWER), "{error}"),
        other => panic!("not an error about the schema: {other:?}"),
    }
}

#[tokio::test]
async fn unknown_task_state_is_an_error_that_names_the_newer_schema() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let paused = world.ask(request(json!({ "award": "direct", "agent": "absent" }))).await;
    let client = without_checks(&world).await;
    let write = "update convoke.tasks set state = 'paused', due_at = clock_timestamp() where id = $1";
    client.execute(write, &[&paused.as_uuid()]).await.unwrap();
    world.tasks.notify_arbiter();
    is_newer(world.tasks.get(paused).await);
    is_newer(world.tasks.list(&Filter::default()).await);
    is_newer(world.tasks.cancel(paused, "test").await);
    is_newer(world.tasks.requeue(paused, "test").await);
    // The next task is awarded, and the row of the newer schema is unchanged.
    does_one_task(&mut world).await;
    assert_eq!(state(&client, "tasks", paused).await, "paused");
}

#[tokio::test]
async fn unknown_assignment_state_leaves_the_task_running() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let client = without_checks(&world).await;
    let write = "update convoke.assignments set state = 'suspended' where task_id = $1";
    client.execute(write, &[&task.as_uuid()]).await.unwrap();
    is_newer(world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await);
    is_newer(world.tasks.cancel(task, "test").await);
    does_one_task(&mut world).await;
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Running);
}

#[tokio::test]
async fn unknown_offer_state_is_an_error_of_its_explanation() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let task = world.ask(request(json!({}))).await;
    world.started(task).await;
    let client = without_checks(&world).await;
    let write = "insert into convoke.offer_rows (task_id, round, agent_id, incarnation, state, valid_until)
        values ($1, 1, 'b', 1, 'bundled', clock_timestamp())";
    assert_eq!(client.execute(write, &[&task.as_uuid()]).await.unwrap(), 1);
    is_newer(world.tasks.why(task).await);
}

async fn does_one_task(world: &mut Harness) {
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
}

async fn state(client: &deadpool_postgres::Client, table: &str, id: TaskId) -> String {
    let read = format!("select state from convoke.{table} where id = $1");
    client.query_one(&read, &[&id.as_uuid()]).await.unwrap().get(0)
}
