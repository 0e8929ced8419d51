//! The roles at the dashboard of people whom other issuers name (`dashboard.roles`).
use super::{Claims, DashboardRole};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The claim `dash` of each issuer's tokens, by one of their own claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IssuerRoles(BTreeMap<String, RoleTable>);

/// Which values of a claim give which role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RoleTable {
    /// A text, or a list of texts.
    claim: String,
    viewer: Vec<String>,
    operator: Vec<String>,
    admin: Vec<String>,
}

impl Default for RoleTable {
    fn default() -> Self {
        let none = Vec::new;
        Self { claim: "groups".into(), viewer: none(), operator: none(), admin: none() }
    }
}

impl IssuerRoles {
    /// Refuses a table that gives no role, and one for the daemon's own tokens.
    ///
    /// # Errors
    /// The problem and its remedy.
    pub fn check(&self) -> Result<(), (String, &'static str)> {
        for (issuer, table) in &self.0 {
            if issuer == Self::OWN {
                let problem =
                    format!("{issuer:?} is the daemon itself, which signs the role into its tokens");
                return Err((problem, "name the `iss` of another issuer"));
            }
            if table.claim.is_empty() || DashboardRole::ALL.iter().all(|role| table.values(*role).is_empty())
            {
                let problem = format!("the table of {issuer:?} gives no role");
                return Err((problem, "write it like { claim = \"groups\", operator = [\"support\"] }"));
            }
        }
        Ok(())
    }

    /// `iss` of the daemon's own tokens.
    const OWN: &str = "convoke";

    /// Whether tokens of this issuer have their role by a table.
    pub(super) fn knows(&self, issuer: &str) -> bool {
        self.0.contains_key(issuer)
    }

    /// Sets the claim `dash` of a verified token whose issuer has a table. What the token itself says of `dash` then
    /// counts no more. Without a role its bearer is a user.
    pub(super) fn apply(&self, claims: &mut Claims) {
        let Some(table) = claims.issuer().and_then(|issuer| self.0.get(issuer)) else { return };
        match table.role(&claims.raw) {
            Some(role) => claims.raw.insert("dash".into(), role.as_str().into()),
            None => claims.raw.remove("dash"),
        };
    }
}

impl RoleTable {
    fn values(&self, role: DashboardRole) -> &[String] {
        match role {
            DashboardRole::Viewer => &self.viewer,
            DashboardRole::Operator => &self.operator,
            DashboardRole::Admin => &self.admin,
        }
    }

    /// The highest role that a value of the claim gives.
    fn role(&self, claims: &Map<String, Value>) -> Option<DashboardRole> {
        let given: Vec<&str> = match claims.get(&self.claim)? {
            Value::String(text) => vec![text],
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let gives =
            |role: &DashboardRole| self.values(*role).iter().any(|value| given.contains(&value.as_str()));
        DashboardRole::ALL.into_iter().rev().find(gives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn roles() -> IssuerRoles {
        let table = json!({ "viewer": ["staff"], "operator": ["support"], "admin": ["platform"] });
        let own = json!({ "claim": "rank", "admin": ["chief"] });
        serde_json::from_value(json!({ "https://a.test": table, "https://b.test": own })).unwrap()
    }

    fn dash(claims: Value) -> Option<Value> {
        let mut claims = Claims::for_tests(claims);
        roles().apply(&mut claims);
        claims.raw.get("dash").cloned()
    }

    #[test]
    fn highest_role_of_the_groups_counts_and_the_own_claim_of_such_a_token_does_not() {
        let of = |issuer: &str, more: Value| {
            let mut claims = json!({ "role": "authenticated", "iss": issuer });
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            dash(claims)
        };
        for (groups, role) in [
            (json!(["staff", "support"]), Some(json!("operator"))),
            (json!(["platform", 7, "staff"]), Some(json!("admin"))),
            (json!("staff"), Some(json!("viewer"))),
            (json!(["others"]), None),
            (json!([["platform"]]), None),
            (json!({ "platform": true }), None),
            (json!(null), None),
        ] {
            for own in ["admin", "viewer"] {
                assert_eq!(of("https://a.test", json!({ "groups": groups, "dash": own })), role, "{groups}");
            }
        }
        assert_eq!(of("https://a.test", json!({ "dash": "admin" })), None);
        assert_eq!(of("https://b.test", json!({ "rank": "chief" })), Some(json!("admin")));
        assert_eq!(of("https://b.test", json!({ "groups": ["platform"] })), None);
        // An issuer without a table, and a token without an issuer, keep what they say.
        assert_eq!(of("https://c.test", json!({ "dash": "operator" })), Some(json!("operator")));
        assert_eq!(dash(json!({ "role": "authenticated", "dash": "viewer" })), Some(json!("viewer")));
    }

    #[test]
    fn table_without_a_role_or_for_the_daemon_itself_is_refused() {
        assert_eq!(roles().check(), Ok(()));
        for (bad, expected) in [
            (json!({ "https://a.test": {} }), "gives no role"),
            (json!({ "https://a.test": { "claim": "", "admin": ["x"] } }), "gives no role"),
            (json!({ "convoke": { "admin": ["x"] } }), "the daemon itself"),
        ] {
            let refused = serde_json::from_value::<IssuerRoles>(bad).unwrap().check().unwrap_err();
            assert!(refused.0.contains(expected), "{}", refused.0);
        }
    }
}
