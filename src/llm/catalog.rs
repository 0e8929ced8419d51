//! Reads prices from public catalogs of models: those of LiteLLM, models.dev and agentgateway. Pure.
//!
//! A catalog is a file that others wrote. What cannot be read is a problem with its line and key, and the other models
//! are read nevertheless. Prices become whole microdollars for a million tokens, rounded up.
use super::{Price, Tier, dollars::scaled};
use crate::json::{COUNT_MAX, count};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use std::collections::{BTreeMap, BTreeSet};

/// Which models of a catalog are read.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this provider, as the catalog calls it. `None` for all.
    pub provider: Option<String>,
    /// The names of the models. Empty for all.
    pub models: Vec<String>,
}

impl Wanted {
    fn has_provider(&self, name: &str) -> bool {
        self.provider.as_ref().is_none_or(|provider| provider == name)
    }

    fn has_model(&self, name: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|model| model == name)
    }
}

/// What was read of a catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CatalogPrices {
    /// The prices by the name of the model.
    pub prices: BTreeMap<String, Price>,
    /// What cannot be used, by the line.
    pub problems: Vec<CatalogProblem>,
    /// Wanted models without any price of tokens.
    pub unpriced: usize,
}

/// A price that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CatalogProblem {
    /// The line in the file. `None` if it is not in the file.
    pub line: Option<usize>,
    /// Where it is, with dots.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

/// Reads the JSON of a catalog. Its form is recognised by its members.
///
/// # Errors
/// If it is no JSON object.
pub fn read_catalog(text: &str, wanted: &Wanted) -> Result<CatalogPrices, CatalogProblem> {
    let top: Members<'_> = serde_json::from_str(text).map_err(|e| CatalogProblem {
        line: Some(e.line()),
        key: "the file".into(),
        message: format!("it is no JSON object: {e}"),
    })?;
    let mut reader = Reader { text, wanted, found: Vec::new(), problems: Vec::new(), unpriced: 0 };
    let has_models = |raw: &&RawValue| members_of(raw).is_some_and(|it| it.contains_key("models"));
    match top.get("providers") {
        Some(providers) => reader.providers(providers, Reader::agentgateway),
        None if top.values().any(has_models) => reader.each_provider(&top, Reader::models_dev),
        None => reader.litellm(&top),
    }
    Ok(reader.merged())
}

/// The members of an object, with their texts.
type Members<'a> = BTreeMap<String, &'a RawValue>;

fn members_of(raw: &RawValue) -> Option<Members<'_>> {
    serde_json::from_str(raw.get()).ok()
}

/// The names of the rates in a catalog.
struct Names {
    input: &'static str,
    output: &'static str,
    cached: &'static str,
    written: &'static str,
    reasoning: &'static str,
    /// The power of ten from its dollars to microdollars for a million tokens.
    power: i32,
}

/// Dollars for a token.
const LITELLM: Names = Names {
    input: "input_cost_per_token",
    output: "output_cost_per_token",
    cached: "cache_read_input_token_cost",
    written: "cache_creation_input_token_cost",
    reasoning: "output_cost_per_reasoning_token",
    power: 12,
};
/// Dollars for a million tokens.
const MODELS_DEV: Names = Names {
    input: "input",
    output: "output",
    cached: "cache_read",
    written: "cache_write",
    reasoning: "reasoning",
    power: 6,
};
/// Dollars for a million tokens, as texts.
const AGENTGATEWAY: Names = Names { cached: "cacheRead", written: "cacheWrite", ..MODELS_DEV };

/// The kinds of models in LiteLLM's catalog that answer questions.
const LITELLM_MODES: [&str; 3] = ["chat", "completion", "responses"];

/// The rates of a model, or of a tier.
#[derive(Clone, Copy, Default)]
struct Rates {
    input: Option<u64>,
    output: Option<u64>,
    cached: Option<u64>,
    written: Option<u64>,
    reasoning: Option<u64>,
}

impl Rates {
    /// These rates, and those of `base` for the rest.
    fn over(self, base: Self) -> Self {
        Self {
            input: self.input.or(base.input),
            output: self.output.or(base.output),
            cached: self.cached.or(base.cached),
            written: self.written.or(base.written),
            reasoning: self.reasoning.or(base.reasoning),
        }
    }
}

/// Where the entry of a model is.
#[derive(Clone, Copy)]
struct Entry<'a> {
    provider: &'a str,
    /// Its name at its endpoint.
    model: &'a str,
    place: &'a str,
    raw: &'a RawValue,
}

