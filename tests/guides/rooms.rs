use std::collections::HashMap;
use std::io;

use tidemill::framing::Lines;
use tidemill::{ClosedInfo, ConnId, Input, Limits, ListenerId, Reactor, Service, Shared, Socket, Sockets};

const LINE: Lines = Lines::LENIENT;

/// The first line of a member is the name of its room. What it types then reaches all others there.
#[derive(Default)]
pub struct Rooms {
    members: HashMap<String, Vec<ConnId>>,
}

impl Rooms {
    fn tell(&self, room: &str, text: String, all: &mut Sockets<'_>, except: ConnId) {
        let text = Shared::from(text); // One copy, however many queues refer to it.
        let members = self.members.get(room).into_iter().flatten();
        for &id in members.filter(|&&id| id != except) {
            if let Some(mut member) = all.get(id) {
                member.send_shared(&text);
            }
        }
    }
}

impl Service for Rooms {
    type Session = String; // The name of the room; empty before it is known.

    fn open(&mut self, socket: &mut Socket<'_>) -> String {
        socket.send("which room?\n");
        String::new()
    }

    fn data(&mut self, room: &mut String, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let own = socket.id();
        loop {
            let line = match LINE.next(input) {
                Ok(Some(line)) => String::from_utf8_lossy(line).into_owned(),
                Ok(None) => return,
                Err(error) => return socket.close_as(error.into()),
            };
            match room.is_empty() {
                true => {
                    self.members.entry(line.clone()).or_default().push(own);
                    *room = line;
                }
                false => self.tell(room, format!("{line}\n"), &mut socket.all(), own),
            }
        }
    }

    fn closed(&mut self, room: String, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        self.tell(&room, "a member has left\n".to_string(), sockets, gone.id);
        if let Some(members) = self.members.get_mut(&room) {
            members.retain(|&id| id != gone.id);
            if members.is_empty() {
                self.members.remove(&room);
            }
        }
    }
}

pub fn serve(at: &str) -> io::Result<(Reactor, ListenerId)> {
    let mut reactor = Reactor::new(Limits::default())?;
    let rooms = reactor.add(Rooms::default());
    let listener = reactor.listen(at, rooms)?;
    Ok((reactor, listener))
}

fn main() -> io::Result<()> {
    serve("127.0.0.1:9001")?.0.run()
}
