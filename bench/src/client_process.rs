//! A child process with clients, from the side of the benchmark.
//!
//! Orders go to it as lines of JSON and answers come back as lines: `joined` once, then `begin` and `end` for each
//! order. It ends with its input, so it also ends when this process is killed.
use super::{client, process};
use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use std::{net::SocketAddr, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Longest wait for a line of the clients.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients in a process of their own.
pub(super) struct Clients {
    child: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Clients {
    /// Starts sockets that join one topic for every `room` of them, and exchange payloads of so many bytes.
    pub(super) async fn start(
        addr: SocketAddr,
        key: &str,
        sockets: usize,
        room: usize,
        bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut arguments: Vec<String> = vec!["client".into(), "--addr".into(), addr.to_string()];
        let numbers = [("--sockets", sockets), ("--room", room), ("--bytes", bytes)];
        arguments.extend(numbers.into_iter().flat_map(|(name, number)| [name.into(), number.to_string()]));
        Self::spawn(&arguments, [(client::KEY, key.to_owned())]).await
    }

    /// Starts this program with these arguments and returns when all its sockets have joined. Secrets travel in the
    /// environment, because every user of the machine can list arguments.
    pub(super) async fn spawn(
        arguments: &[String],
        secrets: impl IntoIterator<Item = (&'static str, String)>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(arguments).envs(secrets);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the clients")?;
        let orders = child.stdin.take().context("the clients have no input")?;
        let lines = BufReader::new(child.stdout.take().context("the clients have no output")?).lines();
        let mut clients = Self { child, orders, lines };
        clients.line("joined").await?;
        Ok(clients)
    }

    async fn line(&mut self, name: &str) -> anyhow::Result<Value> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.with_context(|| format!("no {name} from the clients within {PATIENCE:?}"))??;
        let line = line.context("the clients ended")?;
        let mut value: Value = serde_json::from_str(&line)?;
        value.get_mut(name).map(Value::take).with_context(|| format!("expected {name}, got {line}"))
    }

    /// Returns the clients' answer to an order, and the processor time of this process from `begin` to `end`.
    pub(super) async fn ask(&mut self, order: &impl Serialize) -> anyhow::Result<(Value, Duration)> {
        let line = format!("{}\n", serde_json::to_string(order)?);
        self.orders.write_all(line.as_bytes()).await?;
        self.line("begin").await?;
        let before = process::cpu()?;
        let answer = self.line("end").await?;
        Ok((answer, process::cpu()?.saturating_sub(before)))
    }

    /// The processor time of the child so far.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        process::cpu_of(self.child.id().context("the clients ended")?)
    }

    /// Ends the process by closing its input.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let Self { mut child, orders, .. } = self;
        drop(orders);
        child.wait().await?;
        Ok(())
    }
}
