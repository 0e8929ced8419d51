//! Connecting to a database that is somebody else's.
use crate::support;
use convoke::{
    db::{Config, Database, Error, Target, private},
    scope::Scope,
};
use secrecy::SecretString;
use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    time::Duration,
};

async fn open(url: &str) -> Result<Database, Error> {
    let connect_timeout = Duration::from_secs(2);
    let config =
        Config { url: Some(SecretString::from(url.to_owned())), connect_timeout, ..Config::default() };
    Database::open(&config, &Scope::default()).await
}

#[tokio::test]
async fn an_outside_database_is_not_private_and_keeps_its_url() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    assert!(!db.is_private());
    assert_eq!(db.url(), database.url);
    assert!(db.url_redacted().contains(":***@"));
    db.stop().await.unwrap();
    db.stop().await.unwrap();
    assert!(matches!(db.client().await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_wrong_password_is_told_as_such_and_is_not_tried_again() {
    let mut target = Target::parse(support::postgres().await).unwrap();
    target.password = Some("hunter2".to_owned().into());
    let error = open(&target.url()).await.unwrap_err();
    assert!(matches!(&error, Error::WrongPassword { user, .. } if user == "convoke"), "{error:?}");
    assert!(!error.is_transient());
    assert!(!format!("{error:?} {error}").contains("hunter2"));
    target.password = None;
    assert!(matches!(open(&target.url()).await, Err(Error::WrongPassword { .. })));
}

#[tokio::test]
async fn an_unknown_database_is_told_with_the_statement_that_makes_it() {
    let target = Target::parse(support::postgres().await).unwrap().with_database("nowhere");
    let error = open(&target.url()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownDatabase { .. }));
    assert!(error.to_string().contains("create database \"nowhere\""), "{error}");
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address_and_may_be_tried_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It takes connections and never answers.
    let error = open(&format!("postgres://a:b@{address}/c")).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { address: told, .. } if *told == address.to_string()),
        "{error:?}"
    );
    drop(listener);
    let error = open(&format!("postgres://a:b@{address}/c")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_transient(), "{error:?}");
    let error = open("postgres://a:b@%2Fnonexistent/c").await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/.s.PGSQL.5432"), "{error}");
}

#[tokio::test]
async fn a_role_that_may_not_connect_is_told_the_grant() {
    let database = support::empty_database().await;
    let admin = database.client().await;
    let role = format!("{}_outcast", database.name);
    let sql = format!(
        "drop role if exists {role}; create role {role} login password 'pw'; revoke connect on database {} from public",
        database.name
    );
    admin.batch_execute(&sql).await.unwrap();
    let mut target = Target::parse(&database.url).unwrap();
    (target.user, target.password) = (role.clone(), Some("pw".to_owned().into()));
    let error = open(&target.url()).await.unwrap_err();
    assert!(
        matches!(&error, Error::NoRight { remedy, .. } if remedy.starts_with("grant connect")),
        "{error:?}"
    );
    admin.batch_execute(&format!("drop role {role}")).await.unwrap();
}

/// The files of a server certificate for `localhost`, made with openssl for this test, good for 100 years.
fn certificate(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/db/tls").join(name)
}

#[tokio::test]
async fn the_sslmode_of_the_url_decides_how_much_tls_there_is() {
    let folder = super::private::Folder::new();
    let mut settings = vec![("ssl".to_owned(), "on".to_owned())];
    for (setting, file) in [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key")] {
        let copy = folder.path().join(file);
        std::fs::copy(certificate(file), &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let Some((uid, gid)) = super::private::server_user() {
            chown(&copy, Some(uid), Some(gid)).unwrap();
        }
        settings.push((setting.to_owned(), copy.display().to_string()));
    }
    let options = private::Options { data_dir: folder.data_dir(), settings, ..private::Options::default() };
    let server = private::Server::open(&options).await.unwrap();
    let plain = server.tcp_target().url();
    let base = plain.split('?').next().unwrap().to_owned();
    let encrypted = async |url: String| {
        let db = open(&url).await?;
        let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        Ok::<bool, Error>(db.client().await?.query_one(sql, &[]).await?.get(0))
    };
    let by_name = base.replace("127.0.0.1", "localhost");
    let ca = certificate("ca.pem").display().to_string();
    assert!(!encrypted(format!("{base}?sslmode=disable")).await.unwrap());
    assert!(encrypted(base.clone()).await.unwrap(), "prefer");
    assert!(encrypted(format!("{base}?sslmode=require")).await.unwrap());
    assert!(encrypted(format!("{by_name}?sslmode=verify-full&sslrootcert={ca}")).await.unwrap());
    let other_name = encrypted(format!("{base}?sslmode=verify-full&sslrootcert={ca}")).await.unwrap_err();
    assert!(matches!(other_name, Error::Tls { .. }), "{other_name:?}");
    let unknown_authority = encrypted(format!("{by_name}?sslmode=verify-full")).await.unwrap_err();
    assert!(matches!(unknown_authority, Error::Tls { .. }), "{unknown_authority:?}");
    let missing =
        encrypted(format!("{base}?sslmode=verify-full&sslrootcert=/nonexistent")).await.unwrap_err();
    assert!(missing.to_string().contains("/nonexistent"), "{missing}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_without_tls_is_refused_when_tls_is_required() {
    let url = support::postgres().await.split('?').next().unwrap().to_owned();
    assert!(open(&url).await.is_ok(), "prefer");
    let error = open(&format!("{url}?sslmode=require")).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
}
