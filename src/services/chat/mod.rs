//! A chat room. Its lines can go on to rooms elsewhere: `elsewhere.rs`.

mod elsewhere;
mod full;
mod on_shards;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

pub use self::elsewhere::Elsewhere;
use self::full::FullMembers;
pub use self::on_shards::{RoomWork, ShardedRooms};
use crate::base::address::Address;
use crate::base::id::{ConnId, ServiceId};
use crate::base::reason::ClosedInfo;
use crate::base::shared::Shared;
use crate::base::text::printable;
use crate::config::limits::SocketLimits;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::framing::Lines;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::service::{Service, ServiceSockets};

/// A chat room: each line of a member is sent to all members, in the same order.
///
/// ```text
///     127.0.0.1:40312 joined                 a connection was accepted
///     127.0.0.1:40312: hello                 a line was sent
///     127.0.0.1:40312 is now ada             /nick ada
///     ada left                               a connection has ended
/// ```
///
/// Only complete lines are sent on. A line is prefixed with the member's name and a colon, and names hold neither
/// colons nor spaces: a member can send neither a line of the room itself nor another one's address. Control
/// characters are removed. A line is in memory once, whatever the number of members.
///
/// When the reactor shuts down, each member is sent `the server is shutting down` and closed.
///
/// # Slow members
///
/// A member whose line fills the queue of another member is not read until that one has drained, so one that sends much
/// cannot have the others closed as slow readers. A member that takes nothing for 5 s is waited for no longer; it
/// is closed when its queue reaches [`SocketLimits::queue`]. Each member is read at 16 KiB/s by default, see
/// [`Chat::limits`].
///
/// # Examples
///
/// ```
/// use tidemill::{Limits, Reactor, services::Chat};
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// let room = Chat::new();
/// let limits = room.limits();
/// let chat = reactor.add_with(room, limits);
/// reactor.listen("127.0.0.1:0", chat)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Chat {
    members: BTreeMap<ConnId, String>,
    /// Chosen names, in lower case: `Ada` and `ada` are the same name.
    taken: HashSet<String>,
    lines: Lines,
    /// Members that do not take lines from elsewhere as fast as they come.
    full: FullMembers,
    elsewhere: Vec<Box<dyn Elsewhere>>,
    /// Members whose lines are not taken until the rooms elsewhere have room.
    waiting: Vec<ConnId>,
}

/// Characters in a name.
const NAME_MAX: usize = 24;
/// Bytes a second that are read from a member. A typist sends less than 100; 100 kB pasted take six seconds. Each byte
/// is sent to each member, so a room of 1,000 sends 16 MiB/s for one sender at this rate.
const RATE: usize = 16 * 1024;
/// Names that `/who` lists.
const WHO_MAX: usize = 100;

/// What members are sent when the reactor shuts down.
const SHUTTING_DOWN: &str = "the server is shutting down\n";

const HELP: &str = "\
/nick NAME  be called NAME
/who        who is here
/quit       leave
/help       this
";

impl Chat {
    /// An empty room.
    pub fn new() -> Chat {
        Chat::default()
    }

    /// Sets the maximum length of a line in bytes. Default 8 KiB.
    pub fn max_line(self, bytes: usize) -> Chat {
        Chat { lines: self.lines.max(bytes), ..self }
    }

    /// Limits for people who type: 30 minutes without a byte, 16 KiB/s from each member, 256 KiB queued for one that
    /// does not read.
    pub fn limits(&self) -> SocketLimits {
        SocketLimits {
            rate: Some(RATE),
            idle: Some(Duration::from_secs(30 * 60)),
            queue: 256 * 1024,
            message: self.lines.inbox_limit(),
            ..SocketLimits::interactive()
        }
    }

    /// Also sends the lines of this room to other rooms, of other shards or other machines. Called twice, it sends them
    /// to both: rooms on other shards and on other machines, for example.
    pub fn elsewhere(self, rooms: impl Elsewhere) -> Chat {
        let mut elsewhere = self.elsewhere;
        elsewhere.push(Box::new(rooms));
        Chat { elsewhere, ..self }
    }

    /// Sends a line from elsewhere, which ends in a line feed, to the members of this room. Returns whether more can be
    /// taken: if not, [`Elsewhere::drained`] is called later. A line that is given all the same is sent all the same,
    /// until members that do not read are closed as slow readers.
    pub fn hear(&mut self, line: impl Into<Shared>, sockets: &mut Sockets<'_>) -> bool {
        let line = line.into();
        for &id in self.members.keys() {
            if let Some(mut member) = sockets.get(id) {
                member.send_shared(&line);
                self.full.look_at(&member);
            }
        }
        self.full.set_timer(sockets);
        self.takes_more()
    }

