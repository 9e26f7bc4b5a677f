//! JSON, written by hand: the page needs six kinds of values, and no crate.

use std::time::Duration;

use tidemill::ConnId;
use tidemill::testing::{Cause, ConnectionState, KernelSocket, Moment, PeerState, Snapshot};

#[derive(Default)]
pub struct Json(String);

impl Json {
    pub fn into_text(self) -> String {
        self.0
    }

    fn comma(&mut self) {
        if !self.0.is_empty() && !self.0.ends_with(['{', '[', ':', ',']) {
            self.0.push(',');
        }
    }

    fn key(&mut self, name: &str) {
        self.comma();
        self.0 += &format!("\"{name}\":");
    }

    pub fn object(&mut self, write: impl FnOnce(&mut Json)) {
        self.comma();
        self.0.push('{');
        write(self);
        self.0.push('}');
    }

    pub fn list<T>(&mut self, name: &str, all: &[T], write: impl Fn(&mut Json, &T)) {
        self.key(name);
        self.0.push('[');
        all.iter().for_each(|one| write(self, one));
        self.0.push(']');
    }

    fn string(&mut self, text: &str) {
        self.comma();
        self.0.push('"');
        for c in text.chars() {
            match c {
                '"' => self.0 += "\\\"",
                '\\' => self.0 += "\\\\",
                '\n' => self.0 += "\\n",
                c if u32::from(c) < 0x20 => self.0 += &format!("\\u{:04x}", u32::from(c)),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    pub fn text(&mut self, name: &str, text: &str) {
        self.key(name);
        self.string(text);
    }

    pub fn number(&mut self, name: &str, number: f64) {
        self.key(name);
        self.0 += &number.to_string();
    }

    fn flag(&mut self, name: &str, flag: bool) {
        self.key(name);
        self.0 += if flag { "true" } else { "false" };
    }

    fn maybe(&mut self, name: &str, number: Option<f64>) {
        number.into_iter().for_each(|number| self.number(name, number));
    }

    pub fn strings<T: ToString>(&mut self, name: &str, all: &[T]) {
        self.list(name, all, |json, one| json.string(&one.to_string()));
    }
}

pub fn moment(json: &mut Json, moment: &Moment) {
    json.object(|json| {
        json.number("number", moment.number as f64);
        let (kind, text) = match &moment.cause {
            Cause::Start => ("start", String::new()),
            Cause::Act(line) => ("act", line.clone()),
            Cause::Clock => ("clock", String::new()),
            Cause::Phase(phase) => ("phase", phase.word().to_string()),
            Cause::Over => ("over", String::new()),
            Cause::Failed(why) => ("failed", why.clone()),
            _ => ("other", String::new()),
        };
        json.text("cause", kind);
        json.text("what", &text);
        json.list("happened", &moment.happened, |json, step| {
            json.object(|json| {
                json.text("kind", step.kind);
                json.text("text", &step.text);
            });
        });
        json.list("peers", &moment.peers, peer);
        snapshot(json, &moment.snapshot);
        json.text("stuck", moment.stuck.as_deref().unwrap_or_default());
    });
}

fn snapshot(json: &mut Json, snapshot: &Snapshot) {
    json.number("turn", snapshot.turn as f64);
    json.number("now", seconds(snapshot.now));
    json.list("sockets", &snapshot.sockets, socket);
    json.list("listeners", &snapshot.listeners, |json, listener| {
        json.object(|json| {
            json.text("address", &listener.address.to_string());
            json.number("backlog", listener.backlog as f64);
            json.flag("edge", listener.edge);
        });
    });
    json.maybe("descriptors", snapshot.descriptors_left.map(|left| left as f64));
    json.strings("events", &snapshot.events);
    json.list("connections", &snapshot.connections, connection);
    json.strings("ready", &snapshot.ready);
    let dirty: Vec<String> = snapshot.dirty.iter().map(|(id, bytes)| format!("{id} {bytes} B")).collect();
    json.strings("dirty", &dirty);
    json.strings("drained", &snapshot.drained);
    json.strings("dials", &snapshot.pending_dials);
    json.strings("reap", &snapshot.to_reap);
    json.number("pokes", snapshot.pokes as f64);
    json.number("posts", snapshot.posts as f64);
    json.number("free", snapshot.free_slots as f64);
    json.number("reserved", snapshot.reserved_slots as f64);
    json.maybe("deadline", snapshot.next_deadline.map(seconds));
    json.number("timers", snapshot.timers as f64);
    json.number("memory", snapshot.memory as f64);
    json.flag("work", snapshot.has_work);
    let stats = &snapshot.stats;
    let counters = [
        ("turns", stats.turns),
        ("events", stats.events),
        ("stale events", stats.stale_events),
        ("accepted", stats.accepted),
        ("dialed", stats.dialed),
        ("refused", stats.refused),
        ("reads", stats.reads),
        ("writes", stats.writes),
        ("bytes in", stats.bytes_in),
        ("bytes out", stats.bytes_out),
    ];
    json.list("counters", &counters, |json, (name, n)| json.string(&format!("{name} {n}")));
}

fn socket(json: &mut Json, socket: &KernelSocket) {
    json.object(|json| {
        json.number("number", socket.number as f64);
        json.text("peer", &socket.peer);
        json.text("connection", &socket.connection.map_or(String::new(), |id| id.to_string()));
        json.text("state", socket.state.word());
        json.number("transit", socket.in_transit as f64);
        json.number("unread", socket.unread as f64);
        json.flag("end", socket.end);
        json.flag("reset", socket.reset);
        json.number("delivered", socket.delivered as f64);
        json.maybe("window", socket.window.map(|window| window as f64));
        json.flag("finished", socket.finished);
        json.strings("edge", &socket.edge);
    });
}

fn connection(json: &mut Json, connection: &ConnectionState) {
    json.object(|json| {
        json.text("id", &connection.id.to_string());
        json.number("slot", f64::from(connection.slot));
        json.number("generation", f64::from(connection.generation));
        json.text("peer", &connection.peer);
        json.flag("refused", connection.is_refused);
        json.text("stage", connection.stage);
        json.text("in", connection.incoming);
        json.text("out", connection.outgoing);
        json.text("filter", connection.filter);
        json.strings("flags", &connection.flags);
        json.strings("holds", &connection.holds);
        json.number("inbox", connection.inbox as f64);
        json.number("outbox", connection.outbox as f64);
        json.flag("dirty", connection.is_dirty);
        let due = connection.deadline;
        json.text("due", &due.map_or(String::new(), |(_, due)| format!("{due:?}")));
        json.maybe("deadline", due.map(|(when, _)| seconds(when)));
        json.maybe("wheel", connection.wheel.map(seconds));
        json.number("attempts", connection.attempts as f64);
        json.text("pipe", &connection.pipe_peer.map_or(String::new(), |id: ConnId| id.to_string()));
        json.text("reason", connection.close_reason.map_or("", |why| why.word()));
        json.number("bytes_in", connection.bytes_in as f64);
        json.number("bytes_out", connection.bytes_out as f64);
    });
}

fn peer(json: &mut Json, peer: &PeerState) {
    json.object(|json| {
        json.text("name", &peer.name);
        json.number("socket", peer.socket as f64);
        json.number("received", peer.received as f64);
        json.text("text", &peer.text);
        json.text("ended", &peer.ended.map_or(String::new(), |end| format!("{end:?}")));
        json.text("closed", peer.closed.map_or("", |why| why.word()));
        json.text("refused", peer.refused.map_or("", |why| why.word()));
    });
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
