//! Keys with which anybody could sign are refused: where they are loaded, and where they are used.
use super::{Issuer, Pair, keys};
use crate::{realtime::SECRET, support::crypto};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use convoke::{
    auth::{Config, Keys, TokenError},
    clock::Clock,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

fn octets(kid: &str, secret: &[u8]) -> Value {
    json!({ "kty": "oct", "kid": kid, "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(secret) })
}

fn rsa(kid: &str, modulus: &[u8], exponent: &[u8]) -> Value {
    let (n, e) = (URL_SAFE_NO_PAD.encode(modulus), URL_SAFE_NO_PAD.encode(exponent));
    json!({ "kty": "RSA", "kid": kid, "alg": "RS256", "n": n, "e": e })
}

fn ed25519(kid: &str, x: &[u8]) -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "alg": "EdDSA", "x": URL_SAFE_NO_PAD.encode(x) })
}

/// A point of order 1: with it, the signature of this point and of zero fits every message.
const SMALL_ORDER: [u8; 32] = {
    let mut x = [0; 32];
    x[0] = 1;
    x
};

/// Each weak key, and the secret that signs for it where a test can sign at all.
fn weak() -> Vec<(Value, Option<Vec<u8>>)> {
    let mut padded = b"short".to_vec();
    padded.resize(64, 0);
    let zeros_first = [vec![0; 200], vec![0xff; 128]].concat();
    let mut standard = octets("standard", &[0xfb; 40]);
    standard["k"] = json!("+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/");
    vec![
        (octets("empty", b""), Some(Vec::new())),
        (octets("one", b"x"), Some(b"x".to_vec())),
        (octets("31", &[7; 31]), Some(vec![7; 31])),
        (octets("zeros", &[0; 32]), Some(Vec::new())),
        (octets("padded", &padded), Some(b"short".to_vec())),
        (standard, None),
        (rsa("1024", &[0xff; 128], &[1, 0, 1]), None),
        (rsa("2040", &[0xff; 255], &[1, 0, 1]), None),
        (rsa("zeros-first", &zeros_first, &[1, 0, 1]), None),
        (rsa("exponent-1", &[0xff; 256], &[1]), None),
        (rsa("exponent-01", &[0xff; 256], &[0, 0, 1]), None),
        (rsa("exponent-2", &[0xff; 256], &[2]), None),
        (rsa("no-exponent", &[0xff; 256], &[]), None),
        (rsa("no-modulus", &[], &[1, 0, 1]), None),
        (ed25519("no-x", &[]), None),
        (ed25519("31-x", &[7; 31]), None),
        (ed25519("33-x", &[7; 33]), None),
        (ed25519("small-order", &SMALL_ORDER), None),
    ]
}

fn hmac_token(kid: &str, secret: &[u8]) -> String {
    let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::HS256) };
    let claims = json!({ "role": "service_role", "exp": 4_000_000_000_u64 });
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
}

#[test]
fn weak_keys_of_a_key_set_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    for (key, _) in weak() {
        let set = json!({ "keys": [Pair::ec("good", Algorithm::ES256).public(), key] }).to_string();
        fs::write(&file, &set).unwrap();
        let inline = Config { jwks: Some(set), ..Config::default() };
        let in_file = Config { jwks_file: Some(file.clone()), ..Config::default() };
        for (config, setting) in [(inline, "jwks"), (in_file, "jwks_file")] {
            let found = config.check();
            assert_eq!(found.len(), 1, "{key}: {found:?}");
            assert_eq!(found[0].0, setting, "{key}");
            let config = Config { jwt_secret: Some(SECRET.into()), ..config };
            let refused = Keys::load_or_generate(&config, Path::new("/nonexistent")).unwrap_err().to_string();
            let kid = key["kid"].as_str().unwrap();
            assert!(refused.contains("is too weak") && refused.contains(kid), "{key}: {refused}");
            let secret = key["k"].as_str().filter(|k| k.len() > 3).unwrap_or("no secret");
            assert!(!refused.contains(secret), "{refused}");
        }
    }
}

