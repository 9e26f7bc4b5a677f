//! What `--metrics` serves: counters of the loop, and an observer for what the loop itself does not count.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tidemill::observer::{Observer, Step};
use tidemill::{ServiceId, Sockets, Stats};

use super::Names;
use super::sampled::{is_sampled, next_sampled};
use super::tcp::Sample;
use crate::locked::locked;

/// Label sets as slices of pairs: their values come from closed sets (services, reasons, callbacks), so that their
/// number is bounded whatever peers do.
pub type Labels = [(&'static str, &'static str); 2];
type Service = [(&'static str, &'static str); 1];

/// Slow callbacks, by service and callback.
pub type ByCallback = Family<Labels, Counter>;

/// Reads one counter of the loop.
type Read = fn(&Stats) -> u64;

/// Counters that the loop has anyway: name, help, and where it is.
const OF_LOOP: &[(&str, &str, Read)] = &[
    ("received_bytes", "Bytes received from peers, TLS records included", |stats| stats.bytes_in),
    ("sent_bytes", "Bytes that the kernel has accepted for peers, TLS records included", |stats| {
        stats.bytes_out
    }),
    ("spliced_bytes", "Bytes of these that went from connection to connection inside the kernel", |stats| {
        stats.spliced
    }),
    ("turns", "Turns of the event loop", |stats| stats.turns),
    ("events", "Events that the kernel has reported", |stats| stats.events),
    ("reads", "System calls that read from a connection", |stats| stats.reads),
    ("writes", "System calls that wrote to a connection", |stats| stats.writes),
    ("handshakes", "Completed TLS handshakes", |stats| stats.handshakes),
    ("handshakes_delayed", "Inbound TLS handshakes that had to wait for a place", |stats| {
        stats.handshakes_delayed
    }),
    ("throttled", "Times that a connection was not read because a rate was used up", |stats| stats.throttled),
    ("connections_shed", "Peers closed at once for want of a descriptor", |stats| stats.shed),
    ("accept_pauses", "Times that a listener paused for want of a descriptor or of memory", |stats| {
        stats.starved
    }),
];

/// The metrics of a server. They are encoded when they are asked for. A clone is the same.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    of_loop: Vec<(Counter, Read)>,
    connections: Family<Service, Gauge>,
    buffers: Gauge,
    /// For each loop.
    parts: Vec<Arc<Mutex<Part>>>,
    per_shard: Option<PerShard>,
    /// What counts for them; each loop has one.
    recorder: Recorder,
}

/// What one loop says of itself when it is asked.
struct Part {
    names: Names,
    stats: Stats,
    /// By service.
    open: Vec<(&'static str, usize)>,
    buffers: usize,
    tcp: Sample,
}

impl Part {
    fn take(&mut self, sockets: &mut Sockets<'_>) {
        self.stats = sockets.stats();
        self.buffers = sockets.memory();
        self.open = self.names.iter().map(|(&id, &name)| (name, sockets.count(id))).collect();
        self.tcp.take(sockets, &self.names);
    }
}

/// The same by shard, if there are several.
#[derive(Clone)]
struct PerShard {
    of_loop: Vec<(Family<Service, Counter>, Read)>,
    connections: Family<Service, Gauge>,
    labels: Vec<Service>,
}

impl PerShard {
    fn new(registry: &mut Registry, shards: usize) -> PerShard {
        let mut family = |(name, help, read): &(&str, &str, Read)| {
            let family = Family::<Service, Counter>::default();
            registry.register(format!("shard_{name}"), format!("{help}, by shard"), family.clone());
            (family, *read)
        };
        let of_loop = OF_LOOP.iter().map(&mut family).collect();
        let connections = Family::<Service, Gauge>::default();
        registry.register(
            "shard_connections",
            "Connections that are open, dialed ones included, by shard",
            connections.clone(),
        );
        // Made once for a process.
        let labels = (0..shards).map(|shard| [("shard", &*shard.to_string().leak())]).collect();
        PerShard { of_loop, connections, labels }
    }

