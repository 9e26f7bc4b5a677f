//! An MQTT 3.1.1 broker: clean sessions, QoS 0 and 1, wills, retained messages, keep-alive.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tidemill::framing::{LengthPrefix, Tagged, Varint};
use tidemill::{
    CloseReason, ClosedInfo, ConnId, Input, Key, Limits, ListenerId, Reactor, Service, ServiceId,
    ServiceSockets, Shared, Socket, SocketLimits, Sockets,
};

const PACKETS: Tagged = Varint::U28.max_payload(256 * 1024).behind(1);
const FIELD: LengthPrefix = LengthPrefix::U16_BE;

#[derive(Clone)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: u8,
    retain: bool,
}

#[derive(Default)]
struct Broker {
    own: Option<Key<Broker>>,
    retained: HashMap<String, Message>,
    /// Published in this turn, and not yet routed.
    published: Vec<Message>,
}

#[derive(Default)]
struct Session {
    /// The name of a client that has connected.
    name: Option<String>,
    will: Option<Message>,
    filters: Vec<(String, u8)>,
    last_id: u16,
}

fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(name)) if wanted == name => {}
            _ => return false,
        }
    }
}

fn number(input: &mut Input<'_>) -> Result<u16, CloseReason> {
    let bytes = input.try_take(2).and_then(|bytes| bytes.first_chunk()).ok_or(CloseReason::Malformed)?;
    Ok(u16::from_be_bytes(*bytes))
}

fn byte(input: &mut Input<'_>) -> Result<u8, CloseReason> {
    Ok(input.try_take(1).ok_or(CloseReason::Malformed)?[0])
}

fn field<'a>(input: &mut Input<'a>) -> Result<&'a [u8], CloseReason> {
    FIELD.next(input)?.ok_or(CloseReason::Malformed)
}

fn text(input: &mut Input<'_>) -> Result<String, CloseReason> {
    String::from_utf8(field(input)?.to_vec()).map_err(|_| CloseReason::Malformed)
}

fn packet(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    PACKETS.encode(&[tag], &parts.concat(), &mut out).expect("no longer than what was received");
    out
}

/// A PUBLISH packet, with an id if the message is to be acknowledged.
fn publication(message: &Message, id: Option<u16>, retained: bool) -> Vec<u8> {
    let mut topic = Vec::new();
    FIELD.encode(message.topic.as_bytes(), &mut topic).expect("a topic that came as a field");
    let id = id.map(u16::to_be_bytes);
    let tag = 0x30 | u8::from(id.is_some()) << 1 | u8::from(retained);
    packet(tag, &[&topic, id.as_ref().map_or(&[], |id| id), &message.payload])
}

impl Session {
    /// Sends a message as its subscription wants it; `shared` is the packet of QoS 0, the same for all.
    fn deliver(&mut self, socket: &mut Socket<'_>, message: &Message, shared: &Shared, retained: bool) {
        let wanted = self.filters.iter().filter(|(filter, _)| matches(filter, &message.topic));
        match wanted.map(|&(_, qos)| qos.min(message.qos)).max() {
            // A subscriber that lags behind misses what is sent at most once.
            Some(0) if !socket.is_full() => socket.send_shared(shared),
            Some(1) => {
                self.last_id = self.last_id.checked_add(1).unwrap_or(1);
                socket.send(publication(message, Some(self.last_id), retained));
            }
            _ => {}
        }
    }
}

impl Broker {
    /// Notes a message; all of a turn are routed together, when no callback runs and sessions can be reached.
    fn publish(&mut self, message: Message, sockets: &mut Sockets<'_>) {
        self.published.push(message);
        if let (1, Some(own)) = (self.published.len(), self.own) {
            let _ = sockets.later(own, Broker::route);
        }
    }

    fn route(&mut self, sockets: &mut ServiceSockets<'_, Broker>) {
        let messages: Vec<(Message, Shared)> = self
            .published
            .drain(..)
            .map(|message| (Shared::from(publication(&message, None, false)), message))
            .map(|(shared, message)| (message, shared))
            .collect();
        sockets.for_each(|session, mut socket| {
            for (message, shared) in &messages {
                session.deliver(&mut socket, message, shared, false);
            }
        });
        for (message, _) in messages.into_iter().filter(|(message, _)| message.retain) {
            match message.payload.is_empty() {
                true => self.retained.remove(&message.topic),
                false => self.retained.insert(message.topic.clone(), message),
            };
        }
    }

