//! The manager, the batcher and the test helpers, as a program uses them.
use super::client;
use crate::support::PATIENCE;
use crate::{realtime::Server, support};
use convoke::client::{
    Batcher, ChangeFilter, Manager,
    testing::{WaitError, create_test_channel, mock_presence, wait_for_event},
};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn test_helpers_work_without_sleeps() {
    let server = Server::start().await;
    let client = client(&server).start();
    let channel = create_test_channel(&client).await.unwrap();
    let (mut pings, mut presences) = (channel.broadcasts("ping"), channel.presences());
    channel.broadcast("other", 1).await.unwrap();
    channel.broadcast("ping", json!({"n": 1})).await.unwrap();
    let ping = wait_for_event(&mut pings, PATIENCE, |_| true).await.unwrap();
    assert_eq!(ping.json::<Value>().unwrap()["n"], 1);
    let none = wait_for_event(&mut pings, Duration::from_millis(10), |_| false).await;
    assert_eq!(none.unwrap_err(), WaitError::TimedOut { within: Duration::from_millis(10), others: 0 });

    let members = [("ada", json!({"busy": true})), ("bob", json!({"busy": false}))];
    let mut others = mock_presence(&channel, members).await.unwrap();
    wait_for_event(&mut presences, PATIENCE, |_| channel.present().len() == 2).await.unwrap();
    others.member("ada").unwrap().track(json!({"busy": false})).await.unwrap();
    let idle = |_: &_| channel.present().get("ada").iter().any(|meta| meta.data["busy"] == false);
    wait_for_event(&mut presences, PATIENCE, idle).await.unwrap();
    others.leave("ada");
    wait_for_event(&mut presences, PATIENCE, |_| channel.present().get("ada").is_empty()).await.unwrap();
    drop(others);
    wait_for_event(&mut presences, PATIENCE, |_| channel.present().is_empty()).await.unwrap();

    channel.leave().await.unwrap();
    assert!(matches!(wait_for_event(&mut pings, PATIENCE, |_| true).await, Err(WaitError::Closed { .. })));
    server.stop().await;
}

#[tokio::test]
async fn manager_shares_a_channel_and_batcher_coalesces_messages() {
    let server = Server::start().await;
    let (sender, receiver) = (client(&server).start(), client(&server).start());
    let manager = Manager::new(&sender, 10);
    let (one, two) = tokio::join!(
        manager.channel("den", |wish| wish.acknowledged()),
        manager.channel("den", |wish| wish.acknowledged())
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((manager.len(), manager.users("den")), (1, Some(2)));
    assert_eq!(server.hub.watchers(&crate::realtime::room("den")), 1);
    let mut heard = receiver.channel("den").subscribe().await.unwrap().broadcasts("batch_messages");
    drop(one);
    let batcher = Batcher::new((*two).clone());
    for n in 0..25 {
        batcher.send("tick", n).await.unwrap();
    }
    batcher.flush().await.unwrap();
    let (mut numbers, mut batches) = (Vec::new(), 0);
    while numbers.len() < 25 {
        let batch = wait_for_event(&mut heard, PATIENCE, |_| true).await.unwrap().batch().unwrap();
        assert!(batch.len() <= 10);
        numbers.extend(batch.iter().map(|one| one.json::<u32>().unwrap()));
        batches += 1;
    }
    assert_eq!(numbers, (0..25).collect::<Vec<_>>());
    assert!(batches < 10, "{batches}");
    server.stop().await;
}

#[tokio::test]
async fn change_filters_are_matched_with_the_join_reply() {
    let server = Server::start().await;
    let client = client(&server).start();
    let filter = ChangeFilter::table("public", "orders").inserts().filter("total=gt.100").columns(["id"]);
    let channel = client.channel("orders").changes(filter.clone()).changes(ChangeFilter::schema("public"));
    let channel = channel.subscribe().await.unwrap();
    drop(channel.changes_of(&filter));
    server.stop().await;
}

#[tokio::test]
async fn client_example_runs_unchanged() {
    let server = Server::start().await;
    let mut example = tokio::process::Command::new(support::example("realtime_client"));
    example.args([server.http(""), server.anon()]).kill_on_drop(true);
    let ran = tokio::time::timeout(PATIENCE * 2, example.output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    for line in ["heard ping: {\"n\":1}", "1 keys are present", "closed: Stats { connects: "] {
        assert!(said.contains(line), "{line} in {said}");
    }
    server.stop().await;
}
