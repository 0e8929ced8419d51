//! Which settings are different. Pure.
use super::{Config, shown::tree};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The value of a missing key.
static NULL: Value = Value::Null;

/// The dotted keys with another value, sorted. Secrets count too. A list counts as a whole.
#[must_use]
pub fn changed_keys(before: &Config, after: &Config) -> Vec<String> {
    // Hashes, so that no copy of a secret is made.
    let hashed = |secret: &str| Value::String(format!("{:x?}", Sha256::digest(secret)));
    let mut keys = Vec::new();
    compare("", &tree(before, &hashed), &tree(after, &hashed), &mut keys);
    keys
}

fn compare(place: &str, before: &Value, after: &Value, keys: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                let [before, after] = [old, new].map(|members| members.get(name).unwrap_or(&NULL));
                compare(&place, before, after, keys);
            }
        }
        _ if before != after => keys.push(place.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;

    #[test]
    fn each_changed_key_is_named_also_that_of_a_secret() {
        let mut before = Config::default();
        before.database.url = Some(SecretString::from("postgres://me:one@h/db".to_owned()));
        before.auth.jwks_url = Some("https://me:one@h/keys".into());
        assert_eq!(changed_keys(&before, &before.clone()), Vec::<String>::new());
        let mut after = before.clone();
        after.telemetry.log = "debug".into();
        after.server.listen.set_port(7);
        // Only the password.
        after.database.url = Some(SecretString::from("postgres://me:two@h/db".to_owned()));
        after.auth.jwks_url = Some("https://me:two@h/keys".into());
        after.auth.jwks = Some("{}".into());
        assert_eq!(
            changed_keys(&before, &after),
            ["auth.jwks", "auth.jwks_url", "database.url", "server.listen", "telemetry.log"]
        );
        assert_eq!(changed_keys(&Config::default(), &before), ["auth.jwks_url", "database.url"]);
    }
}
