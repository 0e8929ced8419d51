//! The state that all sockets of a gateway share, and the checks that need it.
use super::{
    Config, Deps, Rejection,
    channel::{Admitted, Limits, PolicyAnswer, Refusal},
    channel_registry::Directory,
    join::{AskedReplay, Join},
    joined::Unknown,
    limits::Rates,
    metrics::{self, Metrics},
};
use crate::{
    access::{self, Access, Asker, Grant, Origin, rows::Viewer, unauthorized},
    auth::{Claims, Keys, TokenError},
    changes::{Changes, Prepared, SubscribeError as NotSubscribed},
    clock::Clock,
    hub::{Hub, Memory, Room, memory},
    id::{ConnId, Topic},
    presence::Tracker,
    remote::{BroadcastSource, Identity, Relay},
    scope::{Background, Scope},
    wire::Payload,
};
use serde_json::{Map, Value};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const CHANGES_UNAVAILABLE: &str = "Postgres changes are not available on a server without a database";
/// How long a channel waits for the stream of the database's broadcasts (`docs/spec/realtime-protocol.md` §3.5).
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
    /// The memory accounts of clients.
    pub(super) memory: Memory,
    pub(super) scope: Scope,
    /// Where large messages are handled.
    pub(super) background: Background,
    pub(super) identity: Identity,
    /// Row changes; `None` without a database.
    pub(super) changes: Option<Changes>,
    /// Whether broadcasts of the database are streamed.
    pub(super) streaming: Option<watch::Receiver<bool>>,
    pub(super) stopping: AtomicBool,
    /// Sockets with at least one successful join.
    pub(super) users: AtomicUsize,
    pub(super) rates: Rates,
    pub(super) directory: Directory,
    /// Presence deliveries counted so far, for the limit of Supabase mode.
    presence_heard: AtomicU64,
    pub(super) next_conn: AtomicU64,
}

/// The row changes that a channel requests.
#[derive(Clone, Default)]
pub(super) struct Wanted {
    pub(super) items: Arc<[Map<String, Value>]>,
    pub(super) plain: bool,
}

/// The state of a socket that the check of a join needs.
pub(super) struct Asking<'a> {
    pub(super) sub_topic: &'a str,
    /// Whether the socket is counted as a user.
    pub(super) counted: bool,
    pub(super) channels: usize,
}

