//! The validated options of a run.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tidemill::{Address, DialOptions, FilterConfig};

use super::answer::Answer;
use super::message::Message;
use crate::args::load::LoadArgs;
use crate::args::values::{LocalAddresses, Shape};

/// How long the run lasts where neither --duration nor --requests is given.
const DURATION: Duration = Duration::from_secs(5);
/// The warm-up of a run that is measured by time.
const WARM_UP: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub struct Plan {
    pub to: Address,
    pub shape: Shape,
    pub connections: usize,
    /// Bytes of a message's body, as asked for; of `--send`, as they are sent.
    pub size: usize,
    pub message: Message,
    pub answer: Answer,
    /// The server speaks first: its greeting is read before the first message is sent.
    pub greeting: bool,
    /// Messages in flight at once on each connection; of a fan-out, lines.
    pub pipeline: usize,
    /// Messages (or connections, or lines) a second in all. None: closed loop.
    pub rate: Option<f64>,
    pub warm_up: Duration,
    /// None: until `requests` are answered.
    pub duration: Option<Duration>,
    pub requests: Option<u64>,
    pub sources: Option<LocalAddresses>,
    pub filter: Option<FilterConfig>,
}

impl LoadArgs {
    /// Checks the options against each other.
    pub fn plan(&self) -> Result<Plan, String> {
        let duration = match (&self.duration, self.requests) {
            (Some(given), _) => {
                Some(given.0.ok_or("--duration cannot be 0: give a time, or --requests without it")?)
            }
            (None, Some(_)) => None,
            (None, None) => Some(DURATION),
        };
        if self.requests.is_some() && self.shape == Shape::Idle {
            return Err("--requests is for messages: --shape idle sends none".to_string());
        }
        if self.requests.is_some() && self.warm_up.is_some() {
            return Err("--warm-up cannot be used with --requests: every message is counted".to_string());
        }
        if self.warm_up.is_some_and(|given| given.0.is_some()) && self.shape == Shape::Idle {
            return Err("--warm-up is for messages: --shape idle sends none".to_string());
        }
        let waits = matches!(self.shape, Shape::Echo | Shape::FanOut) && self.rate.is_none();
        if self.pipeline > 1 && !waits {
            let why = "--pipeline is for messages whose answers are waited for: --shape echo or fan-out without --rate";
            return Err(why.to_string());
        }
        if !matches!(self.shape, Shape::Echo | Shape::Churn)
            && (self.framing.is_some() || self.has_exchange())
        {
            let why = "--framing, --protocol, --send, --expect, --until and --greeting are for --shape echo and churn";
            return Err(why.to_string());
        }
        let (message, answer) = self.exchange()?;
        let warm_up = self.warm_up.as_ref().map_or(WARM_UP, |given| given.0.unwrap_or(Duration::ZERO));
        Ok(Plan {
            to: self.to.clone(),
            shape: self.shape,
            connections: self.connections as usize,
            size: if self.has_exchange() { message.length() } else { self.size.0 },
            message,
            answer,
            greeting: self.greeting || self.protocol.is_some_and(|protocol| protocol.greets()),
            pipeline: self.pipeline as usize,
            rate: self.rate,
            warm_up: if self.requests.is_some() || self.shape == Shape::Idle {
                Duration::ZERO
            } else {
                warm_up
            },
            duration,
            requests: self.requests,
            sources: self.source_ports.clone(),
            filter: None,
        })
    }

    /// Whether the answer is something other than an echo.
    fn has_exchange(&self) -> bool {
        self.protocol.is_some()
            || self.send.is_some()
            || self.expect.is_some()
            || self.until.is_some()
            || self.greeting
    }

    /// The message, and how its answer is recognised.
    fn exchange(&self) -> Result<(Message, Answer), String> {
        if !self.has_exchange() {
            return Ok((Message::pattern(self.size.0, self.framing.as_ref())?, Answer::Echo));
        }
        let default = self.protocol.map(|protocol| protocol.message(&self.to));
        let Some(bytes) = self.send.as_ref().map(|text| text.0.clone()).or(default) else {
            return Err("--expect, --until and --greeting say how an answer is recognised: give the message with --send"
                .to_string());
        };
        let answer = Answer::new(self)?;
        let bytes = match &self.framing {
            Some(framing) => {
                let mut wire = Vec::new();
                framing.encode(&bytes, &mut wire).map_err(|error| error.to_string())?;
                wire
            }
            None => bytes,
        };
        Ok((Message::new(bytes)?, answer))
    }
}

impl Plan {
    /// How to dial. With --source-ports the local addresses take turns: each has ephemeral ports of its own.
    pub fn dial_options(&self, serial: usize) -> DialOptions {
        let local: Option<IpAddr> = self.sources.as_ref().map(|sources| sources.nth(serial));
        DialOptions {
            local: local.map(|ip| SocketAddr::new(ip, 0)),
            filter: self.filter.clone(),
            ..DialOptions::default()
        }
    }

    pub fn shape_name(&self) -> &'static str {
        match self.shape {
            Shape::Echo => "echo",
            Shape::Churn => "churn",
            Shape::Idle => "idle",
            Shape::FanOut => "fan-out",
        }
    }

    /// What is counted.
    pub fn unit(&self) -> &'static str {
        match self.shape {
            Shape::Echo => "messages",
            Shape::Churn | Shape::Idle => "connections",
            Shape::FanOut => "deliveries",
        }
    }
}
