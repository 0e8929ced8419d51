//! The metrics of the models' accounts, read when they are scraped.
use super::{AccountState, Models};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use std::fmt;

/// Encodes the state of each account.
#[derive(Debug)]
pub(super) struct Accounts(pub(super) Models);

impl Collector for Accounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let accounts = self.0.accounts();
        type Read = fn(&AccountState) -> i64;
        let gauges: [(&str, &str, Read); 5] = [
            ("llm_waiting", "Model requests that wait for their account", |a| count(a.waiting)),
            ("llm_under_way", "Model requests under way", |a| count(a.under_way)),
            ("llm_concurrent", "Most concurrent model requests, declared or learned", |a| {
                count(a.concurrent)
            }),
            ("llm_paused", "Whether the account pauses after a 429", |a| {
                i64::from(a.paused_seconds.is_some())
            }),
            ("llm_breakers_open", "Models whose requests are held", |a| count(a.open_breakers.len())),
        ];
        for (name, help, read) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for account in &accounts {
                let labels = [("account", account.account.as_str())];
                ConstGauge::new(read(account)).encode(family.encode_family(&labels)?)?;
            }
        }
        type Count = fn(&AccountState) -> u64;
        let counters: [(&str, &str, Count); 2] = [
            ("llm_rate_limited", "Answers of model endpoints with status 429", |a| a.rate_limited),
            ("llm_passed_over", "Questions that went to another model of the agent", |a| a.passed_over),
        ];
        for (name, help, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for account in &accounts {
                let labels = [("account", account.account.as_str())];
                ConstCounter::new(read(account)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
