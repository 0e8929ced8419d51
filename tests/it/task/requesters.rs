//! Requesters of tasks in rows.
use crate::support;
use convoke::id::Requester;

#[tokio::test]
async fn requesters_of_earlier_rows_are_typed_and_the_event_log_agrees() {
    let database = support::database().await;
    let client = database.client().await;
    client
        .batch_execute(
            "insert into convoke.agents (id, org, kind, slots) values ('near', 'demo', 'remote', 1)",
        )
        .await
        .unwrap();
    let user = |subject: &str| Requester::User { issuer: None, subject: subject.into() };
    let near = Requester::Agent { org: "demo".parse().unwrap(), id: "near".parse().unwrap() };
    let cases = [
        ("demo", "service_role", Requester::Service),
        ("demo", "near", near),
        ("else", "near", user("near")),
        ("demo", "somebody", user("somebody")),
        ("demo", "service", user("service")),
        ("demo", "agent:demo/near", user("agent:demo/near")),
        ("demo", "authenticated#0123456789ab", Requester::Token("0123456789ab".into())),
        ("demo", "sql:postgres", Requester::Other("sql:postgres".into())),
        ("demo", "wake:near#0", Requester::Other("wake:near#0".into())),
    ];
    for (org, requester, _) in &cases {
        let made = "with made as (
                insert into convoke.tasks (id, org, kind, requester, root_id, class, state)
                select id, $1, 'k', $2, id, 0, 'completed' from (select gen_random_uuid() as id) as new returning *)
            insert into convoke.events (org, task_id, type, body)
            select org, id, 'requested', jsonb_build_object('requester', requester) from made";
        client.execute(made, &[org, requester]).await.unwrap();
    }
    let upgrade = include_str!("../../../migrations/V17__typed_requesters.sql");
    client.batch_execute(upgrade).await.unwrap();
    let seen = "select t.requester, e.body ->> 'requester' from convoke.tasks t join convoke.events e on e.task_id = t.id
        order by e.seq";
    let rows = client.query(seen, &[]).await.unwrap();
    assert_eq!(rows.len(), cases.len());
    for (row, (org, before, expected)) in rows.iter().zip(&cases) {
        let (after, logged): (String, String) = (row.get(0), row.get(1));
        assert_eq!(Requester::from(after.as_str()), *expected, "{before} of {org}");
        assert_eq!(after, logged);
    }
    let changed = client.execute("update convoke.events set body = '{}'", &[]).await;
    assert!(changed.is_err(), "the event log is append-only again");
}
