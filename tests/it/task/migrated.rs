//! A database of version 38 with tasks in every state: nothing is lost by the migrations after it, and work goes on.
use super::{Harness, profile};
use crate::support::{TestDb, database, empty_database};
use convoke::{
    db,
    id::TaskId,
    scope::Scope,
    task::{Config, TaskState, Usage},
};
use serde_json::{Value, json};
use std::{fs, path::Path};
use uuid::Uuid;

/// The last schema in which every offer is a row.
const BEFORE: i32 = 38;

/// Tasks in every state, each with two offers; the number is the last one of the id.
const TASKS: &str = "
    insert into convoke.agents (id, org, kind, capabilities, slots, slots_used)
    values ('a', 'demo', 'rust', '{work}', 8, 2), ('b', 'demo', 'rust', '{work}', 8, 0);
    insert into convoke.tasks (id, org, kind, requires, class, requester, root_id, state, round, epoch, attempt, agent_id,
        due_at, run_at, bids_close_at, depends_on, followed, question, verifier_id, result, policy)
    select ('00000000-0000-7000-8000-0000000000' || lpad(n::text, 2, '0'))::uuid, 'demo', 'test', '{work}',
        convoke.task_class('demo', '{work}'), 'test', ('00000000-0000-7000-8000-0000000000' || lpad(n::text, 2, '0'))::uuid,
        state, round, epoch, attempt, case when epoch > 0 then 'a' end,
        case due when 'now' then clock_timestamp() when 'later' then clock_timestamp() + interval '1 hour' end,
        case when state = 'scheduled' then clock_timestamp() + interval '1 hour' end,
        case when n = 4 then clock_timestamp() end,
        case when state = 'blocked' then array['00000000-0000-7000-8000-000000000006'::uuid] else '{}' end,
        n in (6, 13), case when state = 'waiting' then '{\"for\": \"input\", \"question\": \"Which?\"}'::jsonb end,
        case when state = 'verifying' then '00000000-0000-7000-8000-000000000013'::uuid end,
        case when state in ('completed', 'verifying') then '1'::jsonb end, '{\"confirm\": \"1h\"}'
    from (values
        (1, 'blocked', 0, 0, 0, null), (2, 'scheduled', 0, 0, 0, 'later'), (3, 'open', 0, 0, 0, null),
        (4, 'open', 1, 0, 0, 'now'), (5, 'awarded', 1, 1, 0, 'now'), (6, 'running', 1, 1, 1, 'later'),
        (7, 'verifying', 1, 1, 1, null), (8, 'waiting', 1, 1, 1, 'later'), (9, 'canceling', 1, 1, 1, 'now'),
        (10, 'completed', 1, 1, 1, null), (11, 'failed', 1, 1, 1, null), (12, 'canceled', 1, 1, 1, null),
        (13, 'scheduled', 0, 0, 0, 'later')
    ) as t(n, state, round, epoch, attempt, due);
    insert into convoke.offers (task_id, round, agent_id, incarnation, state, cost_microdollars, eta_ms, confidence, note,
        valid_until, score)
    select t.id, 1, o.agent_id, 1, case
            when t.epoch = 0 then 'open'
            when o.agent_id = 'b' then case when t.state in ('completed', 'failed', 'canceled') then 'lost' else 'open' end
            when t.state = 'awarded' then 'awarded' else 'confirmed' end,
        o.cost, 10, 0.5, o.note, clock_timestamp() + interval '1 hour', jsonb_build_object('total', 7)
    from convoke.tasks t cross join (values ('a', 1, null), ('b', 2, 'a note')) as o(agent_id, cost, note) where t.round > 0;
    insert into convoke.assignments (id, task_id, epoch, agent_id, incarnation, state, confirm_by, started_at, lease_until,
        progress_at, attempt_deadline_at, ended_at, waiting_since)
    select gen_random_uuid(), t.id, 1, 'a', 1, case t.state when 'awarded' then 'awarded' when 'running' then 'running'
            when 'canceling' then 'running' when 'verifying' then 'waiting' when 'waiting' then 'waiting'
            when 'completed' then 'finished' when 'failed' then 'failed' else 'canceled' end,
        clock_timestamp(), case when t.state <> 'awarded' then clock_timestamp() end,
        clock_timestamp() + interval '1 hour', clock_timestamp(), clock_timestamp() + interval '1 hour',
        case when t.state in ('completed', 'failed', 'canceled') then clock_timestamp() end,
        case when t.state in ('verifying', 'waiting') then clock_timestamp() end
    from convoke.tasks t where t.epoch > 0;
    update convoke.agents set slots_used = (select count(*) from convoke.assignments where state in ('awarded', 'running'))
    where id = 'a'";

/// Everything about the tasks that no migration may change.
const CONTENT: &str = "select jsonb_build_object(
    'tasks', (select jsonb_agg(jsonb_build_object('id', t.id, 'state', t.state, 'round', t.round, 'epoch', t.epoch,
        'agent_id', t.agent_id, 'due_at', t.due_at, 'result', t.result, 'question', t.question) order by t.id)
        from convoke.tasks t),
    'offers', (select jsonb_agg(to_jsonb(o) order by o.task_id, o.agent_id) from convoke.offers o),
    'assignments', (select jsonb_agg(to_jsonb(a) order by a.id) from convoke.assignments a)) as content";

