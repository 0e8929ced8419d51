//! Which hosts and addresses a `fetch` may reach. Pure.
//!
//! A name that is allowed says nothing about its addresses: whoever owns the name chooses them. So every address is
//! judged, too. Addresses are those of the registries of special purposes (RFC 6890 and its successors); of IPv6 only
//! the part that is assigned for the internet is public. IPv4 inside IPv6 is refused whatever it contains.
use crate::agent::{Fetch, definition::PUBLIC};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::Url;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ports of an entry without a port.
const PORTS: [u16; 2] = [80, 443];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}
const fn v6(a: u16, b: u16, c: u16, h: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, h), prefix))
}

/// Addresses of the services that hand out the credentials of a machine.
const METADATA: [IpNet; 6] = [
    v4(169, 254, 0, 0, 16),
    v4(100, 100, 100, 200, 32),
    v4(168, 63, 129, 16, 32),
    v4(192, 0, 0, 192, 32),
    v6(0xfd00, 0xec2, 0, 0x254, 128),
    v6(0xfd20, 0xce, 0, 0x254, 128),
];
/// Networks of a machine or a company, which an entry may permit.
const PRIVATE: [IpNet; 7] = [
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
    v6(0, 0, 0, 1, 128),
    v6(0xfc00, 0, 0, 0, 7),
];
/// Everything else that is not the internet.
const RESERVED: [IpNet; 15] = [
    v4(0, 0, 0, 0, 8),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 31, 196, 0, 24),
    v4(192, 52, 193, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 175, 48, 0, 24),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 3),
    // With Teredo; 6to4; documentation.
    v6(0x2001, 0, 0, 0, 23),
    v6(0x2002, 0, 0, 0, 16),
    v6(0x2001, 0xdb8, 0, 0, 32),
    v6(0x3fff, 0, 0, 0, 20),
];
/// The part of IPv6 that is assigned for the internet.
const PUBLIC_V6: IpNet = v6(0x2000, 0, 0, 0, 3);

/// Names of the services that hand out the credentials of a machine.
const METADATA_NAMES: [&str; 6] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
];

/// Whether the private addresses of a URL's host are permitted.
///
/// # Errors
/// Why the URL is not.
pub(super) fn permitted(url: &Url, fetch: &Fetch) -> Result<bool, String> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("only http and https URLs can be fetched".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user or a password is not fetched".into());
    }
    let name = plain(url.host_str().unwrap_or_default());
    if METADATA_NAMES.contains(&name.as_str()) {
        return Err(format!("the host {name} is never fetched"));
    }
    let port = url.port_or_known_default().unwrap_or_default();
    let is_in = |hosts: &[String]| hosts.iter().any(|host| covers(host, &name, port));
    if is_in(&fetch.private_hosts) {
        return Ok(true);
    }
    if is_in(&fetch.hosts) {
        return Ok(false);
    }
    Err(format!("the host {name} with port {port} is not in run.fetch.hosts"))
}

/// The name and the port of an entry.
pub(crate) fn name_and_port(entry: &str) -> (&str, Option<u16>) {
    match entry.rsplit_once(':') {
        // Not the end of an IPv6 address.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (entry, None),
        },
        _ => (entry, None),
    }
}

