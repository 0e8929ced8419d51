//! The requester of a task, as a type and not a name, so that a user is never mistaken for an agent or the
//! service.
use super::{AgentId, OrgId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The requester of a task. Compared as a type; stored and shown as text that parses to the same value.
///
/// | requester | text |
/// |---|---|
/// | the service | `service` |
/// | an agent | `agent:<org>/<id>` |
/// | a user | `user:<issuer>#<sub>`; without an issuer `user:#<sub>` |
/// | a token that names neither | `token:<hash>` |
/// | SQL, schedules, wakes, verifiers, programs | its own text, like `sql:postgres` |
///
/// In an issuer, `%` and `#` are percent-encoded, so that no two users have the same text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Requester {
    /// The operator's own service.
    Service,
    /// An agent, by its org and id.
    Agent {
        /// Its org.
        org: OrgId,
        /// Its id.
        id: AgentId,
    },
    /// A user of an issuer of tokens.
    User {
        /// The claim `iss`, if the token has one.
        issuer: Option<String>,
        /// The claim `sub`.
        subject: String,
    },
    /// The bearer of a token without `agent_id` and `sub`, by a hash of that token's claims.
    Token(String),
    /// Not the bearer of a token: `sql:<database user>`, `schedule:…`, `wake:…`, `verify:…`, or the name that
    /// a program gives itself.
    Other(String),
}

impl Requester {
    /// The requesting agent; `None` for other requesters.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentId> {
        match self {
            Self::Agent { id, .. } => Some(id),
            _ => None,
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "agent" => {
                let (org, id) = rest.split_once('/')?;
                Some(Self::Agent { org: org.parse().ok()?, id: id.parse().ok()? })
            }
            "user" => {
                let (issuer, subject) = rest.split_once('#')?;
                let issuer = (!issuer.is_empty()).then(|| issuer.replace("%23", "#").replace("%25", "%"));
                Some(Self::User { issuer, subject: subject.to_owned() })
            }
            "token" => Some(Self::Token(rest.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service => f.write_str("service"),
            Self::Agent { org, id } => write!(f, "agent:{org}/{id}"),
            Self::User { issuer, subject } => {
                let issuer = issuer.as_deref().unwrap_or_default();
                write!(f, "user:{}#{subject}", issuer.replace('%', "%25").replace('#', "%23"))
            }
            Self::Token(mark) => write!(f, "token:{mark}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Requester {
    /// Parses the text form; other text becomes [`Requester::Other`].
    fn from(text: &str) -> Self {
        if text == "service" {
            return Self::Service;
        }
        Self::read(text).unwrap_or_else(|| Self::Other(text.to_owned()))
    }
}
impl From<String> for Requester {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}
impl From<Requester> for String {
    fn from(requester: Requester) -> Self {
        requester.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requester() -> impl Strategy<Value = Requester> {
        // Texts that collide easily: few letters, and the separators.
        let text = || "[ab#%/:25]{1,6}|service|service_role|agent:demo/a|.{1,20}";
        prop_oneof![
            Just(Requester::Service),
            ("[a-z]{1,3}", "[a-z]{1,3}").prop_map(|(org, id)| Requester::Agent {
                org: org.parse().unwrap(),
                id: id.parse().unwrap()
            }),
            (proptest::option::of(text()), text())
                .prop_map(|(issuer, subject)| Requester::User { issuer, subject }),
            "[0-9a-f]{4}".prop_map(Requester::Token),
        ]
    }

    proptest! {
        #[test]
        fn requester_text_parses_to_itself(one in requester()) {
            prop_assert_eq!(Requester::from(one.to_string()), one);
        }

        #[test]
        fn different_requesters_have_different_texts(one in requester(), other in requester()) {
            prop_assert_eq!(one.to_string() == other.to_string(), one == other);
        }

        #[test]
        fn any_stored_text_parses_to_the_same_requester(text in "(user|agent|token|sql)?:?.{0,12}") {
            let shown = Requester::from(text.as_str()).to_string();
            prop_assert_eq!(Requester::from(shown.as_str()), Requester::from(text.as_str()));
        }
    }

    #[test]
    fn user_named_like_another_kind_stays_a_user() {
        let user = |subject: &str| Requester::User { issuer: None, subject: subject.to_owned() };
        assert_ne!(user("service_role"), Requester::Service);
        assert_eq!(user("service").to_string(), "user:#service");
        assert_eq!(Requester::from("sql:service"), Requester::Other("sql:service".into()));
    }
}
