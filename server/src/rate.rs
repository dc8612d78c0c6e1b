//! Requests a minute, for each key or address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock, Reference};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::{ApiError, AppState};

/// Requests a minute.
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
/// How many of them are left.
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
/// When all of them are there again.
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
/// What answers say about the limit.
pub(crate) const HEADERS: [HeaderName; 3] = [LIMIT, REMAINING, RESET];

/// New addresses a minute that are remembered; beyond, they share one allowance.
const MAX_ADDRESSES: usize = 1 << 16;
/// In this time an address that asks for nothing has its whole allowance again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Whose allowance a request takes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// The key with this index.
    Key(usize),
    /// An address; of IPv6 the half that a provider gives to one customer.
    Address(IpAddr),
    /// Everybody whose address is unknown or one too many.
    Others,
}

impl Client {
    fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
            v4 => v4,
        })
    }
}

/// Where a client stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    limit: NonZeroU32,
    remaining: u32,
    /// Until all requests are there again.
    reset: Duration,
    /// Until one is, if this request was one too many.
    wait: Option<Duration>,
}

/// Counts requests by client. A minute's worth may come at once; they come back one by one.
#[derive(Debug)]
pub(crate) struct RateLimit<C: Clock = DefaultClock> {
    limiter: RateLimiter<Client, HashMapStateStore<Client>, C, StateInformationMiddleware>,
    clock: C,
    limit: NonZeroU32,
    max_addresses: usize,
    known: Mutex<Known<C::Instant>>,
}

/// Addresses of this minute and of the one before.
#[derive(Debug)]
struct Known<I> {
    now: HashSet<IpAddr>,
    before: HashSet<IpAddr>,
    /// When this minute began.
    since: Option<I>,
}

impl RateLimit {
    /// At most `limit` requests a minute.
    pub(crate) fn new(limit: NonZeroU32) -> Self {
        Self::with_clock(limit, DefaultClock::default(), MAX_ADDRESSES)
    }
}

impl<C: Clock + Clone> RateLimit<C> {
    fn with_clock(limit: NonZeroU32, clock: C, max_addresses: usize) -> Self {
        let limiter = RateLimiter::hashmap_with_clock(Quota::per_minute(limit), clock.clone());
        let limiter = limiter.with_middleware();
        let known = Known { now: HashSet::new(), before: HashSet::new(), since: None };
        Self { limiter, clock, limit, max_addresses, known: Mutex::new(known) }
    }

    fn take(&self, client: Client) -> Standing {
        let client = match client {
            Client::Address(address) if !self.remembers(address) => Client::Others,
            known => known,
        };
        // Of the last request there is still a part to come back, which counts as a whole one.
        let back = Duration::from_secs(60) / self.limit.get();
        match self.limiter.check_key(&client) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let reset = back * (self.limit.get() - remaining);
                Standing { limit: self.limit, remaining, reset, wait: None }
            }
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                let reset = wait + back * (self.limit.get() - 1);
                Standing { limit: self.limit, remaining: 0, reset, wait: Some(wait) }
            }
        }
    }

    /// Whether an address has an allowance of its own. One that had it a moment ago keeps it.
    fn remembers(&self, address: IpAddr) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let is_over = |since| Duration::from(now.duration_since(since)) >= FORGOTTEN_AFTER;
        if known.since.is_none_or(is_over) {
            known.since = Some(now);
            known.before = std::mem::take(&mut known.now);
            self.limiter.retain_recent();
        }
        if known.now.contains(&address) {
            return true;
        }
        let remembered = known.before.contains(&address) || known.now.len() < self.max_addresses;
        if remembered {
            known.now.insert(address);
        }
        remembered
    }
}

impl Standing {
    fn write(&self, headers: &mut HeaderMap) {
        headers.insert(LIMIT, self.limit.get().into());
        headers.insert(REMAINING, self.remaining.into());
        if let Ok(reset) = HeaderValue::from_str(&spell(self.reset)) {
            headers.insert(RESET, reset);
        }
    }
}

/// A time as OpenAI's servers write it: `20ms`, `1.5s`, `6m0s`.
fn spell(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", ms as f64 / 1000.0),
        _ => format!("{}m{}s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// Lets a request pass that its client still has, and says how many are left. Only requests that
/// start work count.
pub(crate) async fn limit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let Some(limit) = state.rate_limit().filter(|_| request.method() == Method::POST) else {
        return next.run(request).await;
    };
    let key = request.extensions().get::<Client>().cloned();
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let client = key.or_else(|| address.map(|ConnectInfo(peer)| Client::at(peer.ip())));
    let standing = limit.take(client.unwrap_or(Client::Others));
    let mut response = match standing.wait {
        None => next.run(request).await,
        Some(wait) => {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let limit = standing.limit.get();
            ApiError::RateLimited { limit, retry_after: seconds.max(1) }.into_response()
        }
    };
    standing.write(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn limited(limit: u32, addresses: usize) -> (RateLimit<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (RateLimit::with_clock(NonZeroU32::new(limit).unwrap(), clock.clone(), addresses), clock)
    }

    fn at(text: &str) -> Client {
        Client::at(text.parse().unwrap())
    }

    #[test]
    fn requests_come_back_one_by_one() {
        let (limit, clock) = limited(3, 10);
        let seconds = |s| Duration::from_secs(s);
        let left: Vec<_> = (0..3).map(|_| limit.take(Client::Key(0)).remaining).collect();
        assert_eq!(left, [2, 1, 0]);
        clock.advance(seconds(5));
        let refused = limit.take(Client::Key(0));
        assert_eq!((refused.wait, refused.reset), (Some(seconds(15)), seconds(55)));
        assert_eq!(limit.take(Client::Key(1)).wait, None, "another key has its own");
        clock.advance(seconds(15));
        let passed = limit.take(Client::Key(0));
        assert_eq!((passed.wait, passed.remaining, passed.reset), (None, 0, seconds(60)));
    }

    #[test]
    fn addresses_are_forgotten_when_there_are_too_many() {
        let (limit, clock) = limited(1, 2);
        assert!(limit.take(at("10.0.0.1")).wait.is_none());
        assert!(limit.take(at("10.0.0.2")).wait.is_none());
        assert!(limit.take(at("10.0.0.3")).wait.is_none(), "the first of the others");
        assert!(limit.take(at("10.0.0.4")).wait.is_some(), "shares with the third");
        assert!(limit.take(Client::Key(0)).wait.is_none(), "keys are always known");
        clock.advance(Duration::from_secs(61));
        assert!(limit.take(at("10.0.0.5")).wait.is_none());
        assert!(limit.take(at("10.0.0.6")).wait.is_none());
        assert!(limit.take(at("10.0.0.1")).wait.is_none(), "known before the crowd came");
        assert!(limit.take(at("10.0.0.7")).wait.is_none(), "the first of the others");
        assert!(limit.take(at("10.0.0.8")).wait.is_some());
        clock.advance(Duration::from_secs(200));
        assert!(limit.take(at("10.0.0.9")).wait.is_none());
        assert_eq!(limit.limiter.len(), 1);
    }

    #[test]
    fn neighbours_in_a_network_of_ipv6_are_one_client() {
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
    }

    #[test]
    fn times_are_spelled_as_openai_does() {
        for (ms, text) in [(20, "20ms"), (1500, "1.5s"), (2000, "2s"), (361_500, "6m1s")] {
            assert_eq!(spell(Duration::from_millis(ms)), text);
        }
    }
}
