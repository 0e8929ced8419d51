//! Real faults: hosted, remote and HTTP agents work on tasks from HTTP, SQL and row changes, while the daemon, the
//! agents, their sockets and Postgres are killed at random.
//!
//! At the end every task is final, none was accepted twice, every acknowledged write exists, and all invariants hold.
//! `CONVOKE_CHAOS_TASKS` sets the number of tasks, `CONVOKE_CHAOS_SEED` the seed of the faults, and
//! `CONVOKE_CHAOS_DAEMON` another binary of the daemon, like a release build.
mod agents;
mod daemon;
mod faults;
mod ledger;
mod requests;

use crate::support::{crypto, from_environment};
use daemon::Machine;
use ledger::Ledger;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest time without an ended task after the last fault.
const PATIENCE: Duration = Duration::from_secs(120);
/// Fewer tasks than this are requested slowly, so that faults come between them.
const FEW: u64 = 2_000;
const PAUSE_OF_FEW: Duration = Duration::from_millis(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_ends_once_under_kills() {
    let tasks = from_environment("CONVOKE_CHAOS_TASKS", 250);
    let seed = from_environment("CONVOKE_CHAOS_SEED", rand::random_range(0..1_000_000));
    println!("CONVOKE_CHAOS_SEED={seed} draws these faults again");
    crypto();
    let started = Instant::now();
    let ledger = Arc::new(Ledger::default());
    let service = agents::Service::start(seed).await;
    let machine = Arc::new(Machine::start(&service).await);
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let agents = agents::start(&tracker, &machine, &ledger, seed, &stop);
    let faults = tracker.spawn(faults::inject(machine.clone(), agents, seed, stop.child_token()));

    let pause = if tasks < FEW { PAUSE_OF_FEW } else { Duration::ZERO };
    requests::all(&machine, &ledger, tasks, pause, seed).await;
    println!("all requested after {:?}", started.elapsed());
    if tasks >= FEW {
        // The faults continue while the last thousands are worked on.
        machine.until_fewer_are_open_than(FEW / 4, PATIENCE).await;
    }
    faults.abort();
    let injected = machine.faults();
    machine.revive().await;
    machine.until_fewer_are_open_than(1, PATIENCE).await;
    let counts = ledger.check(&machine, tasks).await;
    println!(
        "{}",
        json!({
            "seed": seed, "tasks": tasks, "seconds": started.elapsed().as_secs(), "faults": injected,
            "acknowledged": ledger.counts(), "ended": counts,
        })
    );
    stop.cancel();
    tracker.close();
    tracker.wait().await;
    machine.stop().await;
}
