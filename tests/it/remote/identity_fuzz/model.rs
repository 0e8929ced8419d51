//! Random claims, and what the bearer of some claims may do.
use crate::support::is_hostile;
use convoke::clock::Clock;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

pub(super) const EXP: u64 = 4_000_000_000;

/// Who the bearer of some claims is.
#[derive(Debug, PartialEq)]
pub(super) enum Bearer {
    /// The token is refused.
    NoToken,
    /// It may enter public rooms and nothing else.
    Public,
    Service,
    Of {
        org: String,
        agent: Option<String>,
    },
}

/// The role at the dashboard, in the order of their rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dash {
    No,
    Viewer,
    Operator,
    Admin,
}

impl Dash {
    /// A value that is no role gives the least rights.
    pub(super) fn of(claims: &Map<String, Value>) -> Self {
        match claims.get("dash") {
            None => Self::No,
            Some(value) if value == "operator" => Self::Operator,
            Some(value) if value == "admin" => Self::Admin,
            Some(_) => Self::Viewer,
        }
    }
}

fn is_id(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars.next().is_some_and(|c| matches!(c, 'a'..='z' | '0'..='9'));
    first && text.len() <= 63 && chars.all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'))
}

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.contains(char::is_control)
}

/// Whether the token counts at this time.
fn is_now(claims: &Map<String, Value>) -> bool {
    let now = Clock::System.now().timestamp() as f64;
    let exp = claims.get("exp").and_then(Value::as_f64);
    let nbf = claims.get("nbf").map_or(Some(0.0), Value::as_f64);
    exp.is_some_and(|exp| exp > now && exp < 1e12) && nbf.is_some_and(|nbf| nbf <= now)
}

pub(super) fn model(claims: &Map<String, Value>) -> Bearer {
    let valid = |name: &str, good: fn(&str) -> bool| match claims.get(name) {
        None => true,
        Some(value) => value.as_str().is_some_and(good),
    };
    let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    let known = claims.get("role").is_some_and(Value::is_string)
        && valid("org", is_id)
        && valid("agent_id", is_id)
        && valid("sub", is_name)
        && valid("iss", is_name);
    if !known || !is_now(claims) {
        return Bearer::NoToken;
    }
    match claims["role"].as_str().unwrap() {
        "service_role" => Bearer::Service,
        "authenticated" => {
            Bearer::Of { org: text("org").unwrap_or_else(|| "default".into()), agent: text("agent_id") }
        }
        _ => Bearer::Public,
    }
}

impl Bearer {
    pub(super) fn sees(&self, org: &str) -> bool {
        match self {
            Self::Service => true,
            Self::Of { org: own, .. } => own == org,
            Self::NoToken | Self::Public => false,
        }
    }

    /// Whether it speaks as this agent of org `demo`.
    pub(super) fn is(&self, name: &str) -> bool {
        match self {
            Self::Service => true,
            Self::Of { org, agent } => org == "demo" && agent.as_deref() == Some(name),
            Self::NoToken | Self::Public => false,
        }
    }

    /// The status of a request that only who may do it gets past.
    pub(super) fn status(&self, may: bool, otherwise: u16) -> u16 {
        match self {
            Self::NoToken => 401,
            Self::Public => 403,
            _ if may => 200,
            _ => otherwise,
        }
    }
}

/// Whether LATIN1, the encoding of a hostile database, has all characters of a text.
pub(super) fn is_latin1(text: &str) -> bool {
    text.chars().all(|char| char <= '\u{ff}')
}

fn value(known: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let spelled = prop::sample::select(known).prop_flat_map(|text| {
        let upper = text.to_uppercase();
        prop_oneof![
            40 => Just(text.to_owned()),
            1 => Just(upper),
            1 => Just(format!(" {text}")),
            1 => Just(format!("{text}\u{0}")),
            1 => Just(format!("{text}\u{200b}")),
            1 => Just(format!("\u{feff}{text}")),
            1 => Just(text.replacen('e', "\u{435}", 1)),
            1 => Just(text.replacen('e', "e\u{301}", 1)),
            1 => Just(text.replacen('n', "\u{ff4e}", 1)),
        ]
    });
    prop_oneof![
        40 => spelled.prop_map(Value::from),
        1 => ".{0,70}".prop_map(Value::from),
        1 => "[a-z]{60,300}".prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => prop::sample::select(known).prop_map(|text| json!([text])),
        1 => prop::sample::select(known).prop_map(|text| json!({ "id": text })),
    ]
}

