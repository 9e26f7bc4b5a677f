//! One connection's TLS.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, CommonState, HandshakeKind, ServerConfig};

use super::{errors, sni};
use crate::base::filter::{Filter, FilterInfo, Opened};

/// A session of either side.
///
/// ```text
///         wire: │ opened before │ free │ being opened │ arrived, not yet looked at │
///               0             plain   used ──────────▶│
/// ```
///
/// A record is longer than what is in it, so what has been opened never reaches what has not.
pub(super) struct Session<C> {
    connection: C,
    /// The beginning of a record, or records that hold the beginning of a message of the handshake.
    buffered: Vec<u8>,
    /// What the client has asked for, if that is a name.
    server_name: Option<Box<str>>,
    /// Whether a record of the peer was taken.
    received_record: bool,
    /// Whether the peer has said that it will send nothing more.
    peer_ended: bool,
    /// Whether the peer was told so.
    close_notify_sent: bool,
    /// Why it cannot go on.
    error: Option<Box<str>>,
}

/// A message of the handshake has at most 64 KiB (more is refused by rustls), and a record has at most 5 + 256 bytes
/// that are not its contents. Whoever needs more than these few records does it on purpose: in records of one byte
/// each, a message would take 1.5 MiB.
const BUFFERED_MAX: usize = (64 << 10) + 8 * (5 + 256);

/// The most that fits into a record. Sealed one by one, so that the bytes are still near when they are sealed.
const RECORD: usize = 16 << 10;

/// What a record is longer than its contents by, and a message that goes before it: the new keys, or the end.
const ROOM: usize = 40 + 64;

/// What differs between the two sides: rustls has two types that share their methods only in name.
pub(super) trait Side {
    type Data;

    fn process<'c, 'i>(&'c mut self, wire: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    /// The name in the hello that was processed just now.
    fn take_server_name() -> Option<Box<str>>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, wire: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(wire)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn take_server_name() -> Option<Box<str>> {
        sni::take()
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, wire: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(wire)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn take_server_name() -> Option<Box<str>> {
        None
    }
}

impl Session<UnbufferedServerConnection> {
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Session::new(UnbufferedServerConnection::new(config)?, None))
    }
}

impl Session<UnbufferedClientConnection> {
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let server_name = match &name {
            ServerName::DnsName(name) => Some(name.as_ref().into()),
            _ => None,
        };
        Ok(Session::new(UnbufferedClientConnection::new(config, name)?, server_name))
    }
}

impl<C: Side> Session<C> {
    fn new(connection: C, server_name: Option<Box<str>>) -> Session<C> {
        Session {
            connection,
            buffered: Vec::new(),
            server_name,
            received_record: false,
            peer_ended: false,
            close_notify_sent: false,
            error: None,
        }
    }
}

impl<C: Side> Filter for Session<C> {
    fn buffered(&self) -> usize {
        self.buffered.len()
    }

    fn open(&mut self, wire: &mut [u8], out: &mut Vec<u8>) -> Opened {
        // Taken, not copied: what is not needed any more is given back, and an idle session holds nothing.
        let kept = mem::take(&mut self.buffered);
        wire[..kept.len()].copy_from_slice(&kept);
        drop(kept);
        let mut plain = 0;
        if self.error.is_none() {
            match self.advance_guarded(wire, &mut plain, out) {
                // Bytes behind the peer's last word could be anyone's.
                Ok(_) if self.peer_ended => {}
                Ok(used) if wire.len() - used > BUFFERED_MAX => {
                    self.fail("the peer has begun a message that is too long".into(), out);
                }
                Ok(used) => self.buffered = wire[used..].to_vec(),
                Err(why) => self.fail(why, out),
            }
        }
        Opened {
            plaintext: plain,
            ready: !self.connection.common().is_handshaking(),
            peer_ended: self.peer_ended,
            error: self.error.as_deref().map(Into::into),
        }
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        if let Some(why) = &self.error {
            return Err(why.to_string());
        }
        out.reserve(plain.len() + ROOM * (1 + plain.len() / RECORD));
        let sealed = self.speak(out, |traffic, out| {
            plain.chunks(RECORD).try_for_each(|run| {
                append(out, run.len() + ROOM, |room| traffic.encrypt(run, room))
                    .map_err(|error| error.to_string())
            })
        });
        sealed.inspect_err(|why| self.fail(why.clone(), out))
    }

    fn seal_end(&mut self, out: &mut Vec<u8>) {
        if self.error.is_some() || self.close_notify_sent || self.connection.common().is_handshaking() {
            return;
        }
        self.close_notify_sent = true;
        let ended = self.speak(out, |traffic, out| {
            append(out, ROOM, |room| traffic.queue_close_notify(room)).map_err(|error| error.to_string())
        });
        if let Err(why) = ended {
            self.fail(why, out);
        }
    }

