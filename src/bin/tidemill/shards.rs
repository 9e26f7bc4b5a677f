//! Runs a service on several threads: `--shards`.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tidemill::observer::{Observer, Step};
use tidemill::tls::Server;
use tidemill::{
    AccessPolicy, Address, Key, Limits, ListenError, ListenOptions, Peers, Reactor, Service, Shards,
    SharedRate, SocketLimits, Sockets, Stats,
};

use crate::admin::{self, Loops, Turns};
use crate::args::config::Arguments;
use crate::args::{CommandError, ServerArgs as Options};
use crate::locked::locked;
use crate::log_buffer::{self, Collecting};
use crate::observe::{Ask, Names, Watchers, Work};
use crate::reload::{self, Change, Place, Share};
use crate::self_loop::check_upstreams;
use crate::serve::{self, Beside, Listens, Plan, ServeSetup, failed};
use crate::shared_limits::{self, Cap};
use crate::signals;
use crate::systemd::{self, PassedListener};

/// The number of a shard, and all of them; none if there is one loop.
pub type OnShard<'a, S> = Option<(usize, &'a Peers<S>)>;

/// Serves until a signal comes. `make` is called on the thread of each shard, and `usual` are the limits that the
/// service brings along.
pub fn serve<S: Service>(
    make: impl Fn(OnShard<'_, S>) -> S + Send + Sync + 'static,
    usual: SocketLimits,
    mut setup: ServeSetup,
    options: &Options,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    if options.shards.count() == 1 {
        return serve::serve(make(None), usual, setup, options, arguments);
    }
    let Some(mut plan) = Plan::new(&usual, &setup, options)? else { return Ok(()) };
    let connections = plan.max.connections;
    let policy = options.access_policy(setup.access_policy.clone());
    let (limits, start) = Start::new(&mut plan, policy, std::mem::take(&mut setup.beside), options);
    if connections / start.together < start.count {
        let what = "each shard needs a connection at least, a proxy's two";
        return Err(CommandError::Usage(format!(
            "{what}; --max-connections and ulimit -n allow {connections}"
        )));
    }
    let filter = setup.tls.as_ref().filter(|_| setup.listeners_filter).map(Server::filter_config);
    let listen =
        ListenOptions { reserve_slot: plan.dials, filter, ..options.listen_options(setup.busy_reply) };
    let drain = Arc::new(Mutex::new(options.drain()));
    let upstreams = setup.upstreams.clone();
    let reopen = start.watchers.reopen.clone();
    let running = serve::running(
        setup,
        usual,
        options,
        arguments,
        (connections, true, start.cap.clone()),
        drain.clone(),
        reopen,
    );
    let running = Arc::new(Mutex::new(running));
    let start = Arc::new(start);
    let (made, admin) = (start.clone(), options.observe.admin.clone().map(|at| (at, running.clone())));
    let shards = Shards::start_with(limits, move |number, reactor, peers| {
        // It ends with the thread.
        let lines = OneCall(Collecting::start());
        let (key, names) = made.add(number, make(Some((number, peers))), reactor, peers)?;
        if let Some((at, running)) = &admin {
            reactor.observe(made.turns[number].recorder());
            if number == 0 {
                admin::serve(reactor, at, made.loops(peers, names), running.clone())
                    .map_err(io::Error::other)?;
            }
        }
        reactor.observe(lines);
        Ok(key)
    });
    let mut shards = shards.map_err(failed)?;
    let rules = shards.peers().rules();
    serve::log_default_action(Some(&rules).filter(|rules| !rules.is_empty()));
    // Before the start line, because a script may send a signal as soon as it has read that.
    let peers = shards.peers().clone();
    signals::drain_on_signal(drain, move |drain| shut_down(&peers, drain)).map_err(failed)?;
    let peers = shards.peers().clone();
    let apply = move |change, text| apply(&peers, &locked(&start.places), &change, text);
    reload::on_hangup(running, apply).map_err(failed)?;
    let listening = serve::listen_at(&mut shards, (&options.listen, plan.passed), &listen)?;
    let peers = shards.peers().clone();
    let self_loop = check_upstreams(&upstreams, &listening, move || peers.shutdown(Duration::ZERO))?;
    listening.iter().for_each(serve::announce);
    systemd::ready();
    join(shards).map_err(failed)?;
    self_loop.get().map_or(Ok(()), |error| Err(CommandError::Run(error.clone())))
}

/// Waits until all shards have ended, and logs what they have counted.
fn join<S: Service>(shards: Shards<S>) -> io::Result<()> {
    let (peers, mut sum) = (shards.peers().clone(), Stats::default());
    shards.join()?.iter().for_each(|stats| sum.add(stats));
    serve::log_rules(Some(&peers.rules()));
    serve::log_stats(&sum);
    Ok(())
}

/// What a shard is made from.
struct Start {
    count: usize,
    together: usize,
    connections: usize,
    limits: SocketLimits,
    policy: AccessPolicy,
    total_rate: Option<SharedRate>,
    watchers: Arc<Watchers>,
    places: Arc<Mutex<Vec<Place>>>,
    turns: Vec<Turns>,
    /// Added to the first shard.
    beside: Mutex<Vec<Beside>>,
    shared_limits: Mutex<shared_limits::Pending>,
    cap: Option<Arc<Cap>>,
}

impl Start {
    /// Also the limits of each shard: its part of those of the process. The first one has room for scrapes, too.
    fn new(
        plan: &mut Plan,
        policy: AccessPolicy,
        beside: Vec<Beside>,
        options: &Options,
    ) -> (Vec<Limits>, Start) {
        let shared_limits = std::mem::take(&mut plan.shared_limits);
        let cap = shared_limits.cap();
        let own_rate = || options.total_rate().map(|rate| SharedRate::new(rate, options.shards.count()));
        let start = Start {
            count: options.shards.count(),
            together: 1 + usize::from(plan.dials),
            limits: plan.limits.clone(),
            policy,
            total_rate: shared_limits.rate().or_else(own_rate),
            connections: shared_limits::max_connections(cap.as_deref(), plan.max.connections, true)
                .unwrap_or(0),
            cap,
            watchers: Arc::new(Watchers::new(&options.observe, options.shards.count())),
            places: Arc::default(),
            turns: Turns::of(options.shards.count()),
            beside: Mutex::new(beside),
            shared_limits: Mutex::new(shared_limits),
        };
        let share = |all| options.shards.share(all);
        let of_shard = |number| {
            let max = plan.max.clone();
            let extra = if number == 0 { plan.extra } else { 0 };
            Limits {
                connections: start.share(number).connections(max.connections) + extra,
                memory: share(max.memory),
                handshakes: share(max.handshakes),
                splices: max.splices / start.count,
                refusals: share(max.refusals),
                tarpitted: share(max.tarpitted),
                extra_attempts: share(max.extra_attempts),
                ..max
            }
        };
        ((0..start.count).map(of_shard).collect(), start)
    }

    fn share(&self, number: usize) -> Share {
        Share { number, count: self.count, together: self.together }
    }

    /// All shards, for the admin socket on the first one.
    fn loops<S: Service>(&self, peers: &Peers<S>, names: Names) -> Loops {
        Loops {
            places: self.places.clone(),
            asks: (0..self.count).map(|shard| ask(shard, peers)).collect(),
            names,
            turns: self.turns.clone(),
        }
    }

    /// Adds the service, and what watches the loop; returns it with the names of all services. Called on the thread of
    /// the shard, one shard after the other.
    fn add<S: Service>(
        &self,
        number: usize,
        service: S,
        reactor: &mut Reactor,
        peers: &Peers<S>,
    ) -> io::Result<(Key<S>, Names)> {
        let share = self.share(number);
        let add_group = |rate| reactor.sockets().add_shared_group(rate);
        let group = self.total_rate.as_ref().map(add_group).transpose()?;
        let key = reactor.add_with(service, SocketLimits { group, ..self.limits.clone() });
        let connections = Some(share.connections(self.connections));
        reactor.set_access_policy(key, AccessPolicy { connections, ..self.policy.clone() });
        let mut names = HashMap::from([(key.id(), serve::service_name::<S>())]);
        if number == 0 {
            names.extend(locked(&self.beside).drain(..).map(|beside| (beside.add)(reactor)));
            let shared = std::mem::take(&mut *locked(&self.shared_limits));
            names.extend(shared.add(reactor, self.for_shared_limits(peers)));
        }
        let others =
            if number == 0 { (1..self.count).map(|other| ask(other, peers)).collect() } else { vec![] };
        self.watchers.observe(number, reactor, &names, others).map_err(io::Error::other)?;
        if number == 0 {
            let tell = |other| -> systemd::AskToTurn {
                let peers = peers.clone();
                Box::new(move |turns| {
                    peers.post(other, move |_, _| turns.store(true, Ordering::Relaxed)).is_ok()
                })
            };
            systemd::notify(reactor, (1..self.count).map(tell).collect());
        }
        let place = Place { service: key.id(), name: serve::service_name::<S>(), group, share };
        locked(&self.places).push(place);
        Ok((key, names))
    }

    /// Sets the limits of all shards, from the first one. One that has too much to do keeps the previous limit of
    /// connections; the rate is in force there, too, because it is one for all.
    fn for_shared_limits<S: Service>(&self, peers: &Peers<S>) -> shared_limits::Loops {
        let on_each = |set: fn(Place, usize, &mut Sockets<'_>)| -> shared_limits::Apply {
            let (places, peers) = (self.places.clone(), peers.clone());
            Box::new(move |share, sockets| {
                for place in locked(&places).iter().copied() {
                    match place.share.number {
                        0 => set(place, share, sockets),
                        number => drop(peers.post(number, move |_, sockets| set(place, share, sockets))),
                    }
                }
            })
        };
        let (peers, together) = (peers.clone(), self.together);
        shared_limits::Loops {
            set_rate: on_each(|place, rate, sockets| {
                place.group.into_iter().for_each(|group| sockets.set_group_rate(group, rate));
            }),
            set_connections: on_each(|place, max, sockets| {
                sockets.set_max_connections(place.service, Some(place.share.connections(max)));
            }),
            count: Box::new(move |_| peers.loads().iter().sum::<usize>() * together),
        }
    }
}

/// Has a shard do something.
fn ask<S: Service>(shard: usize, peers: &Peers<S>) -> Ask {
    let peers = peers.clone();
    Box::new(move |work: Work| peers.post(shard, |service, sockets| work(service, sockets)).is_ok())
}

/// Writes the log lines of a turn of a shard with one call.
struct OneCall(Collecting);

impl Observer for OneCall {
    fn wants_messages(&self) -> bool {
        false
    }

    fn observe(&mut self, step: &Step<'_>) {
        if let Step::TurnEnd { .. } = step {
            log_buffer::flush();
        }
    }
}

impl Drop for OneCall {
    /// A bug ends the process, as it does with one loop. The panic hook has told of it.
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::exit(101);
        }
    }
}

