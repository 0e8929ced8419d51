//! `convoke spend reconcile`: a provider's bill beside what was charged.
use super::{convoke_in, text};
use crate::{
    daemon::{Up, fresh},
    support::TestDb,
};
use chrono::{NaiveDate, TimeDelta};
use convoke::clock::Clock;
use serde_json::{Value, json};
use std::path::Path;

/// Spending of one org at a provider on a day.
async fn charge(db: &TestDb, org: &str, provider: &str, day: NaiveDate, microdollars: i64) {
    let insert = "insert into convoke.spend (org, hour, agent_id, kind, task_id, root_id, provider, model, questions,
            microdollars, presumed_microdollars)
        values ($1, $2::date + interval '23 hours 59 minutes', 'a', 'k', gen_random_uuid(), gen_random_uuid(), $3, 'm', 2,
            $4::bigint, 1)";
    // The rows are those of the daemon; days are in UTC.
    let client = db.client().await;
    client.batch_execute("set timezone = 'UTC'").await.unwrap();
    client.execute(insert, &[&org, &day, &provider, &microdollars]).await.unwrap();
}

fn reconcile(db: &TestDb, folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let data = folder.join("data");
    let environment =
        [("CONVOKE_DATABASE__URL", db.url.as_str()), ("CONVOKE_DATABASE__DATA_DIR", data.to_str().unwrap())];
    let output = convoke_in(
        folder,
        &[&["spend", "reconcile", "--provider", "openrouter"], args].concat(),
        &environment,
    );
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn bill_is_compared_with_what_was_charged_day_by_day() {
    let (db, folder) = fresh().await;
    let folder = folder.path();
    std::fs::create_dir(folder.join("agents")).unwrap();
    let _up = Up::start(&db, folder, None).await;
    let day = |back: i64| Clock::System.now().date_naive() - TimeDelta::days(back);
    charge(&db, "demo", "openrouter", day(3), 600).await;
    charge(&db, "other", "openrouter", day(3), 401).await;
    charge(&db, "demo", "elsewhere", day(3), 70_000).await;
    charge(&db, "demo", "openrouter", day(2), 250).await;
    let used = |back: i64, usage: &str| format!("{{ \"date\": \"{}\", \"usage\": {usage} }}", day(back));
    // The present day is not over, and is not compared.
    let good = format!("{{ \"data\": [{}, {}, {}] }}", used(3, "0.001"), used(1, "0"), used(0, "9"));
    std::fs::write(folder.join("good.json"), good).unwrap();
    let (code, printed, told) = reconcile(&db, folder, &["good.json", "--json"]);
    assert_eq!((code, told.as_str()), (Some(0), ""), "{printed}");
    let found: Value = serde_json::from_str(&printed).unwrap();
    let amounts = |billed, charged, presumed, questions| json!({ "billed": billed, "charged": charged, "presumed": presumed, "questions": questions });
    let days: Vec<&Value> = found["days"].as_array().unwrap().iter().map(|day| &day["amounts"]).collect();
    assert_eq!(days, [&amounts(1_000, 1_001, 2, 4), &amounts(0, 250, 1, 2), &amounts(0, 0, 0, 0)]);
    assert_eq!(found["total"]["amounts"], amounts(1_000, 1_251, 3, 6));
    assert_eq!(
        found["days"][0]["error_percent"].as_f64().map(|error| (error * 1e6).round()),
        Some(100_000.0)
    );

    // A day that was billed for more, a page with a second one, and an entry that cannot be read.
    std::fs::write(folder.join("short.json"), format!("[{}]", used(3, "0.001002"))).unwrap();
    std::fs::write(folder.join("odd.json"), format!("[{}, 7]", used(2, "0.0001"))).unwrap();
    let (code, printed, told) = reconcile(&db, folder, &["short.json"]);
    assert_eq!((code, told.as_str()), (Some(1), ""), "{printed}");
    assert!(printed.contains("-0.100 %") && printed.contains("on 0 of 1 days"), "{printed}");
    let (code, printed, told) = reconcile(&db, folder, &["odd.json"]);
    assert_eq!((code, told.as_str()), (Some(1), "odd.json: data.1: it is no object\n"), "{printed}");
    assert!(printed.contains("on 1 of 1 days") && printed.contains("$0.000250"), "{printed}");
    let (code, _, told) = reconcile(&db, folder, &["missing.json"]);
    assert!(code == Some(1) && told.contains("cannot read missing.json"), "{told}");
    let (code, _, told) = reconcile(&db, folder, &[]);
    assert!(code == Some(64) && told.contains("<FILES>"), "{told}");
}
