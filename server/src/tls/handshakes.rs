//! The handshakes that are in progress, over all listeners.
//!
//! Owns how many there may be. One more ends the oldest, as with connections: whoever is honest is done within moments.
//! Making it wait instead would let a few hundred clients that never finish keep everybody out.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use crate::connections::{Link, Order};

/// Most handshakes at a time. At a third of a second each, over a bad mobile link, these are 12,000 new connections a
/// second, which is what one core can do. With the limit of their bytes they hold at most 150 MB.
pub(crate) const HANDSHAKES_MAX: usize = 4_096;

/// The handshakes that are in progress.
#[derive(Debug, Default)]
pub(crate) struct Handshakes(Mutex<Running>);

#[derive(Debug, Default)]
struct Running {
    next: u64,
    /// In the order in which they began.
    links: BTreeMap<u64, Arc<Link>>,
}

/// A handshake in progress, until this is dropped.
#[derive(Debug)]
pub(crate) struct Handshake {
    all: Arc<Handshakes>,
    number: u64,
}

impl Handshake {
    /// Begins one on this connection, and ends the oldest if there are too many.
    pub(crate) fn begin(all: &Arc<Handshakes>, link: &Arc<Link>) -> Self {
        let mut running = all.0.lock();
        let number = running.next;
        running.next += 1;
        running.links.insert(number, link.clone());
        let oldest = if running.links.len() > HANDSHAKES_MAX { running.links.pop_first() } else { None };
        drop(running);
        if let Some((_, oldest)) = oldest {
            oldest.order(Order::MakeRoom);
        }
        Self { all: all.clone(), number }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.0.lock().links.remove(&self.number);
    }
}