    fn takes_more(&self) -> bool {
        self.full.is_empty()
    }

    /// The rooms elsewhere have room again: members that [`Elsewhere::tell`] had wait are read again.
    pub fn go_on(&mut self, sockets: &mut Sockets<'_>) {
        for id in self.waiting.drain(..) {
            if let Some(mut member) = sockets.get(id) {
                member.resume();
            }
        }
    }

    /// The number of members of this room.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether this room has no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn line(&mut self, socket: &mut Socket<'_>, line: &[u8]) {
        let text = printable(line);
        let text = text.trim_end();
        match text.split_once(' ').map_or((text, ""), |(word, rest)| (word, rest.trim())) {
            ("", _) if text.is_empty() => {}
            ("/nick", name) => self.rename(socket, name),
            ("/who", "") => socket.send(self.who().as_bytes()),
            ("/help", "") => socket.send(HELP.as_bytes()),
            ("/quit", "") => {
                self.leave(socket.id(), &mut socket.all());
                socket.close();
            }
            (word, _) if word.starts_with('/') => {
                socket.send(format!("{word} is no command; /help lists them\n").as_bytes());
            }
            _ => {
                let Some(name) = self.members.get(&socket.id()) else { return };
                let said = format!("{name}: {text}\n");
                self.say(said, Some(socket.id()), &mut socket.all());
            }
        }
    }

    fn rename(&mut self, socket: &mut Socket<'_>, name: &str) {
        let id = socket.id();
        let Some(before) = self.members.get(&id).cloned() else { return };
        if let Err(why) = self.take_name(id, &before, name) {
            return socket.send(format!("{why}\n").as_bytes());
        }
        self.say(format!("{before} is now {name}\n"), Some(id), &mut socket.all());
    }

    /// Gives a member another name, if it is allowed and free.
    fn take_name(&mut self, id: ConnId, before: &str, name: &str) -> Result<(), String> {
        let plain = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() {
            return Err("a name, please: /nick NAME".into());
        }
        if name.chars().count() > NAME_MAX {
            return Err(format!("a name has at most {NAME_MAX} characters"));
        }
        if !name.chars().all(plain) {
            return Err("a name is made of letters, digits, - and _".into());
        }
        if self.taken.contains(&name.to_lowercase()) || !self.takes_elsewhere(id, before, name) {
            return Err(format!("{name} is taken"));
        }
        self.taken.remove(&before.to_lowercase());
        self.taken.insert(name.to_lowercase());
        self.members.insert(id, name.to_string());
        Ok(())
    }

    /// Takes a name in the rooms elsewhere. If it is not free in one of them, it is taken in none.
    fn takes_elsewhere(&mut self, id: ConnId, before: &str, name: &str) -> bool {
        let Some(refusing) = self.elsewhere.iter_mut().position(|rooms| !rooms.name(id, Some(name))) else {
            return true;
        };
        self.elsewhere[..refusing].iter_mut().for_each(|rooms| _ = rooms.name(id, Some(before)));
        false
    }

    fn who(&self) -> String {
        let mut names: Vec<String> = self.members.values().take(WHO_MAX).cloned().collect();
        let mut count = self.members.len();
        for rooms in &self.elsewhere {
            let (others, their_names) = rooms.members(WHO_MAX - names.len());
            count += others;
            names.extend(their_names);
        }
        let more = match count - names.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        format!("{count} here: {}{more}\n", names.join(", "))
    }

    fn leave(&mut self, id: ConnId, sockets: &mut Sockets<'_>) {
        let Some(name) = self.members.remove(&id) else { return };
        self.taken.remove(&name.to_lowercase());
        self.elsewhere.iter_mut().for_each(|rooms| _ = rooms.name(id, None));
        self.say(format!("{name} left\n"), None, sockets);
    }

    /// Sends a line to every member, here and elsewhere. A sender may have to wait behind it.
    fn say(&mut self, line: String, sender: Option<ConnId>, sockets: &mut Sockets<'_>) {
        let full =
            self.elsewhere.iter_mut().filter_map(|rooms| (!rooms.tell(&line, sender, sockets)).then_some(()));
        let goes_on = full.count() == 0;
        self.broadcast(&Shared::from(line), sockets);
        if let Some(mut sender) = sender.filter(|_| !goes_on).and_then(|id| sockets.get(id)) {
            sender.pause();
            self.waiting.push(sender.id());
        }
    }

    /// Sends a line to every member of this room. It is in memory once.
    fn broadcast(&self, line: &Shared, sockets: &mut Sockets<'_>) {
        for &id in self.members.keys() {
            if let Some(mut member) = sockets.get(id) {
                member.send_shared(line);
            }
        }
    }

    /// Calls the rooms elsewhere, which may call this room.
    fn with_elsewhere(&mut self, mut call: impl FnMut(&mut dyn Elsewhere, &mut Chat)) {
        let mut elsewhere = std::mem::take(&mut self.elsewhere);
        elsewhere.iter_mut().for_each(|rooms| call(&mut **rooms, self));
        self.elsewhere = elsewhere;
    }

    /// Some member has drained, or is waited for no longer.
    fn on_less_full(&mut self, sockets: &mut Sockets<'_>) {
        self.with_elsewhere(|rooms, room| {
            // The first of them may have sent so much that one is full again.
            if room.full.is_empty() {
                rooms.drained(room, sockets);
            }
        });
    }
}