/// The first signal shuts all shards down. Returns whether there was one left.
fn shut_down<S: Service>(peers: &Peers<S>, drain: Duration) -> bool {
    signals::log_shutdown(peers.loads().iter().sum(), drain);
    let end_checks = |shard| peers.post(shard, |_, sockets| _ = signals::end_checks(sockets)).is_ok();
    let any = (0..peers.loads().len()).filter(|shard| end_checks(*shard)).count() > 0;
    peers.shutdown(drain);
    any
}

/// Has all shards use what SIGHUP has changed.
fn apply<S: Service>(peers: &Peers<S>, places: &[Place], change: &Change, text: String) {
    for place in places.iter().copied() {
        let (change, number) = (change.clone(), place.share.number);
        let posted = peers.post(number, move |_, sockets| change.apply(place, sockets));
        // One that has ended needs no change.
        if posted.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            log::error!("SIGHUP: shard {number} has too much to do and keeps the previous options");
        }
    }
    log::info!("SIGHUP: {text}");
}

impl<S: Service> Listens for Shards<S> {
    fn listen(&mut self, at: &Address, options: &ListenOptions) -> Result<Address, ListenError> {
        self.listen_with(at, options)
    }

    fn adopt(&mut self, socket: PassedListener, options: &ListenOptions) -> Result<Address, ListenError> {
        match socket {
            PassedListener::Tcp(socket) => Shards::adopt(self, socket, options),
            PassedListener::Unix(socket) => Shards::adopt(self, socket, options),
        }
    }
}
