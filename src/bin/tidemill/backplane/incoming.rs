//! What the stream of the broker holds: which entries are lines of others, which were read before, and what is missing.

use std::collections::BTreeMap;

use tidemill::text::printable;

use super::resp::Answer;

/// Where an entry is in a stream: `1795811816476-0`, milliseconds and a counter.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EntryId(u64, u64);

impl EntryId {
    fn parse(text: &[u8]) -> Option<EntryId> {
        let (time, counter) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(EntryId(time.parse().ok()?, counter.parse().ok()?))
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// What XINFO STREAM says; all zero for a stream that does not exist.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct StreamInfo {
    first: Option<EntryId>,
    last: EntryId,
    /// Entries that were ever added, and how many of them are not there any more.
    added: u64,
    removed: u64,
}

impl StreamInfo {
    /// # Errors
    ///
    /// If a part is missing: Redis 6 does not count the entries that were added.
    pub fn parse(answer: &Answer) -> Result<StreamInfo, String> {
        let Answer::Array(pairs) = answer else { return Err("no answer to XINFO STREAM".to_string()) };
        let number = |name| match find(pairs, name) {
            Some(Answer::Integer(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let parsed = (|| {
            let (added, length) = (number("entries-added")?, number("length")?);
            let first = match find(pairs, "first-entry") {
                Some(Answer::Array(entry)) => Some(EntryId::parse(text(entry.first()?)?)?),
                _ => None,
            };
            let last = EntryId::parse(text(find(pairs, "last-generated-id")?)?)?;
            Some(StreamInfo { first, last, added, removed: added.saturating_sub(length) })
        })();
        parsed.ok_or_else(|| {
            "it does not count the entries of a stream: Redis 7 or Valkey is needed".to_string()
        })
    }
}

/// What was read of the stream: up to which entry, and how many entries have ever been before that or are it.
///
/// ```text
///     added 1  2  3  4  5  6  7  8  9
///           ╰ removed ╯  ╰── length ╯
///                    ▲ position: fine      the next is still there
///           ▲ position: 2 are lost         removed > position
/// ```
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Position {
    id: EntryId,
    count: u64,
}

/// How many origins are known: processes that have written to the stream.
const ORIGINS_MAX: usize = 1_024;
/// The longest name of a process, and the longest origin id, in bytes.
pub const NAME_MAX: usize = 24;

/// The lines of others, each once.
pub struct Incoming {
    /// The origin id of this process: it does not read its own lines.
    own: String,
    position: Option<Position>,
    /// For each origin the number of its last line, and when that was read, counted in lines.
    seen: BTreeMap<Box<str>, (u64, u64)>,
    lines: u64,
}

impl Incoming {
    pub fn new(own: String) -> Incoming {
        Incoming { own, position: None, seen: BTreeMap::new(), lines: 0 }
    }

    /// From where to read on.
    pub fn next(&self) -> EntryId {
        self.position.map_or(EntryId::default(), |position| position.id)
    }

    /// The broker was connected. Decides where to read on; says whether lines are missing.
    ///
    /// The first time, reading begins behind what is there: those lines were said before this process began.
    pub fn resume(&mut self, info: &StreamInfo) -> bool {
        let newest = Position { id: info.last, count: info.added };
        let Some(position) = &mut self.position else {
            self.position = Some(newest);
            return false;
        };
        let knows_ours = info.first.is_some_and(|first| first <= position.id);
        if info.last < position.id && knows_ours {
            // An older copy of it was restored. What follows may be new or not: it goes on with what comes now.
            *position = newest;
            return true;
        }
        if info.last < position.id || (info.removed < position.count && !knows_ours) {
            // The stream was lost, and begun again: nothing in it was read.
            let was_empty = *position == Position::default();
            *position = Position { id: EntryId::default(), count: info.removed };
            return !was_empty;
        }
        let is_missing = info.removed > position.count;
        position.count = position.count.max(info.removed);
        is_missing
    }

    /// The lines of others in an answer to XREAD, as they are shown here.
    ///
    /// # Errors
    ///
    /// If it is no such answer. Entries that are no lines are left out.
    pub fn read(&mut self, answer: &Answer) -> Result<Vec<String>, String> {
        let entries = match answer {
            Answer::Null => return Ok(Vec::new()),
            Answer::Array(streams) => match streams.first() {
                Some(Answer::Array(stream)) => stream.get(1),
                _ => None,
            },
            _ => None,
        };
        let Some(Answer::Array(entries)) = entries else { return Err("no answer to XREAD".to_string()) };
        let mut lines = Vec::new();
        for entry in entries {
            let (id, fields) = id_and_fields(entry).ok_or("an entry without an id")?;
            let position = self.position.get_or_insert_default();
            if id <= position.id {
                return Err("an entry that was not asked for".to_string());
            }
            *position = Position { id, count: position.count + 1 };
            lines.extend(Line::parse(fields).and_then(|line| self.accept(&line)));
        }
        Ok(lines)
    }

    /// A line of another process that was not read before.
    fn accept(&mut self, line: &Line<'_>) -> Option<String> {
        if line.origin == self.own {
            return None;
        }
        self.lines += 1;
        match self.seen.get_mut(line.origin) {
            // It was written again, because its writer has not got the answer.
            Some((last, _)) if line.number <= *last => return None,
            Some(known) => *known = (line.number, self.lines),
            None => {
                if self.seen.len() >= ORIGINS_MAX {
                    let oldest = self.seen.iter().min_by_key(|(_, (_, read))| *read);
                    if let Some(oldest) = oldest.map(|(origin, _)| origin.clone()) {
                        self.seen.remove(&oldest);
                    }
                }
                self.seen.insert(line.origin.into(), (line.number, self.lines));
            }
        }
        line.shown()
    }
}

/// An entry of the stream.
struct Line<'a> {
    origin: &'a str,
    number: u64,
    /// The name of the process.
    at: &'a str,
    said: &'a [u8],
}

impl Line<'_> {
    fn parse(fields: &[Answer]) -> Option<Line<'_>> {
        let field = |name| text(find(fields, name)?);
        let word = |name| std::str::from_utf8(field(name)?).ok().filter(|word| is_name(word));
        let number = std::str::from_utf8(field("n")?).ok()?.parse().ok()?;
        Some(Line { origin: word("o")?, number, at: word("at")?, said: field("l")? })
    }

