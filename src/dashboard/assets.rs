//! The built page, embedded in the program: `web/dashboard/dist`, listed by `build.rs`.
//!
//! A file whose name has a hash never changes and is cached for a year. The others are asked for again with their
//! `ETag`. Each file is compressed once, at its first request.
use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, fmt::Write as _, io::Write as _, sync::OnceLock};

/// `(path, bytes)` of each file.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/dashboard_files.rs"));
/// The file with the stamp of the sources; it is not served.
const BUILD: &str = "BUILD";
/// Compressing a smaller file saves nothing.
const GZIP_BYTES_MIN: usize = 512;

/// The files of the page.
pub(super) struct Assets(HashMap<&'static str, File>);

struct File {
    bytes: &'static [u8],
    kind: &'static str,
    tag: String,
    is_hashed: bool,
    gzip: OnceLock<Option<Bytes>>,
}

/// The stamp of the sources from which the embedded page was built. Empty if it was not built.
#[must_use]
pub fn sources_stamp() -> &'static str {
    let build = FILES.iter().find(|(path, _)| *path == BUILD).map(|(_, bytes)| *bytes).unwrap_or_default();
    std::str::from_utf8(build).unwrap_or_default().trim()
}

impl Assets {
    pub(super) fn embedded() -> Self {
        let served = FILES.iter().filter(|(path, _)| *path != BUILD);
        Self(served.map(|(path, bytes)| (*path, File::new(path, bytes))).collect())
    }

    /// The file, or 304 if the client has it. `None` if there is no such file.
    pub(super) fn answer(&self, path: &str, headers: &HeaderMap) -> Option<Response> {
        Some(self.0.get(path)?.answer(headers))
    }
}

impl File {
    fn new(path: &str, bytes: &'static [u8]) -> Self {
        let kind = match path.rsplit('.').next() {
            Some("html") => "text/html; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "application/octet-stream",
        };
        let tag = Sha256::digest(bytes).iter().take(12).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { bytes, kind, tag, is_hashed: path.starts_with("assets/"), gzip: OnceLock::new() }
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let gzip = if takes_gzip(headers) { self.gzipped() } else { None };
        // Each encoding has its own tag: a cache must not combine them.
        let tag = format!("\"{}{}\"", self.tag, if gzip.is_some() { "-gz" } else { "" });
        let age = if self.is_hashed { "public, max-age=31536000, immutable" } else { "no-cache" };
        let set = [
            (header::CONTENT_TYPE, self.kind),
            (header::CACHE_CONTROL, age),
            (header::VARY, "accept-encoding"),
            (header::ETAG, tag.as_str()),
        ];
        let set = set.map(|(name, value): (HeaderName, &str)| (name, value.to_owned()));
        if has(headers, &tag) {
            return (StatusCode::NOT_MODIFIED, set).into_response();
        }
        let Some(bytes) = gzip else { return (set, Bytes::from_static(self.bytes)).into_response() };
        let mut response = (set, bytes).into_response();
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    }

    fn gzipped(&self) -> Option<Bytes> {
        self.gzip
            .get_or_init(|| {
                if self.bytes.len() < GZIP_BYTES_MIN {
                    return None;
                }
                let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
                encoder.write_all(self.bytes).and_then(|()| encoder.finish()).ok().map(Bytes::from)
            })
            .clone()
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|accepted| {
        accepted.split(',').any(|one| {
            let (name, quality) = one.split_once(';').unwrap_or((one, ""));
            let quality = quality.replace(' ', "");
            name.trim().eq_ignore_ascii_case("gzip")
                && !matches!(quality.as_str(), "q=0" | "q=0.0" | "q=0.00")
        })
    })
}

/// Whether the client has the file with this tag.
fn has(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag || one.trim() == "*")
}
