//! The TLS session of one connection: the filter that decrypts and encrypts its bytes.

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

/// A TLS session, as a server or as a client.
///
/// ```text
///         wire: │ plaintext │ free │ current record │ received, not processed │
///               0         plain   used ────────────▶│
/// ```
///
/// Records are decrypted in place. A record is longer than its plaintext, so the plaintext never overwrites bytes that
/// are not processed yet.
pub(super) struct Session<C> {
    connection: C,
    /// An incomplete record, or complete records with an incomplete handshake message.
    buffered: Vec<u8>,
    /// The server name that the client requests, if it is a host name.
    server_name: Option<Box<str>>,
    /// Whether a record of the peer has been processed.
    received_record: bool,
    /// Whether close_notify has been received.
    peer_ended: bool,
    close_notify_sent: bool,
    /// Why the session cannot go on.
    error: Option<Box<str>>,
}

/// The limit of `buffered`. A handshake message has at most 64 KiB (rustls refuses longer ones), and a record adds at
/// most 5 + 256 bytes to its contents; eight records are allowed for. In records of one byte each, a message would take
/// 1.5 MiB: only an attacker sends that.
const BUFFERED_MAX: usize = (64 << 10) + 8 * (5 + 256);

/// The maximum plaintext of a record. Records are encrypted one by one, while their bytes are in the processor's cache.
const RECORD: usize = 16 << 10;

/// Room for what a record adds to its plaintext, and for a message before it: a key update, or close_notify.
const ROOM: usize = 40 + 64;

/// What differs between server and client: rustls has two types whose methods have the same names, but no common trait.
pub(super) trait Side {
    type Data;

    fn process<'c, 'i>(&'c mut self, wire: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    /// The name in the ClientHello that was processed in the last call, if there was one.
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
        // Taken out, so that its memory is freed: an idle session holds no buffer.
        let kept = mem::take(&mut self.buffered);
        wire[..kept.len()].copy_from_slice(&kept);
        drop(kept);
        let mut plain = 0;
        if self.error.is_none() {
            match self.advance_guarded(wire, &mut plain, out) {
                // Bytes behind close_notify are not authenticated: ignored.
                Ok(_) if self.peer_ended => {}
                Ok(used) if wire.len() - used > BUFFERED_MAX => {
                    self.fail("the peer sent the start of a message that is too long".into(), out);
                }
                Ok(used) => self.buffered = wire[used..].to_vec(),
                Err(why) => self.fail(why, out),
            }
        }
        Opened {
            plaintext: plain,
            more: false,
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
    /// [Advances](Session::advance), and catches panics of rustls. A peer could cause a panic there before
    /// (RUSTSEC-2024-0399); one must end its session only, and not the process. With debug assertions there is still
    /// one: rustls asserts that it sends no alert after close_notify, but does so when an invalid record arrives then.
    fn advance_guarded(
        &mut self,
        wire: &mut [u8],
        plain: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, String> {
        // Unwind-safe: after a panic the session has an error, and rustls's state is not used again.
        catch_unwind(AssertUnwindSafe(|| self.advance(wire, plain, out))).unwrap_or_else(|_| {
            Err("the received bytes cannot be processed (a bug in the TLS library)".into())
        })
    }

    /// Processes received bytes until more are needed; returns how many were used.
    ///
    /// The loop ends: each round uses a record, takes a message that rustls has queued, or clears a flag.
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
                // `out` is sent before anything that is encrypted later, as rustls requires here.
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_ended = true,
                Ok(_) => return Ok(used),
                Err(error) if self.received_record => return Err(errors::describe(&error)),
                Err(error) => return Err(errors::describe_first(&error, &first[..wire.len().min(8)])),
            }
            // Copied only now: while rustls lends the plaintext, `wire` is borrowed.
            let end = *plain + record.len();
            assert!(end <= used, "a record is longer than its plaintext");
            wire[*plain..end].copy_from_slice(&record);
            *plain = end;
            record.clear();
        }
    }

    /// Calls `say` as soon as all messages that must precede it are in `out`, and then appends the messages that follow
    /// from it.
    ///
    /// The loop ends: each round calls `say` and returns, or takes one of the messages that rustls has queued.
    fn speak<F>(&mut self, out: &mut Vec<u8>, mut say: F) -> Result<(), String>
    where
        F: FnMut(&mut WriteTraffic<'_, C::Data>, &mut Vec<u8>) -> Result<(), String>,
    {
        loop {
            // With the buffered bytes, never with an empty slice: rustls indexes into those of an incomplete message.
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

    /// Appends the messages that rustls has queued. It returns them before it looks at received bytes, so it gets none.
    /// It must not get any: a second error for the same bytes would be a second alert, which rustls asserts against.
    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.connection.common().wants_write() {
            match self.connection.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                _ => break,
            }
        }
    }

    /// Ends the session; appends the alert for the peer, if rustls has queued one.
    fn fail(&mut self, why: String, out: &mut Vec<u8>) {
        self.flush(out);
        self.buffered = Vec::new();
        self.error = Some(why.into());
    }
}

/// The first bytes, for the log. Copied before rustls changes them by decrypting in place.
fn beginning(wire: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    first.iter_mut().zip(wire).for_each(|(to, from)| *to = *from);
    first
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) {
    // Called with an empty buffer, it returns the size that it needs.
    if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
        let start = out.len();
        out.resize(start + needed.required_size, 0);
        let written = data.encode(&mut out[start..]).unwrap_or(0);
        out.truncate(start + written);
    }
}

/// Lets `write` append to `out`: first with `room` bytes, and if that is too little, with the number that it returns.
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
