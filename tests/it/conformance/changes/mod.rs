//! The statements of the checklist in `reference/postgres-changes.md` §10, by hand over raw websockets, with the whole
//! daemon behind them. Each test's doc line names the statements it shows. Statements 92 to 107 are shown by
//! `tests/it/messages/`, 108 to 111 by `tests/it/conformance/private.rs`.
mod filters;
mod messages;
mod publication;
mod replication;
mod rls;
mod subscription;
mod values;