impl Service for Chat {
    type Session = ();

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        self.full.start(own);
        if let Some(key) = sockets.key(own) {
            self.with_elsewhere(|rooms, _| rooms.start(key, sockets));
        }
    }

    fn open(&mut self, socket: &mut Socket<'_>) {
        // Peers on a Unix-domain socket have no address of their own.
        let name = match socket.peer_addr() {
            Address::Unnamed => {
                let suffix: String = self.elsewhere.iter().map(|rooms| rooms.suffix()).collect();
                format!("unix:{}{suffix}", socket.id())
            }
            address => address.to_string(),
        };
        let joined = format!("{name} joined\n");
        self.elsewhere.iter_mut().for_each(|rooms| _ = rooms.name(socket.id(), Some(&name)));
        self.members.insert(socket.id(), name);
        self.say(joined, None, &mut socket.all());
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        // After /quit, further lines of the same packet are ignored.
        while self.members.contains_key(&socket.id()) && !socket.is_paused() {
            match self.lines.next(input) {
                Ok(Some(line)) => self.line(socket, line),
                Ok(None) => return,
                Err(error) => {
                    socket.send(format!("{error}\n").as_bytes());
                    return socket.close_as(error.into());
                }
            }
        }
    }

    fn drained(&mut self, (): &mut (), socket: &mut Socket<'_>) {
        if self.full.remove(socket.id()) {
            self.on_less_full(&mut socket.all());
        }
    }

    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        if !self.full.on_timer(timer, sockets) {
            self.with_elsewhere(|rooms, room| rooms.timer(timer, room, sockets));
        } else {
            self.on_less_full(sockets);
        }
    }

    /// Members are told and not waited for: a chat has no end of its own.
    fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, Chat>) {
        let line = Shared::from(SHUTTING_DOWN);
        sockets.for_each(|(), mut member| {
            member.send_shared(&line);
            member.close();
        });
    }

    fn closed(&mut self, _: (), gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        self.leave(gone.id, sockets);
        if self.full.remove(gone.id) {
            self.on_less_full(sockets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::reason::CloseReason;
    use crate::testing::{Bench, Peer, PeerEnd};

    /// A room without a rate, so that lines need no time.
    fn empty_room() -> Bench {
        let mut bench = Bench::new();
        bench.serve_with(Chat::new(), SocketLimits { rate: None, ..Chat::new().limits() });
        bench
    }

    /// Three members called ada, bob and eve; what was sent to them so far is discarded.
    fn room_of_three() -> (Bench, [Peer; 3]) {
        let mut room = empty_room();
        let members = ["ada", "bob", "eve"].map(|name| {
            let peer = room.connect();
            room.say(peer, format!("/nick {name}\n"));
            peer
        });
        members.iter().for_each(|&peer| drop(room.heard(peer)));
        (room, members)
    }

    #[test]
    fn joining_and_leaving_members_are_announced_by_address() {
        let mut room = empty_room();
        let first = room.connect();
        let second = room.connect();
        room.say(first, "hello\n");
        room.end(second);
        let said = "10.0.0.1:4001 joined\n10.0.0.1:4000: hello\n";
        assert_eq!(room.heard(second), said);
        assert_eq!(room.heard(first), format!("10.0.0.1:4000 joined\n{said}10.0.0.1:4001 left\n"));
    }

    #[test]
    fn every_member_receives_every_line_in_one_order() {
        let (mut room, [ada, bob, eve]) = room_of_three();
        room.together(|room| {
            room.say(ada, "one\ntwo\n");
            room.say(bob, "three\n");
            room.say(eve, "four\n");
        });
        let said = room.heard(ada);
        assert_eq!((room.heard(bob), room.heard(eve)), (said.clone(), said.clone()));
        let mut lines: Vec<&str> = said.lines().collect();
        assert!(lines.iter().position(|l| *l == "ada: one") < lines.iter().position(|l| *l == "ada: two"));
        lines.sort_unstable();
        assert_eq!(lines, ["ada: one", "ada: two", "bob: three", "eve: four"]);
    }

    #[test]
    fn only_whole_lines_are_broadcast() {
        let (mut room, [ada, bob, _]) = room_of_three();
        room.say(ada, "wait for ");
        assert_eq!(room.heard(bob), "");
        room.say(ada, "it\r\n\n   \nhalf a li");
        assert_eq!(room.heard(bob), "ada: wait for it\n", "empty lines say nothing");
        room.end(ada);
        assert_eq!(room.heard(bob), "ada left\n");
    }

    #[test]
    fn a_name_is_taken_given_back_and_cannot_pass_for_another() {
        let (mut room, [ada, bob, _]) = room_of_three();
        for (name, answer) in [
            ("", "a name, please: /nick NAME\n"),
            ("   ", "a name, please: /nick NAME\n"),
            ("ADA", "ADA is taken\n"),
            ("bob", "bob is taken\n"),
            ("a b", "a name is made of letters, digits, - and _\n"),
            ("10.0.0.1:4000", "a name is made of letters, digits, - and _\n"),
            ("a\x1b[31m", "a name is made of letters, digits, - and _\n"),
            ("abcdefghijklmnopqrstuvwxy", "a name has at most 24 characters\n"),
        ] {
            room.say(bob, format!("/nick {name}\n"));
            assert_eq!(room.heard(bob), answer, "{name:?}");
        }
        assert_eq!(room.heard(ada), "", "a refusal is between the two");
        room.say(ada, "/nick \u{5d0}\u{5d3}\u{5d4}_1\n");
        room.say(bob, "/nick Ada\n");
        assert_eq!(room.heard(bob), "ada is now \u{5d0}\u{5d3}\u{5d4}_1\nbob is now Ada\n");
    }

    #[test]
    fn who_and_help_are_answered_to_the_asking_member_only() {
        let (mut room, [ada, bob, _]) = room_of_three();
        room.say(ada, "/who\n/help\n/dance now\n");
        let answer = format!("3 here: ada, bob, eve\n{HELP}/dance is no command; /help lists them\n");
        assert_eq!((room.heard(ada), room.heard(bob)), (answer, String::new()));
    }

    #[test]
    fn a_member_is_read_at_sixteen_kibibytes_a_second_by_default() {
        let mut room = Bench::new();
        room.serve_with(Chat::new(), Chat::new().limits());
        let (ada, bob) = (room.connect(), room.connect());
        let sent = format!("{}\n", "a".repeat(99)).repeat(1_000);
        room.say(ada, &sent);
        room.advance(Duration::from_secs(4));
        // Four seconds, and one second's bytes at once at the begin.
        let read = sent.len() - room.unread(ada);
        assert!((4 * RATE..=5 * RATE).contains(&read), "{read} bytes were read");
        assert!(room.heard(bob).len() > 4 * RATE, "and sent on");
    }

    #[test]
    fn who_lists_at_most_a_hundred_names() {
        let mut room = empty_room();
        let peers: Vec<Peer> = (0..150).map(|_| room.connect()).collect();
        room.heard(peers[0]);
        room.say(peers[0], "/who\n");
        let received = room.heard(peers[0]);
        assert!(
            received.starts_with("150 here: 10.0.0.1:4000, ") && received.ends_with(" and 50 more\n"),
            "{received}"
        );
    }

    #[test]
    fn a_member_that_quits_is_closed_at_once_and_sends_nothing_more() {
        let (mut room, [ada, bob, eve]) = room_of_three();
        room.say(ada, "bye\n/quit\nghost\n/nick ghost\n");
        assert_eq!(room.heard(bob), "ada: bye\nada left\n");
        assert!(room.ended(ada) == Some(PeerEnd::Fin));
        room.end(ada);
        room.say(bob, "/nick ada\n");
        assert_eq!(room.heard(eve), "ada: bye\nada left\nbob is now ada\n", "one left is left once");
    }

    #[test]
    fn control_characters_reach_no_member() {
        let (mut room, [ada, bob, _]) = room_of_three();
        let nasty =
            b"\x1b[2J\x07\x00red\x7f \xc2\x9b31m \xe2\x80\xaeevil\xe2\x80\xa9 \xff\xfe\rbob: forged\ttab\n";
        room.say(ada, nasty);
        let received = room.heard(bob);
        assert!(received.starts_with("ada: ") && received.ends_with("forged\ttab\n"), "{received:?}");
        let fine = |c: char| c == '\t' || !(c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c));
        assert!(received.trim_end_matches('\n').chars().all(fine), "{received:?}");
    }

    #[test]
    fn a_too_long_line_closes_one_member_and_not_the_others() {
        let (mut room, [ada, bob, eve]) = room_of_three();
        room.say(ada, [b'x'; 8 * 1024 + 2]);
        assert!(room.heard(ada).contains("8192 bytes allowed") && room.ended(ada) == Some(PeerEnd::Fin));
        room.end(ada);
        room.say(bob, [&[b'y'; 8 * 1024], &b"\n"[..]].concat());
        assert_eq!(room.heard(eve).len(), "ada left\n".len() + "bob: \n".len() + 8 * 1024);
        assert_eq!(room.stats().closed_count(CloseReason::TooLong), 1);
    }

    #[test]
    fn senders_wait_for_a_full_member_and_nobody_is_closed() {
        let (mut room, [ada, bob, eve]) = room_of_three();
        room.stop_reading(eve);
        let line = [&[b'x'; 1_000], &b"\n"[..]].concat();
        let said = "ada: ".len() + line.len();
        room.say(ada, line.repeat(300));
        room.say(bob, "I wait too\n");
        let before = room.heard(bob).len();
        assert!((64 * said..200 * said).contains(&before), "{before} bytes fill eve's queue of 64 KiB");
        // She reads, slowly: 20 lines at a time.
        let (mut bobs, mut eves, mut rounds) = (before, 0, 0);
        while bobs < 300 * said + "bob: I wait too\n".len() {
            room.read_at_most(eve, 20_000);
            (bobs, eves, rounds) = (bobs + room.heard(bob).len(), eves + room.heard(eve).len(), rounds + 1);
            assert!(rounds < 100, "{bobs} bytes came");
        }
        room.read_again(eve);
        assert_eq!(eves + room.heard(eve).len(), bobs, "she has received what he has");
        assert_eq!(room.stats().closed.iter().sum::<u64>(), 0);
    }

    #[test]
    fn a_member_that_does_not_read_holds_up_a_sender_for_five_seconds_and_is_then_closed() {
        let (mut room, [ada, bob, eve]) = room_of_three();
        room.stop_reading(eve);
        let line = [&[b'x'; 1_000], &b"\n"[..]].concat();
        room.say(ada, line.repeat(400));
        let before = room.heard(bob).len();
        room.advance(Duration::from_millis(4_900));
        assert_eq!(room.heard(bob), "", "the sender waits");
        room.advance(Duration::from_millis(200));
        let after = room.heard(bob).len();
        assert_eq!(before + after, 400 * ("ada: ".len() + line.len()) + "eve left\n".len());
        assert_eq!(room.stats().closed_count(CloseReason::SlowReader), 1);
        assert_eq!(room.sockets().memory(), 0, "what was queued for her is released");
    }

    #[test]
    fn a_full_member_that_leaves_is_not_waited_for() {
        let (mut room, [ada, bob, eve]) = room_of_three();
        room.stop_reading(eve);
        room.say(ada, [&[b'x'; 1_000], &b"\n"[..]].concat().repeat(300));
        room.heard(bob);
        room.reset(eve);
        assert!(room.heard(bob).ends_with("x\n"), "the rest has come");
        room.say(bob, "on we go\n");
        assert!(room.heard(ada).ends_with("bob: on we go\n"));
    }

    #[test]
    fn a_line_to_a_thousand_members_is_held_once() {
        let mut room = empty_room();
        let peers: Vec<Peer> = (0..1_000).map(|_| room.connect()).collect();
        peers.iter().for_each(|&peer| room.stop_reading(peer));
        room.say(peers[0], [&[b'x'; 8_000], &b"\n"[..]].concat());
        let each = (room.sockets().memory() - 8_000) / 1_000;
        assert!(each < 100, "each member costs {each} bytes for a line of 8,000");
    }
}