/// A model that was read.
struct Found {
    provider: String,
    model: String,
    price: Price,
    /// Where its entry is in the text, in bytes.
    at: usize,
}

/// A value could not be read; the problem is noted.
struct Unreadable;

struct Reader<'a> {
    text: &'a str,
    wanted: &'a Wanted,
    found: Vec<Found>,
    problems: Vec<CatalogProblem>,
    unpriced: usize,
}

/// The rates of a model, and those of its tiers with the tokens that the tier is over.
type ModelRates = Result<(Rates, Vec<(u64, Rates)>), Unreadable>;
type ReadModel<'a> = fn(&mut Reader<'a>, &str, &Members<'a>) -> ModelRates;

impl<'a> Reader<'a> {
    /// Models by provider.
    fn providers(&mut self, raw: &'a RawValue, read: ReadModel<'a>) {
        if let Ok(providers) = self.members("providers", raw) {
            self.each_provider(&providers, read);
        }
    }

    fn each_provider(&mut self, providers: &Members<'a>, read: ReadModel<'a>) {
        let wanted = self.wanted;
        for (provider, raw) in providers.iter().filter(|(name, _)| wanted.has_provider(name)) {
            let Ok(members) = self.members(provider, raw) else { continue };
            let Some(models) = members.get("models") else { continue };
            let Ok(models) = self.members(&format!("{provider}.models"), models) else { continue };
            for (model, raw) in models.iter().filter(|(name, _)| wanted.has_model(name)) {
                let place = format!("{provider}.{model}");
                let Ok(members) = self.members(&place, raw) else { continue };
                if let Ok((base, tiers)) = read(self, &place, &members) {
                    self.add(&Entry { provider, model, place: &place, raw }, base, tiers, 0);
                }
            }
        }
    }

    /// `{"rates": {…}, "tiers": [{"contextOver", "rates": {…}}]}`
    fn agentgateway(&mut self, place: &str, model: &Members<'a>) -> ModelRates {
        let Some(raw) = model.get("rates") else { return Ok((Rates::default(), Vec::new())) };
        let base = self.rates(&format!("{place}.rates"), raw, &AGENTGATEWAY)?;
        let mut tiers = Vec::new();
        for (place, tier) in self.list(place, model, "tiers")? {
            let members = self.members(&place, tier)?;
            let over = self.count(&place, tier, &members, "contextOver")?;
            let raw = self.member(&place, tier, &members, "rates")?;
            tiers.push((over, self.rates(&format!("{place}.rates"), raw, &AGENTGATEWAY)?));
        }
        Ok((base, tiers))
    }

    /// `{"cost": {…, "tiers": [{…, "tier": {"type": "context", "size"}}], "context_over_200k": {…}}}`
    fn models_dev(&mut self, place: &str, model: &Members<'a>) -> ModelRates {
        let Some(raw) = model.get("cost") else { return Ok((Rates::default(), Vec::new())) };
        let place = format!("{place}.cost");
        let (base, cost) = (self.rates(&place, raw, &MODELS_DEV)?, self.members(&place, raw)?);
        let mut tiers = Vec::new();
        for (place, tier) in self.list(&place, &cost, "tiers")? {
            let members = self.members(&place, tier)?;
            let raw = self.member(&place, tier, &members, "tier")?;
            let place = format!("{place}.tier");
            let bound = self.members(&place, raw)?;
            if bound.get("type").is_some_and(|kind| kind.get() != "\"context\"") {
                return Err(self.problem(raw, place, "only a tier by the size of the context is understood"));
            }
            let over = self.count(&place, raw, &bound, "size")?;
            tiers.push((over, self.rates(&place, tier, &MODELS_DEV)?));
        }
        if let Some(raw) = cost.get("context_over_200k").filter(|_| tiers.is_empty()) {
            let over = self.rates(&format!("{place}.context_over_200k"), raw, &MODELS_DEV)?;
            tiers.push((200_000, over));
        }
        Ok((base, tiers))
    }

    /// `{"<model>": {"litellm_provider", "mode", "input_cost_per_token", "input_cost_per_token_above_200k_tokens", …}}`
    fn litellm(&mut self, top: &Members<'a>) {
        for (name, raw) in top.iter().filter(|(name, _)| *name != "sample_spec") {
            let Ok(members) = self.members(name, raw) else { continue };
            let word = |key: &str| serde_json::from_str::<String>(members.get(key)?.get()).ok();
            let provider = word("litellm_provider").unwrap_or_default();
            let answers = word("mode").is_none_or(|mode| LITELLM_MODES.contains(&mode.as_str()));
            // `openrouter/openai/gpt-5` of openrouter is `openai/gpt-5` at its endpoint.
            let model = name.strip_prefix(&format!("{provider}/")).unwrap_or(name);
            if !answers || !self.wanted.has_provider(&provider) || !self.wanted.has_model(model) {
                continue;
            }
            let read = self.litellm_model(name, raw, &members);
            let request = self.rate(name, &members, "input_cost_per_request", 6);
            if let (Ok((base, tiers)), Ok(request)) = (read, request) {
                let entry = Entry { provider: &provider, model, place: name, raw };
                self.add(&entry, base, tiers, request.unwrap_or(0));
            }
        }
    }

