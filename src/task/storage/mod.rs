//! Statements and rows: the code that runs SQL, and the code that reads its rows.
pub(in crate::task) mod candidate;
pub(in crate::task) mod charges;
pub(in crate::task) mod columns;
pub(in crate::task) mod locked_task;
pub(in crate::task) mod model_questions;
pub(in crate::task) mod rows;
pub(in crate::task) mod statement;
pub(in crate::task) mod store;
pub(in crate::task) mod transaction;
