//! What all sockets of a gateway share, and the checks that need it.
use super::{
    Attendance, Config, Coordination, Deps, Post, Refused,
    channel::{Admitted, Limits, Refusal, Told},
    directory::Directory,
    join::{AskedReplay, Join},
    joined::Unknown,
    limits::Rates,
    metrics::{self, Metrics},
};
use crate::{
    access::{self, Access, Asker, Grant, rows::Viewer, unauthorized},
    auth::{Claims, Keys, TokenError},
    changes::{Changes, Prepared, Refused as NotSubscribed},
    clock::Clock,
    hub::{Hub, Room, SubscriberId},
    id::{AgentId, ConnId, Topic},
    presence::Tracker,
    scope::Scope,
};
use bytes::Bytes;
use serde_json::{Map, Value};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const CHANGES_UNAVAILABLE: &str = "Postgres changes are not available on a server without a database";
/// How long a channel waits for messages of the database to come (`reference/realtime-protocol.md` §3.5).
const REPLICATION_WITHIN: Duration = Duration::from_secs(60);
/// Joins are refused for good on this socket.
const CLOSE_GOING_AWAY: u16 = 1001;

pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) limits: Limits,
    pub(super) keys: Keys,
    pub(super) access: Access,
    pub(super) hub: Hub,
    pub(super) tracker: Tracker,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) scope: Scope,
    pub(super) coordination: Option<mpsc::Sender<Coordination>>,
    /// Row changes, when there is a database.
    pub(super) changes: Option<Changes>,
    /// Whether messages of the database come.
    pub(super) streaming: Option<watch::Receiver<bool>>,
    pub(super) attendance: Attendance,
    pub(super) post: Post,
    pub(super) stopping: AtomicBool,
    /// Sockets with at least one successful join.
    pub(super) users: AtomicUsize,
    pub(super) rates: Rates,
    pub(super) directory: Directory,
    /// Differences of presence that have been counted.
    presence_heard: AtomicU64,
    pub(super) next_conn: AtomicU64,
}

/// The row changes that a channel wants.
#[derive(Clone, Default)]
pub(super) struct Wanted {
    pub(super) items: Arc<[Map<String, Value>]>,
    pub(super) plain: bool,
}

/// What a socket brings to the check of a join.
pub(super) struct Asking<'a> {
    pub(super) sub_topic: &'a str,
    /// Whether the socket is one of the counted users.
    pub(super) counted: bool,
    pub(super) channels: usize,
}

impl Shared {
    pub(super) fn new(scope: Scope, config: Config, deps: Deps) -> Self {
        let Deps { keys, access, hub, tracker, clock, registry, coordination, changes, streaming } = deps;
        let rates = Rates::new(config.limits.clone(), Instant::now());
        let directory = Directory::new(clock.clone());
        let limits = Limits {
            payload_bytes_max: config.payload_bytes_max,
            presence_calls: rates.presence_calls(),
            presence_enabled: config.presence_enabled,
        };
        let attendance = Attendance::default();
        let post = Post::new(&scope, hub.clone(), attendance.clone(), coordination.clone());
        Self {
            config,
            limits,
            keys,
            access,
            hub,
            tracker,
            clock,
            metrics: Metrics::register(&registry),
            scope,
            coordination,
            changes,
            streaming,
            attendance,
            post,
            stopping: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            rates,
            directory,
            presence_heard: AtomicU64::new(0),
            next_conn: AtomicU64::new(1),
        }
    }

