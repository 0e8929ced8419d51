//! The settings as people may see them: a secret is `set` or null, and an address has no password.
use super::Config;
use crate::auth::ApiKey;
use crate::telemetry::{HIDDEN, without_login};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

/// All settings as JSON, by section and key, with the defaults of those that were not given.
#[must_use]
pub fn shown(config: &Config) -> Value {
    let mut shown = tree(config, &|_| HIDDEN.into());
    without_logins(&mut shown);
    shown
}

/// All settings by section and key, with the values that `secret` makes of those that are secret.
pub(super) fn tree(config: &Config, secret: &dyn Fn(&str) -> Value) -> Value {
    // Every section is named, so that a new one must be considered here.
    let Config {
        server,
        database,
        auth,
        access,
        dashboard,
        agents,
        llm,
        wal,
        changes,
        gateway,
        channels,
        ..
    } = config;
    let Config { history, task, telemetry, .. } = config;
    let hidden = |given: &Option<SecretString>| given.as_ref().map(|given| secret(given.expose_secret()));
    let mut shown = json!({
        "server": server, "database": database, "access": access, "dashboard": dashboard, "agents": agents,
        "llm": llm, "wal": wal, "changes": changes, "gateway": gateway, "channels": channels,
        "history": history, "task": task, "telemetry": telemetry,
        "auth": {
            "jwt_secret": hidden(&auth.jwt_secret), "jwks": auth.jwks.as_deref().map(secret),
            "jwks_file": auth.jwks_file, "jwks_url": auth.jwks_url, "claims": auth.claims, "roles": auth.roles,
            "api_keys": auth.api_keys.iter().map(|key| json!({ "key": secret(key_text(key)), "role": key.role }))
                .collect::<Vec<_>>(),
        },
    });
    if let Some(database) = shown.get_mut("database").and_then(Value::as_object_mut) {
        database.insert("url".into(), json!(hidden(&config.database.url)));
    }
    shown
}

/// The key, or its hash in the place of it.
fn key_text(key: &ApiKey) -> &str {
    let given = key.key.as_ref().map(ExposeSecret::expose_secret);
    given.or(key.sha256.as_deref()).unwrap_or_default()
}

fn without_logins(value: &mut Value) {
    match value {
        Value::Object(members) => members.values_mut().for_each(without_logins),
        Value::Array(items) => items.iter_mut().for_each(without_logins),
        Value::String(text) if text.contains('@') => *text = without_login(text),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;

    #[test]
    fn settings_are_shown_without_a_secret() {
        let secret = |text: &str| Some(SecretString::from(text.to_owned()));
        let mut config = Config::default();
        config.auth.jwt_secret = secret("s3cret of at least 32 bytes, really");
        config.auth.jwks = Some("{\"keys\":[\"s3cret\"]}".into());
        config.auth.jwks_url = Some("https://user:s3cret@example.org/keys".into());
        config.database.url = secret("postgres://me:s3cret@example.org/db");
        let shown = shown(&config);
        let text = shown.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!((&shown["auth"]["jwt_secret"], &shown["database"]["url"]), (&json!("set"), &json!("set")));
        assert_eq!(shown["auth"]["jwks_url"], "https://example.org/keys");
        assert_eq!(shown["database"]["pool_size_max"], 8);
        let none = super::shown(&Config::default());
        assert_eq!((&none["auth"]["jwt_secret"], &none["database"]["url"]), (&Value::Null, &Value::Null));
    }
}
