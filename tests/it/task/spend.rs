//! Money of questions to models and of reports: counted once, to the microdollar, and corrected where it was counted.
use super::{Harness, id, profile, request};
use convoke::task::{
    DayLimit, Error, InsufficientBudget, LimitScope, ModelQuestion, ModelUsage, Request, SpendBy, Start,
    TaskState, TokenParts, Usage,
};
use serde_json::{Value, json};
use uuid::Uuid;

fn usage(tokens: u64, microdollars: u64) -> Usage {
    Usage { tokens, microdollars, presumed: false }
}

fn question(most: Usage) -> ModelQuestion {
    ModelQuestion {
        id: Uuid::new_v4(),
        provider: "team".into(),
        model: "m".into(),
        most,
        price_from: None,
        limits: Vec::new(),
    }
}

fn exact(tokens: u64, microdollars: u64) -> ModelUsage {
    let parts = TokenParts { input: tokens, cached: 1, ..TokenParts::default() };
    ModelUsage { usage: usage(tokens, microdollars), parts: Some(parts), ..ModelUsage::default() }
}

fn with_budget(microdollars: u64) -> Request {
    let mut wish = request(json!({ "lease": "1m" }));
    wish.budget = serde_json::from_value(json!({ "microdollars": microdollars })).unwrap();
    wish
}

async fn asks(world: &Harness, start: &Start, most: Usage) -> Uuid {
    let question = question(most);
    world.tasks.ask_model(start.key, &id("a"), None, &question).await.unwrap().unwrap();
    question.id
}

/// The rows of what was spent, by task and model: money, money that is presumed, questions, attempts.
async fn spent(world: &Harness) -> Vec<[u64; 4]> {
    let from = convoke::clock::Clock::System.now() - chrono::TimeDelta::hours(1);
    let by = [SpendBy::Org, SpendBy::Task, SpendBy::Model];
    let (rows, _) = world.tasks.spend_by(Some(&world.org), from, &by).await.unwrap();
    let number = |row: &Value, name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} in {row}"));
    let members = ["microdollars", "presumed_microdollars", "questions", "attempts"];
    rows.iter().map(|row| members.map(|name| number(row, name))).collect()
}

async fn budget(world: &Harness, task: convoke::id::TaskId) -> (i64, i64) {
    let of = world.tasks.get(task).await.unwrap().budget.unwrap()["task"]["microdollars"].clone();
    (of["reserved"].as_i64().unwrap(), of["spent"].as_i64().unwrap())
}

#[tokio::test]
async fn questions_are_the_use_of_their_assignment_whatever_it_reports() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(with_budget(1_000)).await;
    let (start, agent) = world.started(task).await;
    let used = [exact(60, 333), exact(0, 0), exact(7, 41)];
    let mut total = 0;
    for used in &used {
        let most = usage(100, total + 400);
        world.tasks.reserve(start.key, &agent, most, None).await.unwrap().unwrap();
        let asked = asks(&world, &start, usage(100, 400)).await;
        world.tasks.end_model_question(asked, used).await.unwrap();
        total += used.usage.microdollars;
        // A repeated end, like after a lost answer of the database, changes nothing.
        world.tasks.end_model_question(asked, &exact(9, 9)).await.unwrap();
        let (reserved, spent) = budget(&world, task).await;
        assert_eq!((u64::try_from(reserved).unwrap(), spent), (total, 0), "what is not used is free again");
    }
    world.tasks.finish(start.key, &agent, json!(1), usage(1, 1)).await.unwrap();
    world.in_state(task, TaskState::Completed).await;
    assert_eq!(budget(&world, task).await, (0, 374));
    assert_eq!(spent(&world).await, [[374, 0, 3, 0], [0, 0, 0, 1]]);
    world.check().await;
}

