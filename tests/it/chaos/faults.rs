//! The faults: which process is killed, and when.
use super::{agents::Agents, daemon::Machine};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Kills until it is stopped: agents often, the daemon and Postgres seldom.
pub async fn inject(machine: Arc<Machine>, agents: Agents, seed: u64, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..2_500))).await;
        match rng.random_range(0..10) {
            0..5 => {
                agents.kill_one(&mut rng);
                machine.count("agent killed, or its socket");
            }
            5..7 => machine.kill_daemon(&mut rng).await,
            7 => {
                machine.signal_postgres("INT", true).await;
                machine.count("postgres restarted fast");
            }
            8 => {
                machine.signal_postgres("QUIT", true).await;
                machine.count("postgres restarted immediately");
            }
            _ => {
                machine.signal_postgres("KILL", false).await;
                machine.count("a process of postgres killed");
            }
        }
    }
}
