//! The connections of a process, over all its listeners.
//!
//! Owns who may stay: how many connections there are, which one makes room for a newcomer, and which one ends when answers hold
//! too much memory. Must never be asked by a call: calls count in their own connection, and the census looks when it must.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use votestream_core::observe::metrics;

use super::{
    descriptors,
    link::{Link, Order},
};
use crate::Limits;

/// How long a newcomer waits before it looks again for a connection without a call. Ended connections wake it at once.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many connections are told to leave together, at most a sixteenth of all: one that takes its time must not be waited for by
/// every newcomer.
const LEAVING_MAX: usize = 32;
/// How many connections are looked at for one newcomer: bounds what a crowd of newcomers costs while all others are busy.
const LOOKED_AT_MAX: usize = 1_024;

/// The connections of a process. All listeners of a process share one, since they share its descriptors.
#[derive(Clone)]
pub struct Connections(pub(crate) Arc<Census>);

impl Default for Connections {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.0.limits).finish()
    }
}

impl Connections {
    /// As many connections as these limits allow, and as the descriptor limit, which is raised for them.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Census {
            limits,
            max: OnceLock::new(),
            origin: Instant::now(),
            places: Mutex::default(),
            freed: Notify::new(),
            full: AtomicBool::new(false),
            answer_bytes: AtomicU64::new(0),
            request_bytes: AtomicU64::new(0),
            leaving_bytes: AtomicU64::new(0),
        }))
    }

    /// What they are allowed.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }
}

#[derive(Debug)]
pub(crate) struct Census {
    pub(crate) limits: Limits,
    /// Found out when the first connection comes.
    max: OnceLock<usize>,
    origin: Instant,
    places: Mutex<Places>,
    /// A connection has ended.
    freed: Notify,
    /// The limit was reached, and that was said.
    full: AtomicBool,
    /// Bytes of answers of all connections that were not told to end for them.
    answer_bytes: AtomicU64,
    /// The same for requests that were received and not read, in steps.
    request_bytes: AtomicU64,
    /// The same of connections that were told to end and have not ended.
    leaving_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: HashMap<u64, (Arc<Link>, Option<Quiet>)>,
    /// Who makes room first. What stands here may have happened before the truth, and is put right when it is looked at.
    quiet: BTreeSet<Quiet>,
    /// How many were told to leave and are still there.
    leaving: usize,
    /// Kept only if there is a limit.
    per_address: HashMap<IpAddr, u32>,
}

/// How quiet a connection was when it was last looked at: those that never sent a request come first, then those that have been
/// without a call longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Quiet {
    requested: bool,
    since: u64,
    id: u64,
}

impl Quiet {
    /// As quiet as it can be at most: a connection with a call becomes quiet later than now.
    fn now(link: &Link, id: u64, now: u64) -> (Self, bool) {
        let state = link.state();
        (Self { requested: state.requested, since: state.idle_since.min(now), id }, state.busy)
    }
}

/// Too many connections come from this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyOfAddress;

/// A connection's place, which is free when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) link: Arc<Link>,
    id: u64,
}

