//! Coverage marks: lines in the rare branches of the loop that tests must reach.
//!
//! `mark!("a delivery was cut")` notes that the branch was taken. It compiles to nothing outside the crate's own tests.
//! `src/event_loop/tests/marks.rs` collects the marks of the source, runs the random worlds, and fails for each mark
//! that was not reached: so a generator that no longer makes a situation is noticed.

/// Notes that this place was reached.
#[allow(unused_macros)] // benches/micro compiles this layer without the loop.
macro_rules! mark {
    ($what:literal) => {
        #[cfg(test)]
        $crate::base::mark::reached($what);
    };
}

pub(crate) use mark;

#[cfg(test)]
thread_local! {
    static REACHED: std::cell::RefCell<std::collections::BTreeMap<&'static str, u64>> = const {
        std::cell::RefCell::new(std::collections::BTreeMap::new())
    };
}

#[cfg(test)]
pub(crate) fn reached(what: &'static str) {
    REACHED.with_borrow_mut(|all| *all.entry(what).or_default() += 1);
}

/// How often this thread has reached each mark since the last call.
#[cfg(test)]
pub(crate) fn take_reached() -> std::collections::BTreeMap<&'static str, u64> {
    REACHED.take()
}