/// An issuer can give a weak key at any time: it is not used, and its other keys are.
#[tokio::test]
async fn weak_keys_of_an_issuer_verify_nothing_and_its_other_keys_do() {
    crypto();
    let good = Pair::ec("good", Algorithm::ES256);
    let issuer = Issuer::default();
    let all: Vec<Value> = weak().into_iter().map(|(key, _)| key).chain([good.public()]).collect();
    *issuer.json.lock() = Some(json!({ "keys": all }).to_string());
    let keys = keys(Config { jwks_url: Some(issuer.start().await), ..Config::default() });
    let now = Clock::System.now();
    assert_eq!(keys.verify_fresh(&good.token("anon", 60), now).await.unwrap().role, "anon");
    for (key, secret) in weak() {
        let kid = key["kid"].as_str().unwrap();
        if let Some(secret) = secret {
            let refused = keys.verify_fresh(&hmac_token(kid, &secret), now).await;
            assert_eq!(refused, Err(TokenError::BadSignature), "{kid}");
        }
        let stranger = Pair::rsa("x", Algorithm::RS256);
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::RS256) };
        let claims = json!({ "role": "service_role", "exp": 4_000_000_000_u64 });
        let token = jsonwebtoken::encode(&header, &claims, &stranger.private).unwrap();
        assert_eq!(keys.verify_fresh(&token, now).await, Err(TokenError::UnknownKey(kid.into())), "{kid}");
        // Nobody made this signature: it fits a key of small order.
        let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
        let header = encode(json!({ "alg": "EdDSA", "typ": "JWT", "kid": kid }).to_string());
        let claims = encode(claims.to_string());
        let signature = URL_SAFE_NO_PAD.encode([SMALL_ORDER, [0; 32]].concat());
        let forged = keys.verify_fresh(&format!("{header}.{claims}.{signature}"), now).await;
        assert_eq!(forged, Err(TokenError::UnknownKey(kid.into())), "{kid}");
    }
}

#[test]
fn a_strong_shared_key_of_a_key_set_verifies() {
    let secret: Vec<u8> = (1..=32).collect();
    let set = json!({ "keys": [octets("strong", &secret)] }).to_string();
    let keys = keys(Config { jwks: Some(set), ..Config::default() });
    assert!(keys.verify(&hmac_token("strong", &secret), Clock::System.now()).unwrap().is_service());
}

/// Keys that are for something else than signatures verify none.
#[test]
fn a_key_for_encryption_verifies_nothing() {
    let secret: Vec<u8> = (1..=32).collect();
    for (member, value) in
        [("use", json!("enc")), ("key_ops", json!(["encrypt", "decrypt"])), ("key_ops", json!([]))]
    {
        let mut key = octets("other", &secret);
        key[member] = value;
        let keys = keys(Config { jwks: Some(json!({ "keys": [key] }).to_string()), ..Config::default() });
        let refused = keys.verify(&hmac_token("other", &secret), Clock::System.now());
        assert_eq!(refused, Err(TokenError::BadSignature), "{key}");
    }
}

#[test]
fn a_secret_under_32_bytes_is_refused_from_the_settings_and_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let file = folder.path().join("jwt.secret");
    for secret in ["", "x", &"x".repeat(31), &format!(" {}\n", "x".repeat(31))] {
        let bytes = secret.len();
        if bytes < 32 {
            let config = Config { jwt_secret: Some(secret.into()), ..Config::default() };
            assert_eq!(config.check()[0].0, "jwt_secret", "{secret:?}");
            let refused = Keys::load_or_generate(&config, folder.path()).unwrap_err().to_string();
            let expected = format!("auth.jwt_secret has {bytes} bytes: an HS256 secret needs at least 32");
            assert_eq!(refused, expected);
        }
        fs::write(&file, secret).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let refused = Keys::load_or_generate(&Config::default(), folder.path()).unwrap_err().to_string();
        let expected = format!("{} has {} bytes", file.display(), secret.trim().len());
        assert!(refused.starts_with(&expected), "{refused}");
    }
    fs::write(&file, "x".repeat(32)).unwrap();
    Keys::load_or_generate(&Config::default(), folder.path()).unwrap();
}
