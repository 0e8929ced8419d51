use super::*;

fn entry(agent: &str, tokens: u64) -> Entry {
    Entry { agent: agent.into(), priority: 0, tokens, spent: 0, prefix: None }
}

fn limits(requests: u32, tokens: u64, concurrent: u32) -> Limits {
    Limits {
        requests_per_minute: Some(requests),
        tokens_per_minute: Some(tokens),
        concurrent: Some(concurrent),
    }
}

/// A limiter whose slow start is over, and its time.
fn limiter(limits: Limits) -> (Limiter, Instant) {
    let start = Instant::now();
    (Limiter::new(start, limits), start + Duration::from_secs(600))
}

fn add(limiter: &mut Limiter, now: Instant, entry: Entry) -> Ticket {
    limiter.enqueue(now, entry, now + Duration::from_secs(100_000)).unwrap()
}

fn admitted(limiter: &mut Limiter, now: Instant) -> Vec<Ticket> {
    std::iter::from_fn(|| limiter.admit(now)).collect()
}

#[test]
fn request_that_lacks_one_resource_takes_none() {
    let (mut limiter, now) = limiter(limits(600, 600, 10));
    let first = add(&mut limiter, now, entry("a", 90));
    let second = add(&mut limiter, now, entry("b", 90));
    assert_eq!(admitted(&mut limiter, now), [first], "100 tokens are a sixth of a minute's");
    assert_eq!(limiter.requests.wait(now, 99.0), Duration::ZERO, "the second took no request");
    let wait = limiter.wait(now, second).unwrap();
    assert!(
        wait > Duration::from_secs(7) && wait < Duration::from_secs(9),
        "80 tokens of 10 a second: {wait:?}"
    );
    assert_eq!(admitted(&mut limiter, now + wait), [second]);
}

#[test]
fn request_over_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
    let (mut limiter, now) = limiter(limits(600, 600, 10));
    let big = add(&mut limiter, now, entry("a", 400));
    assert_eq!(admitted(&mut limiter, now), [big]);
    let next = add(&mut limiter, now, entry("b", 50));
    let wait = limiter.wait(now, next).unwrap().as_secs();
    assert!((34..=36).contains(&wait), "100 - 400 + 50 at 10 a second: {wait}");
    limiter.ended(now, big, &Ended { is_answered: true, tokens: Some(40), ..Ended::default() });
    assert_eq!(admitted(&mut limiter, now), [next], "what was not used is given back");
}

#[test]
fn agents_take_turns_by_tokens_and_later_ones_start_level() {
    let (mut limiter, now) = limiter(limits(60_000, 6_000_000, 1));
    for _ in 0..6 {
        add(&mut limiter, now, entry("many", 100));
    }
    let mut order = Vec::new();
    for round in 0..8 {
        if round == 2 {
            add(&mut limiter, now, entry("few", 100));
            add(&mut limiter, now, entry("few", 100));
        }
        let ticket = limiter.admit(now).unwrap();
        order.push(limiter.under_way[&ticket].entry.agent.to_string());
        limiter.ended(now, ticket, &Ended::default());
    }
    assert_eq!(order, ["many", "many", "many", "few", "many", "few", "many", "many"]);
}

#[test]
fn priorities_go_first_and_waiting_raises_them() {
    let (mut limiter, now) = limiter(limits(60_000, 6_000_000, 1));
    let low = add(&mut limiter, now, entry("low", 1));
    let later = now + Duration::from_secs(59);
    let high = add(&mut limiter, later, Entry { priority: 2, ..entry("high", 1) });
    assert_eq!(limiter.candidate(later), Some(high), "29 s more than one class of waiting");
    let later = now + Duration::from_secs(95);
    let other = add(&mut limiter, later, Entry { priority: 2, ..entry("other", 1) });
    limiter.cancel(high);
    assert_eq!(limiter.candidate(later), Some(low), "three classes of waiting are more than priority 2");
    limiter.cancel(low);
    assert_eq!(limiter.candidate(later), Some(other));
}

#[test]
fn run_that_has_used_most_goes_first_of_one_agent() {
    let (mut limiter, now) = limiter(limits(60_000, 6_000_000, 10));
    let fresh = add(&mut limiter, now, entry("a", 1));
    let old = add(&mut limiter, now, Entry { spent: 5_000, ..entry("a", 1) });
    assert_eq!(admitted(&mut limiter, now), [old, fresh]);
}

