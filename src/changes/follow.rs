//! A channel that hears row changes: from its join to its end, over new tokens and over being away.
use super::{
    Inner, Prepared,
    member::{At, Member},
    registry::Spec,
};
use crate::{
    hub::{
        Outbox,
        history::{Client, Seat},
    },
    wire::{Ref, Version},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Whose channel it is.
pub struct Listener {
    /// The topic, without `realtime:`.
    pub topic: String,
    /// Where frames go.
    pub outbox: Arc<Outbox>,
    /// How they are written.
    pub version: Version,
    /// Of its join.
    pub join_ref: Option<Ref>,
    /// Its place among the positions, in a room with a history; it goes on where it was.
    pub client: Option<Client>,
}

/// A channel's row changes, until this is dropped.
pub struct Following {
    inner: Arc<Inner>,
    member: Arc<Member>,
    place: Option<Place>,
    plain: bool,
}

/// What is known of how far a client has come (`docs/PROTOCOL.md`, coming back without loss).
struct Place {
    seat: Seat,
    mark: Option<u64>,
    proved: bool,
    given_up: bool,
    /// Another connection has its position, and it is not known whether this one is alive.
    lost: bool,
}

impl Following {
    /// Begins; frames may be put out at once.
    pub(super) fn begin(inner: &Arc<Inner>, prepared: Prepared, listener: Listener) -> Self {
        let Prepared { begun, viewer, items, plain } = prepared;
        let Listener { topic, outbox, version, join_ref, client } = listener;
        let found = client.and_then(|client| {
            let history = inner.courier.hub.histories()?;
            Some(history.seat(client))
        });
        let spec = Spec {
            viewer,
            topic: format!("{}{topic}", crate::wire::TOPIC_PREFIX).into(),
            version,
            plain,
            numbered: found.is_some(),
            items,
        };
        let now = begun.number();
        let member = Arc::new(Member::new((outbox, version), spec, &topic, join_ref, now));
        let place = found.map(|(known, seat)| {
            let gap = match known {
                None => {
                    seat.set(now);
                    Some(json!({ "reason": "unknown", "after": null, "until": now.to_string() }))
                }
                Some(known) => {
                    inner.courier.metrics.resumed.inc();
                    let missing = inner.log.missing(known.number);
                    let mut at = member.at.lock();
                    at.number = known.number.min(now);
                    (at.missed_upto, at.told_upto) = (now, missing.unwrap_or_default());
                    if let Some(until) = missing {
                        Some(expired(known.number, until))
                    } else if known.contested {
                        let (after, until) = (known.number.to_string(), now.to_string());
                        seat.settle();
                        Some(json!({ "reason": "contested", "after": after, "until": until }))
                    } else {
                        None
                    }
                }
            };
            let position = member.at.lock().number;
            inner.tell_position(&member, position, gap);
            Place { seat, mark: None, proved: false, given_up: false, lost: false }
        });
        begun.keep();
        inner.courier.metrics.channels.inc();
        inner.admit(member.clone());
        Self { inner: inner.clone(), member, place, plain }
    }

    /// From the next change on it wants and may see something else; nothing is missed or said twice.
    pub fn renew(&self, prepared: Prepared) {
        let Prepared { viewer, items, .. } = prepared;
        let mut at = self.member.at.lock();
        let spec = at.next.as_ref().unwrap_or(&at.spec).clone();
        at.next = Some(Spec { viewer, items, plain: self.plain, ..spec });
        drop(at);
        self.inner.admit(self.member.clone());
    }

    /// The client's next heartbeat came: it has processed everything that was put out before the reply to the last
    /// one. False when another connection of the same client has taken over.
    #[must_use]
    pub fn heartbeat(&mut self) -> bool {
        let Some(place) = self.place.as_mut().filter(|place| !place.given_up) else { return true };
        let holds = place.mark.is_none_or(|mark| place.seat.prove(mark));
        place.proved |= place.mark.is_some();
        place.lost |= !holds;
        let at = self.member.at.lock();
        place.mark = Some(if at.live { self.inner.log.delivered().max(at.number) } else { at.number });
        holds
    }

    /// The client has answered something. If it was asked after it lost its position, two connections are alive with
    /// one `client_id`, and the next to come is told.
    pub fn answered(&mut self) {
        if let Some(place) = &mut self.place
            && std::mem::take(&mut place.lost)
        {
            place.seat.contest();
        }
    }

    /// From now on it proves nothing more.
    pub fn give_up(&mut self) {
        if let Some(place) = &mut self.place {
            (place.given_up, place.proved) = (true, false);
        }
    }

    /// The client leaves of its own will and does not want what it will miss.
    pub fn leave(mut self) {
        if let Some(place) = self.place.take().filter(|place| place.proved) {
            place.seat.forget();
        }
    }

    /// Whose place it has, when it has one.
    #[must_use]
    pub fn client(&self) -> Option<Client> {
        self.place.as_ref().map(|place| place.seat.client())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.member.leave();
        let spec = self.member.at.lock().spec.clone();
        self.inner.registry.lock().leave(&spec, &self.member);
        self.inner.log.end();
        self.inner.courier.metrics.channels.dec();
    }
}

pub(super) fn expired(after: u64, until: u64) -> Value {
    json!({ "reason": "expired", "after": after.to_string(), "until": until.to_string() })
}

impl Inner {
    /// Says where a client goes on, and what it may have missed.
    pub(super) fn tell_position(&self, member: &Member, position: u64, gap: Option<Value>) {
        let unknown = gap.as_ref().is_some_and(|gap| gap.get("reason").is_some_and(|it| it == "unknown"));
        let (status, message) = match &gap {
            None => ("ok", "Resumed: the row changes that were missed follow"),
            Some(_) if unknown => {
                ("ok", "No earlier position of this client is known: row changes begin here")
            }
            Some(_) => ("error", "Row changes may be missing"),
        };
        if status == "error" {
            self.courier.metrics.gaps.inc();
        }
        member.system(&json!({
            "extension": "resume",
            "status": status,
            "message": message,
            "channel": member.channel,
            "meta": { "of": "postgres_changes", "position": position.to_string(), "gap": gap },
        }));
    }
}

impl At {
    /// Whether it has another spec now than it is registered with.
    pub(super) fn take_next(&mut self) -> bool {
        match self.next.take() {
            Some(next) => {
                self.spec = next;
                true
            }
            None => false,
        }
    }
}
