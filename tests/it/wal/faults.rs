//! Servers that kill, restart, fall silent or want to be convinced.
use super::rig::{Consumer, PUBLICATION, Rig, rig, rig_on, start};
use crate::support::{DedicatedServer, PATIENCE, Proxy, database_on_its_own_server, open_to_all};
use convoke::{
    db::{self, Database, Target, private},
    scope::Scope,
    wal::{self, WalEvent},
};
use secrecy::SecretString;
use std::{path::Path, time::Duration};

#[tokio::test]
async fn a_killed_walsender_costs_nothing_and_doubles_nothing() {
    let rig = rig("create table items (id int8 primary key)", &["items"]).await;
    let mut consumer = rig.leader().await;
    let writer = rig.db.client().await;
    let total = 3000_i64;
    let write = async {
        for id in 0..total {
            writer.execute("insert into items values ($1)", &[&id]).await.unwrap();
        }
    };
    let metrics = consumer.metrics.clone();
    let read = async {
        for id in 0..total {
            let batch = consumer.transaction().await;
            assert_eq!(super::rig::ids(&batch), [id]);
            if id % 7 == 0 {
                consumer.stream.confirm.confirm(batch.end_lsn);
            }
        }
    };
    let kill = async {
        for _ in 0..5 {
            while rig.walsender().await.is_none() || metrics.leading.get() == 0 {
                tokio::task::yield_now().await;
            }
            rig.terminate_walsender().await;
        }
    };
    tokio::join!(write, read, kill);
    // The last one may not have been noticed yet.
    assert!(consumer.metrics.reconnects.get() >= 4);
    consumer.stop().await;
}

#[tokio::test]
async fn silent_server_is_detected() {
    let rig = rig("create table items (id int8 primary key)", &["items"]).await;
    let proxy = Proxy::start(&rig.db.url).await;
    let config = wal::Config { liveness_timeout: Duration::from_secs(1), ..rig.config.clone() };
    let mut consumer = start_through(&proxy, &rig, config).await;
    consumer.leading().await;

    let frozen = tokio::time::Instant::now();
    proxy.freeze();
    let WalEvent::Down { reason } = consumer.event().await else { panic!("it streams") };
    assert!(reason.contains("has said nothing"), "{reason}");
    println!("noticed after {:?}", frozen.elapsed());
    assert!(frozen.elapsed() >= Duration::from_millis(900));

    // The server still believes in the old connection.
    rig.terminate_walsender().await;
    rig.sql.batch_execute("insert into items values (1)").await.unwrap();
    assert_eq!(consumer.ids().await, [1]);
    consumer.scope.drain(PATIENCE).await.unwrap();
}

