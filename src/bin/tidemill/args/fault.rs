//! How the faults of `proxy --fault` are written.

use std::str::FromStr;
use std::time::Duration;

use tidemill::Address;
use tidemill::services::{Chance, Fault, FaultAt, Faults, Split};

use super::values::{DurationArg, OptionalSizeArg, SizeArg, address};

/// The faults of connections to one upstream, or to all others.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultArg {
    pub to: Option<Address>,
    pub faults: Faults,
}

/// What may stand in a fault, for error messages.
const ITEMS: &str = "latency=TIME±TIME, rate=SIZE, split=SIZE±SIZE, gap=TIME, slow-close=TIME, cut=P%, reset=P% or \
                     stall=P%, with up: or down: before it for one direction, or to=ADDR";

impl FromStr for FaultArg {
    type Err = String;

    /// Items after one another, separated by commas. One without a direction is for both.
    fn from_str(text: &str) -> Result<FaultArg, String> {
        let (mut to, mut up, mut down) = (None, Direction::default(), Direction::default());
        for item in text.split(',').map(str::trim) {
            if let Some(at) = item.strip_prefix("to=") {
                if to.replace(address(at)?).is_some() {
                    return Err("to= stands once: write a --fault for each upstream".to_string());
                }
                continue;
            }
            let (is_up, is_down, item) = match item.split_once(':') {
                Some(("up", rest)) => (true, false, rest),
                Some(("down", rest)) => (false, true, rest),
                _ => (true, true, item),
            };
            for (direction, _) in [(&mut up, is_up), (&mut down, is_down)].into_iter().filter(|(_, is)| *is) {
                direction.set(item)?;
            }
        }
        Ok(FaultArg { to, faults: Faults { up: up.finish()?, down: down.finish()? } })
    }
}

/// A direction while its items are read.
#[derive(Default)]
struct Direction {
    fault: Fault,
    split: Option<(usize, usize)>,
    gap: Option<Duration>,
    seen: Vec<String>,
}

