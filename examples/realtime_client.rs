//! The client of the channels, in one program: `cargo run --example realtime_client -- URL KEY`.
//!
//! Works against Convoke (`http://127.0.0.1:4000` and a key of `convoke token`) and Supabase
//! (`https://….supabase.co/realtime/v1` and the anon key). Runs for a few seconds and ends.
use anyhow::Context;
use convoke::client::{
    Batcher, ChangeFilter, Client, Event, Manager,
    testing::{create_test_channel, mock_presence, wait_for_event},
};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "http://127.0.0.1:4000".into());
    let key = args.next().context("the key is missing: realtime_client URL KEY")?;
    // A program with users gives a source of tokens: .token_source(|| async { fetch_token().await })
    let client = Client::builder(&url, &key)?.timeout(PATIENCE).start();

    // A channel is built, listened to, and subscribed: so nothing is missed.
    let orders = ChangeFilter::table("public", "orders").inserts().filter("total=gt.100");
    let den = client.channel("den").receive_own().acknowledged().presence_key("ada").changes(orders);
    let den = den.build();
    let (mut everything, mut pings) = (den.events(), den.broadcasts("ping"));
    den.subscribe().await?;
    den.track(json!({"status": "busy"})).await?;
    den.broadcast("ping", json!({"n": 1})).await?;
    let ping = wait_for_event(&mut pings, PATIENCE, |_| true).await?;
    println!("heard {}: {}", ping.event, ping.json::<serde_json::Value>()?);
    // Status, broadcasts, presence, row changes and the server's own messages, in their order.
    let heard =
        wait_for_event(&mut everything, PATIENCE, |event| matches!(event, Event::Presence(_))).await?;
    println!("heard {heard:?}; {} keys are present", den.present().len());
    den.http_send("ping", json!({"over": "http"})).await?;
    wait_for_event(&mut pings, PATIENCE, |_| true).await?;

    // Parts of a program share channels by their topic; ten small messages travel as one.
    let manager = Manager::new(&client, 50);
    let chat = manager.channel("chat", |wish| wish.acknowledged()).await?;
    let batcher = Batcher::new((*chat).clone());
    for n in 0..10 {
        batcher.send("typing", json!({ "n": n })).await?;
    }
    batcher.flush().await?;

    // In tests: a channel of one's own, and others who are there.
    let mine = create_test_channel(&client).await?;
    let mut presences = mine.presences();
    let others = mock_presence(&mine, [("bob", json!({})), ("eve", json!({}))]).await?;
    wait_for_event(&mut presences, PATIENCE, |_| mine.present().len() == 2).await?;
    drop(others);
    client.close().await?;
    println!("closed: {:?}", client.stats());
    Ok(())
}