    /// As members here see it: `ada@web2: hello`. Names of members hold no `@`, so no member here is called like that.
    fn shown(&self) -> Option<String> {
        let said = printable(self.said);
        let (name, text) = said.split_once(": ").filter(|_| is_said(&said))?;
        Some(format!("{name}@{}: {text}\n", self.at))
    }
}

/// Whether a line of a room is what a member has said: `ada: hello`, and not `ada left`. Names hold no spaces.
pub fn is_said(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace))
}

/// Whether a text can be the name of a process.
pub fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=NAME_MAX).contains(&text.len()) && text.chars().all(plain)
}

fn id_and_fields(entry: &Answer) -> Option<(EntryId, &[Answer])> {
    let Answer::Array(entry) = entry else { return None };
    let id = EntryId::parse(text(entry.first()?)?)?;
    match entry.get(1)? {
        Answer::Array(fields) => Some((id, fields)),
        // It was deleted by now.
        Answer::Null => Some((id, &[])),
        _ => None,
    }
}

/// What follows a name in an array of names and values.
fn find<'a>(pairs: &'a [Answer], name: &str) -> Option<&'a Answer> {
    let pair = pairs.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name.as_bytes()));
    pair.map(|pair| &pair[1])
}

fn text(answer: &Answer) -> Option<&[u8]> {
    match answer {
        Answer::BulkString(text) | Answer::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(first: u64, last: u64, added: u64, removed: u64) -> StreamInfo {
        StreamInfo { first: Some(EntryId(first, 0)), last: EntryId(last, 0), added, removed }
    }

    fn at(id: u64, count: u64) -> Incoming {
        let position = Some(Position { id: EntryId(id, 0), count });
        Incoming { position, ..Incoming::new("own".to_string()) }
    }

    fn word(text: &str) -> Answer {
        Answer::BulkString(text.as_bytes().to_vec())
    }

    fn entry(id: u64, origin: &str, number: &str, said: &str) -> Answer {
        let fields = ["o", origin, "n", number, "at", "web2", "l", said].map(word).to_vec();
        Answer::Array(vec![word(&format!("{id}-0")), Answer::Array(fields)])
    }

    fn answer(entries: Vec<Answer>) -> Answer {
        Answer::Array(vec![Answer::Array(vec![word("key"), Answer::Array(entries)])])
    }

    #[test]
    fn what_is_there_at_the_start_is_not_read_and_nothing_is_missing() {
        let mut incoming = Incoming::new("own".to_string());
        assert!(!incoming.resume(&info(5, 9, 20, 15)));
        assert_eq!(incoming.next(), EntryId(9, 0));
    }

    /// Entries 1 to 9 were added, at times 10 to 90.
    #[test]
    fn a_gap_is_noticed_when_entries_behind_ours_were_removed_or_the_stream_was_lost() {
        for (case, mut incoming, info, missing, next) in [
            ("all are there", at(40, 4), info(10, 90, 9, 0), false, 40),
            ("ours is the first", at(40, 4), info(40, 90, 9, 3), false, 40),
            ("those up to ours are gone", at(40, 4), info(50, 90, 9, 4), false, 40),
            ("one more is gone", at(40, 4), info(60, 90, 9, 5), true, 40),
            ("lost, with fewer since", at(40, 4), info(95, 96, 2, 0), true, 0),
            ("lost, with more since", at(40, 4), info(95, 99, 9, 0), true, 0),
            ("lost and empty", at(40, 4), StreamInfo::default(), true, 0),
            ("restored from a copy", at(40, 4), info(10, 30, 3, 0), true, 30),
            ("never there", at(0, 0), StreamInfo::default(), false, 0),
            ("not there before", at(0, 0), info(10, 20, 2, 0), false, 0),
        ] {
            assert_eq!(incoming.resume(&info), missing, "{case}");
            assert_eq!(incoming.next(), EntryId(next, 0), "{case}");
            assert!(!incoming.resume(&info), "{case}: it is told once");
        }
    }

    #[test]
    fn a_line_that_was_written_twice_is_read_once_and_own_lines_are_not_read() {
        let mut incoming = at(0, 0);
        let entries =
            [(1, "a", "1"), (2, "own", "1"), (3, "a", "2"), (4, "b", "1"), (5, "a", "1"), (6, "a", "2")];
        let entries =
            entries.map(|(id, origin, number)| entry(id, origin, number, &format!("{origin}: {number}")));
        let lines = incoming.read(&answer(entries.to_vec())).expect("an answer");
        assert_eq!(lines, ["a@web2: 1\n", "a@web2: 2\n", "b@web2: 1\n"]);
        assert_eq!(incoming.position, Some(Position { id: EntryId(6, 0), count: 6 }));
        assert_eq!(incoming.read(&Answer::Null), Ok(Vec::new()), "nothing new");
    }

    #[test]
    fn an_entry_that_is_no_line_is_left_out_and_cannot_pass_for_the_room() {
        let mut incoming = at(0, 0);
        let entries = vec![
            entry(1, "a", "x", "ada: no number"),
            entry(2, "a b", "1", "ada: no origin"),
            entry(3, "a", "1", "ada left"),
            entry(4, "a", "2", "the server: is down"),
            Answer::Array(vec![word("5-0"), Answer::Null]),
            entry(6, "a", "3", "ada: \x1b[2Jhi\nbob: forged"),
        ];
        assert_eq!(incoming.read(&answer(entries)), Ok(vec!["ada@web2: [2Jhibob: forged\n".to_string()]));
        for nonsense in
            [answer(vec![entry(6, "a", "9", "ada: again")]), Answer::Integer(1), answer(vec![word("1-0")])]
        {
            assert!(incoming.read(&nonsense).is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn origins_are_remembered_within_a_bound() {
        let mut incoming = at(0, 0);
        for n in 1..=3_000_u64 {
            let read =
                incoming.read(&answer(vec![entry(2 * n, "steady", &n.to_string(), "a: b")])).expect("one");
            assert_eq!(read.len(), 1);
            incoming.read(&answer(vec![entry(2 * n + 1, &format!("o{n}"), "1", "a: b")])).expect("another");
        }
        assert_eq!(incoming.seen.len(), ORIGINS_MAX);
        let again = incoming.read(&answer(vec![entry(9_000, "steady", "7", "a: b")]));
        assert_eq!(again, Ok(Vec::new()), "one that is read often is not forgotten");
    }
}
