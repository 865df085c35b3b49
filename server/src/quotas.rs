//! How often a voter, a credential and an address may call.
//!
//! Owns the settings of these limits and the counts behind them. Must never read a body, nor know what a call is for. A
//! count is a `governor` cell in a map; nothing here counts by itself.
//!
//! Memory is bounded. Counts that are as good as new leave the map every second. If there are still more than
//! [`KEYS_MAX`], all counts of the limit are forgotten, and everybody has its full burst again. So nobody is locked out
//! because the map is full. And nobody can switch a limit off by filling the map: that takes as many voters, credentials
//! or addresses as the map holds, again for each further burst.

mod proxies;
mod rate;

use std::{
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use governor::{
    RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
    state::keyed::DashMapStateStore,
};
use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use votestream_core::observe::metrics::{self, Limit};

use crate::connections::network;

pub use proxies::TrustedProxies;
pub use rate::Rate;

/// Most counts of a limit: 20 MB.
const KEYS_MAX: usize = 800_000;
/// After so many calls the number of counts is looked at. The map may exceed its bound by as many.
const LOOK_EVERY: u64 = 16_384;
/// How often counts that are as good as new are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// Limits on how often others may call a process. There are none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// Calls of a voter: a user whom tokens name.
    pub per_voter: Option<Rate>,
    /// Calls with one key, certificate or token.
    pub per_credential: Option<Rate>,
    /// Calls from an address; in IPv6, from a /64 network.
    pub per_address: Option<Rate>,
    /// Proxies whose word about their clients' addresses is taken.
    pub trusted_proxies: TrustedProxies,
}

impl CallLimits {
    /// Whether some limit only makes sense if callers say who they are.
    pub fn need_identity(&self) -> bool {
        self.per_voter.is_some() || self.per_credential.is_some()
    }
}

/// Counts calls. Copies share the counts, as all listeners of a process should.
#[derive(Clone, Debug, Default)]
pub struct Quotas(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    voter: Option<Meter>,
    credential: Option<Meter>,
    address: Option<Meter>,
    proxies: TrustedProxies,
    /// What makes keys of names. Nobody outside can find two names with one key.
    seed: RandomState,
    is_pruned: AtomicBool,
}

/// A caller calls too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    limit: Limit,
    rate: Rate,
    /// How long to wait. `None` if waiting does not help: more was asked for at once than ever fits.
    wait: Option<Duration>,
}

impl From<Exceeded> for Status {
    fn from(exceeded: Exceeded) -> Self {
        let Exceeded { limit, rate, wait } = exceeded;
        let of = match limit {
            Limit::Voter => "this voter",
            Limit::Credential => "this credential",
            Limit::Address => "this address",
        };
        match wait {
            Some(_) => Self::with_error_details(
                Code::ResourceExhausted,
                format!("too many calls of {of}: the limit is {rate}; try again later"),
                ErrorDetails::with_retry_info(wait),
            ),
            None => Self::resource_exhausted(format!("too much at once of {of}: the limit is {rate}")),
        }
    }
}

impl Quotas {
    /// Counts against these limits.
    pub fn new(limits: &CallLimits) -> Self {
        let meter = |limit, rate: Option<Rate>| rate.map(|rate| Meter::new(limit, rate, MonotonicClock));
        let inner = Inner {
            voter: meter(Limit::Voter, limits.per_voter),
            credential: meter(Limit::Credential, limits.per_credential),
            address: meter(Limit::Address, limits.per_address),
            proxies: limits.trusted_proxies.clone(),
            seed: RandomState::new(),
            is_pruned: AtomicBool::new(false),
        };
        let is_limited = inner.meters().next().is_some();
        Self(is_limited.then(|| Arc::new(inner)))
    }

    /// Removes counts that are as good as new from now on, until the last copy is dropped. Must be called within a
    /// runtime. Further calls do nothing.
    pub(crate) fn prune(&self) {
        if let Some(inner) = &self.0
            && !inner.is_pruned.swap(true, Ordering::AcqRel)
        {
            tokio::spawn(prune(Arc::downgrade(inner)));
        }
    }

