//! The machine that a benchmark ran on. Figures of different machines are not comparable.
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

/// Linux tells all of this in files; a field is empty or zero where it does not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Model name of the first processor.
    pub(crate) cpu: String,
    /// Processors that this process may use.
    pub(crate) cores: usize,
    /// Rounded, because the size in bytes differs a little from one boot to the next.
    pub(crate) memory_gib: u64,
    /// Name and release of the kernel.
    pub(crate) kernel: String,
    /// `None` for a benchmark without a database.
    pub(crate) postgres: Option<Postgres>,
}

/// The server under the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Postgres {
    pub(crate) version: String,
    pub(crate) fsync: bool,
    /// Started by the benchmark, and not a server of the settings.
    pub(crate) private: bool,
}

impl Machine {
    /// Reads what this machine is.
    pub(crate) fn read(postgres: Option<Postgres>) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory_kib: u64 = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|size| size.trim_end_matches("kB").trim().parse().ok())
            .unwrap_or_default();
        let kernel = format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease").trim());
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or(std::env::consts::ARCH).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: (memory_kib + (1 << 19)) >> 20,
            kernel: kernel.trim().to_owned(),
            postgres,
        }
    }
}

impl Postgres {
    pub(crate) async fn read(client: &Client, private: bool) -> anyhow::Result<Self> {
        let sql = "select current_setting('server_version'), current_setting('fsync')::bool";
        let row = client.query_one(sql, &[]).await?;
        Ok(Self { version: row.try_get(0)?, fsync: row.try_get(1)?, private })
    }
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_is_read_from_the_kernels_files() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: another\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(field(text, "flags"), None);
        let machine = Machine::read(None);
        assert!(machine.cores > 0 && machine.memory_gib > 0 && !machine.cpu.is_empty(), "{machine:?}");
        assert_eq!(machine, Machine::read(None));
    }
}