    fn connect(
        &mut self,
        session: &mut Session,
        socket: &mut Socket<'_>,
        body: &mut Input<'_>,
    ) -> Result<(), CloseReason> {
        if (text(body)?.as_str(), byte(body)?) != ("MQTT", 4) {
            socket.send([0x20, 2, 0, 1]);
            return Err(CloseReason::Malformed);
        }
        let (flags, keep_alive, name) = (byte(body)?, number(body)?, text(body)?);
        if flags & 4 != 0 {
            let (topic, payload) = (text(body)?, field(body)?.to_vec());
            session.will = Some(Message { topic, payload, qos: flags >> 3 & 1, retain: flags & 0x20 != 0 });
        }
        // An earlier connection of the same client is closed.
        let (own, id, same) = (self.own.ok_or(CloseReason::Local)?, socket.id(), name.clone());
        let _ = socket.all().later(own, move |_, sockets| close_others(sockets, id, &same));
        session.name = Some(name);
        socket.set_idle(None);
        if keep_alive > 0 {
            socket.set_read_idle(Some(Duration::from_millis(1_500 * u64::from(keep_alive))));
        }
        socket.send([0x20, 2, 0, 0]);
        Ok(())
    }

    fn subscribe(
        &mut self,
        session: &mut Session,
        socket: &mut Socket<'_>,
        body: &mut Input<'_>,
    ) -> Result<(), CloseReason> {
        let (id, mut codes, mut fresh) = (number(body)?.to_be_bytes(), Vec::new(), Session::default());
        while !body.is_empty() {
            let (filter, qos) = (text(body)?, byte(body)?.min(1));
            codes.push(qos);
            session.filters.retain(|(old, _)| *old != filter);
            fresh.filters.push((filter, qos));
        }
        socket.send(packet(0x90, &[&id, &codes]));
        std::mem::swap(&mut session.filters, &mut fresh.filters);
        for message in self.retained.values() {
            let shared = Shared::from(publication(message, None, true));
            session.deliver(socket, message, &shared, true);
        }
        session.filters.append(&mut fresh.filters);
        Ok(())
    }

    fn handle(
        &mut self,
        session: &mut Session,
        socket: &mut Socket<'_>,
        tag: u8,
        body: &mut Input<'_>,
    ) -> Result<(), CloseReason> {
        match (tag >> 4, session.name.is_some()) {
            (1, false) => self.connect(session, socket, body)?,
            (3, true) => {
                let (topic, qos) = (text(body)?, tag >> 1 & 3);
                let id = if qos > 0 { number(body)?.to_be_bytes() } else { [0; 2] };
                if qos > 1 || topic.contains(['+', '#']) {
                    return Err(CloseReason::Malformed);
                }
                let (payload, retain) = (body.take_all().to_vec(), tag & 1 != 0);
                self.publish(Message { topic, payload, qos, retain }, &mut socket.all());
                if qos == 1 {
                    socket.send(packet(0x40, &[&id]));
                }
            }
            (4, true) => {}
            (8, true) => self.subscribe(session, socket, body)?,
            (10, true) => {
                let id = number(body)?.to_be_bytes();
                while !body.is_empty() {
                    let filter = text(body)?;
                    session.filters.retain(|(old, _)| *old != filter);
                }
                socket.send(packet(0xb0, &[&id]));
            }
            (12, true) => socket.send([0xd0, 0]),
            (14, true) => {
                session.will = None;
                socket.close();
            }
            _ => return Err(CloseReason::Malformed),
        }
        Ok(())
    }
}

fn close_others(sockets: &mut ServiceSockets<'_, Broker>, own: ConnId, name: &str) {
    sockets.for_each(|session, mut socket| {
        if socket.id() != own && !name.is_empty() && session.name.as_deref() == Some(name) {
            socket.close();
        }
    });
}

impl Service for Broker {
    type Session = Session;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        self.own = sockets.key(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) -> Session {
        Session::default()
    }

    fn data(&mut self, session: &mut Session, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        loop {
            let done = match PACKETS.next(input) {
                Ok(Some((tag, body))) => self.handle(session, socket, tag[0], &mut Input::new(body)),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(reason) = done {
                return socket.close_as(reason);
            }
        }
    }

    fn closed(&mut self, session: Session, _: &ClosedInfo, sockets: &mut Sockets<'_>) {
        if let Some(will) = session.will {
            self.publish(will, sockets);
        }
    }
}

/// A reactor with the broker, and its listener on `at`.
pub fn server(at: &str) -> io::Result<(Reactor, ListenerId)> {
    let mut reactor = Reactor::new(Limits::default())?;
    let limits = SocketLimits {
        first_byte: Some(Duration::from_secs(10)),
        // A publisher that does not read its acknowledgements may be a subscriber that lags: it is read on.
        read_when_full: true,
        ..SocketLimits::default()
    };
    let broker = reactor.add_with(Broker::default(), limits);
    let listener = reactor.listen(at, broker)?;
    Ok((reactor, listener))
}
