//! The statements of the checklist in `docs/spec/postgres-changes.md` §10, tested over raw websockets against a whole
//! daemon. Each test's doc line names the statements it covers. Statements 92 to 107 are covered by
//! `tests/it/messages/`, 108 to 111 by `tests/it/conformance/private.rs`.
mod filters;
mod messages;
mod publication;
mod replication;
mod rls;
mod subscription;
mod values;
