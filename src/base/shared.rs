//! Bytes that many write queues hold at once.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// Bytes held once, however many connections they are queued for.
///
/// A line to a thousand members of a room is a thousand references to one of these. Cloning costs a count.
/// It belongs to the loop's thread; make it there, for example inside a [`post`](crate::Handle::post).
///
/// ```
/// use tidemill::Shared;
///
/// let line = Shared::from("welcome\n");
/// assert_eq!(line.bytes(), b"welcome\n");
/// ```
#[derive(Clone)]
pub struct Shared(Rc<Chunk>);

struct Chunk {
    /// How many outboxes hold this chunk. Its memory is charged to the budget once: with the first of them.
    holders: Cell<usize>,
    bytes: Box<[u8]>,
}

impl Shared {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// One more outbox holds it; returns the bytes to charge.
    pub(crate) fn hold(&self) -> usize {
        let holders = self.0.holders.get();
        self.0.holders.set(holders + 1);
        if holders == 0 { self.0.bytes.len() } else { 0 }
    }

    /// One outbox less holds it; returns the bytes to discharge.
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
        Shared(Rc::new(Chunk { holders: Cell::new(0), bytes: bytes.into_boxed_slice() }))
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
    fn it_is_charged_with_its_first_holder_and_discharged_with_its_last() {
        let line = Shared::from("twelve bytes");
        let charges: Vec<usize> = (0..1_000).map(|_| line.hold()).collect();
        assert_eq!(charges.iter().sum::<usize>(), 12);
        let discharges: Vec<usize> = (0..1_000).map(|_| line.release()).collect();
        assert_eq!((discharges[998], discharges[999]), (0, 12));
    }
}
