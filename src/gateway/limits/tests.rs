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
async fn a_broadcast_needs_room_in_its_channel_its_socket_and_the_daemon() {
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
    let say = |socket, channel| rates.broadcast(socket, channel, now, 10).is_ok();
    assert_eq!([0; 3].map(|_| say(&a, &channels[0])), [true, true, false], "the channel's");
    assert_eq!([0; 2].map(|_| say(&a, &channels[1])), [true, false], "the socket's");
    assert_eq!([0; 2].map(|_| say(&b, &channels[2])), [true, false], "everybody's");
    let wait = rates.broadcast(&b, &channels[3], now, 10).unwrap_err();
    assert!(rates.broadcast(&b, &channels[3], now + wait.0, 10).is_ok(), "it says when to come back");
}

#[tokio::test(start_paused = true)]
async fn bytes_are_counted_too_and_a_big_message_fits_into_a_rested_bucket() {
    let (rates, now) = rates(Config { burst: SECOND, bytes_per_connection: 1000, ..Config::default() });
    let (socket, channel) = (OfSocket::default(), OfChannel::default());
    assert!(rates.broadcast(&socket, &channel, now, 5000).is_ok());
    let wait = rates.broadcast(&socket, &channel, now, 1).unwrap_err();
    assert!(wait.millis() >= 4000, "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn joins_wait_for_their_turn_and_are_refused_when_it_is_far() {
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
async fn a_batch_over_http_that_can_never_pass_is_told_apart_from_one_that_can_later() {
    let (rates, now) = rates(Config { burst: SECOND, messages_http: 10, ..Config::default() });
    assert_eq!(rates.http(now, 11, 0, true), Err(HttpTooMuch::Batch));
    assert_eq!(rates.http(now, 10, 0, true), Ok(()));
    assert!(matches!(rates.http(now, 1, 0, false), Err(HttpTooMuch::Now(Some(_)))));
    assert_eq!(rates.http(now + SECOND, 10, 0, true), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_originals_way_counts_averages() {
    let (rates, now) = rates(supabase());
    let (socket, channel) = (OfSocket::default(), OfChannel::default());
    for _ in 0..1000 {
        assert!(rates.broadcast(&socket, &channel, now, 1_000_000_000).is_ok(), "nothing is refused");
    }
    assert!(!rates.heard(now, 400), "an average looks at whole buckets only");
    let later = now + SECOND * 5;
    assert!(rates.heard(later, 0), "1400 in 10 s");
    assert_eq!(rates.http(later, 1, 0, false), Err(HttpTooMuch::Now(None)));
    assert!(!rates.heard(later + SECOND * 5, 0), "1400 in 15 s are not too many");
    assert_eq!(rates.http(now + SECOND * 60, 101, 0, true), Err(HttpTooMuch::Batch));
    assert_eq!(rates.presence_calls(), Some((5, SECOND * 30)));
    assert_eq!(rates.join(&socket, now), Ok(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn our_own_way_never_closes_anything() {
    let (rates, now) = rates(Config::default());
    assert!(!rates.cuts_off() && rates.presence_calls().is_none());
    assert!(!rates.heard(now, usize::MAX) && !rates.presence_too_fast(now, u64::MAX));
    let socket = OfSocket::default();
    assert_eq!(rates.frames(&socket, now, 100_000), Duration::ZERO, "within the burst");
    assert!(rates.frames(&socket, now, 20_000) > Duration::ZERO, "it is read only so fast");
}