impl Shared {
    pub(super) fn new(scope: Scope, config: Config, deps: Deps) -> Self {
        let Deps { keys, access, hub, tracker, clock, registry, identity, changes, streaming } = deps;
        let rates = Rates::new(config.limits.clone(), Instant::now());
        let directory = Directory::new(clock.clone());
        let limits = Limits {
            payload_bytes_max: config.payload_bytes_max,
            presence_calls: rates.presence_calls(),
            presence_enabled: config.presence_enabled,
            changes_max: changes.as_ref().map_or(usize::MAX, Changes::items_max),
        };
        let memory = Memory::new(
            memory::Limits {
                total: config.memory_bytes_max,
                per_org: config.memory_bytes_per_org,
                per_connection: config.memory_bytes_per_connection,
            },
            &registry,
        );
        hub.count_in(memory.clone());
        Self {
            config,
            limits,
            memory,
            background: Background::start(),
            keys,
            access,
            hub,
            tracker,
            clock,
            metrics: Metrics::register(&registry),
            scope,
            identity,
            changes,
            streaming,
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

    /// Whether the room may receive a broadcast. Counts a message for the daemon that was dropped.
    pub(super) fn may_relay(
        &self,
        source: BroadcastSource,
        claims: &Arc<Claims>,
        room: &Room,
        payload: &Payload,
    ) -> bool {
        let Relay { deliver, dropped } = self.identity.relay(source, claims, room, payload);
        if dropped {
            self.metrics.coordination_dropped.inc();
        }
        deliver
    }

    pub(super) fn stop_token(&self) -> CancellationToken {
        self.scope.stopping()
    }

    /// Counts a rejection and keeps it for the introspection of the channel.
    pub(super) fn refused(&self, room: Option<&Room>, topic: &str, conn: Option<ConnId>, refused: Rejection) {
        let (what, code) = (refused.what, refused.code.clone().into_owned());
        self.metrics.refusals.get_or_create(&metrics::Refusal { what, code }).inc();
        self.directory.note(room, topic, conn, refused);
    }

    /// The presence deliveries since the last call.
    pub(super) fn presence_heard(&self) -> u64 {
        let heard = self.hub.presence_deliveries();
        heard.saturating_sub(self.presence_heard.swap(heard, Ordering::AcqRel))
    }

    /// The claims of a valid token.
    pub(super) async fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.keys.verify_fresh(token, self.clock.now()).await
    }

    /// Counts a socket as a user; false if the limit is reached.
    pub(super) fn count_user(&self) -> bool {
        let max = self.config.connections_max;
        let more = |users: usize| (users < max).then_some(users + 1);
        self.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// The checks of a join that need no I/O, in the order of `docs/spec/realtime-protocol.md` §3.2.
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

    /// The checks of a join that may take time: the token and its rights.
    pub(super) async fn check(
        &self,
        join: &Join,
        room: &Room,
        apikey: Arc<str>,
        origin: Origin,
    ) -> Result<Admitted, Refusal> {
        let token = join.token.as_deref().map_or(apikey, Arc::from);
        let presence = join.presence || self.limits.presence_enabled;
        let admitted = self.admit(token, room, presence, origin).await;
        let admitted = admitted.map_err(|e| Refusal::new(e.join_text(&room.topic)))?;
        if !admitted.grant.may_enter() {
            return Err(Refusal::new(unauthorized(&room.topic)));
        }
        if let AskedReplay::Bad(reason) = join.replay {
            return Err(Refusal::new(reason));
        }
        Ok(admitted)
    }

    /// Checks the row changes that a channel requests, with these claims; `None` if it requests none.
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

    /// Waits until broadcasts of the database are streamed; false on timeout.
    pub(super) async fn streams(&self) -> bool {
        let Some(mut streaming) = self.streaming.clone() else { return false };
        let ready = timeout(REPLICATION_WITHIN, streaming.wait_for(|streams| *streams));
        ready.await.is_ok_and(|ready| ready.is_ok())
    }

    /// The rights of a token in a room. `presence`: whether the right to read presence is needed.
    pub(super) async fn admit(
        &self,
        token: Arc<str>,
        room: &Room,
        presence: bool,
        origin: Origin,
    ) -> Result<Admitted, NotAdmitted> {
        let claims = Arc::new(self.verify(&token).await.map_err(NotAdmitted::Token)?);
        let asker = Asker { claims, origin };
        let grant = if self.identity.may_observe(room, &asker.claims) {
            self.read(&asker, room, presence).await.map_err(NotAdmitted::Policy)?
        } else {
            Grant::NONE
        };
        let fresh_key = uuid::Uuid::new_v4().to_string();
        Ok(Admitted { token, claims: asker.claims, grant, fresh_key, changes: None })
    }

    async fn read(&self, asker: &Asker, room: &Room, presence: bool) -> Result<Grant, access::Error> {
        match self.access.grant_without_policies(&asker.claims, room.private) {
            Some(grant) => Ok(grant),
            None => self.access.read(asker, &room.topic, presence).await,
        }
    }

    /// The rights of a member of a private room beyond reading broadcasts.
    pub(super) async fn evaluate_rights(
        &self,
        asker: &Asker,
        room: &Room,
        unknown: Unknown,
    ) -> Result<PolicyAnswer, access::Error> {
        let mut answer = PolicyAnswer { write: None, presence_read: None };
        if unknown.write {
            answer.write = Some(self.access.write(asker, &room.topic).await?);
        }
        if unknown.presence_read {
            answer.presence_read = Some(self.access.read_presence(asker, &room.topic).await?);
        }
        Ok(answer)
    }
}

/// Why a token is refused in a room.
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

    /// The message with which a joined channel ends.
    pub(super) fn system_text(&self, topic: &Topic) -> String {
        match self {
            Self::Token(e) => e.to_string(),
            Self::Policy(e) => e.system_text(topic),
        }
    }
}
