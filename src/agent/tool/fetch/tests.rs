//! Fetches from real servers of this machine, with a resolver that a test controls: what an attacker's name server and
//! web server can do.
use super::*;
use axum::{
    Router,
    http::{HeaderMap as Headers, StatusCode},
    response::IntoResponse,
    routing::get,
};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// A web server, and a name server with the answers to each name in turn; the last one is repeated.
#[derive(Default)]
struct World {
    port: u16,
    limit: Option<Duration>,
    names: Mutex<HashMap<String, Vec<Vec<SocketAddr>>>>,
    looked_up: Mutex<Vec<String>>,
    /// Paths that the server has seen, and the header `authorization` of each.
    seen: Arc<Mutex<Vec<(String, bool)>>>,
}

impl World {
    async fn start(answers: &[(&str, &str, &str)]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<(String, bool)>>> = Arc::default();
        let mut router = Router::new();
        for (path, kind, body) in answers {
            let (path, kind) = (path.to_string(), kind.to_string());
            let body = body.replace("PORT", &port.to_string());
            let (seen, of) = (seen.clone(), path.clone());
            let answer = move |headers: Headers| {
                seen.lock().push((of.clone(), headers.contains_key("authorization")));
                let answer = match kind.split_once(' ') {
                    Some(("to", status)) => {
                        let status = StatusCode::from_bytes(status.as_bytes()).unwrap();
                        (status, [("location", body)]).into_response()
                    }
                    _ => ([("content-type", kind)], body).into_response(),
                };
                async move { answer }
            };
            router = router.route(&path, get(answer));
        }
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { port, seen, ..Self::default() }
    }

    fn name(self, name: &str, answers: &[&[&str]]) -> Self {
        let at = |ip: &&str| SocketAddr::new(ip.parse().unwrap(), self.port);
        let answers = answers.iter().map(|answer| answer.iter().map(at).collect()).collect();
        self.names.lock().insert(name.to_owned(), answers);
        self
    }

    async fn get(&self, hosts: &str, url: &str) -> Result<Value, Refused> {
        self.send(hosts, json!({ "url": url.replace("PORT", &self.port.to_string()) })).await
    }

    async fn send(&self, hosts: &str, args: Value) -> Result<Value, Refused> {
        let hosts = hosts.replace("PORT", &self.port.to_string());
        let text =
            format!("{hosts}\nmethods = [\"GET\", \"HEAD\"]\nheaders_env = {{ Authorization = \"KEY\" }}");
        let fetch: Fetch = toml::from_str(&text).unwrap();
        let lookup = |name: String, _: u16| -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
            self.looked_up.lock().push(name.clone());
            let found = self
                .names
                .lock()
                .get_mut(&name)
                .map(|answers| if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() });
            Box::pin(async move { found.ok_or_else(|| io::Error::other("no such name")) })
        };
        let env = Env::of([("KEY", "Bearer of-the-first-host")]);
        let fetcher = Fetcher { fetch: &fetch, clients: &Clients::default(), env: &env, lookup: &lookup };
        fetcher.get(&args, self.limit.unwrap_or(Duration::from_secs(60))).await
    }

    fn paths(&self) -> Vec<String> {
        self.seen.lock().iter().map(|(path, _)| path.clone()).collect()
    }
}

const OWN: &str = "private_hosts = [\"own.test:PORT\"]\nhosts = [\"public:PORT\"]";

