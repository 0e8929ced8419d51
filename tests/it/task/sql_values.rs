//! Values in requests by SQL: checked like those of every other request.
use super::Harness;
use convoke::task::Config;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

#[tokio::test]
async fn sql_refuses_unreadable_values() {
    let world = Harness::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    for (wish, words) in [
        (
            "'x', input => (repeat('[',200)||'1'||repeat(']',200))::jsonb",
            "input is nested more than 100 deep",
        ),
        ("'x', input => '{\"n\": 1e400}'", "input has the number 1000"),
        (
            "'x', policy => ('{\"result_schema\": ' || repeat('[',101) || repeat(']',101) || '}')::jsonb",
            "policy is nested",
        ),
        ("'x', policy => '{\"good_enough\": {\"cost\": 1e400}}'", "policy has the number 1000"),
        ("'x', run_at => 'infinity'", "run_at infinity is not between the years 1 and 9999"),
        ("'x', deadline => '-infinity'", "deadline -infinity is not between the years"),
        ("'x', deadline => '294276-01-01'", "is not between the years 1 and 9999"),
        ("'x', run_at => '4713-01-01 BC'", "is not between the years 1 and 9999"),
        ("'x', requires => '{{a},{b}}'", "requires is a list of lists"),
        ("'x', requires => array['a', null]", "requires has a null"),
        ("'x', depends_on => array[array[gen_random_uuid()]]", "depends_on is a list of lists"),
        ("E'x\\u0085'", "kind has 1 to 200 bytes and no control characters"),
        (
            "'x', idempotency_key => E'a\\u0001'",
            "idempotency_key has 1 to 200 bytes and no control characters",
        ),
        ("'x', priority => 2147483647", "priority 2147483647 is not between"),
    ] {
        let refused =
            client.query_one(&format!("select convoke.request_task({wish})"), &[]).await.unwrap_err();
        let told = refused.as_db_error().unwrap().message();
        assert!(told.contains(words), "{wish}: {told}");
        assert_eq!(refused.code().unwrap().code(), "22023", "{wish}");
    }
    for good in [
        "'x', input => (repeat('[',100)||'1'||repeat(']',100))::jsonb",
        "'x', requires => '[7:8]={a,b}'",
        "'x', depends_on => null, requires => null, input => null, priority => null, detached => null",
        "'x', deadline => '9999-12-31 23:59:59+00', run_at => '0001-01-01 00:00:00+00'",
    ] {
        client.query_one(&format!("select convoke.request_task({good})"), &[]).await.unwrap();
    }
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn equivalent_sql_requests_share_their_idempotency_key() {
    let world = Harness::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    let ask = async |zone: &str, wish: &str| {
        client.batch_execute(&format!("set timezone = '{zone}'")).await.unwrap();
        let call = format!("select convoke.request_task('k', idempotency_key => 'once', {wish})");
        client.query_one(&call, &[]).await.map(|row| row.get::<_, Uuid>(0))
    };
    let first = ask(
        "Asia/Tokyo",
        "deadline => '2999-01-01 00:00:00+00', input => '{\"a\": 0.10, \"b\": [1, 2]}', policy => '{\"attempts_max\": 3}'",
    )
    .await
    .unwrap();
    for same in [
        "deadline => '2999-01-01 00:00:00+00', input => '{\"b\": [1.0, 2], \"a\": 0.1}', policy => '{\"attempts_max\": 3}'",
        "deadline => '2998-12-31 19:00:00-05', input => '{\"a\": 1e-1, \"b\": [1, 2]}', policy => '{\"attempts_max\": 3}',
            requires => '{}', priority => 0, org => 'default', run_at => null, parent_id => null, detached => false,
            depends_on => '{}', on_dependency_failure => 'cancel'",
        "deadline => '2999-01-01 09:00:00+09', input => '{\"a\": 0.100, \"b\": [1, 2]}', policy => '{\"attempts_max\": 3.0}'
            ::jsonb || '{\"attempts_max\": 3}', requires => null, priority => null, detached => null, depends_on => null",
    ] {
        assert_eq!(ask("America/New_York", same).await.unwrap(), first, "{same}");
    }
    for other in [
        "deadline => '2999-01-01 00:00:01+00', input => '{\"a\": 0.1, \"b\": [1, 2]}', policy => '{\"attempts_max\": 3}'",
        "deadline => '2999-01-01 00:00:00+00', input => '{\"a\": 0.1, \"b\": [2, 1]}', policy => '{\"attempts_max\": 3}'",
        "deadline => '2999-01-01 00:00:00+00', input => '{\"a\": 0.1, \"b\": [1, 2]}', policy => '{\"attempts_max\": 4}'",
        "deadline => '2999-01-01 00:00:00+00', input => '{\"a\": 0.1, \"b\": [1, 2]}', policy => '{\"attempts_max\": 3}', requires => '{x}'",
        "deadline => '2999-01-01 00:00:00+00', input => '{\"a\": 0.1, \"b\": [1, 2]}', policy => '{\"attempts_max\": 3}', priority => 1",
    ] {
        let conflict = ask("UTC", other).await.unwrap_err();
        assert!(
            conflict.as_db_error().unwrap().message().contains("was used for another request"),
            "{other}"
        );
    }
}

/// Policies, and whether a request with each is accepted.
const POLICIES: &[(&str, bool)] = &[
    ("{}", true),
    (r#"{"award": "first"}"#, true),
    (r#"{"award": "banana"}"#, false),
    (r#"{"award": null}"#, false),
    (r#"{"award": "direct"}"#, false),
    (r#"{"award": "direct", "agent": "a-1"}"#, true),
    (r#"{"agent": "a-1"}"#, false),
    (r#"{"agent": null}"#, true),
    (r#"{"award": "direct", "agent": "A"}"#, false),
    (r#"{"fallback": "cheapest"}"#, true),
    (r#"{"fallback": "direct"}"#, false),
    (r#"{"colour": "red"}"#, false),
    (r#"{"attempts_max": 0}"#, false),
    (r#"{"attempts_max": 9999}"#, true),
    (r#"{"attempts_max": 10000}"#, false),
    (r#"{"attempts_max": 3.0}"#, false),
    (r#"{"attempts_max": "3"}"#, false),
    (r#"{"attempts_max": null}"#, false),
    (r#"{"rounds_max": -1}"#, false),
    (r#"{"offers_min": null}"#, true),
    (r#"{"offers_min": 4294967295}"#, true),
    (r#"{"offers_min": 4294967296}"#, false),
    (r#"{"lease": "30s"}"#, true),
    (r#"{"absence": "0s", "outage": "364days"}"#, true),
    (r#"{"absence": "365days"}"#, false),
    (r#"{"outage": 5}"#, false),
    (r#"{"lease": " 1h  30m "}"#, true),
    (r#"{"lease": "1h30m"}"#, true),
    (r#"{"lease": "1 000 ms"}"#, true),
    (r#"{"lease": "1.5h"}"#, true),
    (r#"{"lease": "1.0001h"}"#, false),
    (r#"{"lease": "0.5ns"}"#, false),
    (r#"{"lease": "1.s"}"#, false),
    (r#"{"lease": "0"}"#, false),
    (r#"{"lease": "0s"}"#, false),
    (r#"{"lease": "7days"}"#, true),
    (r#"{"lease": "7days 1ns"}"#, false),
    (r#"{"lease": "99999999999999999999s"}"#, false),
    (r#"{"lease": "1 fortnight"}"#, false),
    (r#"{"lease": "30"}"#, false),
    (r#"{"lease": "-1s"}"#, false),
    (r#"{"lease": ""}"#, false),
    (r#"{"lease": 30}"#, false),
    (r#"{"input": "52w"}"#, true),
    (r#"{"input": "53w"}"#, false),
    (r#"{"on_input_timeout": "escalate"}"#, true),
    (r#"{"on_input_timeout": "hope"}"#, false),
    (r#"{"weights": {"cost": 1}}"#, true),
    (r#"{"weights": {"cost": 0}}"#, false),
    (r#"{"weights": {}}"#, false),
    (r#"{"weights": {"cost": 1001}}"#, false),
    (r#"{"weights": {"cost": 1, "luck": 1}}"#, false),
    (r#"{"weights": []}"#, false),
    (r#"{"weights": null}"#, true),
    (r#"{"good_enough": {"cost": 0}}"#, true),
    (r#"{"good_enough": {"confidence": 1}}"#, true),
    (r#"{"good_enough": {"confidence": 1.5}}"#, false),
    (r#"{"good_enough": {"confidence": null}}"#, false),
    (r#"{"good_enough": {"cost": -1}}"#, false),
    (r#"{"good_enough": {"cost": 18446744073709551616}}"#, false),
    (r#"{"good_enough": {"luck": 1}}"#, false),
    (r#"{"result_schema": {"type": "object"}}"#, true),
    (r#"{"result_schema": true}"#, true),
    (r#"{"result_schema": null}"#, true),
    (r#"{"result_schema": 42}"#, false),
    (r#"{"result_schema": {"$ref": "http://example.com/schema"}}"#, false),
    (
        r#"{"result_schema": {"items": [{"not": {"$dynamicRef": "file:///etc/passwd"}}], "type": "array"}}"#,
        false,
    ),
    (r##"{"result_schema": {"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {}}}}"##, true),
    (r#"{"verifier": {"kind": "review"}}"#, true),
    (r#"{"verifier": {"kind": "review", "requires": ["x"], "policy": {"lease": "5s"}}}"#, true),
    (r#"{"verifier": {"kind": ""}}"#, false),
    (r#"{"verifier": {"requires": []}}"#, false),
    (r#"{"verifier": {"kind": "review", "requires": [""]}}"#, false),
    (r#"{"verifier": {"kind": "review", "colour": 1}}"#, false),
    (r#"{"verifier": {"kind": "review", "policy": {"award": "banana"}}}"#, false),
    (r#"{"verifier": {"kind": "review", "policy": {"result_schema": {}}}}"#, false),
    (r#"{"verifier": {"kind": "review", "policy": {"verifier": null}}}"#, false),
    (r#"{"verifier": null}"#, true),
    (r#"{"verifier": 1}"#, false),
];

#[tokio::test]
async fn sql_and_api_accept_the_same_policies() {
    let mut config = Config::default();
    let pinned = json!({ "award": "direct", "agent": "pinned", "attempts_max": 5 });
    config.kinds.insert("pinned".into(), pinned.as_object().cloned().unwrap());
    let world = Harness::with(&config, vec![]).await;
    let client = world.database.client().await.unwrap();
    let told = "select from convoke.task_defaults where policies -> 'kinds' ? 'pinned'";
    while client.query(told, &[]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The policy of the kind and that of the request are checked together.
    let of_kind = [
        ("pinned", r#"{"agent": "other"}"#, true),
        ("pinned", r#"{"award": "first"}"#, false),
        ("pinned", r#"{"award": "first", "agent": null}"#, true),
    ];
    for (kind, policy, good) in POLICIES.iter().map(|(policy, good)| ("k", *policy, *good)).chain(of_kind) {
        let call = "select convoke.request_task($1, policy => $2::text::jsonb)";
        let by_sql = client.query_one(call, &[&kind, &policy]).await;
        let patch: serde_json::Map<String, Value> = serde_json::from_str(policy).unwrap();
        let wish = convoke::task::Request { kind: kind.into(), policy: patch, ..Default::default() };
        let by_others = world.tasks.request(&world.org, "test", wish).await;
        assert_eq!((by_sql.is_ok(), by_others.is_ok()), (good, good), "{policy}: {by_sql:?}, {by_others:?}");
        if let Err(refused) = by_sql {
            assert_eq!(refused.code().unwrap().code(), "22023", "{policy}");
        }
    }
    let attempts = client.query_one("select convoke.request_task('pinned')", &[]).await.unwrap();
    let made = world.tasks.get(attempts.get::<_, Uuid>(0).into()).await.unwrap();
    assert_eq!(made.attempts_max, 5, "the kind's own");
    drop(client);
    world.check().await;
}
