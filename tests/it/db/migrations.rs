//! Migrations, and the checks of a server.
use crate::support::{self, TestDb};
use convoke::{
    db::{self, Database, Error, Target, private},
    scope::Scope,
};
use secrecy::SecretString;

/// A role for one test that may only connect.
async fn plain_role(database: &TestDb) -> db::Config {
    let role = format!("{}_role", database.name);
    let admin = database.client().await;
    admin
        .batch_execute(&format!("drop role if exists {role}; create role {role} login password 'pw'"))
        .await
        .unwrap();
    let mut target = Target::parse(&database.url).unwrap();
    target.user = role;
    target.password = Some("pw".to_owned().into());
    db::Config { url: Some(SecretString::from(target.url())), ..database.config() }
}

async fn drop_role(database: &TestDb) {
    let role = format!("{}_role", database.name);
    let admin = database.client().await;
    admin.batch_execute(&format!("drop owned by {role} cascade; drop role {role}")).await.unwrap();
}

#[tokio::test]
async fn second_migration_does_nothing() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let first = db::migrate(&db).await.unwrap();
    assert_eq!(first.applied.first().unwrap(), "V1__wal_position");
    let second = db::migrate(&db).await.unwrap();
    assert_eq!(second.applied, Vec::<String>::new());
    assert_eq!(second.version, first.version);
}

#[tokio::test]
async fn concurrent_daemons_apply_every_migration_once() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let (a, b, c) = tokio::join!(db::migrate(&db), db::migrate(&db), db::migrate(&db));
    let applied = [a.unwrap(), b.unwrap(), c.unwrap()].map(|migrated| migrated.applied.len());
    let sql = "select count(*)::int from convoke.migration";
    let rows: i32 = db.client().await.unwrap().query_one(sql, &[]).await.unwrap().get(0);
    let rows = usize::try_from(rows).unwrap();
    assert!(rows > 0);
    assert_eq!(applied.iter().sum::<usize>(), rows, "{applied:?}");
}

#[tokio::test]
async fn role_without_rights_is_reported_with_the_grant() {
    let database = support::empty_database().await;
    let config = plain_role(&database).await;
    let db = Database::open(&config, &Scope::default()).await.unwrap();
    let error = db::migrate(&db).await.unwrap_err();
    let Error::NoRight { remedy, .. } = &error else { panic!("{error}") };
    assert!(remedy.starts_with("grant create on database"), "{remedy}");
    database.client().await.batch_execute(remedy).await.unwrap();
    db::migrate(&db).await.unwrap();
    drop(db);
    drop_role(&database).await;
}

#[tokio::test]
async fn schema_of_another_role_is_reported_with_a_remedy() {
    let database = support::empty_database().await;
    let config = plain_role(&database).await;
    database.client().await.batch_execute("create schema convoke").await.unwrap();
    let db = Database::open(&config, &Scope::default()).await.unwrap();
    let error = db::migrate(&db).await.unwrap_err();
    let Error::NoRight { remedy, .. } = &error else { panic!("{error}") };
    database.client().await.batch_execute(remedy).await.unwrap();
    db::migrate(&db).await.unwrap();
    drop(db);
    drop_role(&database).await;
}

#[tokio::test]
async fn database_of_a_newer_program_is_refused() {
    let database = support::database().await;
    let db = database.open(&Scope::default()).await;
    let newer = "insert into convoke.migration values (9999, 'from_the_future', '2030-01-01T00:00:00Z', '1')";
    db.client().await.unwrap().batch_execute(newer).await.unwrap();
    let error = db::migrate(&db).await.unwrap_err();
    assert!(matches!(&error, Error::OtherSchema(reason) if reason.contains("upgrade convoke")), "{error}");
}

#[tokio::test]
async fn database_without_an_earlier_migration_is_refused() {
    let database = support::database().await;
    let db = database.open(&Scope::default()).await;
    let forget = "delete from convoke.migration where version = 9";
    assert_eq!(db.client().await.unwrap().execute(forget, &[]).await.unwrap(), 1);
    let error = db::migrate(&db).await.unwrap_err().to_string();
    assert!(error.contains("lacks migration V9__") && error.contains("has later ones"), "{error}");
}

#[tokio::test]
async fn database_as_required_has_no_findings() {
    let database = support::database().await;
    let db = database.open(&Scope::default()).await;
    let findings = db::inspect(&db).await.unwrap();
    let bad: Vec<_> = findings.iter().filter(|f| !f.ok).map(|f| f.name).collect();
    assert_eq!(bad, ["fsync"], "the test server runs without it");
    assert!(findings.iter().all(|f| f.ok == f.remedy.is_none()));
}

#[tokio::test]
async fn missing_server_settings_are_reported_with_remedies() {
    let folder = super::private::Folder::new();
    let settings =
        [("wal_level", "replica"), ("max_slot_wal_keep_size", "-1"), ("max_replication_slots", "0")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = private::Options { data_dir: folder.data_dir(), settings, ..private::Options::default() };
    let server = private::Server::open(&options).await.unwrap();
    let admin = server.tcp_target().url();
    let (client, connection) = tokio_postgres::connect(&admin, tokio_postgres::NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the client")]
    tokio::spawn(connection);
    client.batch_execute("create role weak login password 'pw'").await.unwrap();

    let url = admin.replace("//convoke:", "//weak:pw-").split_once("pw-").unwrap().0.to_owned();
    let url = format!("{url}pw@{}", admin.split_once('@').unwrap().1);
    let config = db::Config { url: Some(SecretString::from(url)), ..db::Config::default() };
    let db = Database::open(&config, &Scope::default()).await.unwrap();
    let findings = db::inspect(&db).await.unwrap();
    let remedy = |name: &str| {
        let finding = findings.iter().find(|f| f.name == name).unwrap();
        assert!(!finding.ok, "{finding:?}");
        finding.remedy.clone().unwrap()
    };
    assert!(remedy("wal_level").contains("alter system set wal_level = 'logical'"));
    assert!(remedy("max_replication_slots").contains("alter system set max_replication_slots = 10"));
    assert!(remedy("max_slot_wal_keep_size").contains("max_slot_wal_keep_size = '4GB'"));
    client.batch_execute(&remedy("create_right")).await.unwrap();
    client.batch_execute(remedy("replication_right").split(" (").next().unwrap()).await.unwrap();
    let findings = db::inspect(&db).await.unwrap();
    assert!(findings.iter().filter(|f| f.name.ends_with("_right")).all(|f| f.ok), "{findings:?}");
    db.stop().await.unwrap();

    // The daemon's own settings differ, so the running server is not adopted but restarted.
    let before = server.pid();
    server.leave();
    let options = private::Options { settings: Vec::new(), ..options };
    let server = private::Server::open(&options).await.unwrap();
    assert_ne!(server.pid(), before);
    let (client, connection) =
        tokio_postgres::connect(&server.tcp_target().url(), tokio_postgres::NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the client")]
    tokio::spawn(connection);
    let row = client.query_one("show wal_level", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "logical");
    server.stop().await.unwrap();
}
