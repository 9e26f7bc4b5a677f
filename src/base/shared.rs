//! `Shared`: bytes that many write queues refer to.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
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
///
/// // Neither of these copies; a `static` costs no memory.
/// let page = Shared::from_static(b"HTTP/1.1 204 No Content\r\n\r\n");
/// let from_another_thread: std::sync::Arc<[u8]> = vec![7; 1_000_000].into();
/// let body = Shared::from(from_another_thread);
/// # assert_eq!((page.bytes().len(), body.bytes().len()), (27, 1_000_000));
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
    bytes: Bytes,
}

enum Bytes {
    Own(Box<[u8]>),
    /// Also held elsewhere, maybe by another thread.
    Counted(Arc<[u8]>),
    /// Part of the program: no memory of its own, so none is charged.
    Static(&'static [u8]),
}

impl Shared {
    /// Bytes that are part of the program. They are not copied, and not charged to
    /// [`Limits::memory`](crate::Limits::memory).
    pub fn from_static(bytes: &'static [u8]) -> Shared {
        Shared::new(Bytes::Static(bytes))
    }

    fn new(bytes: Bytes) -> Shared {
        Shared(Rc::new(Chunk { holders: Cell::new(0), account: Cell::default(), bytes }))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Counted(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// What is charged while outboxes refer to it.
    fn memory(&self) -> usize {
        match self.0.bytes {
            Bytes::Static(_) => 0,
            Bytes::Own(_) | Bytes::Counted(_) => self.bytes().len(),
        }
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
        Some(if holders == 0 { self.memory() } else { 0 })
    }

    /// Counts one outbox less; returns the bytes to discharge.
    pub(crate) fn release(&self) -> usize {
        let holders = self.0.holders.get();
        debug_assert!(holders > 0, "released more often than held");
        self.0.holders.set(holders - 1);
        if holders == 1 { self.memory() } else { 0 }
    }

    pub(crate) fn is_same(&self, other: &Shared) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl From<Vec<u8>> for Shared {
    fn from(bytes: Vec<u8>) -> Shared {
        Shared::new(Bytes::Own(bytes.into_boxed_slice()))
    }
}

/// Copies nothing: for bytes that another thread has made, or that a cache holds too.
impl From<Arc<[u8]>> for Shared {
    fn from(bytes: Arc<[u8]>) -> Shared {
        Shared::new(Bytes::Counted(bytes))
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
        write!(f, "Shared({} bytes, in {} queues)", self.bytes().len(), self.0.holders.get())
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

    #[test]
    fn an_arc_is_not_copied_and_a_static_is_not_charged() {
        let bytes: Arc<[u8]> = vec![1; 1_000].into();
        let counted = Shared::from(bytes.clone());
        assert_eq!(counted.bytes().as_ptr(), bytes.as_ptr());
        assert_eq!(counted.hold(Account::new()), Some(1_000));
        let fixed = Shared::from_static(b"twelve bytes");
        assert_eq!((fixed.bytes(), fixed.hold(Account::new())), (&b"twelve bytes"[..], Some(0)));
        assert_eq!((counted.release(), fixed.release()), (1_000, 0), "what was charged comes back");
    }
}
