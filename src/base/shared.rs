//! `Shared`: bytes that many write queues refer to.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Immutable bytes that exist once in memory, however many connections they are queued for.
///
/// A line sent to a thousand members of a chat room is queued as a thousand references. Cloning counts a reference and
/// copies nothing. Their memory is charged to [`Limits::memory`](crate::Limits::memory) once.
///
/// It is not `Send`: make it on the loop's thread, for example inside [`Handle::post`](crate::Handle::post). Queues of
/// a second reactor on the same thread get a copy while those of the first refer to it.
///
/// # Examples
///
/// ```
/// use tidemill::Shared;
///
/// let line = Shared::from("welcome\n");
/// assert_eq!(line.bytes(), b"welcome\n");
/// ```
#[derive(Clone)]
pub struct Shared(Rc<Chunk>);

/// The memory account that a chunk is charged to: one for each reactor of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account(u64);

impl Account {
    /// A number that no other reactor has.
    pub(crate) fn new() -> Account {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Account(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

struct Chunk {
    /// How many outboxes refer to this chunk. Its bytes are charged with the first of them, and discharged with the
    /// last.
    holders: Cell<usize>,
    /// The account that is charged, while there are holders. Outboxes of another reactor on the same thread copy the
    /// bytes: otherwise one reactor could be charged and the other one discharged.
    account: Cell<Account>,
    bytes: Box<[u8]>,
}

impl Shared {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Counts one more outbox that refers to it; returns the bytes to charge. `None` if outboxes of another account
    /// refer to it already: the caller copies the bytes then.
    pub(crate) fn hold(&self, account: Account) -> Option<usize> {
        let holders = self.0.holders.get();
        if holders > 0 && self.0.account.get() != account {
            return None;
        }
        self.0.account.set(account);
        self.0.holders.set(holders + 1);
        Some(if holders == 0 { self.0.bytes.len() } else { 0 })
    }

    /// Counts one outbox less; returns the bytes to discharge.
    pub(crate) fn release(&self) -> usize {
        let holders = self.0.holders.get();
        debug_assert!(holders > 0, "released more often than held");
        self.0.holders.set(holders - 1);
        if holders == 1 { self.0.bytes.len() } else { 0 }
    }

    pub(crate) fn is_same(&self, other: &Shared) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl From<Vec<u8>> for Shared {
    fn from(bytes: Vec<u8>) -> Shared {
        let (holders, account) = (Cell::new(0), Cell::default());
        Shared(Rc::new(Chunk { holders, account, bytes: bytes.into_boxed_slice() }))
    }
}

impl From<&[u8]> for Shared {
    fn from(bytes: &[u8]) -> Shared {
        Shared::from(bytes.to_vec())
    }
}

impl From<&str> for Shared {
    fn from(text: &str) -> Shared {
        Shared::from(text.as_bytes())
    }
}

impl From<String> for Shared {
    fn from(text: String) -> Shared {
        Shared::from(text.into_bytes())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({} bytes, in {} queues)", self.0.bytes.len(), self.0.holders.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_charged_with_its_first_holder_and_discharged_with_its_last() {
        let line = Shared::from("twelve bytes");
        let account = Account::new();
        let charges: Vec<usize> = (0..1_000).map(|_| line.hold(account).unwrap()).collect();
        assert_eq!(charges.iter().sum::<usize>(), 12);
        let discharges: Vec<usize> = (0..1_000).map(|_| line.release()).collect();
        assert_eq!((discharges[998], discharges[999]), (0, 12));
    }
}