/// The lock is taken before anything streams, and a server looks after its walsenders only while they stream.
#[tokio::test]
async fn leader_that_stalls_before_streaming_is_deposed_after_15s() {
    let db = database_on_its_own_server().await;
    let rig = rig_on(db, "create table items (id int8 primary key)", &["items"]).await;
    // A slot is not made before it is over: so long the first one has the lock and no stream.
    let open = rig.db.client().await;
    open.batch_execute("begin; insert into items values (1)").await.unwrap();
    let proxy = Proxy::start(&rig.db.url).await;
    let first = start_through(&proxy, &rig, rig.config.clone()).await;
    let waits = "select 1 from pg_stat_activity where query like '%pg_create_logical_replication_slot%' \
                 and backend_type = 'walsender'";
    let locked = async {
        while rig.sql.query_opt(waits, &[]).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, locked).await.unwrap();
    proxy.freeze();
    open.batch_execute("commit").await.unwrap();

    let frozen = tokio::time::Instant::now();
    let mut second = rig.start().await;
    assert!(matches!(second.event().await, WalEvent::Standby));
    second.leading().await;
    println!("led after {:?}", frozen.elapsed());
    rig.sql.batch_execute("insert into items values (2)").await.unwrap();
    assert_eq!(second.ids().await, [2]);
    second.stop().await;
    first.scope.drain(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn restarted_server_loses_and_duplicates_nothing() {
    let (mut own, folder) = (DedicatedServer::with(&[("fsync", "off")]).await, tempfile::tempdir().unwrap());
    let (scope, database) = migrated(&own.url).await;
    let sql = database.client().await.unwrap();
    sql.batch_execute("create table public.items (id int8 primary key)").await.unwrap();
    wal::publish(&**sql, PUBLICATION, &[("public".into(), "items".into())]).await.unwrap();
    drop(sql);
    let config = wal::Config::default();
    let mut consumer = start(&scope, database.clone(), config, folder.path().join("spill"));
    consumer.leading().await;

    for id in 1..=3_i64 {
        insert(&database, id).await;
        assert_eq!(super::rig::ids(&consumer.confirmed_transaction().await), [id]);
        // A fast stop waits until the stream has acknowledged the end of the log.
        let began = tokio::time::Instant::now();
        own.stop().await;
        println!("stopped in {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(30), "the stream held the stop up");
        assert!(matches!(consumer.event().await, WalEvent::Down { .. }));
        own.again().await;
        consumer.leading().await;
    }
    assert_eq!(consumer.metrics.gaps.get(), 0);
    consumer.scope.drain(PATIENCE).await.unwrap();
    own.stop().await;
}

#[tokio::test]
async fn slot_invalidated_for_retained_wal_is_a_gap() {
    let settings = [
        ("fsync", "off"),
        ("min_wal_size", "32MB"),
        ("max_wal_size", "32MB"),
        ("max_slot_wal_keep_size", "16MB"),
    ];
    let (mut own, folder) = (DedicatedServer::with(&settings).await, tempfile::tempdir().unwrap());
    let (scope, database) = migrated(&own.url).await;
    let sql = database.client().await.unwrap();
    sql.batch_execute(
        "create table public.items (id int8 primary key); create table public.noise (body text)",
    )
    .await
    .unwrap();
    wal::publish(&**sql, PUBLICATION, &[("public".into(), "items".into())]).await.unwrap();
    let run = |config: wal::Config| start(&scope, database.clone(), config, folder.path().join("spill"));
    let mut consumer = run(wal::Config::default());
    consumer.leading().await;
    insert(&database, 1).await;
    // Never confirmed, and the neighbours write on.
    consumer.transaction().await;
    let noise = "insert into public.noise select repeat(md5(i::text), 30) from generate_series(1, 20000) i";
    let lost = "select wal_status from pg_replication_slots";
    while sql.query_one(lost, &[]).await.unwrap().get::<_, Option<&str>>(0) != Some("lost") {
        sql.batch_execute(noise).await.unwrap();
        sql.batch_execute("select pg_switch_wal(); checkpoint").await.unwrap();
    }
    let gap = consumer.gap().await;
    assert!(gap.reason.contains("max_slot_wal_keep_size"), "{gap:?}");
    consumer.stream.confirm.confirm(gap.to);
    consumer.leading().await;
    insert(&database, 2).await;
    assert_eq!(consumer.ids().await, [2]);
    drop(sql);
    consumer.scope.drain(PATIENCE).await.unwrap();
    own.stop().await;
}

#[tokio::test]
async fn tls_with_a_verified_name_and_a_password_bound_to_it() {
    let folder = tempfile::tempdir().unwrap();
    open_to_all(folder.path());
    let (certificate, key) = (folder.path().join("server.crt"), folder.path().join("server.key"));
    self_signed(&certificate, &key);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let options = private::Options {
        data_dir: folder.path().join("data"),
        settings: vec![
            ("fsync".into(), "off".into()),
            ("ssl".into(), "on".into()),
            ("ssl_cert_file".into(), text(&certificate)),
            ("ssl_key_file".into(), text(&key)),
        ],
        ..private::Options::default()
    };
    let server = private::Server::open(&options).await.unwrap();
    let target = server.tcp_target();
    let url = target.url().replace("127.0.0.1", "localhost");
    let url = url.split('?').next().unwrap();
    let verified = format!("{url}?sslmode=verify-full&sslrootcert={}", certificate.display());

    let (scope, database) = migrated(&verified).await;
    let sql = database.client().await.unwrap();
    wal::ensure_publication(&**sql, PUBLICATION).await.unwrap();
    let mut consumer = start(&scope, database.clone(), wal::Config::default(), folder.path().join("spill"));
    consumer.leading().await;
    let ssl = "select s.ssl from pg_stat_ssl s join pg_stat_replication r using (pid)";
    assert!(sql.query_one(ssl, &[]).await.unwrap().get::<_, bool>(0));
    drop(sql);
    consumer.scope.drain(PATIENCE).await.unwrap();

    // The same server by its unix socket.
    wal::probe(server.target()).await.unwrap();
    // With another name, or a password that is wrong, it says so.
    let numbered = verified.replace("@localhost", "@127.0.0.1");
    assert!(refusal(&numbered).await.contains("encrypted"));
    let password = format!(":{}@", secrecy::ExposeSecret::expose_secret(target.password.as_ref().unwrap()));
    assert!(refusal(&verified.replace(&password, ":wrong@")).await.contains("28P01"));
    server.stop().await.unwrap();
}

async fn refusal(url: &str) -> String {
    wal::probe(&Target::parse(url).unwrap()).await.unwrap_err().to_string()
}

/// A consumer that reaches its server by way of `proxy`.
async fn start_through(proxy: &Proxy, rig: &Rig, config: wal::Config) -> Consumer {
    let scope = Scope::default();
    let through = db::Config { url: Some(SecretString::from(proxy.url.clone())), ..rig.db.config() };
    let database = Database::open(&through, &scope).await.unwrap();
    start(&scope, database, config, rig.spill_dir())
}

async fn migrated(url: &str) -> (Scope, Database) {
    let scope = Scope::default();
    let config = db::Config { url: Some(SecretString::from(url.to_owned())), ..db::Config::default() };
    let database = Database::open(&config, &scope).await.unwrap();
    db::migrate(&database).await.unwrap();
    (scope, database)
}

async fn insert(database: &Database, id: i64) {
    // The pool may still hold connections of the server's last life.
    let insert = async {
        loop {
            if let Ok(client) = database.client().await
                && client.execute("insert into public.items values ($1)", &[&id]).await.is_ok()
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, insert).await.unwrap();
}

fn self_signed(certificate: &Path, key: &Path) {
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
    );
    run("chmod", &["600", key]);
    let owner = std::process::Command::new("id").arg("-u").output().unwrap();
    if owner.stdout == b"0\n" {
        run("chown", &["postgres", key]);
    }
}