/// One person has all addresses of an IPv6 network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Census {
    /// Milliseconds since the census began; never 0.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX / 2) + 1
    }

    /// The most connections that there may be at a time.
    fn max(&self) -> usize {
        *self.max.get_or_init(|| {
            let descriptors = descriptors::raise_descriptor_limit();
            let allowed = usize::try_from(descriptors::for_connections(descriptors)).unwrap_or(usize::MAX);
            let max = match self.limits.connections_max {
                0 => allowed,
                asked => allowed.min(asked as usize),
            };
            tracing::debug!(descriptors, max, "connections are limited");
            max
        })
    }

    /// The instant of such a time.
    pub(crate) fn instant(&self, millis: u64) -> Instant {
        self.origin + Duration::from_millis(millis.saturating_sub(1))
    }

    /// Finds a place for a newcomer: waits while all are taken by connections with calls.
    ///
    /// # Errors
    ///
    /// If its address has as many as it may.
    pub(crate) async fn place(self: &Arc<Self>, peer: SocketAddr, listener: u64) -> Result<Place, TooManyOfAddress> {
        loop {
            if let Some(place) = self.try_place(peer, listener)? {
                return Ok(place);
            }
            tokio::select! {
                () = self.freed.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// A place, or none, and then somebody was told to leave if anybody is without a call.
    fn try_place(self: &Arc<Self>, peer: SocketAddr, listener: u64) -> Result<Option<Place>, TooManyOfAddress> {
        let mut places = self.places.lock();
        let per_address_max = self.limits.connections_per_address_max;
        let address = network(peer.ip());
        if per_address_max > 0 && places.per_address.get(&address).is_some_and(|&held| held >= per_address_max) {
            return Err(TooManyOfAddress);
        }
        if places.taken.len() >= self.max() {
            self.say_full(true);
            let together = (self.max() / 16).clamp(1, LEAVING_MAX);
            // The next ones once these are gone.
            let mut left = if places.leaving == 0 { together } else { 0 };
            while left > 0 && places.make_room(self.now()) {
                left -= 1;
            }
            return Ok(None);
        }
        if per_address_max > 0 {
            *places.per_address.entry(address).or_default() += 1;
        }
        let id = places.next;
        places.next += 1;
        let link = Arc::new(Link::new(self.clone(), peer, listener));
        let quiet = Quiet { requested: false, since: link.accepted_at, id };
        places.quiet.insert(quiet);
        places.taken.insert(id, (link.clone(), Some(quiet)));
        metrics::CONNECTIONS.add(1);
        Ok(Some(Place { link, id }))
    }

    /// Tells the connection to leave that has been without a call longest, if there is one. For when descriptors are short.
    pub(crate) fn make_room(&self) {
        self.places.lock().make_room(self.now());
    }

    /// Logs a change, once.
    fn say_full(&self, full: bool) {
        if self.full.load(Ordering::Relaxed) != full {
            self.full.store(full, Ordering::Relaxed);
            if full {
                tracing::warn!(
                    max = self.max(),
                    "as many connections as there may be: the quietest make room for new ones"
                );
            } else {
                tracing::info!(max = self.max(), "fewer connections than there may be");
            }
        }
    }

    /// Gives an order to all connections of a listener.
    pub(crate) fn order_all(&self, listener: u64, order: Order) {
        let places = self.places.lock();
        for (link, _) in places.taken.values().filter(|(link, _)| link.listener == listener) {
            link.order(order);
        }
    }

    /// A number for a listener.
    pub(crate) fn listener(&self) -> u64 {
        let mut places = self.places.lock();
        places.next += 1;
        places.next - 1
    }

    #[cfg(test)]
    pub(crate) fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn answer_bytes(&self) -> u64 {
        self.answer_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn release_answers(&self, bytes: u64) {
        self.answer_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of answers, and says whether there are too many.
    pub(crate) fn hold_answers(&self, bytes: u64) -> bool {
        self.answer_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.limits.answer_bytes_max
    }

    /// Ends the connections whose clients have taken nothing for longest, until the answers of the others are not too many.
    pub(crate) fn write_off_answers(&self) {
        let too_many = || self.answer_bytes.load(Ordering::Relaxed) > self.limits.answer_bytes_max;
        self.write_off(too_many, Link::waiting, Link::write_off_answers);
    }

    /// Counts bytes of requests anew for one connection, and says whether there are too many of all.
    pub(crate) fn hold_requests(&self, before: u64, now: u64) -> bool {
        // Wraps if there are less than before; the sum does not.
        let change = now.wrapping_sub(before);
        let held = self.request_bytes.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        metrics::REQUEST_BYTES.add(change as i64);
        now > before && held > self.limits.request_bytes_max
    }

    /// Bytes of requests go with their connection, which was told to end.
    pub(crate) fn requests_leave(&self, bytes: u64) {
        self.hold_requests(bytes, 0);
        self.leaving_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Those bytes are gone.
    pub(crate) fn requests_left(&self, bytes: u64) {
        self.leaving_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether there is no memory for more bytes of requests. A connection that was told to end gives its memory back a moment
    /// later.
    pub(crate) fn requests_are_full(&self) -> bool {
        let leaving = self.leaving_bytes.load(Ordering::Relaxed);
        leaving > 0 && self.request_bytes.load(Ordering::Relaxed) + leaving > self.limits.request_bytes_max
    }

    /// Ends the connections of which nothing was read for longest, until the requests of the others are not too many.
    pub(crate) fn write_off_requests(&self) {
        let too_many = || self.request_bytes.load(Ordering::Relaxed) > self.limits.request_bytes_max;
        self.write_off(too_many, Link::unread, Link::write_off_requests);
    }

    /// Writes off connections as long as there are too many: those first that have stood still for longest, and of these the
    /// ones that hold most.
    fn write_off(
        &self,
        too_many: impl Fn() -> bool,
        held: impl Fn(&Link) -> Option<(u64, u64)>,
        write_off: impl Fn(&Link),
    ) {
        let places = self.places.lock();
        let mut holding: Vec<_> = places.taken.values().filter_map(|(link, _)| Some((held(link)?, link))).collect();
        holding.sort_unstable_by_key(|&((since, bytes), _)| (since, Reverse(bytes)));
        holding.into_iter().take_while(|_| too_many()).for_each(|(_, link)| write_off(link));
    }
}

impl Places {
    fn make_room(&mut self, now: u64) -> bool {
        for _ in 0..LOOKED_AT_MAX {
            let Some(quiet) = self.quiet.pop_first() else { return false };
            let Some((link, known)) = self.taken.get_mut(&quiet.id) else { continue };
            let (truly, busy) = Quiet::now(link, quiet.id, now);
            if !busy && truly == quiet {
                *known = None;
                self.leaving += 1;
                link.order(Order::MakeRoom);
                return true;
            }
            *known = Some(truly);
            self.quiet.insert(truly);
            if busy && quiet == truly {
                // The others are busy, too.
                return false;
            }
        }
        false
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let census = &self.link.census;
        let mut places = census.places.lock();
        match places.taken.remove(&self.id) {
            Some((_, Some(quiet))) => drop(places.quiet.remove(&quiet)),
            Some((_, None)) => places.leaving -= 1,
            None => {}
        }
        if census.limits.connections_per_address_max > 0 {
            let address = network(self.link.address());
            if let Some(held) = places.per_address.get_mut(&address) {
                *held -= 1;
                if *held == 0 {
                    places.per_address.remove(&address);
                }
            }
        }
        if places.taken.len() < census.max() / 10 * 9 {
            census.say_full(false);
        }
        metrics::CONNECTIONS.add(-1);
        census.freed.notify_one();
    }
}
