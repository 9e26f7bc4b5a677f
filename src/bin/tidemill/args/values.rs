//! How the values of options are written: times, sizes, rates, addresses.

use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tidemill::framing::proxy_header::HeaderVersion;
use tidemill::{Address, IpRange, MinRate, Overflow};

/// What a load consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Messages whose echo is waited for.
    Echo,
    /// Connect, one message, its echo, close; again and again.
    Churn,
    /// Connections that are held and do nothing.
    Idle,
    /// One sends lines that all others hear.
    FanOut,
}

/// A span of time; none stands for no limit.
#[derive(Clone, Copy)]
pub struct DurationArg(pub Option<Duration>);

impl FromStr for DurationArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DurationArg, String> {
        if text == "0" {
            return Ok(DurationArg(None));
        }
        let span = humantime::parse_duration(text);
        let span = span.map_err(|_| "a time is written as 500ms, 30s or 5min, or 0".to_string())?;
        // A wheel of ten-millisecond ticks outlives this by far; it is here to catch slips of the keyboard.
        if span > Duration::from_secs(10 * 366 * 86_400) {
            return Err("ten years are the longest".to_string());
        }
        Ok(DurationArg(Some(span).filter(|span| !span.is_zero())))
    }
}

/// A number of bytes.
#[derive(Clone, Copy)]
pub struct SizeArg(pub usize);

impl FromStr for SizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<SizeArg, String> {
        let bytes =
            text.parse::<ByteSize>().map_err(|_| "a size is written as 512, 64KiB or 1MiB".to_string())?;
        // Beyond this, sums of sizes could overflow, and no machine has so much.
        let fits = usize::try_from(bytes.as_u64()).ok().filter(|&bytes| bytes <= 1 << 48);
        match fits {
            Some(0) => Err("at least 1 byte is needed".to_string()),
            Some(bytes) => Ok(SizeArg(bytes)),
            None => Err("no machine has so much memory".to_string()),
        }
    }
}

/// A least rate; none stands for no limit.
#[derive(Clone, Copy)]
pub struct MinRateArg(pub Option<MinRate>);

impl FromStr for MinRateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<MinRateArg, String> {
        if text == "0" {
            return Ok(MinRateArg(None));
        }
        let Some((bytes, per)) = text.split_once('/') else {
            return Err("a rate is written as 1KiB/10s, or 0 for no limit".to_string());
        };
        let (SizeArg(bytes), DurationArg(per)) = (bytes.parse()?, per.parse()?);
        match per {
            Some(per) => Ok(MinRateArg(Some(MinRate { bytes, per }))),
            None => Err("the time of a rate cannot be 0; 0 alone is no limit".to_string()),
        }
    }
}

pub fn range(text: &str) -> Result<IpRange, String> {
    text.parse().map_err(|error: tidemill::RangeError| error.reason().to_string())
}

pub fn version() -> impl TypedValueParser<Value = HeaderVersion> {
    PossibleValuesParser::new(["v1", "v2"]).map(|name| match name.as_str() {
        "v1" => HeaderVersion::V1,
        _ => HeaderVersion::V2,
    })
}

pub fn overflow() -> impl TypedValueParser<Value = Overflow> {
    PossibleValuesParser::new(["refuse", "wait"]).map(|how| match how.as_str() {
        "wait" => Overflow::Wait,
        _ => Overflow::Refuse,
    })
}

/// Looks at the form only; whether the name can be found is seen when it is used.
pub fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: tidemill::AddressError| error.reason().to_string())
}

pub fn shape() -> impl TypedValueParser<Value = Shape> {
    PossibleValuesParser::new(["echo", "churn", "idle", "fan-out"]).map(|name| match name.as_str() {
        "churn" => Shape::Churn,
        "idle" => Shape::Idle,
        "fan-out" => Shape::FanOut,
        _ => Shape::Echo,
    })
}