fn denied(found: Result<Value, Refused>) -> String {
    match found {
        Err(("denied", why, false)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn page_is_marked_with_its_source_and_as_untrusted() {
    let html = "<html><head><title>T</title><script>let x = 'code'</script></head><body><h1>News</h1><p>one <b>two</b></body>";
    let world =
        World::start(&[("/a", "text/html; charset=utf-8", html), ("/j", "application/json", "{\"a\":1}")])
            .await
            .name("own.test", &[&["127.0.0.1"]]);
    let page = world.get(OWN, "http://own.test:PORT/a").await.unwrap();
    let text = page["text"].as_str().unwrap();
    assert!(text.contains("News") && text.contains("one two") && !text.contains("code"), "{text}");
    let source = format!("http://own.test:{}/a", world.port);
    assert_eq!(
        (&page["untrusted"], &page["source"], &page["cut"]),
        (&json!(true), &json!(source), &json!(false))
    );
    assert_eq!(world.get(OWN, "http://own.test:PORT/j").await.unwrap()["text"], "{\"a\":1}");
    let head = world.send(OWN, json!({ "url": source, "method": "HEAD" })).await.unwrap();
    assert_eq!((&head["status"], head.get("text")), (&json!(200), None));
}

#[tokio::test]
async fn allowed_name_with_a_private_address_is_not_connected_to() {
    let world = World::start(&[("/a", "text/plain", "x")]).await;
    let world = world
        .name("evil.test", &[&["127.0.0.1"]])
        .name("both.test", &[&["8.8.8.8", "127.0.0.1"]])
        .name("mapped.test", &[&["::ffff:127.0.0.1"]])
        .name("nat64.test", &[&["64:ff9b::7f00:1"]])
        .name("meta.test", &[&["169.254.169.254"]])
        .name("own.test", &[&["169.254.169.254"]]);
    for (url, why) in [
        ("http://evil.test:PORT/a", "a private address"),
        ("http://both.test:PORT/a", "a private address"),
        ("http://mapped.test:PORT/a", "a reserved address"),
        ("http://nat64.test:PORT/a", "a reserved address"),
        ("http://meta.test:PORT/a", "a link-local address, or one of a metadata service"),
        ("http://own.test:PORT/a", "a link-local address, or one of a metadata service"),
        ("http://127.0.0.1:PORT/a", "a private address"),
        ("http://2130706433:PORT/a", "a private address"),
        ("http://0177.1:PORT/a", "a private address"),
        ("http://[::1]:PORT/a", "a private address"),
        ("http://[::ffff:7f00:1]:PORT/a", "a reserved address"),
    ] {
        let found = denied(world.get(OWN, url).await);
        assert!(found.ends_with(why), "{url}: {found}");
    }
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn name_that_changes_its_address_is_resolved_once() {
    let world = World::start(&[("/a", "text/plain", "x")]).await;
    // The first answer is judged and used. No server has this address, so the connection fails.
    let world = world.name("rebind.test", &[&["127.0.0.1"], &["8.8.8.8"]]);
    let hosts = "hosts = []\nprivate_hosts = [\"rebind.test:PORT\"]";
    assert_eq!(world.get(hosts, "http://rebind.test:PORT/a").await.unwrap()["text"], "x");
    assert_eq!(*world.looked_up.lock(), ["rebind.test"]);
    let world = world.name("rebind.test", &[&["8.8.8.8", "10.0.0.1"], &["127.0.0.1"]]);
    denied(world.get("hosts = [\"public:PORT\"]", "http://rebind.test:PORT/a").await);
    assert_eq!((world.looked_up.lock().len(), world.paths().len()), (2, 1));
}

#[tokio::test]
async fn each_redirect_is_judged_and_gets_no_secret() {
    let world = World::start(&[
        ("/ok", "to 302", "/next"),
        ("/next", "text/plain", "arrived"),
        ("/inside", "to 307", "http://127.0.0.1:PORT/next"),
        ("/meta", "to 301", "http://169.254.169.254/latest/meta-data"),
        ("/name", "to 303", "http://inner.test:PORT/next"),
        ("/file", "to 302", "file:///etc/passwd"),
        ("/port", "to 302", "http://own.test:1/next"),
        ("/round", "to 308", "/round"),
    ])
    .await
    .name("own.test", &[&["127.0.0.1"]])
    .name("inner.test", &[&["127.0.0.1"]]);
    let page = world.get(OWN, "http://own.test:PORT/ok").await.unwrap();
    assert_eq!(page["text"], "arrived");
    assert_eq!(*world.seen.lock(), [("/ok".to_owned(), true), ("/next".to_owned(), false)]);
    for path in ["inside", "meta", "name", "file", "port"] {
        denied(world.get(OWN, &format!("http://own.test:PORT/{path}")).await);
    }
    let error = world.get(OWN, "http://own.test:PORT/round").await.unwrap_err();
    assert_eq!(error.1, "more than 5 redirects");
    assert_eq!(world.paths().iter().filter(|path| *path == "/next").count(), 1);
    assert_eq!(world.paths().iter().filter(|path| *path == "/round").count(), HOPS_MAX + 1);
}

#[tokio::test]
async fn answer_that_is_no_text_or_has_no_end_is_limited() {
    let long = "x".repeat(BODY_BYTES_MAX + 1);
    let nested = "<div>".repeat(100_000) + "end";
    let world = World::start(&[
        ("/png", "image/png", "x"),
        ("/none", "", "x"),
        ("/long", "text/plain", long.as_str()),
        ("/nested", "text/html", nested.as_str()),
    ])
    .await
    .name("own.test", &[&["127.0.0.1"]]);
    for path in ["png", "none"] {
        let error = world.get(OWN, &format!("http://own.test:PORT/{path}")).await.unwrap_err();
        assert!(error.1.starts_with("the answer is no text"), "{error:?}");
    }
    let page = world.get(OWN, "http://own.test:PORT/long").await.unwrap();
    assert_eq!((page["text"].as_str().unwrap().len(), &page["cut"]), (BODY_BYTES_MAX, &json!(true)));
    assert_eq!(world.get(OWN, "http://own.test:PORT/nested").await.unwrap()["text"], "end");
    let error = world.get(OWN, "http://own.test:PORT/missing").await.unwrap_err();
    assert_eq!(error, ("failed", "the server answered 404".to_owned(), false));
}

#[tokio::test]
async fn server_that_does_not_answer_is_given_up_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limit = Some(Duration::from_millis(100));
    let world = World { port: listener.local_addr().unwrap().port(), limit, ..World::default() };
    let world = world.name("own.test", &[&["127.0.0.1"]]);
    let error = world.get(OWN, "http://own.test:PORT/a").await.unwrap_err();
    assert_eq!((error.0, error.1.as_str()), ("timeout", "no end within 100ms"));
}