    /// Whether voters are counted.
    pub(crate) fn count_voters(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.voter.is_some())
    }

    /// Counts a call from an address.
    pub(crate) fn call_from(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Exceeded> {
        self.take(|inner| &inner.address, NonZeroU32::MIN, |inner| network(inner.proxies.client(peer, headers)))
    }

    /// Counts a call with a credential of this name.
    pub(crate) fn call_with(&self, credential: impl Hash) -> Result<(), Exceeded> {
        self.take(|inner| &inner.credential, NonZeroU32::MIN, |_| credential)
    }

    /// Counts calls, or votes, of a voter of this name.
    pub(crate) fn calls_of(&self, voter: impl Hash, calls: NonZeroU32) -> Result<(), Exceeded> {
        self.take(|inner| &inner.voter, calls, |_| voter)
    }

    fn take<K: Hash>(
        &self,
        meter: impl FnOnce(&Inner) -> &Option<Meter>,
        calls: NonZeroU32,
        key: impl FnOnce(&Inner) -> K,
    ) -> Result<(), Exceeded> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let Some(meter) = meter(inner) else { return Ok(()) };
        meter.take(inner.seed.hash_one(key(inner)), calls)
    }
}

impl Inner {
    fn meters(&self) -> impl Iterator<Item = &Meter> {
        [&self.voter, &self.credential, &self.address].into_iter().flatten()
    }
}

async fn prune(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(PRUNE_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        // It goes through the whole map.
        let pruned = tokio::task::spawn_blocking(move || inner.meters().for_each(Meter::prune));
        if let Err(error) = pruned.await {
            tracing::error!(%error, "removing counts of calls panicked");
        }
    }
}

type Limiter<C> = RateLimiter<u64, DashMapStateStore<u64>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// The counts of one limit.
struct Meter<C: Clock = MonotonicClock> {
    limit: Limit,
    rate: Rate,
    limiter: ArcSwap<Limiter<C>>,
    /// Calls that may have added a count.
    counted: AtomicU64,
    clock: C,
}

