//! The addresses of a server's websocket and of its HTTP broadcast.
use super::Error;
use crate::wire::Version;
use reqwest::Url;

const DEFAULT_PATH: &str = "/realtime/v1";

/// The two addresses derived from the given one.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    socket: Url,
    http: Url,
}

impl Endpoint {
    /// Accepts `ws://`, `wss://`, `http://` or `https://`: `https://x.supabase.co/realtime/v1`, `ws://host/socket`, or
    /// a server without a path, which means `/realtime/v1`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::Url { url: without_secrets(text), why: why.to_owned() };
        let mut url = Url::parse(text.trim()).map_err(|e| invalid(&e.to_string()))?;
        let secure = match url.scheme() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err(invalid("it must begin with ws://, wss://, http:// or https://")),
        };
        if url.host_str().is_none_or(str::is_empty) {
            return Err(invalid("it has no host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("it must not contain a name or password; pass the key separately"));
        }
        url.set_query(None);
        url.set_fragment(None);
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/websocket").unwrap_or(path);
        let path = if path.is_empty() { DEFAULT_PATH } else { path }.to_owned();
        let base = path.strip_suffix("/socket").unwrap_or(&path);
        let with = |scheme: &str, path: &str| {
            let text = format!("{scheme}:{}", url.as_str().split_once(':').map_or("", |(_, rest)| rest));
            let mut url = Url::parse(&text).map_err(|e| invalid(&e.to_string()))?;
            url.set_path(path);
            Ok::<_, Error>(url)
        };
        let socket = with(if secure { "wss" } else { "ws" }, &format!("{path}/websocket"))?;
        let http = with(if secure { "https" } else { "http" }, &format!("{base}/api/broadcast"))?;
        Ok(Self { socket, http })
    }

    /// The address of the websocket with the key and the other parameters of the handshake.
    pub(super) fn socket(&self, key: &str, params: &[(String, String)], version: Version) -> Url {
        let mut url = self.socket.clone();
        url.query_pairs_mut()
            .append_pair("apikey", key)
            .extend_pairs(params)
            .append_pair("vsn", &version.to_string());
        url
    }

    /// The address for one broadcast over HTTP.
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

    /// Host, port, and whether TLS is used.
    pub(super) fn address(&self) -> (&str, u16, bool) {
        let host = self.socket.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (host, self.socket.port_or_known_default().unwrap_or_default(), self.socket.scheme() == "wss")
    }
}

/// Removes user info, query and fragment: a key that was pasted with the address must not be printed.
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
    fn both_addresses_derive_from_any_accepted_form() {
        let (default_path, direct) = ("/realtime/v1/websocket", "/socket/websocket");
        for (given, socket, http) in [
            (
                "https://x.supabase.co/realtime/v1",
                format!("wss://x.supabase.co{default_path}"),
                "https://x.supabase.co/realtime/v1/api/broadcast",
            ),
            (
                "http://127.0.0.1:4000",
                format!("ws://127.0.0.1:4000{default_path}"),
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
    fn invalid_address_is_reported_without_its_secrets() {
        for bad in ["", "localhost:4000", "ftp://h", "ws://", "ws://u:hush@h/x", "wss://:hush@h?apikey=hush"]
        {
            let error = Endpoint::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