    fn litellm_model(&mut self, place: &str, raw: &'a RawValue, members: &Members<'a>) -> ModelRates {
        let mut base = self.rates(place, raw, &LITELLM)?;
        let mut tiers = Vec::new();
        let bounds: BTreeSet<(u64, &str)> = members.keys().filter_map(|key| litellm_bound(key)).collect();
        for (over, suffix) in bounds {
            tiers.push((over, self.suffixed_rates(place, members, &LITELLM, suffix)?));
        }
        for (place, tier) in self.list(place, members, "tiered_pricing")? {
            let of_tier = self.members(&place, tier)?;
            let range = self.member(&place, tier, &of_tier, "range")?;
            let from = serde_json::from_str::<Vec<Value>>(range.get()).ok();
            let from = from.and_then(|range| count(range.first()?));
            let from =
                from.ok_or_else(|| self.problem(range, format!("{place}.range"), "has no first number"))?;
            let rates = self.rates(&place, tier, &LITELLM)?;
            if from == 0 {
                base = base.over(rates);
            } else {
                tiers.push((from, rates));
            }
        }
        Ok((base, tiers))
    }

    fn rates(&mut self, place: &str, raw: &'a RawValue, names: &Names) -> Result<Rates, Unreadable> {
        let members = self.members(place, raw)?;
        self.suffixed_rates(place, &members, names, "")
    }

    fn suffixed_rates(
        &mut self,
        place: &str,
        members: &Members<'a>,
        names: &Names,
        suffix: &str,
    ) -> Result<Rates, Unreadable> {
        let mut rate = |name: &str| self.rate(place, members, &format!("{name}{suffix}"), names.power);
        Ok(Rates {
            input: rate(names.input)?,
            output: rate(names.output)?,
            cached: rate(names.cached)?,
            written: rate(names.written)?,
            reasoning: rate(names.reasoning)?,
        })
    }

    /// An amount of dollars, as a number or a text. `None` if it is missing or null.
    fn rate(
        &mut self,
        place: &str,
        members: &Members<'a>,
        key: &str,
        power: i32,
    ) -> Result<Option<u64>, Unreadable> {
        let Some(raw) = members.get(key).filter(|raw| raw.get() != "null") else { return Ok(None) };
        let quoted: Option<String> = serde_json::from_str(raw.get()).ok();
        let digits = quoted.as_deref().unwrap_or(raw.get()).trim();
        match scaled(digits, power) {
            Some(amount) if amount < COUNT_MAX => Ok(Some(amount)),
            _ => {
                let what = format!("{:.40} is no amount of dollars", raw.get());
                Err(self.problem(raw, format!("{place}.{key}"), &what))
            }
        }
    }

    fn members(&mut self, place: &str, raw: &'a RawValue) -> Result<Members<'a>, Unreadable> {
        members_of(raw).ok_or_else(|| self.problem(raw, place.to_owned(), "is no object"))
    }

    fn member(
        &mut self,
        place: &str,
        of: &'a RawValue,
        members: &Members<'a>,
        key: &str,
    ) -> Result<&'a RawValue, Unreadable> {
        members.get(key).copied().ok_or_else(|| self.problem(of, format!("{place}.{key}"), "is missing"))
    }

    fn count(
        &mut self,
        place: &str,
        of: &'a RawValue,
        members: &Members<'a>,
        key: &str,
    ) -> Result<u64, Unreadable> {
        let raw = self.member(place, of, members, key)?;
        let value: Option<Value> = serde_json::from_str(raw.get()).ok();
        let number = value.as_ref().filter(|value| value.is_number()).and_then(count);
        number.ok_or_else(|| self.problem(raw, format!("{place}.{key}"), "is no number of tokens"))
    }

