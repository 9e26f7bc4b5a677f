//! A client connection to the server under test.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// The longest time that an answer may take, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Peer(pub TcpStream);

impl Read for Peer {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl Peer {
    #[track_caller]
    pub fn connect(to: SocketAddr) -> Peer {
        let stream = TcpStream::connect_timeout(&to, TIMEOUT).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
        stream.set_write_timeout(Some(TIMEOUT)).expect("an option");
        Peer(stream)
    }

    /// Connects from 127.0.0.`last`: each address has 28,000 ephemeral ports of its own.
    #[track_caller]
    pub fn connect_from(last: u8, to: SocketAddr) -> Peer {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0);
        socket.bind(&from.into()).expect("an address of ours");
        socket.connect(&to.into()).expect("a connection");
        socket.set_read_timeout(Some(TIMEOUT)).expect("an option");
        Peer(socket.into())
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).expect("it takes what we say");
    }

    /// Reads exactly `n` bytes.
    #[track_caller]
    pub fn receive(&mut self, bytes: usize) -> Vec<u8> {
        let mut received = vec![0; bytes];
        self.0.read_exact(&mut received).expect("an answer");
        received
    }

    /// Reads all bytes up to FIN; fails on a reset.
    #[track_caller]
    pub fn receive_all(&mut self) -> Vec<u8> {
        let mut received = Vec::new();
        self.0.read_to_end(&mut received).expect("an end");
        received
    }

    /// Whether a message is echoed.
    pub fn echoes(&mut self, word: &str) -> bool {
        let mut received = vec![0; word.len()];
        self.0.write_all(word.as_bytes()).and_then(|()| self.0.read_exact(&mut received)).is_ok()
            && received == word.as_bytes()
    }

    pub fn finish(&mut self) {
        self.0.shutdown(Shutdown::Write).expect("it is connected");
    }
}

/// A random generator with a seed, so that a run can be repeated (SplitMix64, Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least one and at most `2^bits`, small ones as often as large ones.
    pub fn size(&mut self, bits: u64) -> usize {
        let scale = self.next() % (bits + 1);
        let span = 1_u64 << scale;
        usize::try_from(self.next() % span).expect("a small number") + 1
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }
}

/// The seed of this run, printed so that a failure can be repeated; `TIDEMILL_SEED=…` sets it.
pub fn seed() -> u64 {
    let set = std::env::var("TIDEMILL_SEED").ok().and_then(|text| text.parse().ok());
    let seed = set.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_secs() ^ u64::from(since.subsec_nanos()))
    });
    println!("TIDEMILL_SEED={seed}");
    seed
}

/// A listener on a free port of the loopback.
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// A port of the loopback on which nothing listens. It stays bound until the tests end, so no other test that asks for
/// any port gets it; a listener on it is possible: Linux refuses the same address only to a second one that listens.
pub fn free_address() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("its address");
    std::mem::forget(socket);
    address
}

/// A listener whose backlog is full: a connection attempt is not answered. Kept with what fills it.
pub fn black_hole() -> (socket2::Socket, SocketAddr, Vec<TcpStream>) {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    listener.listen(0).expect("a listener");
    let address = listener.local_addr().ok().and_then(|address| address.as_socket()).expect("its address");
    let fill = std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok());
    let fill = fill.take(10).collect();
    (listener, address, fill)
}
