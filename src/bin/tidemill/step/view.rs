//! One step as text: what happened, the kernel's side, the loop's side.

use std::io::{self, Write};
use std::time::Duration;

use tidemill::observer::Phase;
use tidemill::testing::{Cause, ConnectionState, KernelSocket, Moment, PeerState, Snapshot, phase_source};

/// What happened.
pub fn step(moment: &Moment, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let snapshot = &moment.snapshot;
    let head = match &moment.cause {
        Cause::Start => "the service listens".to_string(),
        Cause::Act(line) => format!("── {line} ──"),
        Cause::Clock => "── the clock moves ──".to_string(),
        Cause::Phase(phase) => {
            // The last phase ends the turn, and the snapshot is of the next one.
            let turn = snapshot.turn - u64::from(phase == &Phase::Accept);
            format!("turn {turn}  {}", phase.word())
        }
        Cause::Over => "── nothing is left to do ──".to_string(),
        Cause::Failed(why) => format!("── {why} ──"),
        _ => String::new(),
    };
    line(&format!("{:>4}  {:>8}  {head}", moment.number, seconds(snapshot.now)), columns, out)?;
    let indented = moment.happened.iter().map(|it| format!("                  {}", it.text));
    let stuck = moment.stuck.iter().map(|what| format!("      at rest, and forgotten: {what}"));
    indented.chain(stuck).try_for_each(|text| line(&text, columns, out))
}

/// The state after it.
pub fn state(moment: &Moment, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let snapshot = &moment.snapshot;
    let mut put = |text: String| line(&text, columns, out);
    put("      kernel".to_string())?;
    for listener in &snapshot.listeners {
        let edge = if listener.edge { "  edge: readable" } else { "" };
        put(format!("        {:<22} backlog {}{edge}", listener.address.to_string(), listener.backlog))?;
    }
    for socket in &snapshot.sockets {
        put(format!("        {}", kernel_line(socket, &moment.peers)))?;
    }
    snapshot
        .descriptors_left
        .into_iter()
        .try_for_each(|left| put(format!("        {left} descriptors left")))?;
    put(format!("      loop  {}", loop_line(snapshot)))?;
    for connection in &snapshot.connections {
        put(format!("        {}", connection_line(connection, snapshot.now)))?;
    }
    put("      peers".to_string())?;
    moment.peers.iter().try_for_each(|peer| put(format!("        {}", peer_line(peer))))
}

/// The source of the phase.
pub fn source(moment: &Moment, out: &mut dyn Write) -> io::Result<()> {
    let Cause::Phase(phase) = moment.cause else {
        return writeln!(out, "this step is not of the loop: go to a phase with n");
    };
    let source = phase_source(phase);
    writeln!(out, "{}:{}", source.file, source.line)?;
    (source.line..)
        .zip(source.text.lines())
        .try_for_each(|(number, text)| writeln!(out, "{number:>5} {text}"))
}

fn kernel_line(socket: &KernelSocket, peers: &[PeerState]) -> String {
    let name = peers.iter().find(|peer| peer.socket == socket.number).map_or("", |peer| &peer.name);
    let mut text = format!("{name:<8} {:<10}", socket.state.word());
    let mut add = |some: bool, what: String| text += &if some { format!("  {what}") } else { String::new() };
    add(socket.in_transit > 0, format!("on its way {} B", socket.in_transit));
    add(socket.unread > 0, format!("unread {} B", socket.unread));
    add(socket.end, "FIN received".to_string());
    add(socket.reset, "reset received".to_string());
    add(socket.delivered > 0, format!("delivered {} B", socket.delivered));
    add(socket.finished, "FIN sent".to_string());
    add(socket.window.is_some(), format!("window {} B", socket.window.unwrap_or(0)));
    add(!socket.edge.is_empty(), format!("edge: {}", socket.edge.join(" ")));
    text
}

fn loop_line(snapshot: &Snapshot) -> String {
    let ids = |all: &[tidemill::ConnId]| all.iter().map(|id| format!(" {id}")).collect::<String>();
    let mut text = format!("{} slots free", snapshot.free_slots);
    let mut add = |some: bool, what: String| text += &if some { format!("  {what}") } else { String::new() };
    add(!snapshot.events.is_empty(), format!("events: {}", snapshot.events.join(", ")));
    add(!snapshot.ready.is_empty(), format!("ready:{}", ids(&snapshot.ready)));
    let dirty: String = snapshot.dirty.iter().map(|(id, bytes)| format!(" {id} {bytes} B")).collect();
    add(!snapshot.dirty.is_empty(), format!("to write:{dirty}"));
    add(!snapshot.drained.is_empty(), format!("drained:{}", ids(&snapshot.drained)));
    add(!snapshot.pending_dials.is_empty(), format!("to dial:{}", ids(&snapshot.pending_dials)));
    add(!snapshot.to_reap.is_empty(), format!("to reap:{}", ids(&snapshot.to_reap)));
    add(snapshot.memory > 0, format!("memory {} B", snapshot.memory));
    add(snapshot.has_work, "work left: the next turn does not sleep".to_string());
    let next = snapshot.next_deadline.filter(|_| !snapshot.has_work);
    add(next.is_some(), format!("sleeps until {}", seconds(next.unwrap_or_default())));
    text
}

fn connection_line(connection: &ConnectionState, now: Duration) -> String {
    let mut text = format!("{:<7} {}", connection.id.to_string(), connection.stage);
    let mut add = |some: bool, what: String| text += &if some { format!("  {what}") } else { String::new() };
    let halves = (connection.incoming, connection.outgoing);
    add(halves != ("open", "open"), format!("in {} out {}", halves.0, halves.1));
    add(connection.filter != "off", format!("filter {}", connection.filter));
    add(!connection.flags.is_empty(), connection.flags.join(" "));
    add(!connection.holds.is_empty(), format!("holds: {}", connection.holds.join(" ")));
    add(connection.inbox > 0, format!("inbox {} B", connection.inbox));
    add(connection.outbox > 0, format!("outbox {} B", connection.outbox));
    add(connection.attempts > 0, format!("{} attempts", connection.attempts));
    add(
        connection.pipe_peer.is_some(),
        connection.pipe_peer.map_or(String::new(), |id| format!("piped with {id}")),
    );
    let due = connection
        .deadline
        .map_or(String::new(), |(when, due)| format!("{due:?} in {}", seconds(when.saturating_sub(now))));
    add(!due.is_empty(), due);
    add(
        connection.wheel != connection.deadline.map(|(when, _)| when),
        connection.wheel.map_or(String::new(), |when| format!("wheel {}", seconds(when))),
    );
    add(connection.close_reason.is_some(), connection.close_reason.map_or("", |why| why.word()).to_string());
    text
}

fn peer_line(peer: &PeerState) -> String {
    let text: String = peer.text.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
    let mut line = format!("{:<8} received {} B {:?}", peer.name, peer.received, text);
    peer.refused.into_iter().for_each(|why| line += &format!("  refused: {}", why.word()));
    peer.ended.into_iter().for_each(|end| line += &format!("  end: {end:?}"));
    peer.closed.into_iter().for_each(|why| line += &format!("  service was told: {}", why.word()));
    line
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// A line that fits; what is too long ends with an ellipsis.
fn line(text: &str, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let text = text.trim_end();
    match text.chars().count() <= columns {
        true => writeln!(out, "{text}"),
        false => writeln!(out, "{}…", text.chars().take(columns.saturating_sub(1)).collect::<String>()),
    }
}
