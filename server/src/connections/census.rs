//! All connections of a process, over all its listeners.
//!
//! Owns the decision which connections may stay: how many there are, which one makes room for a new one, and which one
//! ends when answers hold too much memory. Calls must never lock the census: they count in their own connection, and
//! the census reads these counts when it needs them.

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
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use votestream_core::observe::metrics::{self, ConnectionClosed, Gauge};

use super::{
    descriptors,
    link::{Link, Order},
};
use crate::{Limits, Tls};

/// How long a new connection waits before it looks again for a connection without a call. When a connection ends, it is
/// woken at once.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Most connections that are told to end at the same time; never more than a sixteenth of all. More than one, so that
/// one slow connection does not delay all new ones.
const LEAVING_MAX: usize = 32;
/// Most connections that are checked for one new one. Limits the cost of many new connections while all others are
/// busy.
const LOOKED_AT_MAX: usize = 1_024;

/// The connections of a process. All its listeners share one value, because they share the process's descriptors.
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
    /// Makes a census with these limits. The descriptor limit of the process also applies; it is raised for this.
    pub fn new(limits: Limits) -> Self {
        Self::secured(limits, None)
    }

    /// Like [`new`](Self::new), with TLS on all of them.
    pub fn secured(limits: Limits, tls: Option<Tls>) -> Self {
        Self::count(limits, tls, true)
    }

    /// Like [`new`](Self::new), for connections that are not of clients: no metric has them.
    pub(crate) fn of_operators(limits: Limits) -> Self {
        Self::count(limits, None, false)
    }

    fn count(limits: Limits, tls: Option<Tls>, of_clients: bool) -> Self {
        Self(Arc::new(Census {
            limits,
            tls,
            of_clients,
            served: watch::Sender::new(0),
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

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Waits until connections of this many listeners are accepted.
    pub async fn served(&self, listeners: usize) {
        let mut served = self.0.served.subscribe();
        // The sender lives as long as `self`.
        drop(served.wait_for(|&served| served >= listeners).await);
    }
}

#[derive(Debug)]
pub(crate) struct Census {
    pub(crate) limits: Limits,
    /// TLS of all connections; `None` if they have none.
    pub(crate) tls: Option<Tls>,
    /// Whether metrics have these connections.
    of_clients: bool,
    /// Number of listeners whose connections are, or were, accepted.
    served: watch::Sender<usize>,
    /// Most connections; computed when the first connection comes.
    max: OnceLock<usize>,
    origin: Instant,
    places: Mutex<Places>,
    /// Notified when a connection ends.
    freed: Notify,
    /// Whether the limit was reached; used to log this once.
    full: AtomicBool,
    /// Bytes of answers of all connections, except those that were told to end because of their answers.
    answer_bytes: AtomicU64,
    /// The same for requests that were received but not read, counted in steps.
    request_bytes: AtomicU64,
    /// The same of connections that were told to end and have not ended.
    leaving_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: HashMap<u64, (Arc<Link>, Option<Quiet>)>,
    /// The order in which connections make room. An entry may be out of date (earlier than the truth). It is corrected
    /// when it is used.
    quiet: BTreeSet<Quiet>,
    /// Number of connections that were told to end and have not ended yet.
    leaving: usize,
    /// Connections per address. Kept only if there is a limit.
    per_address: HashMap<IpAddr, u32>,
}

/// How quiet a connection was when it was last checked. Connections that never sent a request come first, then those
/// that have been without a call longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Quiet {
    requested: bool,
    since: u64,
    id: u64,
}

impl Quiet {
    /// The present state of a connection, and whether it has a call. For a connection with a call, `since` is at most
    /// `now`; the true value will be later.
    fn now(link: &Link, id: u64, now: u64) -> (Self, bool) {
        let state = link.state();
        (Self { requested: state.requested, since: state.idle_since.min(now), id }, state.busy)
    }
}

/// The address has too many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyOfAddress;

/// The place of a connection. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) link: Arc<Link>,
    id: u64,
}

/// The address that is counted. In IPv6 this is the /64 network, because one person usually has all its addresses.
pub(crate) fn network(address: IpAddr) -> IpAddr {
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

    /// Changes a gauge.
    pub(crate) fn add(&self, gauge: &Gauge, change: i64) {
        if self.of_clients {
            gauge.add(change);
        }
    }

    /// Counts a connection that the server closed.
    pub(crate) fn closed(&self, reason: ConnectionClosed) {
        if self.of_clients {
            metrics::connection_closed(reason);
        }
    }

    /// Most connections at the same time.
    fn max(&self) -> usize {
        *self.max.get_or_init(|| {
            let descriptors = descriptors::raise_descriptor_limit();
            let allowed = usize::try_from(descriptors::for_connections(descriptors)).unwrap_or(usize::MAX);
            let max = match self.limits.connections_max {
                0 => allowed,
                asked => allowed.min(asked as usize),
            };
            tracing::debug!(descriptors, max, "limit of connections");
            max
        })
    }

    /// The instant of such a time in milliseconds.
    pub(crate) fn instant(&self, millis: u64) -> Instant {
        self.origin + Duration::from_millis(millis.saturating_sub(1))
    }

    /// Finds a place for a new connection. Waits while all places are taken by connections with calls.
    ///
    /// # Errors
    ///
    /// If its address has too many connections.
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

    /// Takes a place if one is free. Otherwise returns `None` and tells connections without a call to end, if there are
    /// any.
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
            // Tell no more connections to end until those that were told have ended.
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
        self.add(&metrics::CONNECTIONS, 1);
        Ok(Some(Place { link, id }))
    }

    /// Tells the connection that has been without a call longest to end, if there is one. Used when descriptors are
    /// short.
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
                    "the limit of connections is reached: the quietest connections are closed to make room for new ones"
                );
            } else {
                tracing::info!(max = self.max(), "the number of connections is below the limit again");
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

    /// Returns a number for a new listener, which is served from now on.
    pub(crate) fn listener(&self) -> u64 {
        self.served.send_modify(|served| *served += 1);
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

    /// Adds bytes of answers. Returns true if there are too many now.
    pub(crate) fn hold_answers(&self, bytes: u64) -> bool {
        self.answer_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.limits.answer_bytes_max
    }

    /// Ends connections until answers hold few enough bytes, first those whose clients have taken nothing for longest.
    pub(crate) fn write_off_answers(&self) {
        let too_many = || self.answer_bytes.load(Ordering::Relaxed) > self.limits.answer_bytes_max;
        self.write_off(too_many, Link::waiting, Link::write_off_answers);
    }

    /// Changes the bytes of requests that one connection holds. Returns true if all connections together now hold too
    /// many.
    pub(crate) fn hold_requests(&self, before: u64, now: u64) -> bool {
        // The change wraps if there are fewer bytes than before; the sum does not.
        let change = now.wrapping_sub(before);
        let held = self.request_bytes.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        self.add(&metrics::REQUEST_BYTES, change as i64);
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

    /// Ends connections until requests hold few enough bytes, first those of which nothing was read for longest.
    pub(crate) fn write_off_requests(&self) {
        let too_many = || self.request_bytes.load(Ordering::Relaxed) > self.limits.request_bytes_max;
        self.write_off(too_many, Link::unread, Link::write_off_requests);
    }

    /// Ends ("writes off") connections as long as `too_many` holds: first those that have stood still for longest, and
    /// of these first those that hold most.
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
                // All other connections are busy, too.
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
        census.add(&metrics::CONNECTIONS, -1);
        census.freed.notify_one();
    }
}
