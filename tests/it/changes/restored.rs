//! A database that is restored from an older copy while the daemon runs: one gap notice, then changes at once.
use super::watch::{WatchedDaemon, change, ground, settings};
use crate::{
    daemon::soon,
    support::{crypto, database_on_its_own_server},
};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn restored_database_is_one_gap_and_its_next_change_is_delivered() {
    crypto();
    let (mut db, data) = (database_on_its_own_server().await, tempfile::tempdir().unwrap());
    ground(&db, "create table n (id bigint primary key, body text)", "n").await;
    db.own().stop().await;
    db.own().copy();
    db.own().again().await;
    let config = settings(&db, &data);
    let mut rig = WatchedDaemon::on(db, data, config).await;
    let mut watch = rig.watch(json!([{"table": "n"}])).await;
    rig.run("insert into n select i, repeat('x', 9000) from generate_series(1, 50) i").await;
    for id in 1..=50 {
        assert_eq!(change(watch.socket.next().await)["data"]["record"]["id"], id);
    }

    rig.db.own().stop().await;
    rig.db.own().put_back();
    rig.db.own().again().await;
    rig.sql = rig.db.client().await;
    let told = watch.socket.next().await;
    assert_eq!((&*told.event, &told.payload["status"]), ("system", &json!("error")), "{told:?}");
    assert!(told.payload["meta"]["gap"].is_object(), "{told:?}");
    let url = format!("http://{}/health", rig.running.parts.addr);
    soon("the daemon streams and says what was lost", async {
        loop {
            let health: Value = reqwest::get(&url).await.unwrap().json().await.unwrap();
            if health["parts"]["wal"]["detail"].as_str().unwrap().contains("changes were lost") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    rig.run("insert into n values (1, 'again')").await;
    // One gap is one notice and one event, although the copy is from before the daemon's publication and slot.
    assert_eq!(change(watch.socket.next().await)["data"]["record"], json!({"id": 1, "body": "again"}));
    let lost = "select body ->> 'reason' from convoke.events where type = 'wal_gap'";
    let reason: String = rig.sql.query_one(lost, &[]).await.unwrap().get(0);
    assert!(reason.contains("put back from an older copy"), "{reason}");
    rig.running.stop().await;
}
