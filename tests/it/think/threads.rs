//! Threads: tasks of one thread go one after the other, whatever daemon works or dies.
use super::{ROLE, Say, Thinking, World, call, finish, text};
use crate::{
    agent::definition,
    daemon::{Up, fresh, soon},
};
use convoke::id::TaskId;
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

/// An agent with threads by customer, and `more` keys of `[run]`.
fn threaded(world: &World, slots: u32, more: &str) -> String {
    let text = text(world, &format!("thread = \"{{{{ input.customer }}}}\"\n{more}"));
    text.replace("org = \"demo\"\n", &format!("org = \"demo\"\nslots = {slots}\n"))
}

async fn start(script: Vec<Say>, slots: u32) -> Thinking {
    let world = World::start(script).await;
    let definitions = vec![definition(&threaded(&world, slots, ""))];
    Thinking::with(world, definitions).await
}

async fn request(thinking: &Thinking, customer: i64) -> TaskId {
    thinking.request(json!({ "input": { "customer": customer } })).await
}

/// Waits until the task waits for its turn, and moves its own due time away: only the end of another task can make it
/// due then.
async fn waits_for_a_turn(thinking: &Thinking, task: TaskId) {
    let client = thinking.db.client().await;
    let put_off = "update convoke.tasks set due_at = clock_timestamp() + interval '1 hour'
        where id = $1 and state = 'open' and prefer = 'thinker' and due_at > clock_timestamp() returning attempt";
    soon("the wait for a turn", async {
        loop {
            if let Some(row) = client.query_opt(put_off, &[&task.as_uuid()]).await.unwrap() {
                assert_eq!(row.get::<_, i32>(0), 0, "it is no attempt");
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let events = thinking.running.parts.tasks.events(task, 0, 100).await.unwrap();
    assert!(json!(events).to_string().contains("before it in its thread has not ended"), "{events:?}");
}

/// The first message of the task in the n-th question of an entry.
fn told(thinking: &Thinking, entry: usize, n: usize) -> String {
    let question: Value = serde_json::from_slice(&thinking.world.asked()[&entry][n]).unwrap();
    question["messages"][1]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn tasks_of_one_thread_go_one_after_the_other_and_begin_with_its_results() {
    let first = Say::InTurn(vec![
        call("ask", json!({ "question": "Which one?" })),
        finish(json!("of another")),
        finish(json!("second")),
    ]);
    let thinking = start(vec![first, finish(json!("first"))], 4).await;
    let tasks = thinking.running.parts.tasks.clone();
    let one = request(&thinking, 7).await;
    thinking.in_state(one, "waiting").await;
    let two = request(&thinking, 7).await;
    waits_for_a_turn(&thinking, two).await;
    let other = request(&thinking, 8).await;
    thinking.in_state(other, "completed").await;
    tasks.answer(one, "ada", json!("the red one")).await.unwrap();
    thinking.in_state(one, "completed").await;
    // Its own due time is an hour away: the end of the first task made it due.
    let two = thinking.in_state(two, "completed").await;
    assert_eq!((two.result, two.attempt), (Some(json!("second")), 1));

    assert_eq!(told(&thinking, 0, 0), r#"{"customer":7}"#, "nothing is told of an empty thread");
    assert_eq!(told(&thinking, 0, 1), r#"{"customer":8}"#, "nor of another one");
    let line = json!({ "task": one, "kind": "think.it", "result": "first" });
    let expected =
        format!("Results of the last tasks of this thread, oldest first:\n{line}\n\n{{\"customer\":7}}");
    assert_eq!(told(&thinking, 0, 2), expected);
    thinking.stop().await;
}

#[tokio::test]
async fn part_in_the_same_thread_has_its_turn_within_its_task() {
    let part = |n: i32| ("request_task", json!({ "kind": "part", "input": { "customer": 7, "n": n } }));
    // The first task asks, and requests two parts when a third task waits behind it.
    let first = Say::InTurn(vec![
        call("ask", json!({ "question": "Which one?" })),
        finish(json!("a part")),
        finish(json!("another part")),
        finish(json!("behind")),
    ]);
    let world = World::start(vec![
        first,
        Say::Calls(vec![part(1), part(2)]),
        call("tasks", json!({ "wait": true })),
        finish(json!("whole")),
    ])
    .await;
    let text = threaded(&world, 4, "[run.parts]\npart = [\"think\"]\n");
    let text = text.replace("tools = [", "tools = [\"request_task\", \"tasks\", ");
    let thinking = Thinking::with(world, vec![definition(&text)]).await;
    let one = request(&thinking, 7).await;
    thinking.in_state(one, "waiting").await;
    let behind = request(&thinking, 7).await;
    waits_for_a_turn(&thinking, behind).await;
    thinking.running.parts.tasks.answer(one, "ada", json!("the red one")).await.unwrap();
    let done = thinking.in_state(one, "completed").await;
    assert_eq!(done.result, Some(json!("whole")));
    thinking.in_state(behind, "completed").await;

    // What the parts and the task behind are told of the thread, in the order in which they were asked.
    let results = |n: usize| {
        let told = told(&thinking, 0, n);
        ["a part", "another part", "whole"].map(|result| told.contains(&format!("\"result\":\"{result}\"")))
    };
    assert_eq!(results(1), [false, false, false]);
    assert_eq!(results(2), [true, false, false], "parts go one after the other");
    assert_eq!(results(3), [true, true, true], "the task behind came last");
    thinking.stop().await;
}

#[tokio::test]
async fn part_that_outlives_its_task_lets_the_next_one_go_on() {
    let asks = || call("ask", json!({ "question": "Which one?" }));
    let part = json!({ "kind": "part", "input": { "customer": 7 } });
    let script = vec![
        Say::InTurn(vec![asks(), asks(), finish(json!("behind"))]),
        Say::InTurn(vec![call("request_task", part), finish(json!("a part"))]),
        asks(),
        finish(json!("whole")),
    ];
    let world = World::start(script).await;
    let text = threaded(&world, 4, "[run.parts]\npart = [\"think\"]\n");
    let text = text.replace("tools = [", "tools = [\"request_task\", ");
    let thinking = Thinking::with(world, vec![definition(&text)]).await;
    let tasks = thinking.running.parts.tasks.clone();
    let one = request(&thinking, 7).await;
    thinking.in_state(one, "waiting").await;
    let behind = request(&thinking, 7).await;
    waits_for_a_turn(&thinking, behind).await;
    let client = thinking.db.client().await;
    tasks.answer(one, "ada", json!("the red one")).await.unwrap();
    let child = "select id::text from convoke.tasks where parent_id is not null and state = 'waiting'";
    let part: TaskId = soon("the part", async {
        loop {
            if let Some(row) = client.query_opt(child, &[]).await.unwrap() {
                return row.get::<_, String>(0).parse().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    thinking.in_state(one, "waiting").await;
    tasks.answer(one, "ada", json!("yes")).await.unwrap();
    thinking.in_state(one, "completed").await;
    // Its own due time is an hour away: only the end of the part can make it due.
    assert_eq!(tasks.get(behind).await.unwrap().state.as_str(), "open");
    tasks.answer(part, "ada", json!("the blue one")).await.unwrap();
    thinking.in_state(part, "completed").await;
    thinking.in_state(behind, "completed").await;
    thinking.stop().await;
}

#[tokio::test]
async fn task_keeps_its_thread_if_its_agent_would_choose_another_one_now() {
    let thinking =
        start(vec![call("ask", json!({ "question": "Which one?" })), finish(json!("done"))], 4).await;
    let one = request(&thinking, 7).await;
    thinking.in_state(one, "waiting").await;
    // As if the file had another template when the task began.
    let client = thinking.db.client().await;
    client.batch_execute("update convoke.thread_tasks set thread = 'another'").await.unwrap();
    thinking.running.parts.tasks.answer(one, "ada", json!("the red one")).await.unwrap();
    thinking.in_state(one, "completed").await;
    let row = client.query_one("select thread, place::text from convoke.thread_tasks", &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("another", "1"));
    thinking.stop().await;
}

#[tokio::test]
async fn thread_goes_on_behind_a_canceled_task_and_a_requeued_one_queues_again() {
    let asks = call("ask", json!({ "question": "Which one?" }));
    let thinking = start(vec![asks, finish(json!("done"))], 4).await;
    let tasks = thinking.running.parts.tasks.clone();
    let [one, two, three] =
        [request(&thinking, 7).await, request(&thinking, 7).await, request(&thinking, 7).await];
    // Requests at the same moment may be worked on in any order; the first one has its turn.
    let mut waiting: Vec<TaskId> = Vec::new();
    soon("the first turn", async {
        loop {
            for id in [one, two, three] {
                if tasks.get(id).await.unwrap().state.as_str() == "waiting" {
                    waiting = [one, two, three].into_iter().filter(|other| *other != id).collect();
                    waiting.insert(0, id);
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    for id in &waiting[1..] {
        waits_for_a_turn(&thinking, *id).await;
    }
    let places = "select task_id::text from convoke.thread_tasks order by place";
    let client = thinking.db.client().await;
    let rows = client.query(places, &[]).await.unwrap();
    let order: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let at = |n: usize| waiting.iter().copied().find(|id| id.to_string() == order[n]).unwrap();
    let (first, second, third) = (at(0), at(1), at(2));

    // One that only waits is canceled: the task behind it asks again, and still waits for the first one.
    tasks.cancel(second, "no longer needed").await.unwrap();
    thinking.in_state(second, "canceled").await;
    waits_for_a_turn(&thinking, third).await;
    tasks.cancel(first, "no longer needed").await.unwrap();
    thinking.in_state(third, "waiting").await;
    // The first one comes back while the third is under way: it is behind it now.
    tasks.requeue(first, "ada").await.unwrap();
    waits_for_a_turn(&thinking, first).await;
    tasks.answer(third, "ada", json!("the red one")).await.unwrap();
    thinking.in_state(third, "completed").await;
    thinking.in_state(first, "waiting").await;
    tasks.answer(first, "ada", json!("the blue one")).await.unwrap();
    thinking.in_state(first, "completed").await;
    thinking.stop().await;
}

#[tokio::test]
async fn task_that_names_no_thread_fails_alone() {
    let thinking = start(vec![finish(json!("done"))], 1).await;
    let bad = thinking.request(json!({ "input": { "q": 1 } })).await;
    let list = thinking.request(json!({ "input": { "customer": [7] } })).await;
    let good = request(&thinking, 7).await;
    let error = |task: convoke::task::Task| json!(task.error).to_string();
    let bad = error(thinking.in_state(bad, "failed").await);
    assert!(bad.contains("run.thread: there is no input.customer"), "{bad}");
    let list = error(thinking.in_state(list, "failed").await);
    assert!(list.contains("run.thread: a list names no thread"), "{list}");
    thinking.in_state(good, "completed").await;
    assert_eq!(thinking.world.questions(), 1);
    thinking.stop().await;
}

/// That no task of a thread began before the one in front of it had ended, in the order of their places.
const OVERLAPS: &str = "select count(*) from (
        select m.place, (select min(s.began_at) from convoke.steps s where s.task_id = m.task_id) as began,
            (select max(e.at) from convoke.events e where e.task_id = m.task_id and e.type = 'finished') as ended,
            m.thread
        from convoke.thread_tasks m) one
    join (
        select m.place, (select min(s.began_at) from convoke.steps s where s.task_id = m.task_id) as began, m.thread
        from convoke.thread_tasks m) next on next.thread = one.thread and next.place > one.place
    where next.began < one.ended or one.ended is null";

#[tokio::test]
async fn many_tasks_of_three_threads_at_once_never_overlap_in_one() {
    let thinking = start(vec![call("look", json!({})), finish(json!("done"))], 8).await;
    let mut all = Vec::new();
    for n in 0..24 {
        all.push(request(&thinking, n % 3).await);
    }
    for id in all {
        thinking.in_state(id, "completed").await;
    }
    let client = thinking.db.client().await;
    let overlaps: i64 = client.query_one(OVERLAPS, &[]).await.unwrap().get(0);
    assert_eq!(overlaps, 0);
    let kept: i64 = client.query_one("select count(*) from convoke.thread_tasks", &[]).await.unwrap().get(0);
    assert_eq!(kept, 24, "each thread has fewer than ten");
    thinking.stop().await;
}

#[tokio::test]
async fn thread_keeps_the_last_ten_results() {
    let thinking = start(vec![finish(json!("done"))], 1).await;
    for _ in 0..13 {
        let id = request(&thinking, 7).await;
        thinking.in_state(id, "completed").await;
    }
    let last = told(&thinking, 0, 12);
    assert_eq!(last.matches(r#""result":"done""#).count(), 10, "{last}");
    let client = thinking.db.client().await;
    let kept: i64 = client.query_one("select count(*) from convoke.thread_tasks", &[]).await.unwrap().get(0);
    assert_eq!(kept, 11, "ten and the last one");
    thinking.stop().await;
}

#[tokio::test]
async fn agent_without_tools_has_threads_too() {
    let world = World::start(vec![Say::Text("{\"n\": 1}".into())]).await;
    let text = format!(
        "id = \"thinker\"\norg = \"demo\"\ncapabilities = [\"think\"]\n[run]\nkind = \"llm\"\nmodel = \"m\"\n\
         base_url = \"{}/v1\"\nthread = \"{{{{ input.customer }}}}\"\n",
        world.address
    );
    let thinking = Thinking::with(world, vec![definition(&text)]).await;
    for _ in 0..2 {
        let id = request(&thinking, 7).await;
        thinking.in_state(id, "completed").await;
    }
    let told = told(&thinking, 0, 1);
    assert!(told.contains(r#""result":{"n":1}"#) && told.ends_with(r#"{"customer":7}"#), "{told}");
    thinking.stop().await;
}

#[tokio::test]
async fn killed_anywhere_in_a_thread_its_tasks_still_go_one_after_the_other() {
    for point in
        ["thread.turn", "thread.turn:2", "step.recorded", "run.finishing", "task.finished", "task.followed"]
    {
        let world = World::start(vec![call("look", json!({})), finish(json!("done"))]).await;
        let (db, folder) = fresh().await;
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        std::fs::write(folder.path().join("agents/thinker.toml"), threaded(&world, 3, "")).unwrap();
        let client = db.client().await;
        client.batch_execute(ROLE).await.unwrap();
        let up = Up::start(&db, folder.path(), Some(point)).await;
        let request = "select convoke.request_task('think.it', '{\"customer\": 7}', '{think}', 'demo')
            from generate_series(1, 3)";
        client.batch_execute(request).await.unwrap();
        up.dies_at(point).await;
        let up = Up::start(&db, folder.path(), None).await;
        soon("the ends", async {
            let ended = "select count(*) from convoke.tasks where state = 'completed'";
            while client.query_one(ended, &[]).await.unwrap().get::<_, i64>(0) < 3 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let overlaps: i64 = client.query_one(OVERLAPS, &[]).await.unwrap().get(0);
        assert_eq!(overlaps, 0, "{point}");
        // Asked again or not, each task has one first question: with none, one and two results before it.
        let asked = world.asked();
        let bodies: BTreeSet<_> = asked[&0].iter().collect();
        let mut results: Vec<usize> = bodies
            .iter()
            .map(|body| String::from_utf8_lossy(body).matches("result\\\":\\\"done").count())
            .collect();
        results.sort_unstable();
        assert_eq!(results, [0, 1, 2], "{point}");
        up.kill().await;
    }
}
