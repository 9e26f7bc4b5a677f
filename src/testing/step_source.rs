//! The source of each phase, to be shown beside what it does.

use crate::base::observer::Phase;

/// The function of a phase in the source of the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PhaseSource {
    /// The file, from the root of the repository.
    pub file: &'static str,
    /// The number of the first line.
    pub line: usize,
    /// The lines, from the comment before the function to its last brace.
    pub text: &'static str,
}

/// The function that is a phase. Found by its name in the file from which this library was compiled.
///
/// ```
/// use tidemill::observer::Phase;
/// use tidemill::testing::phase_source;
///
/// let source = phase_source(Phase::Reap);
/// assert_eq!(source.file, "src/event_loop/reap.rs");
/// assert!(source.text.contains("pub(super) fn reap(&mut self)"));
/// ```
///
/// # Panics
///
/// When the file has no such function; a test of this crate looks for all.
pub fn phase_source(phase: Phase) -> PhaseSource {
    let (file, all) = match phase {
        Phase::Poll | Phase::Dispatch => ("src/event_loop/poll.rs", include_str!("../event_loop/poll.rs")),
        Phase::RunPosts => ("src/event_loop/posts.rs", include_str!("../event_loop/posts.rs")),
        Phase::Read => ("src/event_loop/read.rs", include_str!("../event_loop/read.rs")),
        Phase::Expire => ("src/event_loop/expire.rs", include_str!("../event_loop/expire.rs")),
        Phase::Write => ("src/event_loop/write.rs", include_str!("../event_loop/write.rs")),
        Phase::Reap => ("src/event_loop/reap.rs", include_str!("../event_loop/reap.rs")),
        Phase::Accept => ("src/event_loop/accept.rs", include_str!("../event_loop/accept.rs")),
    };
    let name = phase.word();
    function(file, all, name).unwrap_or_else(|| panic!("{file} has no function {name}"))
}

/// A method of a file, with its comment: it ends with the first brace at the column at which it begins.
fn function(file: &'static str, all: &'static str, name: &str) -> Option<PhaseSource> {
    let head = all.find(&format!("\n    pub(super) fn {name}("))? + 1;
    let end = head + all[head..].find("\n    }\n")? + "\n    }".len();
    let is_comment = |line: &str| line.trim_start().starts_with("///");
    let comment: usize =
        all[..head].lines().rev().take_while(|line| is_comment(line)).map(|line| line.len() + 1).sum();
    let start = head - comment;
    let line = 1 + all[..start].lines().count();
    Some(PhaseSource { file, line, text: &all[start..end] })
}
