//! A memcached server, text protocol: get gets set add replace append prepend cas delete incr decr touch flush_all
//! version verbosity quit.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use tidemill::framing::Lines;
use tidemill::{CloseReason, Input, Limits, ListenerId, Reactor, Service, Socket, SocketLimits};

const LINE: Lines = Lines::LENIENT.max(64 * 1024);
const VALUE_MAX: usize = 1024 * 1024;
const KEY_MAX: usize = 250;
const BAD_LINE: &str = "CLIENT_ERROR bad command line format\r\n";

struct Item {
    flags: u32,
    expires: Option<Duration>,
    unique: u64,
    data: Box<[u8]>,
}

#[derive(Default)]
struct Cache {
    items: HashMap<Box<[u8]>, Item>,
    unique: u64,
}

/// What comes next on a connection.
enum Expect {
    Line,
    Block(Store),
    /// So many bytes of a value that is too large.
    Skip(usize),
}

/// A command whose value follows.
struct Store {
    verb: &'static str,
    key: Box<[u8]>,
    flags: u32,
    expires: Option<Duration>,
    length: usize,
    cas: u64,
    quiet: bool,
}

fn number<T: std::str::FromStr>(word: Option<&[u8]>) -> Option<T> {
    std::str::from_utf8(word?).ok()?.parse().ok()
}

fn expiry(now: Duration, seconds: i64) -> Option<Duration> {
    (seconds != 0).then(|| now + Duration::from_secs(seconds.max(0).unsigned_abs()))
}

impl Cache {
    fn live(&mut self, key: &[u8], now: Duration) -> Option<&mut Item> {
        if self.items.get(key)?.expires.is_some_and(|at| at <= now) {
            self.items.remove(key);
        }
        self.items.get_mut(key)
    }

    fn command(&mut self, line: &[u8], socket: &mut Socket<'_>) -> Expect {
        let now = socket.elapsed();
        let quiet = line.ends_with(b" noreply");
        let mut words = line.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        let answer: String = match words.next().unwrap_or_default() {
            verb @ (b"get" | b"gets") => {
                for key in words {
                    let Some(item) = self.live(key, now) else { continue };
                    socket.send("VALUE ");
                    socket.send(key);
                    let unique = if verb == b"gets" { format!(" {}", item.unique) } else { String::new() };
                    let _ = write!(socket, " {} {}{unique}\r\n", item.flags, item.data.len());
                    socket.send(&item.data);
                    socket.send("\r\n");
                }
                socket.send("END\r\n");
                return Expect::Line;
            }
            verb @ (b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas") => {
                return self.begin_store(verb, words, quiet, socket);
            }
            b"delete" => {
                let key = words.next().unwrap_or_default();
                let found = self.live(key, now).is_some();
                self.items.remove(key);
                if found { "DELETED\r\n" } else { "NOT_FOUND\r\n" }.into()
            }
            verb @ (b"incr" | b"decr") => match (words.next(), number(words.next())) {
                (Some(key), Some(by)) => self.count(key, by, verb == b"incr", now),
                _ => "CLIENT_ERROR invalid numeric delta argument\r\n".into(),
            },
            b"touch" => match (words.next(), number(words.next())) {
                (Some(key), Some(seconds)) => match self.live(key, now) {
                    Some(item) => {
                        item.expires = expiry(now, seconds);
                        "TOUCHED\r\n".into()
                    }
                    None => "NOT_FOUND\r\n".into(),
                },
                _ => BAD_LINE.into(),
            },
            b"flush_all" => {
                self.items.clear();
                "OK\r\n".into()
            }
            b"version" => "VERSION 1.6.0-tidemill\r\n".into(),
            b"verbosity" => "OK\r\n".into(),
            b"quit" => {
                socket.close();
                return Expect::Line;
            }
            _ => "ERROR\r\n".into(),
        };
        if !quiet {
            socket.send(answer);
        }
        Expect::Line
    }

