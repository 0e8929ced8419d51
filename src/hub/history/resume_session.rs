//! A client's hold on a position that it can return to: heartbeats prove it, a takeover contests it, a leave deletes it.
//!
//! Histories hold one for each room, and the change log, which numbers its own records, one for each channel.
use super::{Client, History, position::Holder};

/// The stored position of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The client has received everything up to this number.
    pub number: u64,
    /// Two connections used the client's id at the same time, so `number` is not certain.
    pub contested: bool,
}

/// A client's hold on its position. Dropping it keeps the position.
#[derive(Debug)]
pub struct ResumeSession {
    history: History,
    client: Client,
    holder: Holder,
    /// The number up to which messages were enqueued before the reply to the last heartbeat.
    mark: Option<u64>,
    /// Whether a heartbeat proved that the client knew of the join.
    proved: bool,
    given_up: bool,
    /// Another connection holds the position, and it is unknown whether this connection is alive.
    lost: bool,
}

impl History {
    /// Takes over the position of a client. Returns the stored position, or `None` for an unknown client. Numbers
    /// must be microseconds, as those of histories are.
    #[must_use]
    pub fn open_session(&self, client: Client) -> (Option<Known>, ResumeSession) {
        let now = self.0.clock.micros();
        let (found, holder) = self.0.state.lock().positions.begin(client.key, client.conn, now);
        let known = found.map(|found| Known { number: found.number, contested: found.contested });
        let history = self.clone();
        let session = ResumeSession {
            history,
            client,
            holder,
            mark: None,
            proved: false,
            given_up: false,
            lost: false,
        };
        (known, session)
    }
}

impl ResumeSession {
    /// Sets the position to `number`, without proof.
    pub fn set(&self, number: u64) {
        let Client { key, owner, .. } = self.client;
        let shared = &self.history.0;
        let now = shared.clock.micros();
        shared.state.lock().positions.set(key, owner, self.holder, number, now);
        shared.work.notify_one();
    }

    /// Handles a heartbeat: the client has processed everything that was enqueued before the reply to the previous
    /// one, so the position advances to there. `reached` returns the number up to which messages are enqueued now.
    ///
    /// Returns false if another connection holds the position. That does not prove two live connections: the
    /// heartbeat of a cut connection can be read late. An answer to a later probe proves it; see
    /// [`ResumeSession::probe_answered`].
    #[must_use]
    pub fn heartbeat(&mut self, reached: impl FnOnce() -> Option<u64>) -> bool {
        if self.given_up {
            return true;
        }
        let holds = self.mark.is_none_or(|mark| self.prove(mark));
        self.proved |= self.mark.is_some();
        self.lost |= !holds;
        self.mark = reached();
        holds
    }

    /// Whether the next heartbeat proves something.
    #[must_use]
    pub fn expects_proof(&self) -> bool {
        self.mark.is_some() && !self.given_up
    }

    fn prove(&self, number: u64) -> bool {
        let shared = &self.history.0;
        let now = shared.clock.micros();
        shared.state.lock().positions.prove(self.client.key, self.holder, number, now)
    }

    /// Handles the client's answer to a probe. If the probe was sent after it lost its position, two live
    /// connections share one `client_id`. The position is then contested, and the next connection is notified.
    pub fn probe_answered(&mut self) {
        if std::mem::take(&mut self.lost) {
            let shared = &self.history.0;
            shared.state.lock().positions.contest(self.client.key, self.holder);
            shared.work.notify_one();
        }
    }

    /// Clears the mark of a contested position: the client has received the notice.
    pub fn settle(&self) {
        self.history.0.state.lock().positions.settle(self.client.key, self.holder);
    }

    /// The client leaves. The position is deleted only if a heartbeat proved that the client knew of the join: a
    /// client that times out waiting for the join reply also leaves, and returns.
    pub fn leave(&self) {
        if self.proved {
            self.history.0.state.lock().positions.forget(self.client.key, self.holder);
        }
    }

    /// Stops moving the position from now on.
    pub fn give_up(&mut self) {
        (self.given_up, self.proved) = (true, false);
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client
    }

    /// The holder of the position, for a replay that sets it under the lock of the history.
    pub(super) fn holder(&self) -> Holder {
        self.holder
    }
}
