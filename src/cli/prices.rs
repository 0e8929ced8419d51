//! `convoke prices`: prices of models from public catalogs, as settings. Reads a file and nothing else.
use super::{Outcome, exit::Failure, input_file, output, settings::Settings};
use crate::llm::{CatalogProblem, Price, Wanted, read_catalog};
use anyhow::anyhow;
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf};

/// Largest catalog that is read. The largest public one has about 3 MB.
const CATALOG_BYTES_MAX: u64 = 64 << 20;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Print the prices of a catalog of LiteLLM, models.dev or agentgateway as settings.
    Import(Import),
}

#[derive(clap::Args)]
pub(super) struct Import {
    /// The catalog, a JSON file
    file: PathBuf,
    /// Only models of this provider, as the catalog calls it
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only these models, with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    model: Vec<String>,
}

/// The settings that are printed.
#[derive(Serialize)]
struct Printed<'a> {
    llm: PrintedLlm<'a>,
}

#[derive(Serialize)]
struct PrintedLlm<'a> {
    prices: &'a BTreeMap<String, Price>,
}

pub(super) fn run(settings: &Settings, command: Command) -> Outcome {
    let Command::Import(Import { file, provider, model }) = command;
    let text = input_file::read(&file, CATALOG_BYTES_MAX)?;
    let at = |problem: &CatalogProblem| {
        let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
        format!("{}{line}: {}: {}", file.display(), problem.key, problem.message)
    };
    let found =
        read_catalog(&text, &Wanted { provider, models: model }).map_err(|problem| anyhow!(at(&problem)))?;
    if settings.json {
        output::json(&found);
    } else {
        if !found.prices.is_empty() {
            let printed = Printed { llm: PrintedLlm { prices: &found.prices } };
            output::line(toml::to_string(&printed)?.trim_end());
        }
        for problem in &found.problems {
            eprintln!("{}", at(problem));
        }
        let (read, unpriced) = (found.prices.len(), found.unpriced);
        eprintln!("prices of {read} models; {unpriced} models have no price of tokens");
    }
    if found.problems.is_empty() { Ok(()) } else { Err(Failure::reported()) }
}
