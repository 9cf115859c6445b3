//! All that is left to chance, from one seed.

use std::time::Duration;

/// The dice of one schedule.
#[derive(Clone, Debug)]
pub(crate) struct Dice(fastrand::Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Less than `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }

    /// Whether something happens that does so `percent` times in a hundred.
    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.0.u32(..100) < percent
    }

    /// One of them, if there are any.
    pub(crate) fn one_of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { all.get(self.below(all.len())) }
    }

    /// Nothing at all, mostly little, seldom long.
    pub(crate) fn pause(&mut self) -> Duration {
        let millis = match self.below(10) {
            0..3 => 0,
            3..8 => self.below(40),
            8 => self.below(600),
            _ => self.below(4000),
        };
        Duration::from_millis(millis as u64)
    }
}
