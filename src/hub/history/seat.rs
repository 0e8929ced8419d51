//! Positions in something else than what is said: of row changes, which have a log of their own.
use super::{Client, History, position::Holder};

/// What is known of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// It has got everything up to this number.
    pub number: u64,
    /// Unless two connections had its name at the same time.
    pub contested: bool,
}

/// The place of a client whose position is kept; dropping it keeps the position.
#[derive(Debug)]
pub struct Seat {
    history: History,
    client: Client,
    holder: Holder,
}

impl History {
    /// Takes the position of a client over. Its numbers are microseconds, as those of histories are.
    #[must_use]
    pub fn seat(&self, client: Client) -> (Option<Known>, Seat) {
        let now = self.0.clock.micros();
        let (found, holder) = self.0.state.lock().positions.begin(client.key, client.conn, now);
        let known = found.map(|found| Known { number: found.number, contested: found.contested });
        (known, Seat { history: self.clone(), client, holder })
    }
}

impl Seat {
    /// The client begins at `number`.
    pub fn set(&self, number: u64) {
        let Client { key, owner, .. } = self.client;
        let shared = &self.history.0;
        let now = shared.clock.micros();
        shared.state.lock().positions.set(key, owner, self.holder, number, now);
        shared.work.notify_one();
    }

    /// The client has got everything up to `number`. False when another connection of it has taken over.
    #[must_use]
    pub fn prove(&self, number: u64) -> bool {
        let shared = &self.history.0;
        let now = shared.clock.micros();
        shared.state.lock().positions.prove(self.client.key, self.holder, number, now)
    }

    /// The client is alive on this connection, too, although another has taken over.
    pub fn contest(&self) {
        let shared = &self.history.0;
        shared.state.lock().positions.contest(self.client.key, self.holder);
        shared.work.notify_one();
    }

    /// The client knows that its position was contested.
    pub fn settle(&self) {
        self.history.0.state.lock().positions.settle(self.client.key, self.holder);
    }

    /// The client has left for good.
    pub fn forget(&self) {
        self.history.0.state.lock().positions.forget(self.client.key, self.holder);
    }

    /// Whose it is.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client
    }
}
