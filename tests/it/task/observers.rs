//! What dashboards may read: the rows of their org, by row security, also through the log.
use super::{World, profile, request};
use serde_json::json;

/// How many rows of a table a token with these claims sees.
async fn seen(client: &deadpool_postgres::Object, role: &str, claims: &str, table: &str) -> i64 {
    let batch = format!("begin; set local role {role}; set local request.jwt.claims to '{claims}'");
    client.batch_execute(&batch).await.unwrap();
    let row = client.query_one(&format!("select count(*) from convoke.{table}"), &[]).await.unwrap();
    client.batch_execute("rollback").await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn each_org_sees_its_own_rows_and_nobody_writes() {
    let mut world = World::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    world.started(task).await;
    let client = world.database.client().await.unwrap();
    client.batch_execute(
        "do $$ begin
             perform pg_advisory_xact_lock(4711);
             if not exists (select from pg_roles where rolname = 'anon') then create role anon nologin; end if;
             if not exists (select from pg_roles where rolname = 'authenticated') then create role authenticated nologin; end if;
         end $$;
         select convoke.admit_observers()",
    )
    .await
    .unwrap();
    for table in ["tasks", "offers", "assignments", "agents"] {
        for (role, claims, count) in [
            ("authenticated", r#"{"role": "authenticated", "org": "demo"}"#, 1),
            ("authenticated", r#"{"role": "authenticated", "org": "else"}"#, 0),
            ("authenticated", r#"{"role": "authenticated"}"#, 0),
            ("anon", r#"{"role": "anon", "org": "demo"}"#, 1),
            ("anon", r#"{"role": "anon"}"#, 0),
            ("anon", "", 0),
        ] {
            assert_eq!(seen(&client, role, claims, table).await, count, "{table} for {role} {claims}");
        }
        let write = format!("set role authenticated; delete from convoke.{table}");
        let refused = client.batch_execute(&write).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{refused:?}");
        client.batch_execute("reset role").await.unwrap();
    }
    for closed in ["events", "statistics", "schedules"] {
        let read = format!("set role authenticated; select * from convoke.{closed}");
        assert!(client.batch_execute(&read).await.is_err(), "{closed}");
        client.batch_execute("reset role").await.unwrap();
    }
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn the_tables_can_be_watched_once_they_are_published() {
    let world = World::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    client.batch_execute("create publication dashboards").await.unwrap();
    for _ in 0..2 {
        client.batch_execute("select convoke.observe('dashboards')").await.unwrap();
    }
    let rows = client
        .query("select tablename from pg_publication_tables where pubname = 'dashboards' order by 1", &[])
        .await
        .unwrap();
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["agents", "assignments", "offers", "tasks"]);
    drop(client);
    world.check().await;
}
