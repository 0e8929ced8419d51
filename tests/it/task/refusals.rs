//! Refusals of the database: values that it cannot store, and results that its triggers refuse.
use super::{Harness, profile, request};
use convoke::task::{Error, Filter, Progress, TaskState, Usage};
use serde_json::json;

async fn sql(world: &Harness, text: &str) {
    world.database.client().await.unwrap().batch_execute(text).await.unwrap();
}

const TRIGGER: &str = "
    create function public.no_result() returns trigger language plpgsql as $$
    begin
        if new.result ->> 'secret' is not null then raise exception 'no secrets: %', new.result; end if;
        return new;
    end $$;
    create trigger no_result before update on convoke.tasks for each row execute function public.no_result()";

#[tokio::test]
async fn result_refused_by_a_trigger_fails_the_task_and_is_charged_once() {
    let mut world = Harness::new(vec![profile("a", 2), profile("b", 2)]).await;
    sql(&world, TRIGGER).await;
    let mut wish = request(json!({}));
    wish.budget = serde_json::from_value(json!({ "microdollars": 1000 })).unwrap();
    let task = world.ask(wish).await;
    let neighbour = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let (other, other_agent) = world.started(neighbour).await;
    let used = Usage { tokens: 5, microdollars: 70, presumed: false };
    // In one batch or not: the good result does not fail with the bad one.
    let (refused, good) = tokio::join!(
        world.tasks.finish(start.key, &agent, json!({ "secret": "s3cret" }), used),
        world.tasks.finish(other.key, &other_agent, json!(1), Usage::default()),
    );
    good.unwrap();
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::ResultRefused(_)), "{error:?}");
    assert_eq!((error.code(), error.to_string().contains("P0001")), ("conflict", true), "{error}");
    let failed = world.tasks.get(task).await.unwrap();
    assert_eq!((failed.state, failed.state_reason.as_deref()), (TaskState::Failed, Some("result_refused")));
    let told = failed.error.unwrap()["message"].as_str().unwrap().to_owned();
    assert_eq!(told, "the database refuses to keep the result (SQLSTATE P0001)");
    let why = world.tasks.why(task).await.unwrap();
    assert_eq!(why["attempts"].as_array().unwrap().len(), 1, "it is not paid again");
    assert_eq!(why["paid"], json!({ "tokens": 5, "microdollars": 70, "presumed": false }));
    assert_eq!(why["attempts"][0]["error"], json!(told));
    // A repeated report.
    let again = world.tasks.finish(start.key, &agent, json!({ "secret": "s3cret" }), used).await;
    assert!(matches!(again, Err(Error::Fenced)), "{again:?}");
    world.check().await;
}

#[tokio::test]
async fn unstorable_value_is_refused_and_fails_alone() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let activity = |text: &str| Progress { activity: Some(text.into()), ..Progress::default() };
    let (bad, good) = tokio::join!(
        world.tasks.progress(start.key, &agent, activity("a\0b")),
        world.tasks.progress(start.key, &agent, activity("reading")),
    );
    assert_eq!(bad.unwrap_err().code(), "bad_request");
    good.unwrap();
    let filter = Filter { kind: Some("a\0".into()), ..Filter::default() };
    assert_eq!(world.tasks.list(&filter).await.unwrap_err().code(), "bad_request");
    let early = chrono::DateTime::<chrono::Utc>::MIN_UTC;
    let late = chrono::DateTime::<chrono::Utc>::MAX_UTC;
    for time in [early, late] {
        let mut wish = request(json!({}));
        wish.deadline = Some(time);
        let refused = world.tasks.request(&world.org, "test", wish).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.to_string().starts_with("deadline")),
            ("bad_request", true),
            "{refused}"
        );
    }
    // A value that no check covers is refused with the SQLSTATE only.
    sql(
        &world,
        "alter table convoke.tasks add check (result is distinct from '7' or 1 / (attempt - attempt) = 1)",
    )
    .await;
    let error = world.tasks.finish(start.key, &agent, json!(7), Usage::default()).await.unwrap_err();
    assert!(matches!(error, Error::Unstorable(_)), "{error:?}");
    assert_eq!(error.code(), "bad_request");
    assert!(error.to_string().ends_with("(SQLSTATE 22012)"), "{error}");
    // The assignment continues: another result is accepted.
    world.tasks.finish(start.key, &agent, json!(8), Usage::default()).await.unwrap();
    world.check().await;
}
