//! Whole transactions in commit order, from messages in stream order.
//!
//! Small transactions come in one piece at their commit. Big ones come in
//! blocks while they still run, mixed with others (`streaming 'on'`): they
//! wait here by transaction id, in memory up to a limit over all of them and
//! beyond it in files, until their commit or abort. What a rolled back
//! savepoint did is left out. Pure but for those files; rubbish is an error,
//! never a panic. After an error it is of no use any more.
use super::{
    change::{Batch, Change},
    error::Error,
    pgoutput::{CommitMessage, Malformed, PgOutputMessage, decode},
    relation::Relations,
    spill::{Area, Buffered, Drain, Entry},
};
use crate::id::Lsn;
use bytes::{Buf, Bytes};
use prometheus_client::metrics::counter::Counter;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
};

/// The most changes in a [`Batch`].
pub const BATCH_CHANGES_MAX: usize = 1024;
/// A [`Batch`] ends after so many bytes of messages.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Puts transactions together.
#[derive(Debug)]
pub struct Assembler {
    relations: Relations,
    /// The transaction that is arriving in one piece.
    open: Option<(u32, Buffered)>,
    streams: HashMap<u32, Streamed>,
    /// The streamed transaction whose block is open.
    block: Option<u32>,
    committed: VecDeque<Committed>,
    area: Area,
    memory_bytes: usize,
    memory_bytes_max: usize,
    done: Lsn,
}

#[derive(Debug, Default)]
struct Streamed {
    buffered: Buffered,
    aborted: HashSet<u32>,
}

#[derive(Debug)]
struct Committed {
    xid: u32,
    commit: CommitMessage,
    drain: Drain,
    aborted: HashSet<u32>,
    next_index: u32,
    /// The change that did not fit in the last batch, so that there is always one for the next.
    carried: Option<(Change, usize)>,
}

impl Assembler {
    /// Leaves out transactions that end at `done` or before; spills to files in `spill_dir` named after `slot`.
    #[must_use]
    pub fn new(
        done: Lsn,
        memory_bytes_max: usize,
        spill_dir: PathBuf,
        slot: &str,
        spilled_bytes: Counter,
    ) -> Self {
        let area = Area::new(spill_dir, slot, spilled_bytes);
        Self {
            relations: Relations::default(),
            open: None,
            streams: HashMap::new(),
            block: None,
            committed: VecDeque::new(),
            area,
            memory_bytes: 0,
            memory_bytes_max,
            done,
        }
    }

    /// Texts come in an encoding that is not ours: those beyond ASCII cannot be read.
    pub(super) fn refuse_other_encodings(&mut self) {
        self.relations.only_ascii = true;
    }

    /// Removes the files that an earlier life left behind.
    ///
    /// # Errors
    /// [`Error::Spill`] when the folder cannot be read or a file not removed.
    pub fn clean(&self) -> Result<(), Error> {
        self.area.clean()
    }

    /// Whether nothing is half received and nothing waits to be taken. Streamed
    /// transactions that still run do not count: they commit later than anything so far.
    #[must_use]
    pub fn is_between_transactions(&self) -> bool {
        self.open.is_none() && self.block.is_none() && self.committed.is_empty()
    }

    /// Takes the next message of the stream; take the [batches](Self::pop) it completed before the next.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what is not the protocol, [`Error::Spill`] when the disk refuses.
    pub fn push(&mut self, mut message: Bytes) -> Result<(), Error> {
        let tag = *message.first().ok_or(Malformed::Empty)?;
        message.advance(1);
        match tag {
            b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => self.step(tag, message),
            _ => self.control(tag, message),
        }
    }

    /// The next part of a committed transaction, or nothing until more is pushed.
    ///
    /// # Errors
    /// Like [`Self::push`]: rows are decoded here.
    pub fn pop(&mut self) -> Result<Option<Batch>, Error> {
        while let Some(committed) = self.committed.front_mut() {
            let batch = committed.batch(&mut self.relations)?;
            if batch.as_ref().is_none_or(|batch| batch.last) {
                self.done = self.done.max(committed.commit.end_lsn);
                self.committed.pop_front();
            }
            if batch.is_some() {
                return Ok(batch);
            }
        }
        Ok(None)
    }

    fn step(&mut self, tag: u8, mut body: Bytes) -> Result<(), Error> {
        let order = Malformed::Order(char::from(tag));
        let (xid, top, buffered) = match (self.block, &mut self.open) {
            (Some(top), _) => {
                let wanted = Malformed::Short { tag: char::from(tag), wanted: 4, left: body.len() };
                let xid = body.try_get_u32().map_err(|_| wanted)?;
                (xid, top, &mut self.streams.get_mut(&top).ok_or(order)?.buffered)
            }
            (None, Some((xid, buffered))) => (*xid, *xid, buffered),
            // A message that belongs to no transaction: not for us.
            (None, None) if tag == b'M' => return Ok(()),
            (None, None) => return Err(order.into()),
        };
        let before = buffered.memory_bytes();
        buffered.push(Entry { xid, tag, body });
        if buffered.wants_spill() {
            buffered.spill(&self.area, top)?;
        }
        self.memory_bytes = (self.memory_bytes + buffered.memory_bytes()).saturating_sub(before);
        if self.memory_bytes > self.memory_bytes_max { self.spill_largest() } else { Ok(()) }
    }