#[tokio::test]
async fn question_of_a_lost_assignment_counts_as_its_most_until_its_usage_comes_late() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(with_budget(1_000)).await;
    let (first, agent) = world.started(task).await;
    world.tasks.reserve(first.key, &agent, usage(100, 400), None).await.unwrap().unwrap();
    let answered = asks(&world, &first, usage(100, 400)).await;
    world.tasks.end_model_question(answered, &exact(10, 30)).await.unwrap();
    world.tasks.reserve(first.key, &agent, usage(100, 430), None).await.unwrap().unwrap();
    let lost = asks(&world, &first, usage(90, 400)).await;
    world.expire_lease(first.key).await;
    let (second, _) = world.started(task).await;
    let offered = 100;
    assert_eq!(budget(&world, task).await, (offered, 430));
    assert_eq!(spent(&world).await[0], [430, 400, 2, 0]);
    let refused = world.tasks.ask_model(first.key, &agent, None, &question(usage(1, 1))).await;
    assert!(matches!(refused, Err(Error::Fenced)), "{refused:?}");
    for _ in 0..2 {
        world.tasks.end_model_question(lost, &exact(20, 55)).await.unwrap();
        assert_eq!(budget(&world, task).await, (offered, 85), "corrected once");
        assert_eq!(spent(&world).await[0], [85, 0, 2, 0]);
    }
    // It had reported nothing; what it reports now is known from its questions.
    let late = world.tasks.finish(first.key, &agent, json!("late"), usage(9, 999)).await;
    assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
    assert_eq!(spent(&world).await[0], [85, 0, 2, 0]);
    world.tasks.finish(second.key, &agent, json!(1), usage(0, 0)).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn use_above_the_most_is_counted_in_full() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(with_budget(200)).await;
    let (start, agent) = world.started(task).await;
    world.tasks.reserve(start.key, &agent, usage(10, 150), None).await.unwrap().unwrap();
    let asked = asks(&world, &start, usage(10, 150)).await;
    world.tasks.end_model_question(asked, &exact(u64::MAX, 900)).await.unwrap();
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.in_state(task, TaskState::Completed).await;
    assert_eq!(budget(&world, task).await, (0, 200), "the limit of the budget; the rest is over");
    assert_eq!(spent(&world).await[0], [900, 0, 1, 0]);
    world.check().await;
}

#[tokio::test]
async fn reports_are_counted_with_and_without_a_budget_and_late_ones_too() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let plain = world.ask(request(json!({ "lease": "1m" }))).await;
    let (start, agent) = world.started(plain).await;
    world.tasks.finish(start.key, &agent, json!(1), usage(5, 70)).await.unwrap();
    let lost = world.ask(request(json!({ "lease": "1m", "attempts_max": 1 }))).await;
    let (start, _) = world.started(lost).await;
    world.expire_lease(start.key).await;
    world.in_state(lost, TaskState::Failed).await;
    assert_eq!(spent(&world).await, [[70, 0, 0, 1], [0, 0, 0, 1]]);
    for _ in 0..2 {
        let late = world.tasks.finish(start.key, &agent, json!("late"), usage(5, 40)).await;
        assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
        assert_eq!(spent(&world).await, [[70, 0, 0, 1], [40, 0, 0, 0], [0, 0, 0, 1]]);
    }
    let other = "other".try_into().unwrap();
    let from = convoke::clock::Clock::System.now() - chrono::TimeDelta::hours(1);
    assert_eq!(world.tasks.spend_by(Some(&other), from, &[]).await.unwrap().0, Vec::<Value>::new());
    assert_eq!(world.tasks.spend_by(None, from, &[]).await.unwrap().0[0]["microdollars"], 110);
    world.check().await;
}

#[tokio::test]
async fn offers_are_counted_without_an_assignment() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({ "lease": "1m" }))).await;
    let (start, agent) = world.started(task).await;
    world.tasks.record_offer_usage(task, &agent, "team", "m", &exact(10, 12)).await.unwrap();
    world
        .tasks
        .record_offer_usage(task, &agent, "team", "m", &ModelUsage::presumed(usage(9, 8)))
        .await
        .unwrap();
    let gone = convoke::id::TaskId::generate();
    world.tasks.record_offer_usage(gone, &agent, "team", "m", &exact(10, 12)).await.unwrap();
    assert_eq!(spent(&world).await, [[20, 8, 2, 0]]);
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn sum_of_many_questions_is_exact() {
    sum_is_exact(50).await;
}

