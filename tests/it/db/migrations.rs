//! Migrations and the look at what a server lacks.
use crate::support::{self, TestDb};
use convoke::{
    db::{self, Database, Error, Target, private},
    scope::Scope,
};
use secrecy::SecretString;

/// A role of this test's own that may do nothing but connect.
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
async fn migrating_twice_does_nothing_the_second_time() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let first = db::migrate(&db).await.unwrap();
    assert_eq!(first.applied.first().unwrap(), "V1__wal_position");
    let second = db::migrate(&db).await.unwrap();
    assert_eq!(second.applied, Vec::<String>::new());
    assert_eq!(second.version, first.version);
}

#[tokio::test]
async fn daemons_that_migrate_at_once_apply_every_migration_once() {
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
async fn a_role_without_rights_is_told_the_statement_that_mends_it() {
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
async fn a_schema_that_belongs_to_another_role_is_told_with_its_remedy() {
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
async fn a_database_of_a_newer_program_is_refused() {
    let database = support::database().await;
    let db = database.open(&Scope::default()).await;
    let newer = "insert into convoke.migration values (9999, 'from_the_future', '2030-01-01T00:00:00Z', '1')";
    db.client().await.unwrap().batch_execute(newer).await.unwrap();
    let error = db::migrate(&db).await.unwrap_err();
    assert!(matches!(&error, Error::OtherSchema(reason) if reason.contains("upgrade convoke")), "{error}");
}

#[tokio::test]
async fn a_fit_database_has_nothing_to_mend() {
    let database = support::database().await;
    let db = database.open(&Scope::default()).await;
    let findings = db::inspect(&db).await.unwrap();
    let bad: Vec<_> = findings.iter().filter(|f| !f.ok).map(|f| f.name).collect();
    assert_eq!(bad, ["fsync"], "the test server runs without it");
    assert!(findings.iter().all(|f| f.ok == f.remedy.is_none()));
}

#[tokio::test]
async fn what_a_server_lacks_is_told_by_name_with_the_statement_that_mends_it() {
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

    // The daemon's own settings are others, so the server that runs is not taken over as it is.
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
