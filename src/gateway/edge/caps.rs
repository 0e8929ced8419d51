//! Caps on connections: in total and per address.
use crate::id::client_address;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// Counts connections by address. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Caps(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total_max: usize,
    per_address_max: usize,
    proxies: HashSet<IpAddr>,
    count: Mutex<Count>,
}

#[derive(Debug, Default)]
struct Count {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The total is reached.
    #[error("too many connections")]
    Total,
    /// The limit of the address is reached.
    #[error("too many connections from this address")]
    Address,
}

/// A counted connection. Dropping it releases its count.
#[derive(Debug)]
pub struct ConnectionSlot {
    caps: Caps,
    in_total: bool,
    address: Option<IpAddr>,
}

impl Caps {
    /// Caps of `total_max` connections, and `per_address_max` per address. Connections from `proxies` count for
    /// the clients behind them.
    #[must_use]
    pub fn new(total_max: usize, per_address_max: usize, proxies: &[IpAddr]) -> Self {
        let proxies = proxies.iter().map(IpAddr::to_canonical).collect();
        Self(Arc::new(Inner { total_max, per_address_max, proxies, count: Mutex::default() }))
    }

    /// Counts a connection from `peer`.
    ///
    /// # Errors
    /// [`Full`] if a cap is reached.
    pub fn connect(&self, peer: IpAddr) -> Result<ConnectionSlot, Full> {
        let address = (!self.is_proxy(peer)).then(|| client_address(peer));
        self.enter(true, address)
    }

    /// Counts a request or websocket of a client behind a proxy.
    ///
    /// # Errors
    /// [`Full::Address`] if the client's cap is reached.
    pub fn forwarded(&self, client: IpAddr) -> Result<ConnectionSlot, Full> {
        self.enter(false, Some(client_address(client)))
    }

    /// The client behind the proxy at `peer`, from `x-forwarded-for`: the last address that is not a
    /// proxy's. Addresses before it come from the client and may be forged. `None` if `peer` is not a
    /// proxy, or the header names no client.
    #[must_use]
    pub fn client_behind(&self, peer: IpAddr, forwarded_for: &str) -> Option<IpAddr> {
        if !self.is_proxy(peer) {
            return None;
        }
        let addresses = forwarded_for.rsplit(',').map_while(|address| address.trim().parse::<IpAddr>().ok());
        addresses.map(|address| address.to_canonical()).find(|address| !self.is_proxy(*address))
    }

    /// The number of connections, and the cap.
    #[must_use]
    pub fn total(&self) -> (usize, usize) {
        (self.0.count.lock().total, self.0.total_max)
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.0.proxies.contains(&peer.to_canonical())
    }

    fn enter(&self, in_total: bool, address: Option<IpAddr>) -> Result<ConnectionSlot, Full> {
        let mut count = self.0.count.lock();
        if in_total && count.total >= self.0.total_max {
            return Err(Full::Total);
        }
        if let Some(address) = address {
            let here = count.by_address.entry(address).or_default();
            if *here >= self.0.per_address_max {
                return Err(Full::Address);
            }
            *here += 1;
        }
        count.total += usize::from(in_total);
        Ok(ConnectionSlot { caps: self.clone(), in_total, address })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut count = self.caps.0.count.lock();
        count.total -= usize::from(self.in_total);
        let Some(address) = self.address else { return };
        if let Some(here) = count.by_address.get_mut(&address) {
            *here -= 1;
            if *here == 0 {
                count.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_capped_per_address_and_in_total() {
        let caps = Caps::new(3, 2, &[]);
        let one = caps.connect(ip("192.0.2.1")).unwrap();
        let _two = caps.connect(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(caps.connect(ip("192.0.2.1")).unwrap_err(), Full::Address);
        let _three = caps.connect(ip("192.0.2.2")).unwrap();
        assert_eq!(caps.connect(ip("192.0.2.3")).unwrap_err(), Full::Total);
        drop(one);
        let _again = caps.connect(ip("192.0.2.1")).unwrap();
        assert_eq!(caps.total(), (3, 3));
    }

    #[test]
    fn refused_and_closed_connections_are_not_counted() {
        let caps = Caps::new(1, 1, &[]);
        drop(caps.connect(ip("192.0.2.1")).unwrap());
        let _slot = caps.connect(ip("192.0.2.2")).unwrap();
        assert!(caps.connect(ip("192.0.2.3")).is_err());
        assert_eq!(caps.0.count.lock().by_address.len(), 1);
    }

    #[test]
    fn ipv6_addresses_with_the_same_first_half_are_one_client() {
        let caps = Caps::new(10, 1, &[]);
        let _slot = caps.connect(ip("2001:db8:0:1::1")).unwrap();
        assert!(caps.connect(ip("2001:db8:0:1:ffff::2")).is_err());
        assert!(caps.connect(ip("2001:db8:0:2::1")).is_ok());
    }

    #[test]
    fn client_behind_a_proxy_is_the_last_address_that_is_no_proxy() {
        let caps = Caps::new(10, 1, &[ip("10.0.0.1"), ip("10.0.0.2")]);
        let _proxy = [caps.connect(ip("10.0.0.1")).unwrap(), caps.connect(ip("10.0.0.1")).unwrap()];
        let behind = |peer: &str, header: &str| caps.client_behind(ip(peer), header);
        assert_eq!(behind("10.0.0.1", "198.51.100.7, 192.0.2.9"), Some(ip("192.0.2.9")));
        assert_eq!(behind("10.0.0.1", "192.0.2.9,10.0.0.2"), Some(ip("192.0.2.9")));
        assert_eq!(behind("192.0.2.1", "192.0.2.9"), None, "any client can send a header");
        for header in ["", "unknown", "192.0.2.9, unknown", "10.0.0.2"] {
            assert_eq!(behind("10.0.0.1", header), None, "{header}");
        }
        let _slot = caps.forwarded(ip("192.0.2.9")).unwrap();
        assert_eq!(caps.forwarded(ip("192.0.2.9")).unwrap_err(), Full::Address);
        assert_eq!(caps.total().0, 2, "a proxy's connections count once");
    }
}
