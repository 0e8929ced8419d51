//! Types of the negotiation: tasks, offers, assignments, policies, errors; and the checks of one value.
//!
//! Names no table and no state of the daemon.
pub(in crate::task) mod agent_words;
pub(in crate::task) mod approval;
pub(in crate::task) mod budget;
pub(in crate::task) mod config;
pub(in crate::task) mod error;
pub(in crate::task) mod metrics;
pub(in crate::task) mod model_question;
pub(in crate::task) mod offer_state;
pub(in crate::task) mod policies;
pub(in crate::task) mod policy;
pub(in crate::task) mod requester;
pub(in crate::task) mod schema;
pub(in crate::task) mod step;
pub(in crate::task) mod task_state;
pub(in crate::task) mod types;
pub(in crate::task) mod usage;
pub(in crate::task) mod validate;
pub(in crate::task) mod wait_types;
