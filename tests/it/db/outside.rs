//! Connections to a configured database.
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
async fn configured_database_is_not_private_and_keeps_its_url() {
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
async fn wrong_password_is_a_permanent_error() {
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
async fn unknown_database_is_reported_with_the_create_statement() {
    let target = Target::parse(support::postgres().await).unwrap().with_database("nowhere");
    let error = open(&target.url()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownDatabase { .. }));
    assert!(error.to_string().contains("create database \"nowhere\""), "{error}");
}

#[tokio::test]
async fn unreachable_server_is_a_transient_error_with_the_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // The listener accepts connections and never answers.
    let error = open(&format!("postgres://a:b@{address}/c")).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { address: found, .. } if *found == address.to_string()),
        "{error:?}"
    );
    drop(listener);
    let error = open(&format!("postgres://a:b@{address}/c")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_transient(), "{error:?}");
    let error = open("postgres://a:b@%2Fnonexistent/c").await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/.s.PGSQL.5432"), "{error}");
}

#[tokio::test]
async fn role_without_connect_privilege_is_reported_with_the_grant() {
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

/// Files of a server certificate for `localhost`, created with openssl for this test, valid for 100 years.
fn certificate(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/db/tls").join(name)
}

#[tokio::test]
async fn sslmode_of_the_url_selects_the_tls_requirement() {
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
async fn server_without_tls_is_refused_if_tls_is_required() {
    let url = support::postgres().await.split('?').next().unwrap().to_owned();
    assert!(open(&url).await.is_ok(), "prefer");
    let error = open(&format!("{url}?sslmode=require")).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
}
