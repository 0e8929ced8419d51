//! The address that limits count by.
use std::net::{IpAddr, Ipv6Addr};

/// The address that identifies one client. An IPv6 client usually has 2^64 addresses, so only the first half counts.
#[must_use]
pub fn client_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_client_is_its_network_and_a_mapped_ipv4_client_its_address() {
        for (address, client) in [
            ("2001:db8:0:1::1", "2001:db8:0:1::"),
            ("2001:db8:0:1:ffff::2", "2001:db8:0:1::"),
            ("2001:db8:0:2::1", "2001:db8:0:2::"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(
                client_address(address.parse().unwrap()),
                client.parse::<IpAddr>().unwrap(),
                "{address}"
            );
        }
    }
}
