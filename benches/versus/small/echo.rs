//! An echo server: run `cargo run --example echo -- 127.0.0.1:9001`, then `nc 127.0.0.1 9001`.

use tidemill::{Input, Limits, Reactor, Service, Socket};

struct Echo;

impl Service for Echo {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        socket.send(input.take_all());
    }
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".to_string());
    let mut reactor = Reactor::new(Limits::default())?;
    let echo = reactor.add(Echo);
    reactor.listen(address, echo)?;
    reactor.run()
}
