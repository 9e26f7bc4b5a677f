//! What is to be done to a server, and the bytes it is done with.

use std::rc::Rc;
use std::time::Duration;

use tidemill::framing::Framing;
use tidemill::{Address, DialOptions, FilterConfig};

use crate::args::LoadArgs;
use crate::args::values::Shape;

#[derive(Clone, Debug)]
pub struct Plan {
    pub to: Address,
    pub shape: Shape,
    pub connections: usize,
    /// Bytes of a message; with a framing, of its body.
    pub size: usize,
    /// Messages (or lines) under way at once, on each connection.
    pub pipeline: usize,
    /// Messages a second in all; none: the next one when an answer has come.
    pub rate: Option<u32>,
    pub warm_up: Duration,
    pub duration: Duration,
    pub framing: Option<Framing>,
    /// How the connections are secured.
    pub filter: Option<FilterConfig>,
}

/// The bytes that are sent, in a circle: a wrong, missing or doubled byte of an echo is found out, because its
/// neighbours differ and the circle's length is a prime that no buffer's size divides.
#[derive(Clone)]
pub struct Pattern {
    /// The circle, and as much of it again as a piece may be long.
    bytes: Rc<[u8]>,
    /// One whole message on the wire, where messages are framed: then all of them are alike.
    frame: Option<Rc<[u8]>>,
    pub size: usize,
}

const CIRCLE: usize = 65_521;

impl Pattern {
    pub fn new(plan: &Plan) -> Result<Pattern, String> {
        let mut state = 0x9e37_79b9_u32;
        let circle: Vec<u8> = (0..CIRCLE)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Printable, so that a framing by lines finds no end in it.
                b'!' + ((state >> 24) % 90) as u8
            })
            .collect();
        let bytes: Rc<[u8]> = circle.iter().copied().cycle().take(2 * CIRCLE).collect();
        let frame = match &plan.framing {
            None => None,
            Some(framing) => {
                let body: Vec<u8> = circle.iter().copied().cycle().take(plan.size).collect();
                let mut wire = Vec::new();
                framing.encode(&body, &mut wire).map_err(|error| error.to_string())?;
                Some(Rc::from(wire))
            }
        };
        let size = frame.as_ref().map_or(plan.size, |frame: &Rc<[u8]>| frame.len());
        Ok(Pattern { bytes, frame, size })
    }

    /// The bytes at a place of the stream, as far as they lie in one piece, at most so many.
    pub fn at(&self, offset: u64, max: usize) -> &[u8] {
        match &self.frame {
            Some(frame) => {
                let from = (offset % frame.len() as u64) as usize;
                &frame[from..frame.len().min(from.saturating_add(max))]
            }
            None => {
                let from = (offset % CIRCLE as u64) as usize;
                &self.bytes[from..][..max.min(CIRCLE)]
            }
        }
    }

    /// Where `heard` differs from the stream at this place, if it does.
    pub fn differs(&self, mut offset: u64, mut heard: &[u8]) -> Option<u64> {
        while !heard.is_empty() {
            let expected = self.at(offset, heard.len());
            let (now, rest) = heard.split_at(expected.len());
            if now != expected {
                let same = now.iter().zip(expected).take_while(|(one, other)| one == other).count();
                return Some(offset + same as u64);
            }
            (offset, heard) = (offset + now.len() as u64, rest);
        }
        None
    }
}

impl LoadArgs {
    pub fn plan(&self) -> Result<Plan, String> {
        let Some(duration) = self.duration.0 else { return Err("--duration cannot be 0".to_string()) };
        if self.rate.is_some() && self.shape != Shape::Echo {
            return Err("--rate is for --shape echo".to_string());
        }
        if self.framing.is_some() && !matches!(self.shape, Shape::Echo | Shape::Churn) {
            return Err("--framing is for messages, not for --shape idle and fan-out".to_string());
        }
        if self.pipeline > 1 && (self.rate.is_some() || matches!(self.shape, Shape::Churn | Shape::Idle)) {
            return Err("--pipeline is for messages whose answers are waited for, and for --shape fan-out"
                .to_string());
        }
        Ok(Plan {
            to: self.to.clone(),
            shape: self.shape,
            connections: self.connections as usize,
            size: self.size.0,
            pipeline: self.pipeline as usize,
            rate: self.rate,
            warm_up: self.warm_up.0.unwrap_or(Duration::ZERO),
            duration,
            framing: self.framing.clone(),
            filter: None,
        })
    }
}

impl Plan {
    /// How to dial: where that is a loopback address, each of its neighbours has ports of its own, and none of them is
    /// used up by connections that were closed a moment ago.
    pub fn dial_options(&self, serial: usize) -> DialOptions {
        let local = self.to.inet().filter(|to| to.ip().is_loopback() && to.is_ipv4());
        let local = local.map(|_| {
            std::net::SocketAddr::from(([127, 0, 1 + (serial / 200 % 50) as u8, 1 + (serial % 200) as u8], 0))
        });
        DialOptions { local, filter: self.filter.clone(), ..DialOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(size: usize, framing: Option<&str>) -> Plan {
        Plan {
            to: "127.0.0.1:1".parse().expect("an address"),
            shape: Shape::Echo,
            connections: 1,
            size,
            pipeline: 1,
            rate: None,
            warm_up: Duration::ZERO,
            duration: Duration::ZERO,
            framing: framing.map(|name| name.parse().expect("a framing")),
            filter: None,
        }
    }

    #[test]
    fn the_stream_is_found_right_in_any_pieces_and_any_wrong_byte_is_found() {
        for framing in [None, Some("u32be"), Some("line")] {
            let pattern = Pattern::new(&plan(1_000, framing)).expect("a pattern");
            let mut stream = Vec::new();
            while stream.len() < 300_000 {
                let piece = pattern.at(stream.len() as u64, 7_777);
                stream.extend_from_slice(piece);
            }
            let mut offset = 0;
            for piece in stream.chunks(997) {
                assert_eq!(pattern.differs(offset, piece), None);
                offset += piece.len() as u64;
            }
            for at in [0, 1_004, 65_520, 65_521, 299_000] {
                let mut wrong = stream.clone();
                wrong[at] ^= 1;
                assert_eq!(pattern.differs(0, &wrong), Some(at as u64), "{framing:?}");
            }
            let mut lost = stream.clone();
            lost.remove(70_000);
            assert!(pattern.differs(0, &lost).is_some_and(|at| at >= 70_000), "a lost byte is found");
        }
    }
}
