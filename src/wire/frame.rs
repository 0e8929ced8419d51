//! The decoded form of frames.
use bytes::Bytes;
use std::{fmt, sync::Arc};

/// A serializer, chosen by the `vsn` of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// 1.0.0: every frame is a JSON object; no binary.
    V1,
    /// 2.0.0: JSON arrays, and binary user broadcasts.
    V2,
}

impl Version {
    /// The serializer for a `vsn`: `1.0.x` or `2.0.x`. Defaults to 1.0.0; `None` for any other.
    ///
    /// Only full versions count: `2` and `2.1.0` are refused (`docs/spec/realtime-protocol.md` §1.4).
    #[must_use]
    pub fn from_vsn(vsn: Option<&str>) -> Option<Self> {
        let Some(vsn) = vsn else { return Some(Self::V1) };
        let (release, _) = vsn.split_once(['-', '+']).unwrap_or((vsn, ""));
        let mut parts = release.split('.');
        let (major, minor, patch) = (parts.next()?, parts.next()?, parts.next()?);
        let numeric = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_digit())
                && (part == "0" || !part.starts_with('0'))
        };
        if parts.next().is_some() || ![major, minor, patch].into_iter().all(numeric) {
            return None;
        }
        match (major, minor) {
            ("1", "0") => Some(Self::V1),
            ("2", "0") => Some(Self::V2),
            _ => None,
        }
    }
}
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "1.0.0",
            Self::V2 => "2.0.0",
        })
    }
}

/// A `ref` or `join_ref`: JSON text of the client, usually `"14"`, which replies echo unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref(Arc<str>);

impl Ref {
    /// From JSON text; `None` for `null`.
    pub(super) fn from_json(json: &str) -> Option<Self> {
        (json != "null").then(|| Self(json.into()))
    }
    /// From a bare string, as in a binary header.
    pub(super) fn from_string(text: &str) -> Self {
        Self(serde_json::Value::from(text).to_string().into())
    }
    /// A count as a decimal string, as clients make references.
    #[must_use]
    pub fn from_count(count: u64) -> Self {
        Self(format!("\"{count}\"").into())
    }
    /// The count of a reference made by [`Ref::from_count`]; `None` for any other.
    #[must_use]
    pub fn count(&self) -> Option<u64> {
        self.0.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
    }
    /// As JSON text.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

/// How a user payload is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Any bytes.
    Binary,
    /// A JSON document.
    Json,
}

/// The content of an inbound frame, as slices of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Well-formed JSON of any type, from a text frame.
    Json(Bytes),
    /// A user broadcast of a binary frame. A JSON payload is checked to be well-formed.
    User {
        /// The event that the application chose.
        event: String,
        /// The encoding of `data`.
        encoding: Encoding,
        /// The user payload.
        data: Bytes,
    },
}

impl Payload {
    /// Bytes of the content that the client chose, for the size limit.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Json(json) => json.len(),
            Self::User { event, data, .. } => event.len() + data.len(),
        }
    }
}

/// One frame from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The `join_ref` of the sender's join.
    pub join_ref: Option<Ref>,
    /// The `ref` that the reply must carry.
    pub reference: Option<Ref>,
    /// The topic with its `realtime:` prefix.
    pub topic: String,
    /// The event of the protocol, like `phx_join`. A binary user broadcast has `broadcast`.
    pub event: String,
    /// The content.
    pub payload: Payload,
}

/// One encoded frame to a client. Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// UTF-8 text.
    Text(Bytes),
    /// A binary frame of kind 4.
    Binary(Bytes),
}

impl Frame {
    /// Length in bytes without the websocket header.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_versions_of_both_serializers_are_accepted() {
        assert_eq!(Version::from_vsn(None), Some(Version::V1));
        assert_eq!(Version::from_vsn(Some("1.0.0")), Some(Version::V1));
        assert_eq!(Version::from_vsn(Some("2.0.7")), Some(Version::V2));
        for bad in ["2", "2.0", "2.1.0", "3.0.0", "abc", "", "2.0.0.0", "2.0.x", "02.0.0"] {
            assert_eq!(Version::from_vsn(Some(bad)), None, "{bad:?}");
        }
    }
}
