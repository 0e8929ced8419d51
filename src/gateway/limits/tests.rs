use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rates(config: Config) -> (Rates, Instant) {
    let now = Instant::now();
    (Rates::new(config, now), now)
}

fn supabase() -> Config {
    Config { mode: Mode::Supabase, ..Config::default() }
}

#[tokio::test(start_paused = true)]
async fn broadcast_is_limited_by_channel_socket_and_daemon() {
    let config = Config {
        burst: SECOND,
        messages_per_channel: 2,
        messages_per_connection: 3,
        messages_total: 4,
        ..Config::default()
    };
    let (rates, now) = rates(config);
    let (a, b) = (OfSocket::default(), OfSocket::default());
    let channels: [OfChannel; 4] = std::array::from_fn(|_| OfChannel::default());
    let broadcast = |socket, channel| rates.broadcast(socket, channel, now, 10).is_ok();
    assert_eq!([0; 3].map(|_| broadcast(&a, &channels[0])), [true, true, false], "the channel's");
    assert_eq!([0; 2].map(|_| broadcast(&a, &channels[1])), [true, false], "the socket's");
    assert_eq!([0; 2].map(|_| broadcast(&b, &channels[2])), [true, false], "the daemon's");
    let wait = rates.broadcast(&b, &channels[3], now, 10).unwrap_err();
    assert!(rates.broadcast(&b, &channels[3], now + wait.0, 10).is_ok(), "the error is the time to wait");
}

#[tokio::test(start_paused = true)]
async fn bytes_are_limited_and_a_large_message_fits_a_full_bucket() {
    let (rates, now) = rates(Config { burst: SECOND, bytes_per_connection: 1000, ..Config::default() });
    let (socket, channel) = (OfSocket::default(), OfChannel::default());
    assert!(rates.broadcast(&socket, &channel, now, 5000).is_ok());
    let wait = rates.broadcast(&socket, &channel, now, 1).unwrap_err();
    assert!(wait.millis() >= 4000, "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn joins_wait_and_are_refused_after_the_maximum_wait() {
    let config = Config { burst: SECOND, joins_total: 10, joins_per_connection: 1000, ..Config::default() };
    let (rates, now) = rates(config);
    let socket = OfSocket::default();
    let waits: Vec<_> = (0..100).map(|_| rates.join(&socket, now)).collect();
    assert!(waits[..10].iter().all(|wait| *wait == Ok(Duration::ZERO)));
    assert_eq!(waits[10], Ok(SECOND / 10));
    assert_eq!(waits[59], Ok(SECOND * 5));
    assert!(waits[60..].iter().all(Result::is_err));
    assert!(rates.token(&socket, now).is_err(), "a token does not wait");
    assert!(!rates.joins_too_fast(now) && !rates.refuses_sockets(now));
}

#[tokio::test(start_paused = true)]
async fn join_that_the_total_refuses_uses_no_token_of_its_socket() {
    let config = Config { burst: SECOND, joins_total: 1, joins_per_connection: 10, ..Config::default() };
    let (rates, now) = rates(config);
    let crowd = OfSocket::default();
    while rates.join(&crowd, now).is_ok() {}
    let socket = OfSocket::default();
    for _ in 0..100 {
        assert!(rates.join(&socket, now).is_err());
    }
    let own = (&socket.joins, rates.config.rate(10), 10);
    assert_eq!(Bucket::take_all(rates.nanos(now), [own]), Ok(()), "its bucket is still full");
}

#[tokio::test(start_paused = true)]
async fn http_batch_that_can_never_pass_differs_from_one_that_can_later() {
    let (rates, now) = rates(Config { burst: SECOND, messages_http: 10, ..Config::default() });
    assert_eq!(rates.http(now, 11, 0, true), Err(HttpTooMuch::Batch));
    assert_eq!(rates.http(now, 10, 0, true), Ok(()));
    assert!(matches!(rates.http(now, 1, 0, false), Err(HttpTooMuch::Now(Some(_)))));
    assert_eq!(rates.http(now + SECOND, 10, 0, true), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn supabase_mode_counts_averages() {
    let (rates, now) = rates(supabase());
    let (socket, channel) = (OfSocket::default(), OfChannel::default());
    for _ in 0..1000 {
        assert!(rates.broadcast(&socket, &channel, now, 1_000_000_000).is_ok(), "nothing is refused");
    }
    assert!(!rates.count_deliveries(now, 400), "an average looks at whole buckets only");
    let later = now + SECOND * 5;
    assert!(rates.count_deliveries(later, 0), "1400 in 10 s");
    assert_eq!(rates.http(later, 1, 0, false), Err(HttpTooMuch::Now(None)));
    assert!(!rates.count_deliveries(later + SECOND * 5, 0), "1400 in 15 s are not too many");
    assert_eq!(rates.http(now + SECOND * 60, 101, 0, true), Err(HttpTooMuch::Batch));
    assert_eq!(rates.presence_calls(), Some((5, SECOND * 30)));
    assert_eq!(rates.join(&socket, now), Ok(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn own_mode_closes_nothing() {
    let (rates, now) = rates(Config::default());
    assert!(!rates.is_supabase_mode() && rates.presence_calls().is_none());
    assert!(!rates.count_deliveries(now, usize::MAX) && !rates.presence_too_fast(now, u64::MAX));
    let socket = OfSocket::default();
    assert_eq!(rates.frames(&socket, now, 100_000), Duration::ZERO, "within the burst");
    assert!(rates.frames(&socket, now, 20_000) > Duration::ZERO, "it is read only so fast");
}
