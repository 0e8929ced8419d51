//! Rights of dashboards: the rows of their org, by row security, also through the change log.
use super::{Harness, profile, request};
use serde_json::json;

/// Creates the roles of tokens if the server has none, and grants them access.
const ROLES: &str = "do $$ begin
         perform pg_advisory_xact_lock(4711);
         if not exists (select from pg_roles where rolname = 'anon') then create role anon nologin; end if;
         if not exists (select from pg_roles where rolname = 'authenticated') then create role authenticated nologin; end if;
     end $$;
     select convoke.admit_observers(true)";

/// How many rows of a table a token with these claims sees.
async fn seen(client: &deadpool_postgres::Object, role: &str, claims: &str, table: &str) -> i64 {
    let batch = format!("begin; set local role {role}; set local request.jwt.claims to '{claims}'");
    client.batch_execute(&batch).await.unwrap();
    let row = client.query_one(&format!("select count(*) from convoke.{table}"), &[]).await.unwrap();
    client.batch_execute("rollback").await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn each_org_sees_only_its_rows_and_none_can_write() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    world.started(task).await;
    let client = world.database.client().await.unwrap();
    client.batch_execute(ROLES).await.unwrap();
    for table in ["tasks", "offers", "assignments", "agents"] {
        for (role, claims, count) in [
            ("authenticated", r#"{"role": "authenticated", "org": "demo"}"#, 1),
            ("authenticated", r#"{"role": "authenticated", "org": "demo", "dash": "operator"}"#, 1),
            ("authenticated", r#"{"role": "authenticated", "org": "demo", "dash": "viewer"}"#, 0),
            ("authenticated", r#"{"role": "authenticated", "org": "demo", "dash": null}"#, 0),
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
        // `offers` is a view that nobody can write.
        let expected = if table == "offers" { "55000" } else { "42501" };
        assert_eq!(refused.code().unwrap().code(), expected, "{refused:?}");
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
async fn published_task_tables_can_be_watched() {
    let world = Harness::new(vec![]).await;
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
    // Clients see `offer_rows` as `offers`.
    assert_eq!(names, ["agents", "assignments", "offer_rows", "tasks"]);
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn no_query_shows_rows_of_another_org() {
    let mut far = profile("far", 1);
    far.org = "else".try_into().unwrap();
    let mut world = Harness::new(vec![profile("a", 1), far]).await;
    for (org, secret) in [("demo", "ours"), ("else", "theirs")] {
        let mut wish = request(json!({}));
        wish.input = json!({ "secret": secret });
        let org = org.try_into().unwrap();
        let task = world.tasks.request(&org, secret, wish).await.unwrap().task.id;
        let (start, agent) = world.started(task).await;
        let done = json!({ "result": secret });
        world.tasks.finish(start.key, &agent, done, Default::default()).await.unwrap();
    }
    let client = world.database.client().await.unwrap();
    client.batch_execute(ROLES).await.unwrap();
    for (role, org, sees) in
        [("authenticated", "demo", "ours"), ("authenticated", "else", "theirs"), ("anon", "demo", "ours")]
    {
        let claims = json!({ "role": role, "org": org });
        let batch = format!("begin; set local role {role}; set local request.jwt.claims to '{claims}'");
        client.batch_execute(&batch).await.unwrap();
        let everything = "select (select string_agg(t::text, ' ') from convoke.tasks t)
            || (select string_agg(o::text, ' ') from convoke.offers o)
            || (select string_agg(a::text, ' ') from convoke.assignments a)
            || (select string_agg(g::text, ' ') from convoke.agents g)";
        let told: String = client.query_one(everything, &[]).await.unwrap().get(0);
        let other = if sees == "ours" { ["theirs", "far"] } else { ["ours", "demo"] };
        assert!(
            told.contains(sees) && !other.iter().any(|word| told.contains(word)),
            "{role} of {org}: {told}"
        );
        // Nor by a condition with a side effect, which would see the row before row security filters it.
        let spy = "create function pg_temp.spy(text) returns boolean language plpgsql cost 0.0001 as
                'begin perform set_config(''spy.saw'', concat(current_setting(''spy.saw'', true), $1), true); return true; end';
            select count(*) from convoke.tasks where pg_temp.spy(input::text)";
        client.batch_execute(spy).await.unwrap();
        let saw = "select current_setting('spy.saw')";
        let saw: String = client.query_one(saw, &[]).await.unwrap().get(0);
        assert!(saw.contains(sees) && !other.iter().any(|word| saw.contains(word)), "{role} of {org}: {saw}");
        client.batch_execute("rollback").await.unwrap();
    }
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn task_views_run_with_caller_rights() {
    let world = Harness::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    client.batch_execute(ROLES).await.unwrap();
    let rights = "select p.proname::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        cross join (values ('anon'), ('authenticated')) as r(role)
        where n.nspname = 'convoke' and p.prosecdef and has_function_privilege(r.role, p.oid, 'execute')";
    let open: Vec<String> = client.query(rights, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(open, Vec::<String>::new(), "functions that run as their owner");
    let readable =
        "select distinct c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        cross join (values ('anon'), ('authenticated')) as r(role)
        where n.nspname = 'convoke' and c.relkind in ('r', 'v', 'm', 'S', 'p')
            and has_table_privilege(r.role, c.oid, 'select, insert, update, delete, truncate') order by 1";
    let open: Vec<String> = client.query(readable, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(open, ["agents", "assignments", "offer_rows", "offers", "tasks"]);
    let secured = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'convoke' and c.relname = any($1)
            and (c.relrowsecurity or 'security_barrier=true' = any(c.reloptions))";
    assert_eq!(client.query_one(secured, &[&open]).await.unwrap().get::<_, i64>(0), 5);
    drop(client);
    world.check().await;
}