#[test]
fn agent_has_at_most_half_of_the_places_while_others_wait() {
    let (mut limiter, now) = limiter(limits(60_000, 6_000_000, 4));
    let many: Vec<Ticket> = (0..4).map(|_| add(&mut limiter, now, entry("many", 1))).collect();
    let others: Vec<Ticket> = ["b", "c", "d"].map(|agent| add(&mut limiter, now, entry(agent, 1))).into();
    let first = admitted(&mut limiter, now);
    assert_eq!(first.iter().filter(|ticket| many.contains(ticket)).count(), 1, "{first:?}");
    assert!(others.iter().all(|other| first.contains(other)), "{first:?}");
    for ticket in first {
        limiter.ended(now, ticket, &Ended::default());
    }
    assert_eq!(admitted(&mut limiter, now).len(), 3, "alone it may have all");
}

#[test]
fn rate_limited_request_waits_at_the_head_and_one_storm_is_one_cut() {
    let (mut limiter, now) = limiter(Limits::default());
    let tickets: Vec<Ticket> = (0..16).map(|_| add(&mut limiter, now, entry("a", 1))).collect();
    let waiting = add(&mut limiter, now, entry("a", 1));
    assert_eq!(admitted(&mut limiter, now).len(), 16);
    for ticket in &tickets {
        limiter.rate_limited(now, *ticket, None, &Ended::default(), 0.0);
    }
    assert_eq!(limiter.places(), 11, "16 times 0.7, once");
    let paused = limiter.paused_until(now).unwrap() - now;
    assert_eq!(paused, Duration::from_secs(1), "one pause for all");
    assert_eq!(limiter.candidate(now), Some(tickets[0]), "before {waiting}, which was never sent");
    let after = now + limiter.wait(now, tickets[0]).unwrap();
    assert!(after > now + paused, "the rate was cut, too");
    assert_eq!(admitted(&mut limiter, after), [tickets[0]], "one request tries the endpoint");
    limiter.rate_limited(after, tickets[0], None, &Ended::default(), 1.0);
    let paused = limiter.paused_until(after).unwrap() - after;
    assert_eq!(paused, Duration::from_millis(2_200), "doubled, and a tenth of jitter");
    assert_eq!(limiter.places(), 11, "a refusal before any answer tells nothing new about the limits");
}

#[test]
fn requests_under_way_grow_with_time_and_with_answers_until_the_next_pause() {
    let now = Instant::now();
    let mut limiter = Limiter::new(now, limits(600_000, 6_000_000, 1_000));
    for _ in 0..100 {
        add(&mut limiter, now, entry("a", 1));
    }
    let answered = Ended { is_answered: true, ..Ended::default() };
    let mut counts = Vec::new();
    for _ in 0..5 {
        let sent = admitted(&mut limiter, now);
        counts.push(sent.len());
        for ticket in sent {
            limiter.ended(now, ticket, &answered);
        }
    }
    assert_eq!(counts, [1, 2, 4, 8, 16], "each answer lets two in");
    let old = admitted(&mut limiter, now);
    limiter.rate_limited(now, old[0], Some(Duration::from_secs(10)), &Ended::default(), 0.0);
    limiter.ended(now, old[1], &answered);
    let after = now + Duration::from_secs(10);
    for ticket in &old[2..] {
        limiter.cancel(*ticket);
    }
    let ticket = limiter.candidate(after).unwrap();
    assert_eq!(limiter.wait(after, ticket), Some(Duration::ZERO));
    limiter.admit(after).unwrap();
    let next = limiter.candidate(after).unwrap();
    assert_eq!(
        limiter.wait(after, next),
        Some(RAMP),
        "an answer to a request of before the pause tells nothing"
    );
}

#[test]
fn pause_is_that_of_the_endpoint_and_is_never_shortened() {
    let (mut limiter, now) = limiter(Limits::default());
    let [a, b] = ["a", "b"].map(|agent| add(&mut limiter, now, entry(agent, 1)));
    assert_eq!(admitted(&mut limiter, now).len(), 2);
    limiter.rate_limited(now, a, Some(Duration::from_secs(30)), &Ended::default(), 0.0);
    limiter.rate_limited(now, b, Some(Duration::from_secs(3)), &Ended::default(), 0.0);
    assert_eq!(limiter.paused_until(now), Some(now + Duration::from_secs(30)));
}

