//! The acknowledged writes, and whether the rows agree at the end.
use super::daemon::Machine;
use convoke::{
    id::TaskId,
    task::{INVARIANTS, replay},
};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// How a task was requested: by HTTP or SQL with a key, or by a row.
#[derive(Default)]
pub struct Ledger {
    /// Tasks by the key of their request.
    requested: Mutex<HashMap<String, TaskId>>,
    /// The epoch whose result was acknowledged to its agent.
    accepted: Mutex<HashMap<TaskId, i64>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Ledger {
    pub fn count(&self, what: &'static str) {
        *self.counts.lock().entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().clone()
    }

    /// Records that the request with this key was acknowledged.
    pub fn requested(&self, key: String, task: TaskId) {
        let known = self.requested.lock().insert(key.clone(), task);
        assert!(known.is_none_or(|known| known == task), "{key} was two tasks: {known:?} and {task}");
    }

    /// Records that the result of an agent was acknowledged.
    pub fn accepted(&self, task: TaskId, epoch: i64) {
        let known = self.accepted.lock().insert(task, epoch);
        assert!(
            known.is_none_or(|known| known == epoch),
            "{task} was accepted twice: in epochs {known:?} and {epoch}"
        );
        self.count("results accepted from outside");
    }

    /// Checks that every task is final, once, and as it was acknowledged. Returns the number of tasks by end.
    pub async fn check(&self, machine: &Machine, tasks: u64) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        let ended = "select state || coalesce(' (' || state_reason || ')', ''), count(*) from convoke.tasks group by 1";
        for row in machine.ask(ended).await {
            counts.insert(row.get(0), row.get(1));
        }
        for (what, query) in [
            (
                "a task finished twice",
                "select task_id::text from convoke.assignments where state = 'finished' group by 1 having count(*) > 1",
            ),
            (
                "an event finished twice",
                "select task_id::text from convoke.events where type = 'finished' group by 1 having count(*) > 1",
            ),
            (
                "a row without its task",
                "select o.id::text from public.orders o where not exists (select from convoke.tasks t where (t.input ->> 'order')::bigint = o.id)",
            ),
            (
                "a row with two tasks",
                "select input ->> 'order' from convoke.tasks where input ? 'order' group by 1 having count(*) > 1",
            ),
            (
                "a result of another epoch",
                "select id::text from convoke.tasks where state = 'completed' and (result ->> 'epoch')::bigint <> epoch",
            ),
        ] {
            let rows = machine.ask(query).await;
            assert!(
                rows.is_empty(),
                "{what}: {} like {:?}",
                rows.len(),
                rows.first().map(|row| row.get::<_, String>(0))
            );
        }
        assert_eq!(counts.values().sum::<i64>().cast_unsigned(), tasks, "{counts:?}");
        let mut found: HashMap<Uuid, (String, i64, Option<Value>)> = HashMap::new();
        for row in machine.ask("select id, state, epoch, result from convoke.tasks").await {
            found.insert(row.get(0), (row.get(1), row.get(2), row.get(3)));
        }
        for (key, task) in &*self.requested.lock() {
            assert!(found.contains_key(&task.as_uuid()), "{key} was acknowledged as {task} and is not there");
        }
        for (task, epoch) in &*self.accepted.lock() {
            let (state, of, result) = &found[&task.as_uuid()];
            assert_eq!((state.as_str(), of), ("completed", epoch), "{task} was accepted and has {result:?}");
        }
        let database = machine.database().await;
        let client = database.client().await.unwrap();
        for (name, query) in INVARIANTS {
            let rows = client.query(*query, &[]).await.unwrap();
            assert!(rows.is_empty(), "{name} is broken by {} rows like {:?}", rows.len(), rows.first());
        }
        drop(client);
        let replayed = replay(&database).await.unwrap();
        assert!(replayed.differences.is_empty(), "I8 is broken: {:#?}", replayed.differences);
        counts
    }
}
