//! Tokens of other issuers and opaque keys: signatures, key ids, rotation, and texts for clients.
mod tokens;
mod weak;

use crate::support::crypto;
use crate::{
    daemon::{Running, config, fresh, soon},
    messages::{MessagesDaemon, OPEN, next_json},
    realtime::{
        SECRET, Socket,
        client_process::{ClientProcess, NEW, OLD},
    },
};
use axum::{Router, extract::State, routing::get};
use convoke::{
    auth::{ApiKey, Config, Keys, TokenError},
    clock::Clock,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// A key pair for these tests.
struct Pair {
    kid: &'static str,
    algorithm: Algorithm,
    private: EncodingKey,
}

impl Pair {
    fn rsa(kid: &'static str, algorithm: Algorithm) -> Self {
        Self { kid, algorithm, private: EncodingKey::from_rsa_der(include_bytes!("rsa.der")) }
    }

    fn ec(kid: &'static str, algorithm: Algorithm) -> Self {
        let der: &[u8] = if algorithm == Algorithm::ES256 {
            include_bytes!("p256.der")
        } else {
            include_bytes!("p384.der")
        };
        Self { kid, algorithm, private: EncodingKey::from_ec_der(der) }
    }

    fn ed(kid: &'static str) -> Self {
        let private = EncodingKey::from_ed_der(include_bytes!("ed25519.der"));
        Self { kid, algorithm: Algorithm::EdDSA, private }
    }

    fn public(&self) -> Value {
        let mut jwk = if self.algorithm == Algorithm::EdDSA {
            // The last 32 bytes of an Ed25519 public key document.
            json!({"kty": "OKP", "crv": "Ed25519", "x": ED25519_X})
        } else {
            serde_json::to_value(Jwk::from_encoding_key(&self.private, self.algorithm).unwrap()).unwrap()
        };
        jwk["kid"] = json!(self.kid);
        jwk
    }

    fn token(&self, role: &str, seconds: i64) -> String {
        self.token_until(role, Clock::System.now().timestamp() + seconds)
    }

    fn token_until(&self, role: &str, expiry: i64) -> String {
        self.sign(&json!({"role": role, "exp": expiry, "aud": "authenticated"}))
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }
}

const ED25519_X: &str = include_str!("ed25519.x");

fn keys(config: Config) -> Keys {
    let config = Config { jwt_secret: Some(SECRET.into()), ..config };
    Keys::load_or_generate(&config, Path::new("/nonexistent")).unwrap()
}

fn set(pairs: &[&Pair]) -> String {
    json!({ "keys": pairs.iter().map(|pair| pair.public()).collect::<Vec<_>>() }).to_string()
}

#[test]
fn tokens_of_every_key_type_are_verified() {
    let pairs = [
        Pair::rsa("r2", Algorithm::RS256),
        Pair::rsa("r3", Algorithm::RS384),
        Pair::rsa("r5", Algorithm::RS512),
        Pair::ec("e2", Algorithm::ES256),
        Pair::ec("e3", Algorithm::ES384),
        Pair::ed("d"),
    ];
    let mut json: Value = serde_json::from_str(&set(&pairs.each_ref())).unwrap();
    // Keys of unknown types are ignored.
    json["keys"].as_array_mut().unwrap().push(json!({"kty": "new", "kid": "n"}));
    let keys = keys(Config { jwks: Some(json.to_string()), ..Config::default() });
    let now = Clock::System.now();
    for pair in &pairs {
        assert_eq!(keys.verify(&pair.token("anon", 60), now).unwrap().role, "anon", "{}", pair.kid);
        let token = pair.token("anon", 60);
        let (message, _) = token.rsplit_once('.').unwrap();
        let other = pair.token("service_role", 60);
        let forged = format!("{message}.{}", other.rsplit_once('.').unwrap().1);
        assert_eq!(keys.verify(&forged, now), Err(TokenError::BadSignature), "{}", pair.kid);
        let expired = pair.token_until("anon", now.timestamp() - 5);
        let expired = keys.verify(&expired, now).unwrap_err();
        assert!(matches!(expired, TokenError::Expired { .. }), "{expired}");
    }
    let stranger = Pair::rsa("x", Algorithm::RS256);
    let unknown = keys.verify(&stranger.token("anon", 60), now).unwrap_err();
    assert_eq!(unknown, TokenError::UnknownKey("x".into()));
    // A public key is not accepted as a shared secret, and a key verifies only algorithms of its own type.
    let public = serde_json::to_string(&pairs[0].public()).unwrap();
    let header = Header { kid: Some("r2".into()), ..Header::new(Algorithm::HS256) };
    let claims = json!({"role": "service_role", "exp": now.timestamp() + 60});
    let confused =
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(public.as_bytes())).unwrap();
    assert_eq!(keys.verify(&confused, now), Err(TokenError::BadSignature));
    let wrong_curve = Pair { kid: "e3", ..Pair::ec("e3", Algorithm::ES256) };
    assert_eq!(keys.verify(&wrong_curve.token("anon", 60), now), Err(TokenError::UnknownKey("e3".into())));
}

