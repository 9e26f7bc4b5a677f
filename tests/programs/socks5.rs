//! A SOCKS5 proxy (RFC 1928): CONNECT by name and by address, without authentication.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tidemill::{
    Address, CloseReason, ClosedInfo, ConnId, Input, Limits, ListenOptions, ListenerId, Origin, Reactor,
    Service, Socket, Sockets,
};

struct Socks;

enum Stage {
    Greeting,
    Request,
    Upstream(ConnId),
}

/// What a CONNECT asks for, and its length. The error is the code to reply with.
fn request(bytes: &[u8]) -> Result<Option<(Address, usize)>, u8> {
    let &[version, command, _, kind, first, ..] = bytes else { return Ok(None) };
    let length = match (version, command, kind) {
        (5, 1, 1) => 4,
        (5, 1, 3) => 1 + usize::from(first),
        (5, 1, 4) => 16,
        (5, 1, _) => return Err(8),
        _ => return Err(7),
    };
    let Some((host, rest)) = bytes[4..].split_at_checked(length) else { return Ok(None) };
    let Some(port) = rest.first_chunk().map(|port| u16::from_be_bytes(*port)) else { return Ok(None) };
    let to = match (kind, <[u8; 4]>::try_from(host), <[u8; 16]>::try_from(host)) {
        (1, Ok(ip), _) => Address::from((ip, port)),
        (4, _, Ok(ip)) => Address::from((ip, port)),
        _ => Address::try_from((&*String::from_utf8_lossy(&host[1..]), port)).map_err(|_| 4)?,
    };
    Ok(Some((to, 4 + length + 2)))
}

fn reply(socket: &mut Socket<'_>, code: u8, bound: Option<SocketAddr>) {
    let bound = bound.unwrap_or(([0; 4], 0).into());
    socket.send([5, code, 0]);
    match bound.ip() {
        IpAddr::V4(ip) => socket.send([&[1], &ip.octets()[..]].concat()),
        IpAddr::V6(ip) => socket.send([&[4], &ip.octets()[..]].concat()),
    }
    socket.send(bound.port().to_be_bytes());
}

impl Service for Socks {
    type Session = Stage;

    fn open(&mut self, socket: &mut Socket<'_>) -> Stage {
        match socket.origin() {
            Origin::Dialed { by: Some(client), .. } => Stage::Upstream(client),
            _ => Stage::Greeting,
        }
    }

    fn connected(&mut self, stage: &mut Stage, socket: &mut Socket<'_>) {
        let (upstream, bound) = (socket.id(), socket.local_addr().and_then(|address| address.inet()));
        let Stage::Upstream(client) = *stage else { return };
        let Some(mut client) = socket.other(client) else { return socket.close() };
        reply(&mut client, 0, bound);
        client.resume();
        client.pipe(upstream);
    }

    fn data(&mut self, stage: &mut Stage, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        if let (Stage::Greeting, &[version, methods, ..]) = (&*stage, input.bytes()) {
            let Some(greeting) = input.try_take(2 + usize::from(methods)) else { return };
            if version != 5 || !greeting[2..].contains(&0) {
                socket.send([5, 0xff]);
                return socket.close_as(CloseReason::Malformed);
            }
            socket.send([5, 0]);
            *stage = Stage::Request;
        }
        if let Stage::Request = stage {
            let dialed = match request(input.bytes()) {
                Ok(None) => return,
                Ok(Some((to, length))) => {
                    input.take(length);
                    socket.dial(to).map_err(|_| 1)
                }
                Err(code) => Err(code),
            };
            // What is behind the request stays untaken until the pipe takes it.
            socket.pause();
            if let Err(code) = dialed {
                reply(socket, code, None);
                socket.close();
            }
        }
    }

    fn closed(&mut self, stage: Stage, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let code = match gone.reason {
            CloseReason::Unresolved => 4,
            CloseReason::ConnectTimeout => 6,
            CloseReason::Unreachable(error) => match io::Error::from(error).kind() {
                io::ErrorKind::NetworkUnreachable => 3,
                io::ErrorKind::HostUnreachable => 4,
                io::ErrorKind::ConnectionRefused => 5,
                _ => 1,
            },
            _ => return, // It was connected, and the pipe closes the client.
        };
        let Stage::Upstream(client) = stage else { return };
        let Some(mut client) = sockets.get(client) else { return };
        reply(&mut client, code, None);
        client.close();
    }
}

/// A reactor with the proxy, and its listener on `at`.
pub fn server(at: &str) -> io::Result<(Reactor, ListenerId)> {
    let mut reactor = Reactor::new(Limits::default())?;
    let socks = reactor.add(Socks);
    let listener =
        reactor.listen_with(at, socks, &ListenOptions { reserve_slot: true, ..ListenOptions::default() })?;
    Ok((reactor, listener))
}
