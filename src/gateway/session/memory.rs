//! The memory that the channels of a socket hold, charged to its account.
use super::{Core, Session, Slot};
use crate::{
    gateway::connection::CLOSE_NO_ROOM,
    hub::memory::Charge,
    wire::{Inbound, Payload},
};

/// A smaller payload of a join is part of the memory of a connection, and is not counted.
const JOIN_BYTES_MIN: usize = 1 << 10;
/// Objects of a join that are not counted: that many an ordinary one has.
const JOIN_OBJECTS_MIN: usize = 8;
/// Memory of a parsed object, beside its text: one node of a map.
const OBJECT_BYTES: usize = 640;

impl Session {
    /// Charges the incomplete message. Returns false if it exceeds a memory limit.
    pub(in crate::gateway) fn holds_partial(&mut self, bytes: usize) -> bool {
        self.core.partial.resize(bytes).is_ok()
    }

    /// Charges the frames that wait in its channels. Closes the socket if it exceeds its memory limit.
    pub(super) fn count_waiting(&mut self) {
        if self.core.waiting.resize(self.core.waiting_bytes).is_err() {
            self.core.close = Some(CLOSE_NO_ROOM);
        }
    }
}

impl Core {
    /// Charges the payload of a join or of a new token: the presence key, the token and the filters in it live as long
    /// as the channel. Closes the socket, and returns false, if it exceeds a memory limit.
    pub(super) fn charge_join(&mut self, slot: &mut Slot, frame: &Inbound) -> bool {
        let bytes = parsed_bytes(&frame.payload);
        let join_bytes = match frame.event.as_str() {
            "phx_join" if bytes < JOIN_BYTES_MIN => 0,
            "phx_join" => bytes,
            "access_token" if bytes >= JOIN_BYTES_MIN => bytes.max(slot.join_bytes),
            _ => return true,
        };
        let presence = slot.charge.as_ref().map_or(0, Charge::bytes) - slot.join_bytes;
        let is_charged = self.resize(slot, join_bytes + presence);
        if is_charged {
            slot.join_bytes = join_bytes;
        } else {
            self.close = Some(CLOSE_NO_ROOM);
        }
        is_charged
    }

    /// Charges the presence of a channel twice: the stored meta with its key, and their copy in the state for later
    /// members. Returns false if it exceeds a memory limit.
    pub(super) fn charge_presence(&self, slot: &mut Slot, bytes: usize) -> bool {
        self.resize(slot, slot.join_bytes + 2 * bytes)
    }

    fn resize(&self, slot: &mut Slot, bytes: usize) -> bool {
        if bytes == 0 && slot.charge.is_none() {
            return true;
        }
        slot.charge.get_or_insert_with(|| self.account.charge()).resize(bytes).is_ok()
    }
}

/// The memory of a join: its text, and the parsed objects of its row changes, which live as long as the channel. So does
/// what an agent tracks in its room. Braces within texts count, too.
pub(super) fn parsed_bytes(payload: &Payload) -> usize {
    let objects = match payload {
        Payload::Json(json) => json.iter().filter(|byte| **byte == b'{').count(),
        Payload::User { .. } => 0,
    };
    payload.size() + OBJECT_BYTES * objects.saturating_sub(JOIN_OBJECTS_MIN)
}

impl Slot {
    /// Releases the charge of the presence. That of the join ends with the slot: a channel that joins again keeps it.
    pub(super) fn release_presence(&mut self) {
        if self.join_bytes == 0 {
            self.charge = None;
        } else if let Some(charge) = &mut self.charge {
            // A smaller charge is never refused.
            let _smaller = charge.resize(self.join_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_of_many_objects_is_charged_for_their_parsed_form() {
        let payload = |items: usize| {
            let items = vec![r#"{"a":1}"#; items].join(",");
            Payload::Json(format!(r#"{{"config":{{"postgres_changes":[{items}]}}}}"#).into())
        };
        let ordinary = payload(3);
        assert_eq!(parsed_bytes(&ordinary), ordinary.size());
        let large = payload(1000);
        assert_eq!(parsed_bytes(&large), large.size() + 994 * OBJECT_BYTES);
    }
}