impl Direction {
    fn set(&mut self, item: &str) -> Result<(), String> {
        let (key, value) = item.split_once('=').ok_or_else(|| unknown(item))?;
        if self.seen.iter().any(|seen| seen == key) {
            return Err(format!("{key} is given twice for one direction"));
        }
        self.seen.push(key.to_string());
        let fault = &mut self.fault;
        match key {
            "latency" => (fault.latency, fault.jitter) = latency(value)?,
            "rate" => fault.rate = named(key, value.parse::<OptionalSizeArg>())?.0,
            "split" => self.split = split(value)?,
            "gap" => self.gap = Some(time(key, value)?),
            "slow-close" => fault.slow_close = time(key, value)?,
            "cut" => fault.cut = chance(key, value)?,
            "reset" => fault.reset = chance(key, value)?,
            "stall" => fault.stall = chance(key, value)?,
            _ => return Err(unknown(item)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Fault, String> {
        let split = match (self.split, self.gap) {
            (None, Some(gap)) if !gap.is_zero() => {
                return Err("gap is the time between the pieces of split, and there is no split".to_string());
            }
            (split, gap) => {
                split.map(|(size, spread)| Split { size, spread, gap: gap.unwrap_or(Duration::ZERO) })
            }
        };
        Ok(Fault { split, ..self.fault })
    }
}

fn unknown(item: &str) -> String {
    format!("{item:?}: a fault is {ITEMS}")
}

fn named<T>(key: &str, result: Result<T, String>) -> Result<T, String> {
    result.map_err(|error| format!("{key}: {error}"))
}

fn time(key: &str, value: &str) -> Result<Duration, String> {
    named(key, value.parse::<DurationArg>()).map(|span| span.0.unwrap_or(Duration::ZERO))
}

/// `50ms±10ms`; also `50ms+-10ms`, which every keyboard has.
fn spread(value: &str) -> (&str, &str) {
    value.split_once('±').or_else(|| value.split_once("+-")).unwrap_or((value, "0"))
}

fn latency(value: &str) -> Result<(Duration, Duration), String> {
    let (middle, jitter) = spread(value);
    let (middle, jitter) = (time("latency", middle)?, time("latency", jitter)?);
    if jitter > middle {
        return Err(format!("latency: {jitter:?} more or less than {middle:?} could be less than nothing"));
    }
    Ok((middle, jitter))
}

fn split(value: &str) -> Result<Option<(usize, usize)>, String> {
    let (size, range) = spread(value);
    let size = named("split", size.parse::<OptionalSizeArg>())?.0;
    let range = named("split", range.parse::<OptionalSizeArg>())?.0.unwrap_or(0);
    match size {
        Some(size) if range >= size => {
            Err(format!("split: {range} more or less than {size} could be no byte"))
        }
        None if range > 0 => Err("split: a size is missing".to_string()),
        size => Ok(size.map(|size| (size, range))),
    }
}

/// `0.1%`, `100%@4KiB` or `100%@5s`.
fn chance(key: &str, value: &str) -> Result<Option<Chance>, String> {
    let (share, at) = value.split_once('@').map_or((value, None), |(share, at)| (share, Some(at)));
    let percent = share.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let percent = percent
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| format!("{key}: a share of the connections from 0% to 100% is needed"))?;
    let at = match at {
        None => FaultAt::Random,
        Some("0") => FaultAt::Bytes(0),
        Some(at) => match (at.parse::<SizeArg>(), at.parse::<DurationArg>()) {
            (Ok(SizeArg(bytes)), _) => FaultAt::Bytes(bytes as u64),
            (_, Ok(DurationArg(after))) => FaultAt::Time(after.unwrap_or(Duration::ZERO)),
            _ => return Err(format!("{key}: behind @ stands a number of bytes or a time, as @4KiB or @5s")),
        },
    };
    Ok(Some(Chance { percent, at }).filter(|chance| chance.percent > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Faults {
        text.parse::<FaultArg>().expect(text).faults
    }

    #[test]
    fn items_without_a_direction_are_for_both() {
        let faults = parsed("latency=50ms±10ms,down:rate=1MiB,up:cut=0.1%,split=3+-1,gap=20ms");
        let ms = Duration::from_millis;
        let both = Fault {
            latency: ms(50),
            jitter: ms(10),
            split: Some(Split { size: 3, spread: 1, gap: ms(20) }),
            ..Fault::default()
        };
        let cut = Some(Chance { percent: 0.1, at: FaultAt::Random });
        assert_eq!(faults.up, Fault { cut, ..both.clone() });
        assert_eq!(faults.down, Fault { rate: Some(1 << 20), ..both });
    }

    #[test]
    fn a_place_is_a_number_of_bytes_or_a_time() {
        let place = |text: &str| parsed(text).up.reset.expect(text).at;
        assert_eq!(place("reset=100%"), FaultAt::Random);
        assert_eq!(place("reset=100%@0"), FaultAt::Bytes(0));
        assert_eq!(place("reset=5%@4KiB"), FaultAt::Bytes(4096));
        assert_eq!(place("reset=5%@1500ms"), FaultAt::Time(Duration::from_millis(1_500)));
    }

    #[test]
    fn zeros_are_no_faults() {
        let text = "latency=0,rate=0,split=0,gap=0,slow-close=0,cut=0%,reset=0%@5s,stall=0%@1KiB";
        assert_eq!(parsed(text), Faults::default());
    }

    #[test]
    fn errors_name_the_item_and_what_it_should_be() {
        for (text, part) in [
            ("", "\"\": a fault is latency=TIME"),
            ("speed=1", "\"speed=1\": a fault is"),
            ("left:cut=1%", "\"left:cut=1%\": a fault is"),
            ("latency=fast", "latency: a time is written as"),
            ("latency=5ms±10ms", "could be less than nothing"),
            ("split=4±4", "could be no byte"),
            ("gap=1s", "there is no split"),
            ("cut=1", "cut: a share of the connections"),
            ("cut=101%", "from 0% to 100%"),
            ("cut=nan%", "from 0% to 100%"),
            ("reset=1%@soon", "reset: behind @ stands"),
            ("cut=1%,down:cut=2%", "cut is given twice"),
            ("to=localhost:1,to=localhost:2", "to= stands once"),
        ] {
            let error = text.parse::<FaultArg>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
