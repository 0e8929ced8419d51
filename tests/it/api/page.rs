//! The embedded page: it is built from the present sources, and caches may keep what never changes.
use super::Edge;
use reqwest::header;
use sha2::{Digest, Sha256};
use std::{fmt::Write, fs, path::Path};

const SOURCES: [&str; 5] =
    ["index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"];

/// What a browser loads for the first screen, which is everything: the page has no parts that are loaded later.
const FIRST_SCREEN_BYTES_MAX: usize = 90 * 1024;

/// Appends the files below a folder, named relative to the page's folder.
fn below(root: &Path, folder: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            below(root, &path, files);
        } else {
            files.push(path);
        }
    }
}

/// The stamp that `web/dashboard/stamp.mjs` writes.
fn stamp() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/dashboard");
    let mut files: Vec<String> = SOURCES.map(str::to_owned).into();
    below(&root, "src", &mut files);
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = fs::read(root.join(&file)).unwrap();
        hash.update(format!("{file}\0{}\0", bytes.len()));
        hash.update(&bytes);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn embedded_page_was_built_from_the_present_sources() {
    let built = convoke::dashboard::sources_stamp();
    assert_eq!(built, stamp(), "web/dashboard/dist is stale: run `make dashboard` and commit it");
}

#[tokio::test]
async fn hashed_files_are_cached_for_ever_and_the_page_is_asked_for_again() {
    let edge = Edge::start().await;
    let get = async |path: &str, headers: &[(&str, &str)]| {
        let mut request = edge.http.get(format!("http://{}{path}", edge.parts.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    };
    let page = get("/dashboard/", &[]).await;
    let header = |answer: &reqwest::Response, name: &str| {
        answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    assert_eq!((page.status().as_u16(), header(&page, "cache-control")), (200, "no-cache".into()));
    let tag = header(&page, "etag");
    let text = page.text().await.unwrap();
    for screen in ["/dashboard", "/dashboard/demo", "/dashboard/demo/tasks/x/why", "/dashboard/demo/agents/a"]
    {
        assert_eq!(get(screen, &[]).await.text().await.unwrap(), text, "{screen}");
    }
    let known = get("/dashboard/", &[("if-none-match", &tag)]).await;
    assert_eq!((known.status().as_u16(), header(&known, "etag")), (304, tag.clone()));
    assert!(known.bytes().await.unwrap().is_empty());

    let assets: Vec<&str> = text.split('"').filter(|part| part.starts_with("/dashboard/assets/")).collect();
    assert!(assets.len() >= 3, "script, style and icon: {assets:?}");
    let mut sent = 0;
    for path in assets {
        let plain = get(path, &[]).await;
        assert_eq!(header(&plain, "cache-control"), "public, max-age=31536000, immutable", "{path}");
        assert_eq!(header(&plain, "content-encoding"), "");
        let (tag, kind) = (header(&plain, "etag"), header(&plain, "content-type"));
        let expected = match path.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!(kind, expected, "{path}");
        let size = plain.bytes().await.unwrap().len();
        if size < 512 {
            continue;
        }
        let small = get(path, &[("accept-encoding", "br, gzip;q=0.8")]).await;
        assert_eq!(
            (header(&small, "content-encoding"), header(&small, "vary")),
            ("gzip".into(), "accept-encoding".into())
        );
        assert_ne!(header(&small, "etag"), tag, "{path}: each encoding has its own tag");
        let packed = small.bytes().await.unwrap().len();
        assert!(packed < size / 2, "{path}");
        sent += packed;
        let refused = get(path, &[("accept-encoding", "gzip;q=0")]).await;
        assert_eq!(header(&refused, "content-encoding"), "", "{path}");
    }
    assert!(sent <= FIRST_SCREEN_BYTES_MAX, "the first screen needs {sent} bytes");
    for missing in ["/dashboard/assets/none.js", "/dashboard/BUILD.txt", "/dashboard/../Cargo.toml"] {
        assert_eq!(get(missing, &[]).await.status(), 404, "{missing}");
    }
    assert_ne!(
        get("/dashboard/BUILD", &[]).await.text().await.unwrap().trim(),
        convoke::dashboard::sources_stamp()
    );
    assert_eq!(header(&get("/dashboard/", &[(header::COOKIE.as_str(), "x=y")]).await, "etag"), tag);
    edge.stop().await;
}