/// A database with the migrations up to this one, as a daemon of that time left it.
async fn old_database(last: i32) -> TestDb {
    let db = empty_database().await;
    let client = db.client().await;
    client.batch_execute("create schema convoke").await.unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let version = |name: &str| name[1..].split("__").next().unwrap().parse::<i32>().unwrap();
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| version(file.file_name().unwrap().to_str().unwrap()) <= last);
    files.sort_by_key(|file| version(file.file_name().unwrap().to_str().unwrap()));
    for file in files {
        client.batch_execute(&fs::read_to_string(file).unwrap()).await.unwrap();
    }
    // The history has checksums, which a database of this checkout knows.
    let new_db = database().await;
    let new = new_db.client().await;
    let history = "select jsonb_agg(to_jsonb(m)) from convoke.migration m where version <= $1";
    let history: Value = new.query_one(history, &[&last]).await.unwrap().get(0);
    client
        .batch_execute(
            "create table convoke.migration (version int4 primary key, name varchar(255), applied_on varchar(255),
                checksum varchar(255))",
        )
        .await
        .unwrap();
    let write =
        "insert into convoke.migration select * from jsonb_populate_recordset(null::convoke.migration, $1)";
    client.execute(write, &[&history]).await.unwrap();
    db
}

fn task(number: u32) -> TaskId {
    TaskId::from(Uuid::parse_str(&format!("00000000-0000-7000-8000-{number:012}")).unwrap())
}

#[tokio::test]
async fn tasks_in_every_state_survive_the_migrations_after_version_38() {
    let db = old_database(BEFORE).await;
    let client = db.client().await;
    client.batch_execute(TASKS).await.unwrap();
    let content = async || client.query_one(CONTENT, &[]).await.unwrap().get::<_, Value>("content");
    let before = content().await;
    assert_eq!(before["tasks"].as_array().unwrap().len(), 13);
    assert_eq!(before["offers"].as_array().unwrap().len(), 18);
    let store = db.open(&Scope::default()).await;
    let migrated = db::migrate(&store).await.unwrap();
    assert!(migrated.version >= 50, "{migrated:?}");
    let after = content().await;
    for part in ["tasks", "offers"] {
        assert_eq!(before[part], after[part], "{part}");
    }
    assert_eq!(
        before["assignments"].as_array().unwrap().len(),
        after["assignments"].as_array().unwrap().len()
    );
    drop((client, store));

    // A new daemon hosts the agents: the assignments of before are over, and no task is.
    let mut world = Harness::on(db, &Config::default(), vec![profile("a", 8), profile("b", 8)]).await;
    let unfinished = [3, 4, 5, 6];
    for number in unfinished {
        let assigned = world.assigned(task(number)).await;
        let start = world.tasks.accept(assigned.key, &assigned.agent_id).await.unwrap();
        world.tasks.finish(start.key, &assigned.agent_id, json!(number), Usage::default()).await.unwrap();
    }
    // The dependent of the sixth is next, and the question of the eighth can be answered.
    world.assigned(task(1)).await;
    world.tasks.answer(task(8), "test", json!("this one")).await.unwrap();
    let resumed = world.assigned(task(8)).await;
    world.tasks.accept(resumed.key, &resumed.agent_id).await.unwrap();
    for (number, state) in [
        (2, TaskState::Scheduled),
        (7, TaskState::Verifying),
        (9, TaskState::Canceled),
        (10, TaskState::Completed),
        (11, TaskState::Failed),
        (12, TaskState::Canceled),
    ] {
        world.in_state(task(number), state).await;
    }
    world.check().await;
}

#[tokio::test]
async fn whoever_may_request_tasks_by_sql_may_do_so_after_version_64() {
    let db = old_database(63).await;
    let client = db.client().await;
    // Roles belong to the whole server, and other tests use it at the same time.
    let role = format!("requester_{}", Uuid::new_v4().simple());
    let grant = format!("grant execute on function convoke.request_task to {role} with grant option");
    client.batch_execute(&format!("create role {role} nologin; {grant}")).await.unwrap();
    let store = db.open(&Scope::default()).await;
    db::migrate(&store).await.unwrap();
    let may =
        "select (select bool_or(a.is_grantable) from pg_proc p cross join lateral aclexplode(p.proacl) a
            where p.oid = 'convoke.request_task'::regproc and a.grantee = $1::text::regrole),
        (select count(*) from pg_proc p cross join lateral aclexplode(p.proacl) a
            where p.oid = 'convoke.request_task'::regproc and a.grantee = 0)";
    let row = client.query_one(may, &[&role]).await.unwrap();
    assert_eq!((row.get::<_, Option<bool>>(0), row.get::<_, i64>(1)), (Some(true), 0), "and public may not");
    drop(store);
    client.batch_execute(&format!("drop owned by {role}; drop role {role}")).await.unwrap();
}
