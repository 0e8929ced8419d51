//! Execute privileges of the functions that the daemon creates.
use crate::support;
use convoke::access;

const EXECUTABLE: &str = "select n.nspname || '.' || p.proname,
        coalesce(string_agg(case when a.grantee = 0 then 'PUBLIC' else a.grantee::regrole::text end, ' '
            order by a.grantee::regrole::text) filter (where a.grantee <> p.proowner), '')
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    where n.nspname in ('convoke', 'realtime', 'auth') group by n.nspname, p.oid, p.proname order by 1";

#[tokio::test]
async fn functions_are_executable_only_by_their_roles() {
    let database = support::database().await;
    let db = database.open(&convoke::scope::Scope::default()).await;
    access::prepare(&db).await.unwrap();
    let client = database.client().await;
    client.batch_execute("select convoke.admit_observers()").await.unwrap();
    let tokens = "anon authenticated service_role";
    let rows = client.query(EXECUTABLE, &[]).await.unwrap();
    for row in &rows {
        let (name, grantees): (String, String) = (row.get(0), row.get(1));
        let expected = match name.as_str() {
            "convoke.sees" => "authenticated service_role",
            own if own.starts_with("convoke.") => "",
            _ => tokens,
        };
        assert_eq!(grantees, expected, "{name}");
    }
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for known in ["convoke.request_task", "convoke.grant_realtime", "realtime.send", "auth.jwt"] {
        assert!(names.iter().any(|name| name == known), "{known} is among {names:?}");
    }
    for role in tokens.split(' ') {
        for call in ["convoke.grant_realtime()", "convoke.prepare_realtime(true)", "convoke.call_arbiter()"] {
            client.batch_execute(&format!("set role {role}")).await.unwrap();
            let refused = client.batch_execute(&format!("select {call}")).await.unwrap_err();
            client.batch_execute("reset role").await.unwrap();
            assert_eq!(refused.code().unwrap().code(), "42501", "{call} as {role}: {refused:?}");
        }
        let key =
            client.batch_execute(&format!("set role {role}; select * from convoke.task_defaults")).await;
        client.batch_execute("reset role").await.unwrap();
        assert!(key.is_err(), "{role} must not read the key of the arbiter");
    }
}