pub(super) fn claims() -> impl Strategy<Value = Map<String, Value>> {
    let maybe = |name: &'static str, known: &'static [&'static str]| {
        prop::option::weighted(0.6, value(known))
            .prop_map(move |value| value.map(|value| (name.to_owned(), value)))
    };
    let role =
        value(&["authenticated", "authenticated", "service_role", "anon", "postgres", "pg_read_all_data"]);
    let exp = prop_oneof![
        40 => Just(json!(EXP)),
        1 => Just(json!(EXP as f64)),
        1 => prop::sample::select(&[1.0, -1.0, 0.0, 1e308, -1e308, 9e18][..]).prop_map(Value::from),
        1 => Just(json!(EXP.to_string())),
        1 => Just(json!([EXP])),
        1 => Just(Value::Null),
    ];
    let nbf = prop_oneof![
        40 => Just(None),
        1 => Just(Some(json!(0))),
        1 => Just(Some(json!(EXP))),
        1 => Just(Some(json!("0"))),
    ];
    (
        role,
        maybe("org", &["demo", "demo", "else", "default"]),
        maybe("agent_id", &["near", "other", "third"]),
        maybe("sub", &["near", "service_role", "service", "agent:demo/near"]),
        maybe("iss", &["https://one", "convoke"]),
        maybe("aud", &["authenticated", "service_role"]),
        prop::option::weighted(0.4, value(&["viewer", "operator", "admin"])),
        (exp, nbf),
    )
        .prop_map(|(role, org, agent, sub, iss, aud, dash, (exp, nbf))| {
            let dash = dash.map(|value| ("dash".to_owned(), value));
            let mut all: Map<String, Value> =
                [org, agent, sub, iss, aud, dash].into_iter().flatten().collect();
            all.insert("role".into(), role);
            all.insert("exp".into(), exp);
            all.extend(nbf.map(|nbf| ("nbf".to_owned(), nbf)));
            all
        })
}

/// One bearer of each kind: they come first, so that every run has them.
pub(super) fn certain() -> Vec<Map<String, Value>> {
    let all = [
        json!({ "role": "service_role", "exp": EXP }),
        json!({ "role": "service_role", "exp": EXP, "org": "else", "agent_id": "other" }),
        json!({ "role": "anon", "exp": EXP, "org": "demo" }),
        json!({ "role": "pg_read_all_data", "exp": EXP, "org": "demo", "agent_id": "near" }),
        json!({ "role": "authenticated", "exp": EXP }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "sub": "near" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "agent_id": "near" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "agent_id": "other" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "else", "agent_id": "near" }),
        json!({ "role": "authenticated", "exp": 1, "org": "demo", "agent_id": "near" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "sub": "ana", "dash": "viewer" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "sub": "ana", "dash": "operator" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "sub": "ana", "dash": "admin" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "else", "sub": "ana", "dash": "admin" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "agent_id": "near", "dash": "viewer" }),
        json!({ "role": "authenticated", "exp": EXP, "org": "demo", "agent_id": "near", "dash": ["admin"] }),
        json!({ "role": "anon", "exp": EXP, "org": "demo", "dash": "admin" }),
        json!({ "role": "pg_monitor", "exp": EXP, "org": "demo", "dash": "admin" }),
        json!({ "role": "service_role", "exp": EXP, "dash": "viewer" }),
    ];
    all.iter().filter_map(Value::as_object).cloned().collect()
}

/// One random token.
pub(super) struct Case {
    pub(super) number: u32,
    pub(super) claims: Map<String, Value>,
    pub(super) token: String,
    pub(super) bearer: Bearer,
    pub(super) dash: Dash,
}

impl Case {
    /// Whether it may command every task and agent of this org.
    pub(super) fn operates(&self, org: &str) -> bool {
        self.bearer == Bearer::Service || (self.dash >= Dash::Operator && self.bearer.sees(org))
    }

    /// Whether it may read what belongs to the daemon.
    pub(super) fn administers(&self) -> bool {
        let known = matches!(self.bearer, Bearer::Of { .. });
        self.bearer == Bearer::Service || (known && self.dash == Dash::Admin)
    }

    /// Whether it acts as this agent of org `demo` on channels. A viewer only reads; the service is the service.
    pub(super) fn acts_as(&self, agent: &str) -> bool {
        self.bearer.is(agent) && (self.bearer == Bearer::Service || self.dash != Dash::Viewer)
    }

    /// The status of a request by HTTP that changes something, whose status otherwise is this one.
    pub(super) fn change(&self, status: u16) -> u16 {
        if self.dash == Dash::Viewer && self.bearer != Bearer::NoToken { 403 } else { status }
    }

    /// The status of a request, which stores the name of the bearer: the encoding of a hostile database may lack a
    /// character of it.
    pub(super) fn request(&self, status: u16) -> u16 {
        let named = self.requester().is_none_or(|name| is_latin1(&name));
        match self.change(status) {
            201 if is_hostile() && !named => 400,
            status => status,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }

    pub(super) fn org(&self) -> &str {
        self.text("org").unwrap_or("default")
    }

    /// How tasks show that this bearer requested them; `None`: by a mark of the token.
    pub(super) fn requester(&self) -> Option<String> {
        if let Some(agent) = self.text("agent_id") {
            return Some(format!("agent:{}/{agent}", self.org()));
        }
        if self.bearer == Bearer::Service {
            return Some("service".into());
        }
        let issuer = self.text("iss").unwrap_or_default().replace('%', "%25").replace('#', "%23");
        self.text("sub").map(|subject| format!("user:{issuer}#{subject}"))
    }

    pub(super) fn label(&self, door: &str) -> String {
        format!("case {}, {door}: {:?} is {:?}", self.number, self.claims, self.bearer)
    }
}
