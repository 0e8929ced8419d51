//! The metrics of the gateway.
use crate::telemetry::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

const RELAY_SECONDS: [f64; 12] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CloseCodeLabel {
    pub(super) why: String,
}

/// The labels of a rejection: the event, and a code for the reason.
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
    /// Messages that were handled on threads of low priority.
    pub(super) large_messages: Counter,
    /// Replies and pushes to one socket. The hub counts the messages of rooms.
    pub(super) frames_out: Counter,
    pub(super) bytes_out: Counter,
    /// The time from a read that brought broadcasts until they are in the outboxes.
    pub(super) relay_seconds: Histogram,
    /// By close code; 1006 for a socket that ended without a close frame.
    pub(super) closed: Family<CloseCodeLabel, Counter>,
    pub(super) coordination_dropped: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let (counter, gauge) = (|n, h| registry.counter(n, h), |n, h| registry.gauge(n, h));
        Self {
            connections: gauge("gateway_connections", "Open websockets"),
            channels: gauge("gateway_channels", "Joined channels"),
            refused_handshakes: counter("gateway_refused_handshakes", "Websocket requests refused"),
            joins: counter("gateway_joins", "Channels joined"),
            refusals: registry.add(
                "gateway_refusals",
                "What clients asked for and did not get, by event and reason",
                Family::default(),
            ),
            presence_coalesced: counter(
                "gateway_presence_coalesced",
                "Presence calls that were put together",
            ),
            frames_in: counter("gateway_frames_received", "Messages from clients"),
            bytes_in: counter("gateway_received_bytes", "Bytes of messages from clients"),
            frames_dropped: counter("gateway_frames_dropped", "Messages from clients that were rubbish"),
            large_messages: counter(
                "gateway_large_messages",
                "Messages over 64 KiB from clients, handled on threads of low priority",
            ),
            frames_out: counter("gateway_frames_sent", "Replies and pushes to single sockets"),
            bytes_out: counter("gateway_sent_bytes", "Bytes written to sockets"),
            relay_seconds: registry.add(
                "gateway_relay_seconds",
                "Seconds from reading broadcasts to having them in every outbox",
                Histogram::new(RELAY_SECONDS),
            ),
            closed: registry.add("gateway_closed", "Websockets closed, by close code", Family::default()),
            coordination_dropped: counter(
                "gateway_coordination_dropped",
                "Agents' messages that found the queue full",
            ),
        }
    }
}