    fn set(&self, shard: usize, part: &Part) {
        let label = &self.labels[shard];
        for (family, read) in &self.of_loop {
            family.get_or_create(label).inner().store(read(&part.stats), Ordering::Relaxed);
        }
        let open: usize = part.open.iter().map(|(_, open)| open).sum();
        self.connections.get_or_create(label).set(gauge(open));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Metrics {
    pub fn new(loops: usize, slow: Option<ByCallback>) -> Metrics {
        let mut registry = Registry::with_prefix("tidemill");
        let recorder = Recorder::new(&mut registry);
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let of_loop =
            OF_LOOP.iter().map(|(name, help, read)| (counter(&mut registry, name, help), *read)).collect();
        let (connections, buffers) = (Family::default(), Gauge::default());
        registry.register(
            "connections",
            "Connections that are open, dialed ones included",
            connections.clone(),
        );
        if let Some(slow) = slow {
            registry.register("slow_callbacks", "Callbacks that took as long as --slow or longer", slow);
        }
        registry.register("buffers_bytes", "Bytes in the buffers of all connections", buffers.clone());
        let tcp = Sample::new(&mut registry);
        let part = || Part {
            names: Names::new(),
            stats: Stats::default(),
            open: Vec::new(),
            buffers: 0,
            tcp: tcp.clone(),
        };
        let parts = (0..loops).map(|_| Arc::new(Mutex::new(part()))).collect();
        let per_shard = (loops > 1).then(|| PerShard::new(&mut registry, loops));
        let registry = Arc::new(registry);
        Metrics { registry, of_loop, connections, buffers, parts, per_shard, recorder }
    }

    /// The observer of a loop that counts for them.
    pub fn recorder(&self, number: usize, names: &Names) -> Recorder {
        self.lock(number).names = names.clone();
        Recorder { names: names.clone(), ..self.recorder.clone() }
    }

    fn lock(&self, number: usize) -> MutexGuard<'_, Part> {
        locked(&self.parts[number])
    }

    /// Has a loop say what it has; called on it.
    pub fn take(&self, number: usize, sockets: &mut Sockets<'_>) {
        self.lock(number).take(sockets);
    }

    /// The metrics as the loops have last said, in Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut stats = Stats::default();
        let mut open: HashMap<&'static str, usize> = HashMap::new();
        let mut buffers = 0;
        for number in 0..self.parts.len() {
            let part = self.lock(number);
            stats.add(&part.stats);
            part.open.iter().for_each(|(name, count)| *open.entry(name).or_default() += count);
            buffers += part.buffers;
            if let Some(per_shard) = &self.per_shard {
                per_shard.set(number, &part);
            }
        }
        for (counter, read) in &self.of_loop {
            counter.inner().store(read(&stats), Ordering::Relaxed);
        }
        for (name, count) in open {
            self.connections.get_or_create(&[("service", name)]).set(gauge(count));
        }
        self.buffers.set(gauge(buffers));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }
}

/// Counts connections by service and reason, and measures turns.
#[derive(Clone)]
pub struct Recorder {
    names: Names,
    accepted: Family<Service, Counter>,
    dialed: Family<Service, Counter>,
    refused: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    turn: Histogram,
    woken: Instant,
}

impl Recorder {
    fn new(registry: &mut Registry) -> Recorder {
        // From 10 µs to 0.7 s, each bucket four times the one before: a turn of one small message takes 10 to 20 µs.
        let turn = Histogram::new(exponential_buckets(10e-6, 4.0, 9));
        let recorder = Recorder {
            names: Names::new(),
            accepted: Family::default(),
            dialed: Family::default(),
            refused: Family::default(),
            closed: Family::default(),
            turn,
            woken: Instant::now(),
        };
        let (accepted, dialed) = (recorder.accepted.clone(), recorder.dialed.clone());
        registry.register("connections_accepted", "Connections accepted, by service", accepted);
        registry.register("connections_dialed", "Connections dialed, by service", dialed);
        let (refused, closed) = (recorder.refused.clone(), recorder.closed.clone());
        registry.register("connections_refused", "Peers refused, by service and reason", refused);
        registry.register("connections_closed", "Connections ended, by service and reason", closed);
        let help =
            "Time from the end of the sleep to the end of each 16th turn: what an event may have to wait";
        registry.register("turn_duration_seconds", help, recorder.turn.clone());
        recorder
    }

    /// The label of a service. None for the service that answers scrapes: its connections are not counted.
    fn service(&self, id: ServiceId) -> Option<(&'static str, &'static str)> {
        self.names.get(&id).map(|name| ("service", *name))
    }
}

impl Observer for Recorder {
    fn wants_messages(&self) -> bool {
        false
    }

    fn next_turn(&self, turn: u64) -> u64 {
        next_sampled(turn)
    }

    fn observe(&mut self, step: &Step<'_>) {
        match step {
            Step::Woken { turn, .. } if is_sampled(*turn) => self.woken = Instant::now(),
            Step::TurnEnd { turn, .. } if is_sampled(*turn) => {
                self.turn.observe(self.woken.elapsed().as_secs_f64());
            }
            Step::Accept { service, .. } => {
                if let Some(service) = self.service(*service) {
                    self.accepted.get_or_create(&[service]).inc();
                }
            }
            Step::Dial { service, .. } => {
                if let Some(service) = self.service(*service) {
                    self.dialed.get_or_create(&[service]).inc();
                }
            }
            Step::Refuse { service, refused } => {
                if let Some(service) = self.service(*service) {
                    self.refused.get_or_create(&[service, ("reason", refused.reason.word())]).inc();
                }
            }
            Step::Close { service: Some(service), gone } => {
                if let Some(service) = self.service(*service) {
                    self.closed.get_or_create(&[service, ("reason", gone.reason.word())]).inc();
                }
            }
            _ => {}
        }
    }
}
