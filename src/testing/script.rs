//! The order of the replies of a scripted model, and which of them are used.
use super::reply::{Kind, Reply};
use serde_json::Value;

/// Which reply answers which request.
///
/// In order, each request takes the first reply that is left and whose condition holds; a request beyond the script gets
/// status 400. A repeated request takes a reply, too.
///
/// By turn, the reply is chosen by how many messages of the model the request has, so that a request that is asked again,
/// for example after the daemon was killed, gets the same answer again. Turns beyond the script get the last reply.
#[derive(Debug)]
pub struct Script {
    order: Order,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Queue,
    Turns,
}

#[derive(Debug)]
struct Entry {
    reply: Reply,
    used: usize,
}

impl Script {
    /// Each reply once, in this order.
    #[must_use]
    pub fn in_order(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::of(Order::Queue, replies)
    }

    /// One reply a turn of the conversation.
    #[must_use]
    pub fn by_turn(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::of(Order::Turns, replies)
    }

    fn of(order: Order, replies: impl IntoIterator<Item = Reply>) -> Self {
        let entries = replies.into_iter().map(|reply| Entry { reply, used: 0 }).collect();
        Self { order, entries }
    }

    /// The first mistake of the script.
    pub(super) fn mistake(&self) -> Option<String> {
        let entries = self.entries.iter().enumerate();
        let found = entries.filter_map(|(at, Entry { reply, .. })| Some((at, mistake(reply, self.order)?)));
        let first = found.map(|(at, what)| format!("reply {}: {what}", at + 1)).next();
        first.or_else(|| {
            let empty = self.order == Order::Turns && self.entries.is_empty();
            empty.then(|| "a script by turn needs a reply".to_owned())
        })
    }

    /// Appends a reply.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn push(&mut self, reply: Reply) -> Result<(), String> {
        if let Some(mistake) = mistake(&reply, self.order) {
            return Err(mistake);
        }
        self.entries.push(Entry { reply, used: 0 });
        Ok(())
    }

    /// The reply to a request of this turn, which is used then. `None` if the script has none.
    pub(super) fn take(&mut self, turn: usize, request: &Value) -> Option<Reply> {
        let entry = match self.order {
            Order::Queue => self.entries.iter_mut().find(|entry| entry.is_free_for(request))?,
            Order::Turns => {
                let last = self.entries.len().checked_sub(1)?;
                self.entries.get_mut(turn.min(last))?
            }
        };
        entry.used += 1;
        match &entry.reply.kind {
            Kind::InTurn(replies) => replies.get(entry.used - 1).or(replies.last()).cloned(),
            _ => Some(entry.reply.clone()),
        }
    }

    /// The replies that no request has taken, each with its place from 1.
    pub(super) fn unused(&self) -> Vec<String> {
        let entries = self.entries.iter().enumerate().filter(|(_, entry)| entry.is_left());
        entries.map(|(at, entry)| format!("reply {} was not used: {}", at + 1, entry.reply.shown())).collect()
    }
}

impl Entry {
    fn is_left(&self) -> bool {
        match &self.reply.kind {
            Kind::InTurn(replies) => self.used < replies.len(),
            _ => self.used == 0,
        }
    }

    fn is_free_for(&self, request: &Value) -> bool {
        self.is_left() && self.reply.condition.as_ref().is_none_or(|wanted| wanted(request))
    }
}

/// What is wrong with a reply.
fn mistake(reply: &Reply, order: Order) -> Option<String> {
    if order == Order::Turns && reply.condition.is_some() {
        return Some("only a reply of a script in order has a condition".into());
    }
    match &reply.kind {
        Kind::Status { code, headers, .. } => {
            if !(100..=999).contains(code) {
                return Some(format!("{code} is not a status"));
            }
            let bad = |(name, value): &&(String, String)| {
                http::HeaderName::try_from(name).is_err() || http::HeaderValue::try_from(value).is_err()
            };
            headers.iter().find(bad).map(|(name, _)| format!("{name:?} is not a header, or has a bad value"))
        }
        Kind::InTurn(replies) if replies.is_empty() => Some("it has no replies".into()),
        Kind::InTurn(replies) => replies.iter().find_map(|reply| match reply.kind {
            Kind::InTurn(_) => Some("replies in turn are not replies in turn themselves".into()),
            // Inside, a condition would never be asked.
            _ => mistake(reply, Order::Turns),
        }),
        _ => None,
    }
}

impl<const N: usize> From<[Reply; N]> for Script {
    fn from(replies: [Reply; N]) -> Self {
        Self::in_order(replies)
    }
}

impl From<Vec<Reply>> for Script {
    fn from(replies: Vec<Reply>) -> Self {
        Self::in_order(replies)
    }
}
