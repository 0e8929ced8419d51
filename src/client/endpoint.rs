//! Where a server is: the address of its websocket and of its HTTP broadcast.
use super::Error;
use crate::wire::Version;
use reqwest::Url;

const HIDDEN: &str = "/realtime/v1";

/// The two addresses that follow from the one that the user gave.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    socket: Url,
    http: Url,
}

impl Endpoint {
    /// From `ws://`, `wss://`, `http://` or `https://`: `https://x.supabase.co/realtime/v1`, `ws://host/socket`, or
    /// the bare server, for which `/realtime/v1` is meant.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Url { url: without_secrets(text), why: why.to_owned() };
        let mut url = Url::parse(text.trim()).map_err(|e| wrong(&e.to_string()))?;
        let secure = match url.scheme() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err(wrong("it must begin with ws://, wss://, http:// or https://")),
        };
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("there is no host in it"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a name or password in it has no meaning; the key is given by itself"));
        }
        url.set_query(None);
        url.set_fragment(None);
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/websocket").unwrap_or(path);
        let path = if path.is_empty() { HIDDEN } else { path }.to_owned();
        let base = path.strip_suffix("/socket").unwrap_or(&path);
        let with = |scheme: &str, path: &str| {
            let text = format!("{scheme}:{}", url.as_str().split_once(':').map_or("", |(_, rest)| rest));
            let mut url = Url::parse(&text).map_err(|e| wrong(&e.to_string()))?;
            url.set_path(path);
            Ok::<_, Error>(url)
        };
        let socket = with(if secure { "wss" } else { "ws" }, &format!("{path}/websocket"))?;
        let http = with(if secure { "https" } else { "http" }, &format!("{base}/api/broadcast"))?;
        Ok(Self { socket, http })
    }

    /// The websocket's address with the key and everything else that the handshake wants.
    pub(super) fn socket(&self, key: &str, params: &[(String, String)], version: Version) -> Url {
        let mut url = self.socket.clone();
        url.query_pairs_mut()
            .append_pair("apikey", key)
            .extend_pairs(params)
            .append_pair("vsn", &version.to_string());
        url
    }

    /// Where one message is broadcast over HTTP.
    pub(super) fn broadcast(&self, topic: &str, event: &str, private: bool) -> Url {
        let mut url = self.http.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend([topic, "events", event]);
        }
        if private {
            url.query_pairs_mut().append_pair("private", "true");
        }
        url
    }

    /// Host, port, and whether it is spoken to in TLS.
    pub(super) fn address(&self) -> (&str, u16, bool) {
        let host = self.socket.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (host, self.socket.port_or_known_default().unwrap_or_default(), self.socket.scheme() == "wss")
    }
}

/// A key that somebody pasted with the address must not be printed.
fn without_secrets(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_follow_from_any_usual_one() {
        let (hidden, direct) = ("/realtime/v1/websocket", "/socket/websocket");
        for (given, socket, http) in [
            (
                "https://x.supabase.co/realtime/v1",
                format!("wss://x.supabase.co{hidden}"),
                "https://x.supabase.co/realtime/v1/api/broadcast",
            ),
            (
                "http://127.0.0.1:4000",
                format!("ws://127.0.0.1:4000{hidden}"),
                "http://127.0.0.1:4000/realtime/v1/api/broadcast",
            ),
            (
                "ws://[::1]:4000/socket/?apikey=x",
                format!("ws://[::1]:4000{direct}"),
                "http://[::1]:4000/api/broadcast",
            ),
            ("wss://h/socket/websocket", format!("wss://h{direct}"), "https://h/api/broadcast"),
        ] {
            let endpoint = Endpoint::parse(given).unwrap();
            assert_eq!(endpoint.socket.as_str(), socket, "{given}");
            assert_eq!(endpoint.http.as_str(), http, "{given}");
        }
        let endpoint = Endpoint::parse("wss://h/x").unwrap();
        let params = [("client_id".to_owned(), "a b".to_owned())];
        let socket = endpoint.socket("k&y", &params, Version::V2);
        assert_eq!(socket.as_str(), "wss://h/x/websocket?apikey=k%26y&client_id=a+b&vsn=2.0.0");
        let http = endpoint.broadcast("den:7/a b", "ev/1", true);
        assert_eq!(http.as_str(), "https://h/x/api/broadcast/den:7%2Fa%20b/events/ev%2F1?private=true");
        assert_eq!(Endpoint::parse("ws://[::1]:1/x").unwrap().address(), ("::1", 1, false));
    }

    #[test]
    fn a_wrong_address_is_told_without_what_is_secret_in_it() {
        for bad in ["", "localhost:4000", "ftp://h", "ws://", "ws://u:hush@h/x", "wss://:hush@h?apikey=hush"]
        {
            let error = Endpoint::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