impl<C: Clock> fmt::Debug for Meter<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("limit", &self.limit).field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl<C: Clock + Clone + Send + Sync + 'static> Meter<C>
where
    C::Instant: Send + Sync,
{
    fn new(limit: Limit, rate: Rate, clock: C) -> Self {
        let limiter = ArcSwap::from_pointee(Self::limiter(rate, &clock));
        Self { limit, rate, limiter, counted: AtomicU64::new(0), clock }
    }

    fn limiter(rate: Rate, clock: &C) -> Limiter<C> {
        RateLimiter::dashmap_with_clock(rate.quota(), clock.clone())
    }

    fn take(&self, key: u64, calls: NonZeroU32) -> Result<(), Exceeded> {
        let limiter = self.limiter.load();
        let taken = match calls {
            NonZeroU32::MIN => Ok(limiter.check_key(&key)),
            calls => limiter.check_key_n(&key, calls),
        };
        let wait = match taken {
            Ok(Ok(())) => {
                if self.counted.fetch_add(1, Ordering::Relaxed) % LOOK_EVERY == LOOK_EVERY - 1 {
                    self.keep_bounded(KEYS_MAX);
                }
                return Ok(());
            }
            Ok(Err(until)) => Some(until.wait_time_from(self.clock.now())),
            Err(_) => None,
        };
        metrics::limited(self.limit);
        Err(Exceeded { limit: self.limit, rate: self.rate, wait })
    }

    /// Forgets everything if there are too many counts.
    fn keep_bounded(&self, keys_max: usize) {
        if self.limiter.load().len() <= keys_max {
            return;
        }
        tracing::warn!(
            limit = ?self.limit, keys_max,
            "more voters, credentials or addresses call than can be counted: all counts of this limit begin anew"
        );
        let old = self.limiter.swap(Arc::new(Self::limiter(self.rate, &self.clock)));
        // Freeing so much takes milliseconds, for which this call must not wait.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(old));
        }
    }

    fn prune(&self) {
        self.limiter.load().retain_recent();
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn meter(rate: &str) -> (Meter<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Meter::new(Limit::Voter, rate.parse().unwrap(), clock.clone()), clock)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (meter, clock) = meter("10/s:3");
        let calls = |key| (0..9).filter(|_| meter.take(key, ONE).is_ok()).count();
        assert_eq!(calls(1), 3);
        assert_eq!(calls(2), 3, "another key has its own count");
        let wait = meter.take(1, ONE).unwrap_err().wait;
        assert_eq!(wait, Some(Duration::from_millis(100)));
        clock.advance(Duration::from_millis(100));
        assert_eq!(calls(1), 1);
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(calls(1), 3);
    }

    #[test]
    fn several_pass_together_or_not_at_all() {
        let (meter, clock) = meter("10/s:3");
        let calls = |calls| meter.take(1, NonZeroU32::new(calls).unwrap());
        assert_eq!(calls(4).unwrap_err().wait, None, "it never fits");
        assert!(calls(2).is_ok());
        assert!(calls(2).unwrap_err().wait.is_some());
        assert!(calls(1).is_ok());
        clock.advance(Duration::from_millis(200));
        assert!(calls(2).is_ok());
    }

    #[test]
    fn counts_that_are_as_good_as_new_are_removed() {
        let (meter, clock) = meter("10/s:3");
        clock.advance(Duration::from_secs(10));
        (0..1_000).for_each(|key| assert!(meter.take(key, ONE).is_ok()));
        assert_eq!((0..3).filter(|_| meter.take(7, ONE).is_ok()).count(), 2);
        meter.prune();
        assert_eq!(meter.limiter.load().len(), 1_000);
        clock.advance(Duration::from_millis(250));
        meter.prune();
        assert_eq!(meter.limiter.load().len(), 1, "one is not as good as new");
        assert_eq!((0..9).filter(|_| meter.take(7, ONE).is_ok()).count(), 2);
    }

    /// The rule when the map is full: nobody is locked out, and a further burst takes as many keys as the map holds.
    #[test]
    fn more_keys_than_can_be_counted_lock_nobody_out_and_switch_nothing_off() {
        let (meter, _) = meter("1/h");
        let keys_max = 1_000;
        let (mut passed, mut attackers) = (0, 0);
        for key in 0..50_000_u64 {
            // Every voter of the crowd comes once and gets through.
            assert!(meter.take(key, ONE).is_ok(), "{key}");
            passed += u64::from(meter.take(u64::MAX, ONE).is_ok());
            attackers += 1;
            meter.keep_bounded(keys_max);
            assert!(meter.limiter.load().len() <= keys_max);
        }
        assert!(passed <= attackers / (keys_max as u64 - 1) + 1, "{passed} of {attackers}");
    }

    #[test]
    fn the_map_is_looked_at_often_enough() {
        let (meter, _) = meter("1/h");
        for key in 0..(KEYS_MAX as u64 + 2 * LOOK_EVERY) {
            assert!(meter.take(key, ONE).is_ok());
        }
        let kept = meter.limiter.load().len();
        assert!(kept < 2 * LOOK_EVERY as usize, "{kept} counts are left");
    }

    #[tokio::test(start_paused = true)]
    async fn pruning_ends_with_the_last_copy() {
        let limits = CallLimits { per_address: Some("1/s".parse().unwrap()), ..CallLimits::default() };
        let quotas = Quotas::new(&limits);
        quotas.prune();
        quotas.prune();
        let headers = HeaderMap::new();
        assert!(quotas.call_from("127.0.0.1:1".parse().unwrap(), &headers).is_ok());
        assert!(quotas.call_from("127.0.0.1:2".parse().unwrap(), &headers).is_err());
        assert!(quotas.call_from("[2001:db8::1]:1".parse().unwrap(), &headers).is_ok());
        assert!(quotas.call_from("[2001:db8::2]:1".parse().unwrap(), &headers).is_err(), "one network");
        assert!(quotas.call_from("[2001:db8:0:1::1]:1".parse().unwrap(), &headers).is_ok());
        assert!(quotas.call_with("key").is_ok() && quotas.call_with("key").is_ok(), "no limit");
        let inner = Arc::downgrade(quotas.0.as_ref().unwrap());
        drop(quotas);
        while inner.strong_count() > 0 {
            tokio::time::sleep(PRUNE_EVERY).await;
        }
    }

    #[test]
    fn nothing_is_counted_by_default() {
        let quotas = Quotas::new(&CallLimits::default());
        assert!(quotas.0.is_none() && !quotas.count_voters());
    }
}
