//! The checks after every step and at the end.
use super::Simulation;
use chrono::{DateTime, TimeDelta, Utc};
use convoke::{
    id::TaskId,
    task::{Filter, INVARIANTS, TaskState},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

impl Simulation {
    /// Checks that hold after every step.
    pub(super) async fn check(&mut self) {
        let client = self.database.client().await.unwrap();
        for (name, query) in INVARIANTS {
            let rows = client.query(*query, &[]).await.unwrap();
            let Some(broken) = rows.first() else { continue };
            let history = "select concat_ws(' ', e.at, e.task_id, e.epoch, e.type, e.body) from convoke.events e \
                where e.task_id::text = $1 or e.task_id = (select parent_id from convoke.tasks where id::text = $1) \
                order by e.seq";
            let subject: String = broken.get(0);
            let events = client.query(history, &[&subject]).await.unwrap();
            let events: Vec<String> = events.iter().map(|event| event.get(0)).collect();
            panic!("after {} steps {name} is broken by {subject}:\n{}", self.steps, events.join("\n"));
        }
        let rows = client.query("select id, state, epoch, result from convoke.tasks", &[]).await.unwrap();
        for row in rows {
            let task = TaskId::from(row.get::<_, uuid::Uuid>(0));
            let state = TaskState::parse(row.get(1)).unwrap();
            if let Some(before) = self.finals.get(&task) {
                assert_eq!(*before, state, "a final state is not final");
            }
            if state.is_final() {
                self.finals.insert(task, state);
            }
            match self.accepted.get(&task) {
                Some((key, result)) => {
                    assert_eq!((state, row.get::<_, i64>(2)), (TaskState::Completed, key.epoch.0));
                    assert_eq!(row.get::<_, Option<Value>>(3).as_ref(), Some(result));
                }
                None => assert_ne!(state, TaskState::Completed, "{task} is completed without an agent"),
            }
        }
    }

    /// Without new requests, every task must end.
    pub(super) async fn end(&mut self) {
        for _ in 0..400 {
            for _ in 0..4 {
                self.tick(false).await;
            }
            self.check().await;
            if self.finals.len() == self.tasks.len() {
                return;
            }
            self.pass(TimeDelta::seconds(60)).await;
        }
        let filter = Filter::default();
        let left = self.nodes[0].tasks.list(&filter).await.unwrap();
        let left: Vec<_> = left.iter().filter(|task| !task.state.is_final()).collect();
        panic!("{} tasks never end, like {:?}", self.tasks.len() - self.finals.len(), left.first());
    }

    /// The history, without the ids that differ between runs.
    pub(super) async fn history(&self) -> String {
        let rows = self
            .admin
            .query(
                "select e.type, e.at, coalesce(e.agent_id, '-'), coalesce(e.epoch, 0), t.input ->> 'number'
                 from convoke.events e join convoke.tasks t on t.id = e.task_id
                 order by e.at, (t.input ->> 'number')::int, e.epoch, e.type, e.agent_id",
                &[],
            )
            .await
            .unwrap();
        let mut hash = Sha256::new();
        for row in rows {
            let at: DateTime<Utc> = row.get(1);
            let (kind, agent, number): (&str, &str, &str) = (row.get(0), row.get(2), row.get(4));
            hash.update(format!("{kind} {at} {agent} {} {number}\n", row.get::<_, i64>(3)));
        }
        hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
