//! Random numbers with a seed.

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to spread redials and to choose faults; not for
/// secrets. Equal seeds give equal numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`; 0 if `n` is 0. The high half of a product is one without a division (Lemire 2019); the bias
    /// is below n / 2^64.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_reference_implementation() {
        let mut rng = Rng(1_234_567);
        assert_eq!([0; 2].map(|_| rng.next()), [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        let mut rng = Rng(1_234_567);
        assert_eq!([1_000, 1_000, 0, 1].map(|n| rng.below(n)), [350, 173, 0, 0]);
    }
}