    fn info(&self) -> FilterInfo {
        let common = self.connection.common();
        let certificates = common.peer_certificates().unwrap_or_default();
        FilterInfo {
            version: errors::version(common.protocol_version()),
            cipher: errors::cipher(common.negotiated_cipher_suite()),
            server_name: self.server_name.as_deref().map(Into::into),
            protocol: common.alpn_protocol().map(Into::into),
            peer_certificates: certificates.iter().map(|der| der.to_vec()).collect(),
            resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

impl<C: Side> Session<C> {
    /// [Advances](Session::advance). What arrives is parsed by much code that is not ours, and panics that a peer could
    /// reach have been found in it before (RUSTSEC-2024-0399): they end his session and not the process. Built with
    /// debug assertions rustls has one still: it asserts that it sends no alert behind its end, and does send one when
    /// what arrives then is wrong.
    fn advance_guarded(
        &mut self,
        wire: &mut [u8],
        plain: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, String> {
        // Whatever was left half done is not used again: the session is broken by it.
        catch_unwind(AssertUnwindSafe(|| self.advance(wire, plain, out))).unwrap_or_else(|_| {
            Err("what the peer sent cannot be dealt with (a bug in the TLS library)".into())
        })
    }

    /// Goes through what has arrived until more is needed, and says how much of it was used up.
    ///
    /// It ends: each round uses up a record, or takes one of the messages that rustls has queued, or lowers a flag.
    fn advance(&mut self, wire: &mut [u8], plain: &mut usize, out: &mut Vec<u8>) -> Result<usize, String> {
        let (mut used, mut record) = (0, Vec::new());
        loop {
            let is_handshaking = self.connection.common().is_handshaking();
            let first = if self.received_record { [0; 8] } else { beginning(wire) };
            let UnbufferedStatus { discard, state } = self.connection.process(&mut wire[used..]);
            used += discard;
            self.received_record |= used > 0;
            if is_handshaking {
                self.server_name = C::take_server_name().or(self.server_name.take());
            }
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(next) = traffic.next_record() {
                        let next = next.map_err(|error| errors::describe(&error))?;
                        record.extend_from_slice(next.payload);
                        used += next.discard;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                // Whatever is in `out` is sent before anything that is sealed later.
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_ended = true,
                Ok(_) => return Ok(used),
                Err(error) if self.received_record => return Err(errors::describe(&error)),
                Err(error) => return Err(errors::describe_first(&error, &first[..wire.len().min(8)])),
            }
            // rustls lends the record together with the wire: it cannot be put there before both are given back.
            let end = *plain + record.len();
            assert!(end <= used, "a record is longer than what is in it");
            wire[*plain..end].copy_from_slice(&record);
            *plain = end;
            record.clear();
        }
    }

    /// Lets `say` write once everything is out that must be before it, and sends what follows from it.
    fn speak<F>(&mut self, out: &mut Vec<u8>, mut say: F) -> Result<(), String>
    where
        F: FnMut(&mut WriteTraffic<'_, C::Data>, &mut Vec<u8>) -> Result<(), String>,
    {
        loop {
            // With what is kept, never with nothing: rustls indexes into the bytes of a message that has begun.
            let UnbufferedStatus { discard, state } = self.connection.process(&mut self.buffered);
            let said = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(say(&mut traffic, out)),
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, out);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(sent)) => {
                    sent.done();
                    None
                }
                Ok(_) => Some(Err("nothing can be sent now".into())),
                Err(error) => Some(Err(errors::describe(&error))),
            };
            self.buffered.drain(..discard);
            if let Some(said) = said {
                self.flush(out);
                return said;
            }
        }
    }

    /// Takes the messages that rustls has queued. It hands them out before it looks at the wire, so none is given; and
    /// none may be: a second error on the same bytes would be a second alert, which rustls asserts against.
    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.connection.common().wants_write() {
            match self.connection.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                _ => break,
            }
        }
    }

    /// Ends it for good, with the alert that says so to the peer if there is one.
    fn fail(&mut self, why: String, out: &mut Vec<u8>) {
        self.flush(out);
        self.buffered = Vec::new();
        self.error = Some(why.into());
    }
}

/// The first bytes, for the log: rustls decrypts in place, so they are noted before.
fn beginning(wire: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    first.iter_mut().zip(wire).for_each(|(to, from)| *to = *from);
    first
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) {
    // Without room it says how much it needs.
    if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
        let start = out.len();
        out.resize(start + needed.required_size, 0);
        let written = data.encode(&mut out[start..]).unwrap_or(0);
        out.truncate(start + written);
    }
}

/// Lets `write` write at the end of `out`, first into so much room, and if that is too little, into what it asks for.
fn append<W>(out: &mut Vec<u8>, room: usize, mut write: W) -> Result<(), EncryptError>
where
    W: FnMut(&mut [u8]) -> Result<usize, EncryptError>,
{
    let start = out.len();
    out.resize(start + room, 0);
    let mut written = write(&mut out[start..]);
    if let Err(EncryptError::InsufficientSize(needed)) = written {
        out.resize(start + needed.required_size, 0);
        written = write(&mut out[start..]);
    }
    out.truncate(start + written.as_ref().map_or(0, |written| *written));
    written.map(|_| ())
}
