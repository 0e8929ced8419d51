//! Tokens that try to be more than they are: odd types, members given twice, headers that ask for something else.
use super::{Pair, keys};
use crate::realtime::SECRET;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD},
};
use convoke::{
    auth::{Claims, Config, Keys, TokenError},
    clock::Clock,
};
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::Algorithm;
use serde_json::json;
use sha2::Sha256;

const HEADER: &str = r#"{"alg":"HS256"}"#;
const CLAIMS: &str = r#"{"role":"anon","exp":4000000000}"#;

fn hs256(message: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// A token of exactly these texts with a true signature.
fn signed(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(hs256(&message)))
}

fn verify(keys: &Keys, token: &str) -> Result<Claims, TokenError> {
    keys.verify(token, Clock::System.now())
}

#[test]
fn times_that_are_no_time_are_refused() {
    let keys = keys(Config::default());
    for exp in [
        "1e308",
        "-1e308",
        "1e400",
        "-1",
        "0",
        "-0.0",
        "\"4000000000\"",
        "null",
        "true",
        "[]",
        "{}",
        "[4000000000]",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "18446744073709551615",
        "100000000000000000000",
        "1e15",
        "8.3e12",
    ] {
        let token = signed(HEADER, &format!(r#"{{"role":"service_role","exp":{exp}}}"#));
        assert!(verify(&keys, &token).is_err(), "exp {exp}");
    }
    for exp in ["4000000000", "4000000000.4", "4e9"] {
        let token = signed(HEADER, &format!(r#"{{"role":"anon","exp":{exp}}}"#));
        assert_eq!(verify(&keys, &token).map(|it| it.exp.timestamp()), Ok(4_000_000_000), "exp {exp}");
    }
    for nbf in ["1e308", "4000000000", "9223372036854775807", "1e15", "\"0\"", "[0]", "{}", "false"] {
        let token = signed(HEADER, &format!(r#"{{"role":"anon","exp":4000000000,"nbf":{nbf}}}"#));
        assert!(verify(&keys, &token).is_err(), "nbf {nbf}");
    }
}

/// One reader takes the first of two members and another the last: such a token is refused, so that the daemon, the
/// policies of the database and whoever signed it agree.
#[test]
fn members_given_twice_are_refused_in_header_and_claims() {
    let keys = keys(Config::default());
    for claims in [
        r#"{"role":"anon","role":"service_role","exp":4000000000}"#,
        r#"{"role":"service_role","role":"anon","exp":4000000000}"#,
        r#"{"role":"anon","rol\u0065":"service_role","exp":4000000000}"#,
        r#"{"role":"authenticated","exp":4000000000,"org":"demo","org":"else"}"#,
        r#"{"role":"authenticated","exp":1,"exp":4000000000}"#,
        r#"{"role":"authenticated","exp":4000000000,"app_metadata":{"org":1,"org":2}}"#,
    ] {
        assert_eq!(verify(&keys, &signed(HEADER, claims)), Err(TokenError::Malformed), "{claims}");
    }
    for header in [r#"{"alg":"none","alg":"HS256"}"#, r#"{"alg":"HS256","kid":"a","kid":"b"}"#] {
        assert_eq!(verify(&keys, &signed(header, CLAIMS)), Err(TokenError::Malformed), "{header}");
    }
}

#[test]
fn identity_claims_of_odd_types_are_refused() {
    let keys = keys(Config::default());
    for (claim, odd) in [
        ("role", r#"["service_role"]"#),
        ("role", r#"{"toString":"service_role"}"#),
        ("role", "null"),
        ("role", "1"),
        ("sub", "1"),
        ("sub", r#""a\u0000b""#),
        ("sub", r#"["service"]"#),
        ("agent_id", "1e0"),
        ("agent_id", r#""near\u200b""#),
        ("agent_id", r#""\uff4eear""#),
        ("agent_id", r#""ne\u0430r""#),
        ("org", r#""demo\u0000""#),
        ("org", r#""demo/../else""#),
        ("iss", "{}"),
    ] {
        let role = if claim == "role" { "" } else { r#""role":"authenticated","# };
        let token = signed(HEADER, &format!(r#"{{{role}"exp":4000000000,"{claim}":{odd}}}"#));
        let refused = verify(&keys, &token);
        let expected = matches!(refused, Err(TokenError::BadIdentity { claim: told, .. }) if told == claim);
        assert!(expected, "{claim} {odd}: {refused:?}");
    }
    // A lone surrogate is no text.
    let token = signed(HEADER, r#"{"role":"anon","exp":4000000000,"sub":"\ud800"}"#);
    assert_eq!(verify(&keys, &token), Err(TokenError::Malformed));
}

/// The algorithm, the key and the extensions are the daemon's to choose: what a header says of them is no more than a
/// name to look up.
#[test]
fn headers_choose_no_key_and_no_algorithm_of_their_own() {
    let pair = Pair::ec("e", Algorithm::ES256);
    let keys = keys(Config { jwks: Some(super::set(&[&pair])), ..Config::default() });
    for header in [
        r#"{"alg":["HS256","none"]}"#,
        r#"{"alg":{"name":"HS256"}}"#,
        r#"{"alg":"hs256"}"#,
        r#"{"alg":"HS256 "}"#,
        r#"{"alg":"None"}"#,
        r#"{"alg":"nOnE"}"#,
        r#"{"alg":""}"#,
        r#"{"alg":null}"#,
        r#"{"alg":true}"#,
        r#"{"alg":"HS1"}"#,
        r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
        r#"{"alg":"dir","enc":"A128GCM"}"#,
        "[]",
        "null",
        "\"HS256\"",
        "",
    ] {
        assert!(verify(&keys, &signed(header, CLAIMS)).is_err(), "{header}");
    }
    // Extensions that the header does not demand change nothing of how the token is read.
    for header in [
        r#"{"alg":"HS256","b64":false}"#,
        r#"{"alg":"HS256","zip":"DEF"}"#,
        r#"{"alg":"HS256","typ":"JWE","cty":"JWT"}"#,
    ] {
        assert_eq!(verify(&keys, &signed(header, CLAIMS)).map(|it| it.role), Ok("anon".into()), "{header}");
    }
    // A key id is a name, whatever it looks like; with the shared secret it names no other key.
    for kid in
        ["../../../../dev/null", "/etc/passwd", "' or 1=1 --", "e\\u0000", "http://127.0.0.1/x", "E", "e "]
    {
        let es = signed(&format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#), CLAIMS);
        assert!(matches!(verify(&keys, &es), Err(TokenError::UnknownKey(_))), "{kid}");
    }
    for kid in ["1", "null", "[\"e\"]", "{}"] {
        let es = signed(&format!(r#"{{"alg":"ES256","kid":{kid}}}"#), CLAIMS);
        assert_eq!(verify(&keys, &es), Err(TokenError::NoSigner), "{kid}");
    }
    // Keys in a header are ignored: the signature is checked with the daemon's own.
    let own = json!({ "alg": "ES256", "kid": "e", "jwk": pair.public(), "jku": "http://127.0.0.1:9/jwks",
        "x5u": "http://127.0.0.1:9/x", "x5c": ["MIIB"] });
    assert_eq!(verify(&keys, &signed(&own.to_string(), CLAIMS)), Err(TokenError::BadSignature));
    // r and s of zeros verify with a careless library.
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"e"}"#),
        URL_SAFE_NO_PAD.encode(CLAIMS)
    );
    for signature in [vec![0; 64], Vec::new(), vec![0xff; 64], vec![1; 63], hs256(&message)] {
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
        assert_eq!(verify(&keys, &token), Err(TokenError::BadSignature));
    }
}

#[test]
fn a_signature_is_of_exactly_the_text_that_is_read() {
    let keys = keys(Config::default());
    let good = signed(HEADER, CLAIMS);
    assert!(verify(&keys, &good).is_ok());
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(CLAIMS));
    let signature = hs256(&message);
    for (what, token) in [
        ("no signature", format!("{message}.")),
        ("two signatures", format!("{good}.{}", URL_SAFE_NO_PAD.encode(&signature))),
        ("an empty part", format!("..{}", URL_SAFE_NO_PAD.encode(&signature))),
        ("half of the signature", format!("{message}.{}", URL_SAFE_NO_PAD.encode(&signature[..16]))),
        (
            "more than the signature",
            format!("{message}.{}", URL_SAFE_NO_PAD.encode([&signature[..], b"x"].concat())),
        ),
        ("the signature in hexadecimal", format!("{message}.{}", sha2_hex(&signature))),
        (
            "padding in the claims",
            format!(
                "{}.{}==.{}",
                URL_SAFE_NO_PAD.encode(HEADER),
                URL_SAFE_NO_PAD.encode(CLAIMS),
                URL_SAFE_NO_PAD.encode(&signature)
            ),
        ),
        ("a null byte", good.replacen('.', "\0.", 1)),
        ("a letter of another alphabet", good.replacen('e', "\u{435}", 1)),
        (
            "the signature of other claims",
            signed(HEADER, r#"{"role":"anon","exp":4000000001}"#)
                .rsplit_once('.')
                .map(|(_, other)| format!("{message}.{other}"))
                .unwrap(),
        ),
    ] {
        assert!(verify(&keys, &token).is_err(), "{what}");
    }
    // Padding and the other alphabet are other texts, with signatures of their own, or none.
    let padded = format!("{}.{}", URL_SAFE.encode(HEADER), URL_SAFE.encode(CLAIMS));
    assert!(verify(&keys, &format!("{padded}.{}", URL_SAFE_NO_PAD.encode(&signature))).is_err());
    let other =
        format!("{}.{}", STANDARD.encode(r#"{"alg":"HS256","x":"???>>>"}"#), URL_SAFE_NO_PAD.encode(CLAIMS));
    assert!(verify(&keys, &format!("{other}.{}", URL_SAFE_NO_PAD.encode(hs256(&other)))).is_err());
}

fn sha2_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
