//! Which turns the metrics measure, and the admin socket records while it has no client.

/// One in so many. To read the clock twice in each would add a tenth to the instructions of a turn.
const EVERY: u64 = 16;

pub fn is_sampled(turn: u64) -> bool {
    turn % EVERY == 1
}

/// The first of them behind a turn.
pub fn next_sampled(turn: u64) -> u64 {
    turn + EVERY - (turn + EVERY - 1) % EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_sampled_turn_is_the_first_one_behind() {
        for turn in 0..100 {
            let next = next_sampled(turn);
            assert!(
                is_sampled(next) && (turn + 1..next).all(|between| !is_sampled(between)),
                "{turn}: {next}"
            );
        }
    }
}
