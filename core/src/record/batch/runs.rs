//! Values of a column; equal neighbours are stored together.
//!
//! Must never know what the values are.

/// Values in their order, each with the number of times that it occurs in a row.
#[derive(Clone, Debug)]
pub(super) struct Runs<T>(Vec<(T, u32)>);

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Runs<T> {
    #[inline]
    pub(super) fn push(&mut self, value: T) {
        match self.0.last_mut() {
            Some((last, count)) if *last == value => *count += 1,
            _ => self.0.push((value, 1)),
        }
    }

    /// Forgets every value but keeps the memory.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn as_slice(&self) -> &[(T, u32)] {
        &self.0
    }

    /// Every value, as often as it occurs.
    pub(super) fn each(&self) -> impl Iterator<Item = T> {
        self.0.iter().flat_map(|&(value, count)| std::iter::repeat_n(value, count as usize))
    }
}
