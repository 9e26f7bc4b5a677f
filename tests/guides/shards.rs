use std::collections::HashMap;
use std::sync::mpsc;
use std::{io, thread};

use tidemill::{Handle, Input, Key, Limits, ListenOptions, Reactor, Service, ServiceSockets, Socket};

/// One of several reactors on one port, each on a thread of its own. A key belongs to one shard; the others ask that
/// one. Requests: `set KEY VALUE` (answers
/// the value before), `get KEY`, `where KEY`.
pub struct Shard {
    own: usize,
    all: Vec<(Handle, Key<Shard>)>,
    store: HashMap<String, String>,
}

impl Shard {
    fn answer(&mut self, line: &str) -> String {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["set", key, value] => self.store.insert(key.into(), value.into()).unwrap_or_default() + "\n",
            ["get", key] => format!("{}\n", self.store.get(key).map_or("-", String::as_str)),
            ["where", _] => format!("shard {}\n", self.own),
            _ => "?\n".to_string(),
        }
    }
}

impl Service for Shard {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(line) = input.take_line() {
            let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
            let key = line.split(' ').nth(1).unwrap_or_default();
            let owner = key.bytes().map(usize::from).sum::<usize>() % self.all.len();
            if owner == self.own {
                socket.send(self.answer(&line));
                continue;
            }
            let (id, (home, own_key)) = (socket.id(), self.all[self.own].clone());
            let (other, other_key) = &self.all[owner];
            let asked = other.post_to(*other_key, move |shard, _| {
                let answer = shard.answer(&line);
                // The id is of the shard that asks: it is used in a post to that one, and nowhere else.
                let _ = home.post_to(own_key, move |_, sockets: &mut ServiceSockets<'_, Shard>| {
                    if let Some(mut socket) = sockets.get(id) {
                        socket.send(answer);
                        socket.resume();
                    }
                });
            });
            // Paused until the answer has come, so that answers keep their order.
            return if asked.is_ok() { socket.pause() } else { socket.close() };
        }
    }
}

/// Starts shards that all listen on one address; returns their handles.
pub fn start(at: &str, count: usize) -> io::Result<Vec<(Handle, Key<Shard>)>> {
    let (made, shards) = mpsc::channel();
    for own in 0..count {
        let (made, at) = (made.clone(), at.to_string());
        thread::spawn(move || -> io::Result<()> {
            let mut reactor = Reactor::new(Limits::default())?; // Here: it cannot be sent to another thread.
            let key = reactor.add(Shard { own, all: Vec::new(), store: HashMap::new() });
            let (tell, told) = mpsc::channel();
            let _ = made.send((own, reactor.handle(), key, tell));
            drop(made);
            // The handles of all: no connection is accepted before they are known.
            let Ok(all) = told.recv() else { return Ok(()) };
            reactor.with(key, |shard, _| shard.all = all);
            reactor.listen_with(at, key, &ListenOptions { reuse_port: true, ..ListenOptions::default() })?;
            reactor.run()
        });
    }
    drop(made);
    let mut made: Vec<_> = shards.iter().collect();
    made.sort_by_key(|(own, ..)| *own);
    let all: Vec<_> = made.iter().map(|(_, handle, key, _)| (handle.clone(), *key)).collect();
    if all.len() < count {
        return Err(io::Error::other("a shard could not be made"));
    }
    made.iter().for_each(|(.., tell)| drop(tell.send(all.clone())));
    Ok(all)
}

fn main() -> io::Result<()> {
    start("127.0.0.1:9001", 2)?;
    loop {
        thread::sleep(std::time::Duration::MAX);
    }
}
