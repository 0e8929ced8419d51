//! The limits of what a task may use, and the question of a task that has reached them.
use crate::task::{Error, Question, Usage, WaitFor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// The most that a task may use. A member that is left out has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    /// Model tokens, in and out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microdollars: Option<u64>,
}

/// What a task may use, and the whole tree under it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Model tokens of this task, all attempts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Money of this task, all attempts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microdollars: Option<u64>,
    /// Of this task and all its parts together; only for a task that is no part itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Amount>,
}

impl Budget {
    /// Each limit that is given: whether it is of the tree, and how much.
    pub(in crate::task) fn limits(&self) -> Vec<(bool, Amount)> {
        let own = Amount { tokens: self.tokens, microdollars: self.microdollars };
        let is_given = |amount: &Amount| *amount != Amount::default();
        let all = [(false, Some(own)), (true, self.tree)];
        all.into_iter().filter_map(|(tree, amount)| Some((tree, amount.filter(is_given)?))).collect()
    }

    pub(in crate::task) fn check(&self, is_part: bool) -> Result<(), Error> {
        if is_part && self.tree.is_some() {
            let text = "budget.tree belongs to the root of a tree, and this task is a part of another";
            return Err(Error::BadRequest(text.into()));
        }
        Ok(())
    }
}

/// Why an amount could not be reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsufficientBudget {
    /// The task's or the tree's budget has no room for it.
    #[error("{0} tokens and {1} microdollars do not fit into what is left of the budget")]
    Task(i64, i64),
    /// The agent's limit for an hour has no room for it.
    #[error("the agent's budget for this hour is used up")]
    Agent,
    /// A limit of a day has no room for it.
    #[error("the limit of a day of {limit} is used up")]
    Day {
        /// Which limit, like `provider team`.
        limit: String,
        /// How long the day still lasts.
        left: Duration,
    },
}

/// The question of a task that needs more budget to continue.
pub(crate) fn budget_question(short: &InsufficientBudget, checkpoint: Option<Value>) -> Question {
    let question = format!("{short}: raise it with `convoke task budget`");
    Question {
        wait_for: WaitFor::Budget,
        question,
        checkpoint,
        usage: Usage::default(),
        calls: Vec::new(),
        approvers: Vec::new(),
    }
}
