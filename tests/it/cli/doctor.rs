//! `convoke doctor` on an existing database: each problem is named with the statement that corrects it.
use super::convoke_in;
use crate::support::{TestDb, database, database_on_its_own_server, empty_database};
use serde_json::Value;

/// Returns the finding `name` of the doctor, and its exit code.
fn finding(db: &TestDb, name: &str) -> (Option<i32>, Value) {
    let folder = tempfile::tempdir().unwrap();
    let environment = [("CONVOKE_DATABASE__URL", db.url.as_str())];
    let args = ["doctor", "--json", "--listen", "127.0.0.1:1"];
    let output = convoke_in(folder.path(), &args, &environment);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = told["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == name);
    (output.status.code(), finding.unwrap_or_else(|| panic!("{name}: {told}")).clone())
}

#[tokio::test]
async fn missing_role_of_tokens_is_named_with_its_remedy() {
    // Roles are the server's, so the shared server must keep its own.
    let db = database_on_its_own_server().await;
    let sql = db.client().await;
    let (_, before) = finding(&db, "roles_of_tokens");
    assert_eq!(before["ok"], true, "{before}");

    sql.batch_execute("drop owned by anon; drop role anon").await.unwrap();
    let (code, missing) = finding(&db, "roles_of_tokens");
    assert_eq!((code, &missing["ok"]), (Some(1), &false.into()), "{missing}");
    assert_eq!(missing["found"], "there is no role anon");

    sql.batch_execute(missing["remedy"].as_str().unwrap()).await.unwrap();
    let (_, after) = finding(&db, "roles_of_tokens");
    assert_eq!(after["ok"], true, "{after}");
}

/// The migrations of this program up to a version, as a program of that version left them.
async fn migrated_to(version: i32) -> TestDb {
    let (db, whole) = (empty_database().await, database().await);
    let sql = db.client().await;
    sql.batch_execute("create schema convoke").await.unwrap();
    let rows = "select version, name, applied_on, checksum from convoke.migration where version <= $1 order by version";
    let applied = whole.client().await.query(rows, &[&version]).await.unwrap();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let history = "create table convoke.migration
        (version int4 primary key, name varchar(255), applied_on varchar(255), checksum varchar(255))";
    sql.batch_execute(history).await.unwrap();
    for row in applied {
        let (version, name): (i32, String) = (row.get(0), row.get(1));
        let (applied_on, checksum): (String, String) = (row.get(2), row.get(3));
        let text = std::fs::read_to_string(folder.join(format!("V{version}__{name}.sql"))).unwrap();
        sql.batch_execute(&text).await.unwrap();
        let insert = "insert into convoke.migration values ($1, $2, $3, $4)";
        sql.execute(insert, &[&version, &name, &applied_on, &checksum]).await.unwrap();
    }
    db
}

#[tokio::test]
async fn schema_of_an_earlier_version_is_named_with_the_migrations_that_it_lacks() {
    let db = migrated_to(9).await;
    let (code, schema) = finding(&db, "schema");
    assert_eq!((code, &schema["ok"]), (Some(1), &false.into()), "{schema}");
    let found = schema["found"].as_str().unwrap();
    assert!(found.starts_with("schema convoke lacks V10__") && found.contains("V20__"), "{found}");
    assert!(schema["remedy"].as_str().unwrap().contains("convoke migrate"), "{schema}");

    // It says what to do, and that mends it, with a row in the table.
    let sql = db.client().await;
    sql.batch_execute("select convoke.request_task('k', input => '{\"n\": 123456789012345678901234567890}')")
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let environment = [("CONVOKE_DATABASE__URL", db.url.as_str())];
    let migrated = convoke_in(folder.path(), &["migrate"], &environment);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let (_, encoding) = finding(&db, "replication_slot");
    assert_eq!(encoding["ok"], true, "{encoding}");
    let kept = "select input::text from convoke.tasks";
    let kept: String = sql.query_one(kept, &[]).await.unwrap().get(0);
    assert!(kept.contains("123456789012345678901234567890"), "{kept}");

    sql.batch_execute(
        "insert into convoke.migration values (9999, 'from_the_future', '2030-01-01T00:00:00Z', '1')",
    )
    .await
    .unwrap();
    let (_, newer) = finding(&db, "schema");
    assert!(newer["found"].as_str().unwrap().contains("upgrade convoke"), "{newer}");
}