    fn begin_store<'a>(
        &mut self,
        verb: &[u8],
        mut words: impl Iterator<Item = &'a [u8]>,
        quiet: bool,
        socket: &mut Socket<'_>,
    ) -> Expect {
        let (key, flags, seconds) = (words.next(), number(words.next()), number(words.next()));
        let (length, cas) = (number::<usize>(words.next()), number(words.next()).unwrap_or(0));
        let (Some(key), Some(flags), Some(seconds), Some(length)) = (key, flags, seconds, length) else {
            socket.send(BAD_LINE);
            return Expect::Line;
        };
        if length > VALUE_MAX || key.len() > KEY_MAX {
            socket.send("SERVER_ERROR object too large for cache\r\n");
            return Expect::Skip(length.saturating_add(2));
        }
        let verbs = ["set", "add", "replace", "append", "prepend", "cas"];
        let verb = verbs.into_iter().find(|name| name.as_bytes() == verb).unwrap_or("set");
        let expires = expiry(socket.elapsed(), seconds);
        Expect::Block(Store { verb, key: key.into(), flags, expires, length, cas, quiet })
    }

    fn count(&mut self, key: &[u8], by: u64, up: bool, now: Duration) -> String {
        self.unique += 1;
        let unique = self.unique;
        let Some(item) = self.live(key, now) else { return "NOT_FOUND\r\n".into() };
        let Some(old) = number::<u64>(Some(&item.data)) else {
            return "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n".into();
        };
        let new = if up { old.wrapping_add(by) } else { old.saturating_sub(by) };
        item.data = new.to_string().into_bytes().into();
        item.unique = unique;
        format!("{new}\r\n")
    }

    fn store(&mut self, store: Store, value: &[u8], now: Duration) -> &'static str {
        self.unique += 1;
        let unique = self.unique;
        let old = self.live(&store.key, now);
        let data = match (store.verb, old) {
            ("cas", None) => return "NOT_FOUND\r\n",
            ("cas", Some(item)) if item.unique != store.cas => return "EXISTS\r\n",
            ("add", Some(_)) | ("replace" | "append" | "prepend", None) => return "NOT_STORED\r\n",
            ("append", Some(item)) => [&item.data, value].concat().into(),
            ("prepend", Some(item)) => [value, &item.data].concat().into(),
            _ => value.into(),
        };
        self.items.insert(store.key, Item { flags: store.flags, expires: store.expires, unique, data });
        "STORED\r\n"
    }
}

impl Service for Cache {
    type Session = Expect;

    fn open(&mut self, _: &mut Socket<'_>) -> Expect {
        Expect::Line
    }

    fn data(&mut self, expect: &mut Expect, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        loop {
            *expect = match expect {
                Expect::Line => match LINE.next(input) {
                    Ok(Some(line)) => self.command(line, socket),
                    Ok(None) => return,
                    Err(error) => return socket.close_as(error.into()),
                },
                Expect::Block(store) => {
                    let Some(block) = input.try_take(store.length + 2) else { return };
                    let Some(value) = block.strip_suffix(b"\r\n") else {
                        socket.send("CLIENT_ERROR bad data chunk\r\n");
                        return socket.close_as(CloseReason::Malformed);
                    };
                    let Expect::Block(store) = std::mem::replace(expect, Expect::Line) else { return };
                    let quiet = store.quiet;
                    let answer = self.store(store, value, socket.elapsed());
                    if !quiet {
                        socket.send(answer);
                    }
                    Expect::Line
                }
                Expect::Skip(left) => match *left - input.take(*left).len() {
                    0 => Expect::Line,
                    left => {
                        *expect = Expect::Skip(left);
                        return;
                    }
                },
            };
        }
    }
}

/// A reactor with the server, and its listener on `at`.
pub fn server(at: &str) -> io::Result<(Reactor, ListenerId)> {
    let mut reactor = Reactor::new(Limits { memory: 1 << 30, ..Limits::default() })?;
    let limits = SocketLimits { idle: None, message: VALUE_MAX + 2, ..SocketLimits::default() };
    let cache = reactor.add_with(Cache::default(), limits);
    let listener = reactor.listen(at, cache)?;
    Ok((reactor, listener))
}