#[test]
fn request_that_cannot_enter_in_time_is_refused_with_the_wait() {
    let (mut limiter, now) = limiter(limits(60, 1_000_000, 10));
    for _ in 0..30 {
        add(&mut limiter, now, entry("a", 1));
    }
    admitted(&mut limiter, now);
    let soon = now + Duration::from_secs(5);
    let Err(Refused::TooLate(wait)) = limiter.enqueue(now, entry("a", 1), soon) else { panic!("it entered") };
    assert!((19..=22).contains(&wait.as_secs()), "20 wait, one a second: {wait:?}");
    assert!(limiter.enqueue(now, entry("b", 1), soon).is_ok(), "another agent enters after one of these");
    for _ in limiter.waiting()..WAITING_MAX {
        add(&mut limiter, now, entry("c", 1));
    }
    assert_eq!(limiter.enqueue(now, entry("d", 1), now + Duration::from_secs(9_999)), Err(Refused::Full));
}

#[test]
fn report_of_a_request_that_was_overtaken_is_stale() {
    let (mut limiter, now) = limiter(Limits::default());
    let old = add(&mut limiter, now, entry("a", 1));
    admitted(&mut limiter, now);
    let later = now + Duration::from_secs(1);
    let new = add(&mut limiter, later, entry("b", 1));
    admitted(&mut limiter, later);
    let reported = |remaining| Ended {
        is_answered: true,
        requests_reported: Some(Reported { limit: Some(60.0), remaining, reset: None }),
        ..Ended::default()
    };
    limiter.ended(later, new, &reported(0.0));
    limiter.ended(later, old, &reported(50.0));
    let next = add(&mut limiter, later, entry("c", 1));
    assert!(limiter.wait(later, next).unwrap() > Duration::from_millis(900), "nothing is left");
}

#[test]
fn canceled_request_frees_its_place() {
    let (mut limiter, now) = limiter(limits(600, 60_000, 1));
    let [a, b] = ["a", "b"].map(|agent| add(&mut limiter, now, entry(agent, 1)));
    assert_eq!(admitted(&mut limiter, now), [a]);
    limiter.cancel(a);
    assert_eq!(admitted(&mut limiter, now), [b]);
}

fn alike(agent: &str, prefix: Prefix) -> Entry {
    Entry { prefix: Some(prefix), ..entry(agent, 1) }
}

#[test]
fn first_request_with_a_prefix_goes_ahead_until_its_first_byte() {
    let (mut limiter, now) = limiter(limits(60_000, 6_000_000, 10));
    let first = add(&mut limiter, now, alike("a", 7));
    let second = add(&mut limiter, now, alike("b", 7));
    let third = add(&mut limiter, now, alike("c", 7));
    let other = add(&mut limiter, now, entry("b", 1));
    assert_eq!(admitted(&mut limiter, now), [first, other], "another request of b passes");
    assert_eq!(limiter.candidate(now), Some(third));
    assert_eq!(
        limiter.wait(now, third),
        Some(Duration::from_secs(10)),
        "a silent one is not waited for longer"
    );
    limiter.first_byte(now, first);
    assert_eq!(admitted(&mut limiter, now), [third, second]);
    // It is in the cache for as long as it is used.
    let later = now + Duration::from_secs(299);
    limiter.first_byte(later, second);
    let later = later + Duration::from_secs(299);
    let both = [add(&mut limiter, later, alike("a", 7)), add(&mut limiter, later, alike("b", 7))];
    assert_eq!(admitted(&mut limiter, later), both);
    let later = later + Duration::from_secs(300);
    let both = [add(&mut limiter, later, alike("a", 7)), add(&mut limiter, later, alike("b", 7))];
    assert_eq!(admitted(&mut limiter, later), both[..1], "after five minutes it is not");
}

#[test]
fn another_request_goes_first_if_the_first_one_has_no_answer() {
    let (mut limiter, now) = limiter(limits(60_000, 6_000_000, 10));
    let tickets = ["a", "b", "c", "d", "e"].map(|agent| add(&mut limiter, now, alike(agent, 7)));
    assert_eq!(admitted(&mut limiter, now), tickets[..1]);
    limiter.ended(now, tickets[0], &Ended::default());
    assert_eq!(admitted(&mut limiter, now), tickets[1..2], "the first one failed");
    limiter.cancel(tickets[1]);
    assert_eq!(admitted(&mut limiter, now), tickets[2..3], "the second one was canceled");
    let late = now + Duration::from_secs(10);
    assert_eq!(admitted(&mut limiter, late), tickets[3..4], "the third one is silent");
    limiter.rate_limited(late, tickets[3], Some(Duration::ZERO), &Ended::default(), 0.0);
    let later = late + Duration::from_secs(60);
    assert_eq!(
        admitted(&mut limiter, later),
        tickets[4..],
        "it was refused, and another agent has waited longer"
    );
    limiter.ended(later, tickets[4], &Ended { is_answered: true, ..Ended::default() });
    assert_eq!(admitted(&mut limiter, later), tickets[3..4], "a whole answer begins with its end");
}
