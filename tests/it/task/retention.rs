//! Retention: old tasks are deleted with all their rows, unless they are still needed.
use crate::support::PATIENCE;
use crate::support::database;
use convoke::{
    id::NodeId,
    scope::Scope,
    task::{Config, Metrics, Tasks},
};
use std::time::Duration;

/// Tasks that were inserted and ended on the first day of 1970: ids begin with the time.
const OLD: &str = "
    insert into convoke.tasks (id, org, kind, class, requester, root_id, state, depends_on, updated_at, followed)
    select ('00000000-0000-7000-8000-0000000000' || lpad(n::text, 2, '0'))::uuid, 'demo', 'k', 1, 'test',
        gen_random_uuid(), state, depends_on::uuid[], at, followed
    from (values
        (1, 'completed', '{}', timestamptz 'epoch', false),
        (2, 'failed', '{}', timestamptz 'epoch', false),
        (3, 'completed', '{}', clock_timestamp(), false),
        (4, 'completed', '{}', timestamptz 'epoch', false),
        (5, 'blocked', '{00000000-0000-7000-8000-000000000004,00000000-0000-7000-8000-000000000006}', timestamptz 'epoch',
            false),
        (6, 'waiting', '{}', timestamptz 'epoch', true)
    ) as t(n, state, depends_on, at, followed);
    insert into convoke.events (at, org, task_id, type) select timestamptz 'epoch', org, id, 'requested' from convoke.tasks;
    insert into convoke.events (at, org, type) values (timestamptz 'epoch', 'demo', 'wal_gap');
    insert into convoke.spend (org, hour, agent_id, kind, task_id, root_id, provider, model, attempts, microdollars)
    select org, timestamptz 'epoch', 'a', kind, id, root_id, 'p', 'm', 1, 5 from convoke.tasks;
    insert into convoke.offer_rows (task_id, round, agent_id, incarnation, state, valid_until)
    select id, 1, 'a', 1, 'lost', timestamptz 'epoch' from convoke.tasks;";

#[tokio::test]
async fn old_tasks_are_deleted_with_their_offers_and_events() {
    let (db, scope) = (database().await, Scope::default());
    let store = db.open(&scope).await;
    let client = store.client().await.unwrap();
    client.batch_execute(OLD).await.unwrap();
    let (tasks, _notices) =
        Tasks::start(&scope, store.clone(), NodeId::generate(), &Config::default(), Metrics::default());
    tasks.register(vec![]).await.unwrap();
    tasks.arbitrate(&scope);
    let left = "select right(id::text, 1)::integer from convoke.tasks order by 1";
    let expected = [3, 4, 5, 6];
    let gone = async {
        loop {
            let rows = client.query(left, &[]).await.unwrap();
            let ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
            if ids == expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is never forgotten");
    for (table, count) in [("events", 4), ("offers", 4)] {
        let row = client.query_one(&format!("select count(*) from convoke.{table}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), count, "{table}");
    }
    // What the two deleted tasks used is counted without them.
    let spent = "select count(*), sum(attempts)::bigint, sum(microdollars)::bigint, count(*) filter (where \
                 task_id = '00000000-0000-0000-0000-000000000000' and microdollars = 10) from convoke.spend";
    let row = client.query_one(spent, &[]).await.unwrap();
    assert_eq!([0, 1, 2, 3].map(|at| row.get::<_, i64>(at)), [5, 6, 30, 1]);
    let kept = client.execute("delete from convoke.events", &[]).await.unwrap_err();
    assert!(kept.as_db_error().unwrap().message().contains("append-only"));
    drop(client);
    scope.drain(PATIENCE).await.unwrap();
}

#[test]
fn tasks_are_kept_as_long_as_their_keys() {
    let config = Config { retention: Duration::from_secs(60), ..Config::default() };
    assert!(config.check().unwrap_err().starts_with("retention is 60s"));
    assert!(Config::default().check().is_ok());
}
