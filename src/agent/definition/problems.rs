//! Mistakes in a definition, as they are collected.
use std::fmt::Display;

/// A mistake in a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, like `wake.0.filter`.
    pub key: String,
    /// What is wrong, one line.
    pub message: String,
    /// What to do, if the message does not say it.
    pub remedy: Option<String>,
}

/// The problems of one definition.
#[derive(Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { key: key.into(), message: message.into(), remedy: None });
    }
    pub(super) fn add_with(
        &mut self,
        key: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let remedy = Some(remedy.into());
        self.0.push(Problem { key: key.into(), message: message.into(), remedy });
    }
    /// Adds problems with other messages.
    pub(super) fn add_all(&mut self, others: Self, reworded: impl Fn(&str) -> String) {
        let others = others.0.into_iter();
        self.0.extend(others.map(|problem| Problem { message: reworded(&problem.message), ..problem }));
    }
    /// All of them, in the order in which they were found.
    pub(super) fn into_list(self) -> Vec<Problem> {
        self.0
    }
    /// Reports a number outside its bounds.
    pub(super) fn bounds<T: PartialOrd + Display>(&mut self, key: &str, value: T, least: T, most: T) {
        if !(least <= value && value <= most) {
            self.add(key, format!("{value} is not in {least} to {most}"));
        }
    }
}

pub(super) fn url_problem(key: &str, url: &str, found: &mut Problems) {
    match reqwest::Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => {}
        Ok(_) => found.add(key, format!("{url:?} is no http or https URL")),
        Err(e) => found.add(key, format!("{url:?} is no URL: {e}")),
    }
}