/// A host without brackets and the dot at its end.
fn plain(host: &str) -> String {
    host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

fn covers(entry: &str, name: &str, port: u16) -> bool {
    let (entry, of) = name_and_port(entry);
    if !of.map_or_else(|| PORTS.contains(&port), |of| of == port) {
        return false;
    }
    let entry = plain(entry);
    match entry.strip_prefix("*.") {
        Some(domain) => name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => entry == PUBLIC || entry == name,
    }
}

/// Why an address is refused. `None` if it may be connected to.
pub(super) fn refused(address: IpAddr, private: bool) -> Option<&'static str> {
    let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
    if within(&METADATA) {
        return Some("a link-local address, or one of a metadata service");
    }
    if within(&PRIVATE) {
        return (!private).then_some("a private address");
    }
    let is_reserved = within(&RESERVED) || (address.is_ipv6() && !PUBLIC_V6.contains(&address));
    is_reserved.then_some("a reserved address")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(hosts: &[&str], private: &[&str]) -> Fetch {
        toml::from_str(&format!("hosts = {hosts:?}\nprivate_hosts = {private:?}")).unwrap()
    }

    #[test]
    fn address_of_every_special_network_is_refused() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:1::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "1fff::1",
        ] {
            assert!(refused(address.parse().unwrap(), false).is_some(), "{address}");
        }
        for address in [
            "8.8.8.8",
            "1.1.1.1",
            "172.15.255.255",
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "192.167.255.255",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::1",
            "2400:cb00::1",
        ] {
            assert_eq!(refused(address.parse().unwrap(), false), None, "{address}");
        }
    }

    #[test]
    fn entry_for_private_addresses_lets_in_neither_metadata_nor_reserved_ones() {
        for address in ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.1", "172.20.0.1", "100.64.0.1", "fd00::1"]
        {
            assert_eq!(refused(address.parse().unwrap(), true), None, "{address}");
        }
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(refused(address.parse().unwrap(), true).is_some(), "{address}");
        }
    }

    #[test]
    fn url_needs_an_entry_for_its_name_and_port() {
        let allowed = fetch(
            &["docs.example.com", "*.example.org", "[2606:4700::1]:81"],
            &["10.0.0.7:8080", "[fd00::1]"],
        );
        let fits = |url: &str| permitted(&Url::parse(url).unwrap(), &allowed).is_ok();
        for url in [
            "http://docs.example.com/a?b",
            "https://DOCS.example.com./",
            "https://docs.example.com:80/",
            "http://a.example.org/",
            "http://a.b.example.org/",
            "http://10.0.0.7:8080/",
            "http://[fd00::1]/",
            "http://[2606:4700:0::1]:81/",
            // Other ways to write the same address.
            "http://0x0a000007:8080/",
            "http://10.7:8080/",
        ] {
            assert!(fits(url), "{url}");
        }
        for url in [
            "ftp://docs.example.com/",
            "file:///etc/passwd",
            "http://docs.example.com:22/",
            "http://docs.example.com@10.0.0.8/",
            "http://user:key@docs.example.com/",
            "http://example.org/",
            "http://evilexample.org/",
            "http://docs.example.com.evil.net/",
            "http://.example.org/",
            "http://10.0.0.7/",
            "http://[2606:4700::1]/",
            "http://169.254.169.254/",
            "http://docs.example.co\u{430}/",
        ] {
            assert!(!Url::parse(url).is_ok_and(|url| permitted(&url, &allowed).is_ok()), "{url}");
        }
    }

    #[test]
    fn metadata_names_are_refused_also_if_they_are_listed() {
        let all = fetch(&["public", "*.internal"], &["metadata.google.internal", "metadata"]);
        for url in ["http://metadata.google.internal/", "http://METADATA/", "http://instance-data./latest"] {
            assert!(permitted(&Url::parse(url).unwrap(), &all).is_err(), "{url}");
        }
        assert_eq!(permitted(&Url::parse("http://anything.net/").unwrap(), &all), Ok(false));
    }

    proptest::proptest! {
        #[test]
        fn ipv4_address_is_public_only_if_it_is_also_so_inside_of_no_ipv6(bits: u32) {
            let address = Ipv4Addr::from(bits);
            let [a, b, c, d] = address.octets().map(u16::from);
            for inside in [
                address.to_ipv6_mapped(),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, a << 8 | b, c << 8 | d),
                Ipv6Addr::new(0x2002, a << 8 | b, c << 8 | d, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d),
            ] {
                // `::1` is inside, too.
                proptest::prop_assert!(refused(inside.into(), inside != Ipv6Addr::LOCALHOST).is_some());
            }
        }
    }
}