    pub(super) fn conn_id(&self) -> ConnId {
        ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a broadcast that came over HTTP may be heard in its room, which agents' messages may only be
    /// where they say truly who sends them; those are given to the coordination, too.
    pub(super) fn relays(
        &self,
        claims: &Arc<Claims>,
        room: &Room,
        said: Option<(&'static str, Bytes)>,
    ) -> bool {
        let name = room.topic.as_str();
        let (Some(queue), Some((event, payload))) = (&self.coordination, said) else { return true };
        if room.private || (!name.starts_with("agent:") && !name.starts_with("org:")) {
            return true;
        }
        let (conn, channel) = (ConnId(0), SubscriberId(0));
        let claims = claims.clone();
        let said = Coordination { conn, channel, event, claims, room: room.clone(), payload };
        let heard = said.is_heard(&self.attendance);
        if heard && event != Coordination::EVENT && queue.try_send(said).is_err() {
            self.metrics.coordination_dropped.inc();
        }
        heard
    }

    pub(super) fn stop_token(&self) -> CancellationToken {
        self.scope.stopping()
    }

    /// Counts what was refused, and keeps it for who looks at the channel.
    pub(super) fn refused(&self, room: Option<&Room>, topic: &str, conn: Option<ConnId>, refused: Refused) {
        let (what, code) = (refused.what, refused.code.clone().into_owned());
        self.metrics.refusals.get_or_create(&metrics::Refusal { what, code }).inc();
        self.directory.note(room, topic, conn, refused);
    }

    /// Whether the daemon itself says in this room who is present: `agent:<id>` and `org:<org>`.
    pub(super) fn is_of_agents(room: &Room) -> bool {
        let topic = room.topic.as_str();
        !room.private && (topic.starts_with("agent:") || topic.starts_with("org:"))
    }

    /// Why somebody with these claims may not be present in a room under this key, as this agent: in the rooms of
    /// agents, `agent_id` and the keys of agents are for who has their token, and for the service.
    pub(super) fn impostor(
        &self,
        room: &Room,
        claims: &Claims,
        key: &str,
        agent: Option<&str>,
    ) -> Option<String> {
        if !Self::is_of_agents(room) || claims.is_service() {
            return None;
        }
        let own = claims.agent_id.as_ref().map(AgentId::as_str);
        if let Some(agent) = agent.filter(|agent| Some(*agent) != own) {
            return Some(format!("agent_id {agent:?} may be said here only with that agent's token"));
        }
        let taken =
            room.topic.as_str().strip_prefix("agent:") == Some(key) || self.tracker.is_hosted(room, key);
        (taken && own != Some(key))
            .then(|| format!("the presence key {key:?} is an agent's and needs that agent's token"))
    }

    /// How many differences of presence were heard since the last call.
    pub(super) fn presence_heard(&self) -> u64 {
        let heard = self.hub.presence_deliveries();
        heard.saturating_sub(self.presence_heard.swap(heard, Ordering::AcqRel))
    }

    /// The claims of a token that is good now.
    pub(super) async fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.keys.verify_fresh(token, self.clock.now()).await
    }

    /// Whether another socket may become a user, and be one from now on.
    pub(super) fn count_user(&self) -> bool {
        let max = self.config.connections_max;
        let more = |users: usize| (users < max).then_some(users + 1);
        self.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// The checks of a join that need nobody else, in the order of `reference/realtime-protocol.md` §3.2.
    pub(super) fn precheck(&self, join: &Join, asking: &Asking<'_>) -> Result<Room, Refusal> {
        let refuse = |reason: &str, close| Err(Refusal { close, ..Refusal::new(reason) });
        let Some(topic) = Topic::new(asking.sub_topic) else {
            return refuse("TopicNameRequired: You must provide a topic name", None);
        };
        if self.stopping.load(Ordering::Acquire) {
            return refuse("RealtimeRestarting: Realtime is restarting, please standby", None);
        }
        if self.config.private_only && !join.private {
            return refuse("PrivateOnly: This project only allows private channels", None);
        }
        if !asking.counted && self.users.load(Ordering::Acquire) >= self.config.connections_max {
            return refuse("ConnectionRateLimitReached: Too many connected users", None);
        }
        if self.rates.joins_too_fast(Instant::now()) {
            let reason = "ClientJoinRateLimitReached: Too many joins per second";
            return refuse(reason, Some(CLOSE_GOING_AWAY));
        }
        if asking.channels >= self.config.channels_max {
            return refuse("ChannelRateLimitReached: Too many channels", None);
        }
        Ok(Room { topic, private: join.private })
    }

    /// The checks of a join that may take their time: the token, and what it may do.
    pub(super) async fn check(
        &self,
        join: &Join,
        room: &Room,
        apikey: Arc<str>,
        headers: Arc<str>,
    ) -> Result<Admitted, Refusal> {
        let token = join.token.as_deref().map_or(apikey, Arc::from);
        let presence = join.presence || self.limits.presence_enabled;
        let admitted = self.admit(token, room, presence, headers).await;
        let admitted = admitted.map_err(|e| Refusal::new(e.join_text(&room.topic)))?;
        if !admitted.grant.may_enter() {
            return Err(Refusal::new(unauthorized(&room.topic)));
        }
        if let AskedReplay::Bad(reason) = join.replay {
            return Err(Refusal::new(reason));
        }
        Ok(admitted)
    }

    /// Checks the row changes that a channel wants with these claims, if it wants any.
    pub(super) async fn prepare(
        &self,
        wanted: &Wanted,
        claims: &Claims,
    ) -> Option<Result<Prepared, NotSubscribed>> {
        if wanted.items.is_empty() {
            return None;
        }
        let Some(changes) = &self.changes else {
            return Some(Err(NotSubscribed::Asked(CHANGES_UNAVAILABLE.to_owned())));
        };
        let viewer = Arc::new(Viewer::of(claims));
        Some(changes.prepare(&wanted.items, &viewer, wanted.plain).await)
    }

    /// Waits until messages of the database come; false when they do not in time.
    pub(super) async fn streams(&self) -> bool {
        let Some(mut streaming) = self.streaming.clone() else { return false };
        let ready = timeout(REPLICATION_WITHIN, streaming.wait_for(|streams| *streams));
        ready.await.is_ok_and(|ready| ready.is_ok())
    }

    /// What a token may do in a room. With `presence`, it matters who is there.
    pub(super) async fn admit(
        &self,
        token: Arc<str>,
        room: &Room,
        presence: bool,
        headers: Arc<str>,
    ) -> Result<Admitted, NotAdmitted> {
        let claims = Arc::new(self.verify(&token).await.map_err(NotAdmitted::Token)?);
        let asker = Asker { claims, headers };
        let grant = self.read(&asker, room, presence).await.map_err(NotAdmitted::Policy)?;
        let fresh_key = uuid::Uuid::new_v4().to_string();
        Ok(Admitted { token, claims: asker.claims, grant, fresh_key, changes: None })
    }

    async fn read(&self, asker: &Asker, room: &Room, presence: bool) -> Result<Grant, access::Error> {
        match self.access.at_once(&asker.claims, room.private) {
            Some(grant) => Ok(grant),
            None => self.access.read(asker, &room.topic, presence).await,
        }
    }

    /// What a member of a private room may do beyond hearing.
    pub(super) async fn tell(
        &self,
        asker: &Asker,
        room: &Room,
        unknown: Unknown,
    ) -> Result<Told, access::Error> {
        let mut told = Told { write: None, presence_read: None };
        if unknown.write {
            told.write = Some(self.access.write(asker, &room.topic).await?);
        }
        if unknown.presence_read {
            told.presence_read = Some(self.access.read_presence(asker, &room.topic).await?);
        }
        Ok(told)
    }
}

/// Why a token does not open a room.
pub(super) enum NotAdmitted {
    Token(TokenError),
    Policy(access::Error),
}

impl NotAdmitted {
    /// The `reason` of a refused join.
    pub(super) fn join_text(&self, topic: &Topic) -> String {
        match self {
            Self::Token(e) => e.join_text(),
            Self::Policy(e) => e.join_text(topic),
        }
    }

    /// The message with which a live channel ends.
    pub(super) fn system_text(&self, topic: &Topic) -> String {
        match self {
            Self::Token(e) => e.to_string(),
            Self::Policy(e) => e.system_text(topic),
        }
    }
}