    fn control(&mut self, tag: u8, body: Bytes) -> Result<(), Error> {
        let between = self.open.is_none() && self.block.is_none();
        let order = || Err(Malformed::Order(char::from(tag)).into());
        match decode(tag, body)? {
            PgOutputMessage::Begin { xid } if between => self.open = Some((xid, Buffered::default())),
            PgOutputMessage::Commit(commit) => match self.open.take() {
                Some((xid, buffered)) => self.commit(xid, commit, buffered, HashSet::new())?,
                None => return order(),
            },
            PgOutputMessage::StreamStart { xid } if between => {
                self.streams.entry(xid).or_default();
                self.block = Some(xid);
            }
            PgOutputMessage::StreamStop if self.block.is_some() => self.block = None,
            PgOutputMessage::StreamCommit { xid, commit } if between => match self.streams.remove(&xid) {
                Some(Streamed { buffered, aborted }) => self.commit(xid, commit, buffered, aborted)?,
                None => return order(),
            },
            PgOutputMessage::StreamAbort { xid, subxid } if between => {
                if xid == subxid {
                    let gone = self.streams.remove(&xid);
                    let freed = gone.map_or(0, |streamed| streamed.buffered.memory_bytes());
                    self.memory_bytes = self.memory_bytes.saturating_sub(freed);
                } else if let Some(streamed) = self.streams.get_mut(&xid) {
                    streamed.aborted.insert(subxid);
                }
            }
            PgOutputMessage::Origin => {}
            _ => return order(),
        }
        Ok(())
    }

    fn commit(
        &mut self,
        xid: u32,
        commit: CommitMessage,
        buffered: Buffered,
        aborted: HashSet<u32>,
    ) -> Result<(), Error> {
        self.memory_bytes = self.memory_bytes.saturating_sub(buffered.memory_bytes());
        // Descriptions in a transaction that we have already must still be learnt.
        let drain = buffered.drain()?;
        let mut committed = Committed { xid, commit, drain, aborted, next_index: 0, carried: None };
        if commit.end_lsn <= self.done {
            return committed.learn(&mut self.relations);
        }
        self.committed.push_back(committed);
        Ok(())
    }

    fn spill_largest(&mut self) -> Result<(), Error> {
        let streams = self.streams.iter_mut().map(|(xid, streamed)| (*xid, &mut streamed.buffered));
        let open = self.open.iter_mut().map(|(xid, buffered)| (*xid, buffered));
        let largest = streams.chain(open).max_by_key(|(_, buffered)| buffered.memory_bytes());
        let Some((xid, buffered)) = largest else { return Ok(()) };
        self.memory_bytes = self.memory_bytes.saturating_sub(buffered.memory_bytes());
        buffered.spill(&self.area, xid)
    }
}

impl Committed {
    fn batch(&mut self, relations: &mut Relations) -> Result<Option<Batch>, Error> {
        let mut changes = Vec::new();
        let (mut bytes, mut last) = (0, true);
        while let Some((change, size)) = self.next(relations)? {
            if changes.len() >= BATCH_CHANGES_MAX || (bytes > 0 && bytes + size > BATCH_BYTES_MAX) {
                self.carried = Some((change, size));
                last = false;
                break;
            }
            changes.push(change);
            bytes += size;
        }
        if changes.is_empty() {
            return Ok(None);
        }
        let first_index = self.next_index;
        self.next_index = first_index.saturating_add(u32::try_from(changes.len()).unwrap_or(u32::MAX));
        let CommitMessage { commit_lsn, end_lsn, committed_at } = self.commit;
        Ok(Some(Batch { xid: self.xid, commit_lsn, end_lsn, committed_at, first_index, changes, last }))
    }

    fn next(&mut self, relations: &mut Relations) -> Result<Option<(Change, usize)>, Error> {
        if self.carried.is_some() {
            return Ok(self.carried.take());
        }
        while let Some(Entry { xid, tag, body }) = self.drain.next()? {
            let describes = matches!(tag, b'R' | b'Y');
            if !describes && self.aborted.contains(&xid) {
                continue;
            }
            let size = body.len();
            if let Some(change) = relations.change(decode(tag, body)?)? {
                return Ok(Some((change, size)));
            }
        }
        Ok(None)
    }

    fn learn(&mut self, relations: &mut Relations) -> Result<(), Error> {
        while let Some(Entry { tag, body, .. }) = self.drain.next()? {
            if matches!(tag, b'R' | b'Y') {
                relations.change(decode(tag, body)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
