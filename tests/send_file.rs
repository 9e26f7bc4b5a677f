//! Files sent over real sockets: by sendfile, and read piece by piece under TLS.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use tidemill::{CloseReason, Input, Limits, ListenOptions, Reactor, Service, Socket};

const TIMEOUT: Duration = Duration::from_secs(60);
const LENGTH: usize = 64 * 1024 * 1024;

/// Sends a file for each byte, and closes behind it if the byte is `c`.
struct Sender {
    path: PathBuf,
    length: u64,
}

impl Service for Sender {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        for &byte in input.take_all() {
            let _ = write!(socket, "{:010}", self.length);
            socket.send_file(File::open(&self.path).expect("the file"), 0..self.length);
            if byte == b'c' {
                socket.close();
            }
        }
    }
}

fn byte(at: usize) -> u8 {
    (at % 65_521 % 251) as u8
}

/// A file of so many bytes, which is removed at the end of the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, length: usize) -> TempFile {
        let path = std::env::temp_dir().join(format!("tidemill-send-file-{}-{name}", std::process::id()));
        fs::write(&path, (0..length).map(byte).collect::<Vec<u8>>()).expect("a file");
        TempFile(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Starts a sender; returns it and the address it listens on.
fn sender(path: &Path, options: &ListenOptions) -> (Reactor, SocketAddr) {
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let length = fs::metadata(path).expect("the file").len();
    let service = reactor.add(Sender { path: path.to_path_buf(), length });
    let listener = reactor.listen_with("127.0.0.1:0", service, options).expect("a listener");
    let at = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
    (reactor, at)
}

/// Turns while a peer talks on another thread; returns its result and the most memory that buffers took.
fn while_turning<T: Send>(reactor: &mut Reactor, talk: impl FnOnce() -> T + Send) -> (T, usize) {
    thread::scope(|scope| {
        let talks = scope.spawn(talk);
        let (end, mut memory) = (Instant::now() + TIMEOUT, 0);
        while !talks.is_finished() {
            assert!(Instant::now() < end, "the talk is not over within {TIMEOUT:?}");
            reactor.turn(Some(Duration::from_millis(20))).expect("a turn");
            memory = memory.max(reactor.sockets().memory());
        }
        (talks.join().expect("a good talk"), memory)
    })
}

/// Checks one answer, read in pieces, with a rest after each of the first ones: the server must wait.
fn read_slowly(stream: &mut impl Read, length: usize) {
    let mut head = [0; 10];
    stream.read_exact(&mut head).expect("a head");
    assert_eq!(String::from_utf8_lossy(&head), format!("{length:010}"));
    let (mut at, mut piece) = (0, vec![0; 1024 * 1024]);
    while at < length {
        if at < 10 * piece.len() {
            thread::sleep(Duration::from_millis(5));
        }
        let n = piece.len().min(length - at);
        stream.read_exact(&mut piece[..n]).expect("more of the file");
        assert!(piece[..n].iter().enumerate().all(|(i, &got)| got == byte(at + i)), "wrong bytes at {at}");
        at += n;
    }
}

#[test]
fn a_large_file_reaches_a_slow_reader_without_memory_and_without_a_copy() {
    let file = TempFile::new("plain", LENGTH);
    let (mut reactor, at) = sender(&file.0, &ListenOptions::default());
    let ((), memory) = while_turning(&mut reactor, || {
        let mut stream = TcpStream::connect(at).expect("a connection");
        // The second request waits until the first file has left.
        stream.write_all(b"1c").expect("it takes what we say");
        read_slowly(&mut stream, LENGTH);
        read_slowly(&mut stream, LENGTH);
        assert_eq!(stream.read(&mut [0]).expect("an end"), 0);
    });
    assert!(memory < 16 * 1024, "{memory} bytes of buffers");
    assert_eq!(reactor.stats().spliced, 2 * LENGTH as u64, "all bytes went by sendfile");
}

#[test]
fn a_file_that_is_truncated_while_it_is_sent_ends_in_a_reset() {
    let file = TempFile::new("truncated", LENGTH);
    let (mut reactor, at) = sender(&file.0, &ListenOptions::default());
    let (received, _) = while_turning(&mut reactor, || {
        let mut stream = TcpStream::connect(at).expect("a connection");
        stream.write_all(b"c").expect("it takes what we say");
        let mut piece = vec![0; 64 * 1024];
        stream.read_exact(&mut piece).expect("the beginning");
        File::options().write(true).open(&file.0).and_then(|file| file.set_len(1)).expect("a short file");
        let mut received = piece.len();
        loop {
            match stream.read(&mut piece) {
                Ok(0) => panic!("an end like any other after {received} bytes"),
                Ok(n) => received += n,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                    return received;
                }
            }
        }
    });
    assert!(received < LENGTH);
    reactor.turn(Some(Duration::ZERO)).expect("a turn");
    let reason = CloseReason::File(std::io::Error::other("short").into());
    assert_eq!(reactor.stats().closed_count(reason), 1);
}

#[cfg(feature = "tls")]
#[test]
fn a_large_file_is_encrypted_piece_by_piece() {
    use tidemill::tls::{CertifiedKey, Server, ServerOptions};
    use tokio_rustls::rustls::{self, pki_types::ServerName};

    let file = TempFile::new("tls", LENGTH);
    let issued = rcgen::generate_simple_self_signed(["files.example".to_string()]).expect("a certificate");
    let (cert, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    let identity = CertifiedKey::from_pem(cert.as_bytes(), key.as_bytes()).expect("a pair");
    let server = Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() });
    let filter = Some(server.expect("a server").filter_config());
    let (mut reactor, at) = sender(&file.0, &ListenOptions { filter, ..ListenOptions::default() });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(issued.cert.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let ((), memory) = while_turning(&mut reactor, || {
        let name = ServerName::try_from("files.example").expect("a name");
        let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
        let stream = TcpStream::connect(at).expect("a connection");
        let mut stream = rustls::StreamOwned::new(session, stream);
        stream.write_all(b"c").expect("it takes what we say");
        read_slowly(&mut stream, LENGTH);
        assert_eq!(stream.read(&mut [0]).expect("an end with close_notify"), 0);
    });
    assert!(memory < 512 * 1024, "{memory} bytes of buffers for a file of {LENGTH}");
}
