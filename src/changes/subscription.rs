//! The row changes of a channel: from its join to its end, across token renewals and reconnects.
use super::{
    Inner, Prepared,
    registry::Spec,
    subscriber::{At, ChangeSubscriber},
};
use crate::{
    hub::{
        Outbox,
        history::{Client, ResumeSession},
    },
    wire::{Ref, Version},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// The channel of a subscription.
pub struct Listener {
    /// The topic, without `realtime:`.
    pub topic: String,
    /// The outbox of its connection.
    pub outbox: Arc<Outbox>,
    /// The serializer of its frames.
    pub version: Version,
    /// The reference of its join.
    pub join_ref: Option<Ref>,
    /// The identity of its resume position; `None` if it cannot resume.
    pub client: Option<Client>,
}

/// Delivers row changes to a channel until it is dropped.
pub struct ChangeSubscription {
    inner: Arc<Inner>,
    member: Arc<ChangeSubscriber>,
    /// The resume position, if the client can resume (`docs/PROTOCOL.md`, coming back without loss).
    session: Option<ResumeSession>,
    plain: bool,
}

impl ChangeSubscription {
    /// Starts delivery. Frames may be enqueued before it returns.
    pub(super) fn begin(inner: &Arc<Inner>, prepared: Prepared, listener: Listener) -> Self {
        let Prepared { begun, viewer, items, plain } = prepared;
        let Listener { topic, outbox, version, join_ref, client } = listener;
        let found = client.and_then(|client| {
            let history = inner.dispatcher.hub.histories()?;
            Some(history.open_session(client))
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
        let member = Arc::new(ChangeSubscriber::new((outbox, version), spec, &topic, join_ref, now));
        let session = found.map(|(known, session)| {
            let gap = match known {
                None => {
                    session.set(now);
                    Some(json!({ "reason": "unknown", "after": null, "until": now.to_string() }))
                }
                Some(known) => {
                    inner.dispatcher.metrics.resumed.inc();
                    let missing = inner.log.missing(known.number);
                    let mut at = member.at.lock();
                    at.number = known.number.min(now);
                    (at.missed_upto, at.told_upto) = (now, missing.unwrap_or_default());
                    if let Some(until) = missing {
                        Some(expired(known.number, until))
                    } else if known.contested {
                        let (after, until) = (known.number.to_string(), now.to_string());
                        session.settle();
                        Some(json!({ "reason": "contested", "after": after, "until": until }))
                    } else {
                        None
                    }
                }
            };
            let position = member.at.lock().number;
            inner.send_position(&member, position, gap);
            session
        });
        begun.keep();
        inner.dispatcher.metrics.channels.inc();
        inner.admit(member.clone());
        Self { inner: inner.clone(), member, session, plain }
    }

    /// Replaces items and viewer from the next change on. No change is lost or repeated.
    pub fn renew(&self, prepared: Prepared) {
        let Prepared { viewer, items, .. } = prepared;
        let mut at = self.member.at.lock();
        let spec = at.next.as_ref().unwrap_or(&at.spec).clone();
        at.next = Some(Spec { viewer, items, plain: self.plain, ..spec });
        drop(at);
        self.inner.admit(self.member.clone());
    }

    /// Handles a heartbeat, see [`ResumeSession::heartbeat`].
    #[must_use]
    pub fn heartbeat(&mut self) -> bool {
        let Self { inner, member, session, .. } = self;
        let reached = || {
            let at = member.at.lock();
            Some(if at.live { inner.reached(at.lane).max(at.number) } else { at.number })
        };
        session.as_mut().is_none_or(|session| session.heartbeat(reached))
    }

    /// Handles the client's answer to a probe, see [`ResumeSession::probe_answered`].
    pub fn probe_answered(&mut self) {
        self.session.iter_mut().for_each(ResumeSession::probe_answered);
    }

    /// Stops moving the position from now on.
    pub fn give_up(&mut self) {
        self.session.iter_mut().for_each(ResumeSession::give_up);
    }

    /// The client leaves, see [`ResumeSession::leave`].
    pub fn leave(self) {
        self.session.iter().for_each(ResumeSession::leave);
    }

    /// The owner of the resume position; `None` if it cannot resume.
    #[must_use]
    pub fn client(&self) -> Option<Client> {
        self.session.as_ref().map(ResumeSession::client)
    }
}

impl Drop for ChangeSubscription {
    fn drop(&mut self) {
        self.member.leave();
        let spec = self.member.at.lock().spec.clone();
        self.inner.lanes.iter().for_each(|lane| lane.registry.lock().leave(&spec, &self.member));
        self.inner.log.end();
        self.inner.dispatcher.metrics.channels.dec();
    }
}

pub(super) fn expired(after: u64, until: u64) -> Value {
    json!({ "reason": "expired", "after": after.to_string(), "until": until.to_string() })
}

impl Inner {
    /// Sends the position at which delivery continues, and the gap before it.
    pub(super) fn send_position(&self, member: &ChangeSubscriber, position: u64, gap: Option<Value>) {
        let unknown = gap.as_ref().is_some_and(|gap| gap.get("reason").is_some_and(|it| it == "unknown"));
        let (status, message) = match &gap {
            None => ("ok", "Resumed: the row changes that were missed follow"),
            Some(_) if unknown => {
                ("ok", "No earlier position of this client is known: row changes begin here")
            }
            Some(_) => ("error", "Row changes may be missing"),
        };
        if status == "error" {
            self.dispatcher.metrics.gaps.inc();
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
    /// Switches to the next spec. Returns false if there is none.
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