#[test]
fn configured_claims_must_match() {
    let pair = Pair::ec("e", Algorithm::ES256);
    let claims = json!({"aud": "authenticated", "iss": "us"}).as_object().unwrap().clone();
    let keys = keys(Config { jwks: Some(set(&[&pair])), claims, ..Config::default() });
    let now = Clock::System.now();
    let token = |more: Value| {
        let mut claims = json!({"role": "anon", "exp": now.timestamp() + 60});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys.verify(&pair.sign(&claims), now).map(|claims| claims.role)
    };
    assert!(token(json!({})).is_ok() && token(json!({"aud": "authenticated"})).is_ok());
    let other = token(json!({"aud": "authenticated", "iss": "them"})).unwrap_err();
    assert_eq!(other, TokenError::OtherClaim("iss".into()));
    assert_eq!(other.join_text(), "Unknown Error on Channel");
}

#[test]
fn opaque_keys_have_roles_and_are_never_shown() {
    let publishable = "sb_publishable_0123456789abcdef";
    let api_keys = vec![
        ApiKey { key: Some(publishable.into()), sha256: None, role: "anon".into() },
        // Hash of `sb_secret_0123456789abcdef`.
        ApiKey { key: None, sha256: Some(sha256("sb_secret_0123456789abcdef")), role: "service_role".into() },
    ];
    let config = Config { api_keys, ..Config::default() };
    assert!(!format!("{config:?}").contains("0123456789abcdef"));
    let keys = keys(config);
    let now = Clock::System.now();
    assert_eq!(keys.verify(publishable, now).unwrap().role, "anon");
    assert!(keys.verify("sb_secret_0123456789abcdef", now).unwrap().is_service());
    assert_eq!(keys.verify("sb_secret_0123456789abcdeg", now), Err(TokenError::Malformed));
    for (key, sha256, role) in [
        (Some("sb_short"), None, "anon"),
        (None, None, "anon"),
        (None, Some("xyz"), "anon"),
        (Some(publishable), None, "none"),
    ] {
        let key = ApiKey { key: key.map(Into::into), sha256: sha256.map(str::to_owned), role: role.into() };
        let config = Config { jwt_secret: Some(SECRET.into()), api_keys: vec![key], ..Config::default() };
        let refused = Keys::load_or_generate(&config, Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(refused.starts_with("auth.api_keys[0] ") && !refused.contains("sb_p"), "{refused}");
    }
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An issuer whose key set can change and be unavailable.
#[derive(Clone, Default)]
struct Issuer {
    json: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicU32>,
}

impl Issuer {
    async fn start(&self) -> String {
        async fn answer(State(issuer): State<Issuer>) -> Result<String, axum::http::StatusCode> {
            issuer.asked.fetch_add(1, Ordering::SeqCst);
            issuer.json.lock().clone().ok_or(axum::http::StatusCode::BAD_GATEWAY)
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let app = Router::new().route("/jwks", get(answer)).with_state(self.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }
}

#[tokio::test]
async fn new_key_is_fetched_once_and_old_keys_stay_while_the_issuer_is_unavailable() {
    crypto();
    let (old, new) = (Pair::rsa("old", Algorithm::RS256), Pair::ec("new", Algorithm::ES256));
    let issuer = Issuer::default();
    *issuer.json.lock() = Some(set(&[&old]));
    let keys = keys(Config { jwks_url: Some(issuer.start().await), ..Config::default() });
    let now = Clock::System.now();
    let token = old.token("anon", 600);
    let many = futures_util::future::join_all((0..50).map(|_| keys.verify_fresh(&token, now))).await;
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);

    *issuer.json.lock() = Some(set(&[&old, &new]));
    let fresh = new.token("anon", 600);
    let unknown = keys.verify_fresh(&fresh, now).await.unwrap_err();
    assert_eq!(unknown, TokenError::UnknownKey("new".into()), "asked a moment ago");
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    *issuer.json.lock() = None;
    assert!(keys.verify_fresh(&fresh, now).await.is_err(), "away");
    assert!(keys.verify_fresh(&token, now).await.is_ok(), "the old keys stay");
    *issuer.json.lock() = Some(set(&[&old, &new]));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    assert_eq!(keys.verify_fresh(&fresh, now).await.unwrap().role, "anon");
}

/// Real clients with keys of an issuer: a private channel that is denied and granted, a token that is renewed
/// and one that expires, messages from SQL, and a replay.
#[tokio::test]
async fn real_clients_use_private_channels_with_tokens_of_an_issuer() {
    let (rsa, ec) = (Pair::rsa("r", Algorithm::RS256), Pair::ec("e", Algorithm::ES256));
    let issuer = Issuer::default();
    *issuer.json.lock() = Some(set(&[&rsa, &ec]));
    let (db, data) = fresh().await;
    db.client().await.batch_execute(OPEN).await.unwrap();
    let mut config = config(&db, data.path());
    config.auth.jwks_url = Some(issuer.start().await);
    config.auth.jwt_secret = Some(SECRET.into());
    config.gateway.join_error_delay = Duration::ZERO;
    let publishable = "sb_publishable_0123456789abcdef";
    config.auth.api_keys = vec![ApiKey { key: Some(publishable.into()), sha256: None, role: "anon".into() }];
    let running = Running::start(config, Vec::new()).await;
    let rig = MessagesDaemon { sql: db.client().await, running, db, data };
    let http = format!("http://{}", rig.running.parts.addr);
    let ws = format!("ws://{}/realtime/v1", rig.running.parts.addr);
    rig.send(json!({"n": 1}), "sent", "den", true).await;

    let private = json!({"private": true});
    let replay = json!({"private": true, "broadcast": {"replay": {"since": 0}}});
    let denied = "Unauthorized: You do not have permissions to read from this Channel topic: den";
    for package in [NEW, OLD] {
        // An opaque key is enough for the socket; the room needs the user's token.
        let mut client = ClientProcess::js(package, &http, publishable, None).await;
        // supabase-js v1 closes a socket without channels, and loses a join during that.
        client.join("hall", json!({})).await;
        client.send("join", json!({"topic": "den", "config": private})).await;
        let status = client.until("status", |it| it["status"] == "CHANNEL_ERROR").await;
        // supabase-js v1 puts the text in quotes.
        assert_eq!(status["error"].as_str().unwrap().trim_matches('"'), denied);
        client.ask("leave", json!({"topic": "den"}), "left").await;
        client.ask("set_auth", json!({"token": rsa.token("authenticated", 600)}), "authorized").await;
        client.join("den", replay.clone()).await;
        assert_eq!(client.broadcast("sent").await["n"], 1, "replayed");
        rig.send(json!({"n": 2}), "live", "den", true).await;
        assert_eq!(client.broadcast("live").await["n"], 2);
        client.ask("set_auth", json!({"token": ec.token("authenticated", 600)}), "authorized").await;
        rig.send(json!({"n": 3}), "renewed", "den", true).await;
        assert_eq!(client.broadcast("renewed").await["n"], 3);
        client.ask("set_auth", json!({"token": ec.token("authenticated", 2)}), "authorized").await;
        let ended = client.until("system", |it| it["topic"] == "den").await;
        assert!(ended["message"].as_str().unwrap().starts_with("Token has expired "), "{ended}");
        client.until("status", |it| it["status"] == "CLOSED").await;
    }
    let mut python = ClientProcess::python(&ws, &ec.token("authenticated", 600)).await;
    python.join("den", replay.clone()).await;
    rig.send(json!({"n": 3}), "m", "den", true).await;
    python.until("broadcast", |it| it["name"] == "m" && it["payload"]["n"] == 3).await;
    let mut python = ClientProcess::python(&ws, publishable).await;
    python.send("join", json!({"topic": "den", "config": private})).await;
    python.until("status", |it| it["status"] == "CHANNEL_ERROR").await;
    python.ask("leave", json!({"topic": "den"}), "left").await;
    for (n, token) in [(4, rsa.token("authenticated", 600)), (5, ec.token("authenticated", 600))] {
        python.ask("set_auth", json!({ "token": token }), "authorized").await;
        if n == 4 {
            python.join("den", replay.clone()).await;
        }
        rig.send(json!({ "n": n }), "m", "den", true).await;
        python.until("broadcast", |it| it["name"] == "m" && it["payload"]["n"] == n).await;
    }
    python.ask("set_auth", json!({"token": ec.token("authenticated", 2)}), "authorized").await;
    let expired = |it: &Value| it["error"].as_str().is_some_and(|why| why.contains("Token has expired "));
    python.until("status", expired).await;
}

#[tokio::test]
async fn opaque_service_key_has_every_right_and_unknown_key_is_refused() {
    let (db, data) = fresh().await;
    let mut config = MessagesDaemon::config(&db, &data);
    let secret = "sb_secret_0123456789abcdef";
    config.auth.api_keys =
        vec![ApiKey { key: Some(secret.into()), sha256: None, role: "service_role".into() }];
    let running = Running::start(config, Vec::new()).await;
    let rig = MessagesDaemon { sql: db.client().await, running, db, data };
    let url = format!("ws://{}/socket/websocket?vsn=2.0.0&apikey=", rig.running.parts.addr);
    let mut socket = Socket::open(&format!("{url}{secret}"), true).await;
    let join = json!({"config": {"private": true}, "access_token": secret});
    socket.join_with("den", join).await.ok();
    rig.send(json!({"n": 1}), "e", "den", true).await;
    assert_eq!(next_json(&mut socket).await.2["n"], 1);
    let refused = soon("the refusal", async {
        let request = crate::realtime::UPGRADE.iter().fold(
            crate::realtime::http().get(format!(
                "http://{}/socket/websocket?vsn=2.0.0&apikey=sb_secret_unknown_unknown",
                rig.running.parts.addr
            )),
            |request, (name, value)| request.header(*name, *value),
        );
        request.send().await.unwrap().text().await.unwrap()
    })
    .await;
    assert_eq!(refused, r#"{"error":"The token provided is not a valid JWT"}"#);
}
