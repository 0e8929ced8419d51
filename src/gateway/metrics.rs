//! What the gateway counts.
use crate::telemetry::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

const RELAY_SECONDS: [f64; 12] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Why {
    pub(super) why: String,
}

/// What was refused to clients, by the event it was and a word for the reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Refusal {
    pub(super) what: &'static str,
    pub(super) code: String,
}

pub(super) struct Metrics {
    pub(super) connections: Gauge,
    pub(super) channels: Gauge,
    pub(super) refused_handshakes: Counter,
    pub(super) joins: Counter,
    pub(super) refusals: Family<Refusal, Counter>,
    pub(super) presence_coalesced: Counter,
    pub(super) frames_in: Counter,
    pub(super) bytes_in: Counter,
    pub(super) frames_dropped: Counter,
    /// Replies and pushes to one socket; what rooms hear is counted by the hub.
    pub(super) frames_out: Counter,
    pub(super) bytes_out: Counter,
    /// From a read that brought broadcasts until they are in the outboxes.
    pub(super) relay_seconds: Histogram,
    /// By close code, 1006 for a socket that went without a word.
    pub(super) closed: Family<Why, Counter>,
    pub(super) coordination_dropped: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let new = Self {
            connections: Gauge::default(),
            channels: Gauge::default(),
            refused_handshakes: Counter::default(),
            joins: Counter::default(),
            refusals: Family::default(),
            presence_coalesced: Counter::default(),
            frames_in: Counter::default(),
            bytes_in: Counter::default(),
            frames_dropped: Counter::default(),
            frames_out: Counter::default(),
            bytes_out: Counter::default(),
            relay_seconds: Histogram::new(RELAY_SECONDS),
            closed: Family::default(),
            coordination_dropped: Counter::default(),
        };
        registry.register("gateway_connections", "Open websockets", new.connections.clone());
        registry.register("gateway_channels", "Joined channels", new.channels.clone());
        let refused = new.refused_handshakes.clone();
        registry.register("gateway_refused_handshakes", "Websocket requests refused", refused);
        registry.register("gateway_joins", "Channels joined", new.joins.clone());
        let help = "What clients asked for and did not get, by event and reason";
        registry.register("gateway_refusals", help, new.refusals.clone());
        let coalesced = new.presence_coalesced.clone();
        registry.register("gateway_presence_coalesced", "Presence calls that were put together", coalesced);
        registry.register("gateway_frames_received", "Messages from clients", new.frames_in.clone());
        registry.register("gateway_received_bytes", "Bytes of messages from clients", new.bytes_in.clone());
        let dropped = new.frames_dropped.clone();
        registry.register("gateway_frames_dropped", "Messages from clients that were rubbish", dropped);
        registry.register(
            "gateway_frames_sent",
            "Replies and pushes to single sockets",
            new.frames_out.clone(),
        );
        registry.register("gateway_sent_bytes", "Bytes written to sockets", new.bytes_out.clone());
        let help = "Seconds from reading broadcasts to having them in every outbox";
        registry.register("gateway_relay_seconds", help, new.relay_seconds.clone());
        registry.register("gateway_closed", "Websockets closed, by close code", new.closed.clone());
        let dropped = new.coordination_dropped.clone();
        registry.register(
            "gateway_coordination_dropped",
            "Agents' messages that found the queue full",
            dropped,
        );
        new
    }
}
