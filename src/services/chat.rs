//! Lines to everyone.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::closed::Closed;
use crate::framing::Lines;
use crate::id::ConnId;
use crate::inbox::Input;
use crate::limits::SocketLimits;
use crate::service::Service;
use crate::shared::Shared;
use crate::socket::{Socket, Sockets};
use crate::text::printable;

/// A room. What one member says, all members hear, in one order for all.
///
/// ```text
///     127.0.0.1:40312 joined                 someone came
///     127.0.0.1:40312: hello                 someone said something
///     127.0.0.1:40312 is now ada             /nick ada
///     ada left                               someone went
/// ```
///
/// Whole lines only. Everything a member says stands behind its name and a colon, so nobody can speak as the room does;
/// names hold neither colons nor spaces, so nobody can pass for another's address. Control characters go no further
/// than to here. A line is held once, however many members it is for, and a member that does not read is dropped as a
/// slow reader while the others go on.
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
    /// Chosen names, in lower case: `Ada` and `ada` are one.
    taken: HashSet<String>,
    lines: Lines,
}

/// Characters in a name.
const NAME_MAX: usize = 24;
/// Names that `/who` lists.
const WHO_MAX: usize = 100;

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

    /// Lines of at most so many bytes. Default 8 KiB.
    pub fn max_line(self, bytes: usize) -> Chat {
        Chat { lines: self.lines.max(bytes), ..self }
    }

    /// Limits for people who talk: they may be silent for half an hour, and a member for whom 256 KiB wait is not
    /// reading.
    pub fn limits(&self) -> SocketLimits {
        SocketLimits {
            idle: Some(Duration::from_secs(30 * 60)),
            queue: 256 * 1024,
            message: self.lines.inbox_limit(),
            ..SocketLimits::typed()
        }
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
                self.leave(socket.id(), &mut Others::Socket(socket));
                socket.close();
            }
            (word, _) if word.starts_with('/') => {
                socket.send(format!("{word} is no command; /help lists them\n").as_bytes());
            }
            _ => {
                let Some(name) = self.members.get(&socket.id()) else { return };
                let said = format!("{name}: {text}\n");
                self.tell(&mut Others::Socket(socket), said);
            }
        }
    }

    fn rename(&mut self, socket: &mut Socket<'_>, name: &str) {
        if let Err(why) = self.check(name) {
            return socket.send(format!("{why}\n").as_bytes());
        }
        let Some(before) = self.members.insert(socket.id(), name.to_string()) else { return };
        self.taken.remove(&before.to_lowercase());
        self.taken.insert(name.to_lowercase());
        self.tell(&mut Others::Socket(socket), format!("{before} is now {name}\n"));
    }

    /// Whether a name can be had.
    fn check(&self, name: &str) -> Result<(), String> {
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
        if self.taken.contains(&name.to_lowercase()) {
            return Err(format!("{name} is taken"));
        }
        Ok(())
    }

    fn who(&self) -> String {
        let names: Vec<&str> = self.members.values().take(WHO_MAX).map(String::as_str).collect();
        let more = match self.members.len() - names.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        format!("{} here: {}{more}\n", self.members.len(), names.join(", "))
    }

    fn leave(&mut self, id: ConnId, others: &mut Others<'_, '_>) {
        let Some(name) = self.members.remove(&id) else { return };
        self.taken.remove(&name.to_lowercase());
        self.tell(others, format!("{name} left\n"));
    }

    /// Says something to every member, in one piece of memory.
    fn tell(&self, others: &mut Others<'_, '_>, line: String) {
        let line = Shared::from(line);
        for &id in self.members.keys() {
            if let Some(mut member) = others.find(id) {
                member.send_shared(&line);
            }
        }
    }
}

/// The two ways to the other members: from inside a member's callback, and after it has gone.
enum Others<'a, 'b> {
    Socket(&'a mut Socket<'b>),
    Rest(&'a mut Sockets<'b>),
}

impl Others<'_, '_> {
    fn find(&mut self, id: ConnId) -> Option<Socket<'_>> {
        match self {
            Others::Socket(socket) => socket.other(id),
            Others::Rest(rest) => rest.get(id),
        }
    }
}

impl Service for Chat {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        let name = socket.peer_addr().to_string();
        let joined = format!("{name} joined\n");
        self.members.insert(socket.id(), name);
        self.tell(&mut Others::Socket(socket), joined);
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        // Who has just quit says nothing more, whatever stands in the same packet.
        while self.members.contains_key(&socket.id()) {
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

    fn closed(&mut self, _: (), id: ConnId, _: Closed, rest: &mut Sockets<'_>) {
        self.leave(id, &mut Others::Rest(rest));
    }
}
