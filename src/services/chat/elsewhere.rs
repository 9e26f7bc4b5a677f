//! `Elsewhere`: what a room knows of rooms that are not on its reactor.

use std::fmt::Debug;

use super::Chat;
use crate::base::id::{ConnId, Key};
use crate::connection::sockets::Sockets;
use crate::parts::timers::TimerId;

/// The rooms that a [`Chat`] is one with: on other shards of the process, or on other machines.
///
/// ```text
///     member ─▶ Chat ── tell ──▶ Elsewhere ~~▶ Elsewhere ── hear ──▶ Chat ─▶ members there
///                 ▲                  │
///                 └──── go_on ───────┘  when there is room again
/// ```
///
/// A line of a member is sent to the members of its own room by the room, so a line that comes back from elsewhere must
/// not be given to [`Chat::hear`]. Callbacks run on the loop's thread and must not block; what belongs to another
/// thread or connection gets to the room by [`Handle::post_to`](crate::Handle::post_to) or [`Sockets::later`], with the
/// key that [`start`](Elsewhere::start) gets.
pub trait Elsewhere: Debug + 'static {
    /// Called once, when the room is added to its reactor. Does nothing by default.
    fn start(&mut self, own: Key<Chat>, sockets: &mut Sockets<'_>) {
        let _ = (own, sockets);
    }

    /// Takes a line, with its line feed, to the rooms elsewhere. The members of this room get it anyway. `sender` is
    /// the member that has caused it: none for lines such as `ada left`. Returns whether the sender may go on at once.
    /// If not, it is not read until [`Chat::go_on`] is called.
    fn tell(&mut self, line: &str, sender: Option<ConnId>, sockets: &mut Sockets<'_>) -> bool;

    /// A member of this room takes a name, its first one (its address) or another, or leaves (`None`). Returns whether
    /// no member elsewhere has this name; if one has, the member keeps the name that it had. By default each name is
    /// free.
    fn name(&mut self, member: ConnId, name: Option<&str>) -> bool {
        let _ = (member, name);
        true
    }

    /// What makes the id of a connection here differ from that of one elsewhere: it is behind the id in the first name
    /// of a member without an address. Empty by default.
    fn suffix(&self) -> String {
        String::new()
    }

    /// The number of members elsewhere, and the names of at most `max` of them, for `/who`. None by default.
    fn members(&self, max: usize) -> (usize, Vec<String>) {
        let _ = max;
        (0, Vec::new())
    }

    /// Called when [`Chat::hear`] has said that no more can be taken, and the members have drained since, or are waited
    /// for no longer. Does nothing by default.
    fn drained(&mut self, room: &mut Chat, sockets: &mut Sockets<'_>) {
        let _ = (room, sockets);
    }

    /// Called when a timer is due that was set for the room's key. Does nothing by default.
    fn timer(&mut self, timer: TimerId, room: &mut Chat, sockets: &mut Sockets<'_>) {
        let _ = (timer, room, sockets);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::config::limits::SocketLimits;
    use crate::testing::{Bench, Peer};

    /// Rooms elsewhere that a test plays.
    #[derive(Clone, Debug, Default)]
    struct Played {
        told: Rc<RefCell<String>>,
        is_full: Rc<Cell<bool>>,
        drained: Rc<Cell<u32>>,
    }

    impl Elsewhere for Played {
        fn tell(&mut self, line: &str, _: Option<ConnId>, _: &mut Sockets<'_>) -> bool {
            self.told.borrow_mut().push_str(line);
            !self.is_full.get()
        }

        fn name(&mut self, _: ConnId, name: Option<&str>) -> bool {
            name != Some("zoe")
        }

        fn members(&self, max: usize) -> (usize, Vec<String>) {
            let all = ["zoe".to_string(), "yan".to_string()];
            (all.len(), all.into_iter().take(max).collect())
        }

        fn drained(&mut self, room: &mut Chat, sockets: &mut Sockets<'_>) {
            self.drained.set(self.drained.get() + 1);
            room.hear("the rest\n", sockets);
        }
    }

    fn room() -> (Bench, Key<Chat>, Played, [Peer; 2]) {
        let (mut bench, played) = (Bench::new(), Played::default());
        let chat = Chat::new().elsewhere(played.clone());
        let limits = SocketLimits { rate: None, ..chat.limits() };
        let key = bench.serve_with(chat, limits);
        let members = ["ada", "bob"].map(|name| {
            let peer = bench.connect();
            bench.say(peer, format!("/nick {name}\n"));
            peer
        });
        members.iter().for_each(|&peer| drop(bench.heard(peer)));
        played.told.take();
        (bench, key, played, members)
    }

    #[test]
    fn a_line_goes_elsewhere_once_and_one_from_there_does_not_go_back() {
        let (mut room, key, played, [ada, bob]) = room();
        room.say(ada, "hello\n/who\n/nick zoe\n");
        let own = "ada: hello\n4 here: ada, bob, zoe, yan\nzoe is taken\n";
        assert_eq!((room.heard(ada), room.heard(bob)), (own.into(), "ada: hello\n".into()));
        assert!(room.with(key, |chat, sockets| chat.hear("yan: good morning\n".to_string(), sockets)));
        room.run();
        assert_eq!(
            (room.heard(ada), room.heard(bob)),
            ("yan: good morning\n".into(), "yan: good morning\n".into())
        );
        room.end(bob);
        assert_eq!(played.told.take(), "ada: hello\nbob left\n");
    }

    #[test]
    fn a_line_and_a_name_go_to_rooms_of_both_kinds_and_a_name_that_one_refuses_is_taken_in_neither() {
        /// Names that were taken here, and those that are not free.
        #[derive(Clone, Debug)]
        struct Names(Rc<RefCell<Vec<String>>>, &'static str);

        impl Elsewhere for Names {
            fn tell(&mut self, line: &str, _: Option<ConnId>, _: &mut Sockets<'_>) -> bool {
                self.0.borrow_mut().push(line.into());
                true
            }

            fn name(&mut self, _: ConnId, name: Option<&str>) -> bool {
                self.0.borrow_mut().push(name.unwrap_or("none").into());
                name != Some(self.1)
            }

            fn members(&self, _: usize) -> (usize, Vec<String>) {
                (1, vec![self.1.into()])
            }
        }

        let both = [Names(Rc::default(), "yan"), Names(Rc::default(), "zoe")];
        let mut room = Bench::new();
        room.serve(Chat::new().elsewhere(both[0].clone()).elsewhere(both[1].clone()));
        let ada = room.connect();
        room.say(ada, "/nick ada\n");
        room.heard(ada);
        both.iter().for_each(|one| one.0.borrow_mut().clear());
        room.say(ada, "hello\n/nick zoe\n/nick yan\n/who\n");
        assert_eq!(room.heard(ada), "ada: hello\nzoe is taken\nyan is taken\n3 here: ada, yan, zoe\n");
        assert_eq!(*both[0].0.borrow(), ["ada: hello\n", "zoe", "ada", "yan"], "it was given back");
        assert_eq!(*both[1].0.borrow(), ["ada: hello\n", "zoe"]);
    }

    #[test]
    fn a_sender_waits_until_there_is_room_elsewhere_and_others_do_not() {
        let (mut room, key, played, [ada, bob]) = room();
        played.is_full.set(true);
        room.say(ada, "one\ntwo\nthree\n");
        played.is_full.set(false);
        room.say(bob, "four\n");
        assert_eq!(
            (room.heard(bob), played.told.take()),
            ("ada: one\nbob: four\n".into(), "ada: one\nbob: four\n".into())
        );
        room.with(key, |chat, sockets| chat.go_on(sockets));
        room.run();
        assert_eq!(
            (room.heard(bob), played.told.take()),
            ("ada: two\nada: three\n".into(), "ada: two\nada: three\n".into())
        );
    }

    /// Sends lines from elsewhere until the room says that it is full.
    fn fill(room: &mut Bench, key: Key<Chat>) {
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..200 {
            let line = line.clone();
            let takes_more = room.with(key, |chat, sockets| chat.hear(line, sockets));
            room.run();
            if !takes_more {
                return;
            }
        }
        panic!("200 kB are more than the high-water mark");
    }

    #[test]
    fn a_full_member_is_waited_for_until_it_drains_or_leaves_or_for_five_seconds() {
        let (mut room, key, played, [ada, bob]) = room();
        for (round, leaves) in [false, true].into_iter().enumerate() {
            room.stop_reading(bob);
            fill(&mut room, key);
            assert_eq!(played.drained.get(), round as u32);
            if leaves {
                room.reset(bob)
            } else {
                room.read_again(bob)
            }
            assert_eq!(played.drained.get(), round as u32 + 1);
            assert!(room.heard(ada).contains("the rest\n"), "what had to wait is sent in `drained`");
        }
        room.stop_reading(ada);
        fill(&mut room, key);
        room.advance(Duration::from_millis(4_500));
        assert_eq!(played.drained.get(), 2, "it may still read");
        room.advance(Duration::from_millis(1_600));
        assert_eq!(played.drained.get(), 3, "it is waited for no longer");
        let more = room.with(key, |chat, sockets| chat.hear("and on\n".to_string(), sockets));
        assert!(more, "nor again, until it drains");
    }
}
