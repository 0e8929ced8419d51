//! Readiness that does not come says which part is down and why.
use super::{Running, config, fresh, soon};
use std::time::Duration;

#[tokio::test]
async fn slot_of_another_database_is_the_reason_for_not_being_ready() {
    let ((first, first_data), (second, second_data)) = (fresh().await, fresh().await);
    let owner = Running::start(config(&first, first_data.path()), vec![]).await;
    let mut taken = config(&second, second_data.path());
    taken.wal.slot = first.slot();
    let running = Running::launch(convoke::app::Daemon::builder(taken).definitions(Vec::new())).await;

    let expected = format!("replication slot {} belongs to database {:?}", first.slot(), first.name);
    let reason = soon("the reason", async {
        loop {
            let error = running.parts.ready(Duration::from_millis(50)).await.unwrap_err();
            let reason = format!("{error:#}");
            if reason.contains(&expected) {
                return reason;
            }
        }
    })
    .await;
    assert!(reason.contains("wal") && reason.contains("choose another wal.slot"), "{reason}");

    // The address is public, so the reason stays in the daemon's own log.
    let url = format!("http://{}/health/ready", running.parts.addr);
    let answer = reqwest::get(url).await.unwrap();
    assert_eq!(answer.status(), 503);
    let body = answer.text().await.unwrap();
    assert!(body.contains("\"wal\"") && !body.contains(&first.name), "{body}");
    running.stop().await;
    owner.stop().await;
}
