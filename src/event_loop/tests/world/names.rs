//! The resolver of the world. When it is asked, the tape decides what it will do.

use std::collections::HashMap;

use super::*;

/// What becomes of a look-up.
#[derive(Clone, Copy)]
enum Fate {
    /// It is answered after so many steps of the world: by addresses, twice if so, or by an error.
    Late { steps: u64, is_error: bool, twice: bool },
    /// It is never answered.
    Never,
}

#[derive(Default)]
pub(super) struct Names {
    fates: HashMap<u64, Fate>,
    /// An answer that is to come a second time.
    again: Option<u64>,
}

impl Names {
    /// One step of the resolver.
    pub(super) fn step(&mut self, script: &Script, tape: &Tape) {
        if let Some(number) = self.again.take_if(|_| tape.one_in(4)) {
            script.resolve(number, &["10.0.0.7:80"]);
        }
        for (number, _) in script.lookups() {
            let draw = || match tape.below(8) {
                0 => Fate::Never,
                1 => Fate::Late { steps: 0, is_error: true, twice: false },
                drawn => Fate::Late { steps: tape.below(40), is_error: false, twice: drawn < 4 },
            };
            match self.fates.entry(number).or_insert_with(draw) {
                Fate::Never => {}
                Fate::Late { steps: 0, is_error: true, .. } => script.fail_lookup(number),
                Fate::Late { steps: 0, twice, .. } => {
                    script.resolve(number, &["10.0.0.8:80", "[::1]:80"]);
                    self.again = twice.then_some(number).or(self.again);
                }
                Fate::Late { steps, .. } => *steps -= 1,
            }
        }
    }

    /// All that wait are answered.
    pub(super) fn finish(&self, script: &Script) {
        script.lookups().iter().for_each(|(number, _)| script.fail_lookup(*number));
    }
}
