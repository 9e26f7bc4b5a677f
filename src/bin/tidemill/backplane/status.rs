//! What the log tells of the broker: changes only.

use super::Role;

/// Whether both connections work, and which reasons against it were logged since they last did.
#[derive(Default)]
pub struct Status {
    is_up: [bool; 2],
    logged: Vec<String>,
}

/// Different reasons that one outage may have in the log.
const REASONS_MAX: usize = 8;

impl Status {
    /// A connection works. Returns whether both do now, and did not before.
    pub fn up(&mut self, role: Role) -> bool {
        let was_up = self.is_up == [true; 2];
        self.is_up[role as usize] = true;
        let is_news = !was_up && self.is_up == [true; 2];
        if is_news {
            self.logged.clear();
        }
        is_news
    }

    /// A connection does not work. Each reason is logged once in an outage, whichever of the two had it, and however
    /// often they try; none while the server stops.
    pub fn down(&mut self, role: Role, why: &str, is_stopping: bool) {
        self.is_up[role as usize] = false;
        if !is_stopping && self.logged.len() < REASONS_MAX && !self.logged.iter().any(|logged| logged == why)
        {
            log::warn!("backplane: {why}; the room goes on here, and its lines wait for the broker");
            self.logged.push(why.to_string());
        }
    }

    /// Whether this connection works.
    pub fn is_up(&self, role: Role) -> bool {
        self.is_up[role as usize]
    }
}