    /// The items of a list with their places. None if it is missing.
    fn list(
        &mut self,
        place: &str,
        members: &Members<'a>,
        key: &str,
    ) -> Result<Vec<(String, &'a RawValue)>, Unreadable> {
        let Some(raw) = members.get(key).copied() else { return Ok(Vec::new()) };
        let items: Option<Vec<&'a RawValue>> = serde_json::from_str(raw.get()).ok();
        let items = items.ok_or_else(|| self.problem(raw, format!("{place}.{key}"), "is no list"))?;
        Ok(items.into_iter().enumerate().map(|(at, item)| (format!("{place}.{key}.{at}"), item)).collect())
    }

    fn add(&mut self, entry: &Entry<'_>, base: Rates, tiers: Vec<(u64, Rates)>, request: u64) {
        let Entry { provider, model, place, raw } = *entry;
        let (input, output) = match (base.input, base.output) {
            (Some(input), Some(output)) => (input, output),
            (None, None) => {
                self.unpriced += 1;
                return;
            }
            (Some(_), None) => return self.tell(raw, place.to_owned(), "has no price of answers"),
            (None, Some(_)) => return self.tell(raw, place.to_owned(), "has no price of prompts"),
        };
        let tier = |(over_tokens, rates): (u64, Rates)| {
            let Rates { input: of_input, output: of_output, cached, written, reasoning } = rates.over(base);
            Tier {
                over_tokens,
                input: of_input.unwrap_or(input),
                output: of_output.unwrap_or(output),
                cached_input: cached,
                cache_write: written,
                reasoning,
            }
        };
        let price = Price {
            input: Some(input),
            output: Some(output),
            cached_input: base.cached,
            cache_write: base.written,
            reasoning: base.reasoning,
            request,
            tiers: tiers.into_iter().map(tier).collect(),
            ..Price::default()
        };
        if let Some((key, what, _)) = price.check().into_iter().next() {
            return self.tell(raw, format!("{place}.{key}"), &what);
        }
        let at = self.offset(raw);
        self.found.push(Found { provider: provider.to_owned(), model: model.to_owned(), price, at });
    }

    fn problem(&mut self, at: &RawValue, key: String, message: &str) -> Unreadable {
        self.tell(at, key, message);
        Unreadable
    }

    fn tell(&mut self, at: &RawValue, key: String, message: &str) {
        let line = Some(self.line(self.offset(at)));
        self.problems.push(CatalogProblem { line, key, message: message.to_owned() });
    }

    /// Where a value is in the text: it was not copied.
    fn offset(&self, raw: &RawValue) -> usize {
        raw.get().as_ptr().addr().saturating_sub(self.text.as_ptr().addr())
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// One price for each model. Models that several providers have at other prices are a problem.
    fn merged(mut self) -> CatalogPrices {
        let mut by_model: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for found in std::mem::take(&mut self.found) {
            by_model.entry(found.model.clone()).or_default().push(found);
        }
        let mut prices = BTreeMap::new();
        for (model, mut found) in by_model {
            let Some(first) = found.pop() else { continue };
            if let Some(other) = found.iter().find(|other| other.price != first.price) {
                let message = format!(
                    "{:?} (line {}) and {:?} have other prices: choose one with --provider",
                    other.provider,
                    self.line(other.at),
                    first.provider
                );
                let line = Some(self.line(first.at));
                self.problems.push(CatalogProblem { line, key: model, message });
            } else {
                prices.insert(model, first.price);
            }
        }
        for model in &self.wanted.models {
            let is_told = self.problems.iter().any(|problem| problem.key.contains(model.as_str()));
            if !prices.contains_key(model) && !is_told {
                let message = "the catalog has no such model with a price".to_owned();
                self.problems.push(CatalogProblem { line: None, key: model.clone(), message });
            }
        }
        self.problems.sort_by_key(|problem| problem.line);
        CatalogPrices { prices, problems: self.problems, unpriced: self.unpriced }
    }
}

/// The bound of a rate for large prompts, like 200,000 and `_above_200k_tokens` of `input_cost_per_token_above_200k_tokens`.
fn litellm_bound(key: &str) -> Option<(u64, &str)> {
    let names = [LITELLM.input, LITELLM.output, LITELLM.cached, LITELLM.written, LITELLM.reasoning];
    let suffix = names.iter().find_map(|name| key.strip_prefix(name)).filter(|suffix| !suffix.is_empty())?;
    let count = suffix.strip_prefix("_above_")?.strip_suffix("_tokens")?;
    let tokens = match count.strip_suffix('k') {
        Some(thousands) => thousands.parse::<u64>().ok()?.checked_mul(1_000)?,
        None => count.parse().ok()?,
    };
    Some((tokens, suffix))
}

#[cfg(test)]
mod tests;
