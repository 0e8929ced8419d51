//! Resets a connection between two viewers.

/// Ends the transaction and resets the session state that outlives it.
///
/// The rollback resets settings and the role. It does not release session-level advisory locks, forget the
/// last values of sequences, or drop statements that SQL prepared; the rest does. Statements prepared through
/// the protocol stay: only the daemon prepares those. Sent as one message, so that no other statement can run
/// between the rollback and the rest.
pub(super) const RESET: &str = "rollback; discard sequences; select pg_catalog.pg_advisory_unlock_all(); \
    do $$ declare prepared text; begin \
    for prepared in select p.name from pg_catalog.pg_prepared_statements p where p.from_sql loop \
    execute pg_catalog.format('deallocate %I', prepared); end loop; end $$";