#[tokio::test]
#[ignore = "takes half a minute of a quiet machine"]
async fn sum_of_ten_thousand_questions_is_exact() {
    sum_is_exact(500).await;
}

/// So many questions of each of 20 assignments, which ask at once: some answered, some lost, some corrected late.
async fn sum_is_exact(questions: u64) {
    const ASSIGNMENTS: u64 = 20;
    let mut world = Harness::new(vec![profile("a", 20)]).await;
    let mut work = Vec::new();
    for _ in 0..ASSIGNMENTS {
        let task = world.ask(request(json!({ "lease": "10m", "progress": "10m", "attempt": "10m" }))).await;
        work.push(world.started(task).await.0);
    }
    let each = work.iter().enumerate().map(|(at, start)| {
        let (tasks, agent) = (world.tasks.commands(), id("a"));
        async move {
            let mut sum = 0;
            for n in 0..questions {
                let seed = (at as u64 * questions + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                let (most, used) = (usage(1 + seed % 900, seed % 77_777), seed % 55_555);
                let asked = question(most);
                tasks.ask_model(start.key, &agent, None, &asked).await.unwrap().unwrap();
                let (first, late) = match seed % 10 {
                    0 => (Some(ModelUsage::presumed(most)), None),
                    1 => (Some(ModelUsage::presumed(most)), Some(exact(seed % 700, used))),
                    2 => (Some(ModelUsage::none()), None),
                    // The next question of this assignment replaces one that was never sent.
                    3 => (None, None),
                    _ => (Some(exact(seed % 700, used)), None),
                };
                let is_last = n + 1 == questions;
                sum += match (&first, &late) {
                    (_, Some(used)) | (Some(used), None) => used.usage.microdollars,
                    (None, None) if is_last => most.microdollars,
                    (None, None) => 0,
                };
                for used in [first, late].into_iter().flatten() {
                    tasks.end_model_question(asked.id, &used).await.unwrap();
                }
            }
            sum
        }
    });
    let expected: u64 = futures_util::future::join_all(each).await.into_iter().sum();
    for start in &work {
        world.tasks.finish(start.key, &id("a"), json!(1), Usage::default()).await.unwrap();
    }
    let total = spent(&world).await.into_iter().map(|[money, ..]| money).sum::<u64>();
    assert_eq!(total, expected);
    world.check().await;
}

#[tokio::test]
async fn limits_of_a_day_are_kept_exactly_whoever_asks_at_once() {
    let mut world = Harness::new(vec![profile("a", 30)]).await;
    let mut work = Vec::new();
    for _ in 0..30 {
        let task = world.ask(request(json!({ "lease": "10m", "progress": "10m", "attempt": "10m" }))).await;
        work.push(world.started(task).await.0);
    }
    // What was spent before there was a limit counts, too.
    let before = asks(&world, &work[29], usage(10, 77)).await;
    world.tasks.end_model_question(before, &exact(10, 77)).await.unwrap();
    let limit = |scope, name: &str, microdollars| DayLimit { scope, name: name.into(), microdollars };
    let limits = vec![limit(LimitScope::Provider, "team", 2_000), limit(LimitScope::Org, "demo", 977)];
    let questions: Vec<_> =
        (0..29).map(|_| ModelQuestion { limits: limits.clone(), ..question(usage(10, 100)) }).collect();
    let asked = questions.iter().zip(&work).map(|(question, start)| {
        let (tasks, agent) = (world.tasks.commands(), id("a"));
        async move { tasks.ask_model(start.key, &agent, None, question).await.unwrap() }
    });
    let asked = futures_util::future::join_all(asked).await;
    assert_eq!(asked.iter().filter(|asked| asked.is_ok()).count(), 9, "77 and nine times 100 are 977");
    for refused in asked.iter().filter_map(|asked| asked.as_ref().err()) {
        let InsufficientBudget::Day { limit, left } = refused else { panic!("{refused}") };
        assert!(left.as_secs() <= 86_400, "{left:?}");
        assert_eq!(limit, "org demo");
    }
    let sent: Vec<Uuid> = questions
        .iter()
        .zip(&asked)
        .filter(|(_, asked)| asked.is_ok())
        .map(|(question, _)| question.id)
        .collect();
    // One is answered for less, and one is lost and corrected late: both make room.
    world.tasks.end_model_question(sent[0], &exact(5, 40)).await.unwrap();
    world.tasks.end_model_question(sent[1], &ModelUsage::presumed(usage(10, 100))).await.unwrap();
    world.tasks.end_model_question(sent[1], &exact(5, 60)).await.unwrap();
    let again = ModelQuestion { limits: limits.clone(), ..question(usage(10, 100)) };
    world.tasks.ask_model(work[29].key, &id("a"), None, &again).await.unwrap().unwrap();
    let one_more = ModelQuestion { limits, ..question(usage(1, 1)) };
    let idle = asked.iter().position(Result::is_err).unwrap();
    assert!(world.tasks.ask_model(work[idle].key, &id("a"), None, &one_more).await.unwrap().is_err());
    let client = world.database.client().await.unwrap();
    let held = "select scope, microdollars::bigint from convoke.allowances order by scope";
    let rows = client.query(held, &[]).await.unwrap();
    let held: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(held, [("org".to_owned(), 977), ("provider".to_owned(), 977)]);
    drop(client);
    for start in &work {
        world.tasks.finish(start.key, &id("a"), json!(1), Usage::default()).await.unwrap();
    }
    world.check().await;
}

#[tokio::test]
async fn spending_of_two_hundred_assignments_stops_within_one_question_of_the_limit() {
    const ASSIGNMENTS: usize = 200;
    const LIMIT: u64 = 50_000;
    let mut world = Harness::new(vec![profile("a", ASSIGNMENTS as u32)]).await;
    let mut work = Vec::new();
    for _ in 0..ASSIGNMENTS {
        let task = world.ask(request(json!({ "lease": "10m", "progress": "10m", "attempt": "10m" }))).await;
        work.push(world.started(task).await.0);
    }
    let held = async |world: &Harness| {
        let client = world.database.client().await.unwrap();
        let row = client.query_one("select microdollars::bigint from convoke.allowances", &[]).await.unwrap();
        u64::try_from(row.get::<_, i64>(0)).unwrap()
    };
    let limit = DayLimit { scope: LimitScope::Org, name: "demo".into(), microdollars: LIMIT };
    let (mut used, mut questions, mut refused) = (0_u64, 0_u64, Vec::<u64>::new());
    while refused.len() < ASSIGNMENTS {
        // Each asks once, many of them at the same time.
        let asks = work.iter().enumerate().map(|(at, start)| {
            let seed = ((questions + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 20;
            let most = 100 + seed % 200;
            let asked = ModelQuestion { limits: vec![limit.clone()], ..question(usage(10, most)) };
            let (tasks, agent) = (world.tasks.commands(), id("a"));
            async move {
                let fits = tasks.ask_model(start.key, &agent, None, &asked).await.unwrap().is_ok();
                (asked.id, most, most - seed % 20, fits)
            }
        });
        let round: Vec<_> = futures_util::StreamExt::collect(futures_util::StreamExt::buffer_unordered(
            futures_util::stream::iter(asks),
            32,
        ))
        .await;
        questions += round.len() as u64;
        assert!(held(&world).await <= LIMIT, "what is held and spent is never over the limit");
        for (asked, _, cost, _) in round.iter().filter(|(.., fits)| *fits) {
            world.tasks.end_model_question(*asked, &exact(10, *cost)).await.unwrap();
            used += cost;
        }
        refused = round.iter().filter(|(.., fits)| !fits).map(|(_, most, ..)| *most).collect();
        assert_eq!(held(&world).await, used, "what was not used is free again");
    }
    // Nothing was held when the last of them were refused, so not one more question fits.
    assert!(used <= LIMIT && refused.iter().all(|most| used + most > LIMIT), "{used} {refused:?}");
    for start in &work {
        world.tasks.finish(start.key, &id("a"), json!(1), Usage::default()).await.unwrap();
    }
    let total: u64 = spent(&world).await.into_iter().map(|[money, ..]| money).sum();
    assert_eq!(total, used);
    world.check().await;
}
