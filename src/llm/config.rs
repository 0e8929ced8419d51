//! Declared limits of providers' accounts, and the account behind an endpoint and a key.
use super::{Price, limiter::Limits};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Models as a shared resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Endpoints whose limits are declared, by name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Prices of models, by the name of the model.
    pub prices: BTreeMap<String, Price>,
    /// Limits of orgs, by the name of the org.
    pub orgs: BTreeMap<String, OrgConfig>,
}

/// The limits of one org.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OrgConfig {
    /// Money of a day, in UTC, at all providers.
    pub microdollars_per_day: Option<u64>,
}

/// The declared limits of one endpoint. What is not declared is learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderConfig {
    /// The address as agents write it in `run.base_url`.
    pub base_url: String,
    /// The account; endpoints of one account share its limits. Defaults to the provider's name.
    #[serde(default)]
    pub account: Option<String>,
    /// Requests a minute of the account.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers a minute of the account.
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
    /// Concurrent requests of the account.
    #[serde(default)]
    pub concurrent: Option<u32>,
    /// Money of a day, in UTC, of all agents at this provider.
    #[serde(default)]
    pub microdollars_per_day: Option<u64>,
}

/// Identifies an account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AccountKey {
    /// Declared in the settings.
    Declared(String),
    /// An address and the SHA-256 of its key.
    Endpoint(String, [u8; 32]),
}

impl AccountKey {
    /// The name for people: that of the account, or the host of the address.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Declared(name) => name.clone(),
            Self::Endpoint(base_url, _) => host(base_url),
        }
    }
}

impl ProviderConfig {
    fn limits(&self) -> Limits {
        Limits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent: self.concurrent,
        }
    }
}

impl Config {
    /// The account behind an address and a key, and its declared limits.
    pub(super) fn account(&self, base_url: &str, key: Option<&SecretString>) -> (AccountKey, Limits) {
        let base_url = address(base_url);
        let declared = self.providers.iter().find(|(_, provider)| address(&provider.base_url) == base_url);
        if let Some((name, provider)) = declared {
            let account = provider.account.as_ref().unwrap_or(name).clone();
            return (AccountKey::Declared(account), provider.limits());
        }
        let key = key.map_or([0; 32], |key| Sha256::digest(key.expose_secret()).into());
        (AccountKey::Endpoint(base_url.to_owned(), key), Limits::default())
    }

    /// The name of the provider at an address: as declared, or the host.
    pub(super) fn provider(&self, base_url: &str) -> String {
        let base_url = address(base_url);
        let declared = self.providers.iter().find(|(_, provider)| address(&provider.base_url) == base_url);
        declared.map_or_else(|| host(base_url), |(name, _)| name.clone())
    }

    /// Returns the wrong settings: dotted key, problem and remedy.
    pub(crate) fn check(&self) -> Vec<(String, String, &'static str)> {
        let mut wrong = Vec::new();
        let mut addresses: BTreeMap<&str, &str> = BTreeMap::new();
        let mut accounts: BTreeMap<&str, (&str, Limits)> = BTreeMap::new();
        for (name, provider) in &self.providers {
            let key = |key: &str| format!("providers.{name}.{key}");
            let url = reqwest::Url::parse(&provider.base_url).ok();
            if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
                let what = format!("{:?} is no http or https address", provider.base_url);
                wrong.push((key("base_url"), what, "use one like \"https://api.openai.com/v1\""));
            } else if let Some(other) = addresses.insert(address(&provider.base_url), name) {
                let what = format!("is the address of providers.{other}, too");
                wrong.push((key("base_url"), what, "keep one of the two"));
            }
            let numbers = [
                ("requests_per_minute", provider.requests_per_minute == Some(0)),
                ("tokens_per_minute", provider.tokens_per_minute == Some(0)),
                ("concurrent", provider.concurrent == Some(0)),
                ("microdollars_per_day", provider.microdollars_per_day == Some(0)),
            ];
            for (limit, _) in numbers.into_iter().filter(|(_, is_zero)| *is_zero) {
                let what = "0 would block everything".to_owned();
                wrong.push((key(limit), what, "use 1 or more, or leave it out to learn the limit"));
            }
            let account = provider.account.as_deref().unwrap_or(name);
            match accounts.get(account) {
                Some((other, limits)) if *limits != provider.limits() => {
                    let what = format!("{account:?} has other limits in providers.{other}");
                    wrong.push((key("account"), what, "an account has one set of limits: repeat them"));
                }
                _ => drop(accounts.insert(account, (name, provider.limits()))),
            }
        }
        for name in
            self.orgs.iter().filter(|(_, org)| org.microdollars_per_day == Some(0)).map(|(name, _)| name)
        {
            let what = "0 would block everything".to_owned();
            wrong.push((format!("orgs.{name}.microdollars_per_day"), what, "use 1 or more, or leave it out"));
        }
        for (model, price) in &self.prices {
            for (key, what, remedy) in price.check() {
                wrong.push((format!("prices.{model:?}.{key}"), what, remedy));
            }
        }
        wrong
    }
}

/// The host of an address, for people.
fn host(base_url: &str) -> String {
    let host = reqwest::Url::parse(base_url).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.unwrap_or_else(|| "the model".to_owned())
}

/// An address without its last slashes.
fn address(base_url: &str) -> &str {
    base_url.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn endpoints_of_a_declared_account_share_it_and_others_are_told_apart_by_key() {
        let config = config(
            r#"
            [providers.one]
            base_url = "https://a.example/v1/"
            account = "team"
            requests_per_minute = 60
            [providers.two]
            base_url = "https://b.example/v1"
            account = "team"
            requests_per_minute = 60
            "#,
        );
        assert_eq!(config.check(), Vec::new());
        let key = |text: &str| Some(SecretString::from(text.to_owned()));
        let of = |url: &str, secret: Option<SecretString>| config.account(url, secret.as_ref());
        let team = of("https://a.example/v1", key("x"));
        assert_eq!((&team.0, team.1.requests_per_minute), (&AccountKey::Declared("team".into()), Some(60)));
        assert_eq!(team.0, of("https://b.example/v1/", key("y")).0);
        let other = of("https://c.example/v1", key("x"));
        assert_eq!((&*other.0.name(), other.1), ("c.example", Limits::default()));
        assert_eq!(other.0, of("https://c.example/v1/", key("x")).0);
        assert_ne!(other.0, of("https://c.example/v1", key("y")).0);
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = config(
            r#"
            [providers.a]
            base_url = "ftp://a.example"
            [providers.b]
            base_url = "https://b.example"
            concurrent = 0
            [providers.c]
            base_url = "https://b.example/"
            account = "b"
            [prices."gpt-5.4"]
            input = 7
            "#,
        );
        let found: Vec<String> = config.check().into_iter().map(|(key, ..)| key).collect();
        let expected = [
            "providers.a.base_url",
            "providers.b.concurrent",
            "providers.c.base_url",
            "providers.c.account",
            "prices.\"gpt-5.4\".output",
        ];
        assert_eq!(found, expected);
    }
}
