//! The settings of every session that the daemon opens.
//!
//! A database and a role can have defaults for everything that a session does: the form of dates, the parsing
//! of literals, timeouts. The settings on which the daemon depends are set here, for the pools, for
//! connections outside them and for the replication connection. Three defaults remain the database's own,
//! because they are decisions of its owner: `default_transaction_read_only` (a read-only session is replaced,
//! see [`super::Database::is_writable`]), the names in `search_path` (triggers of the owner run in our
//! sessions), and any `synchronous_commit` except `off`.
use super::{Error, Target};
use tokio_postgres::SimpleQueryMessage;

/// The form of values, the parsing of literals, and the kind of transactions. Sent as options of the startup
/// message: they hold from the first statement on, and `reset` returns to them.
const SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO,YMD"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("xmlbinary", "base64"),
    ("xmloption", "content"),
    ("array_nulls", "on"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
    ("standard_conforming_strings", "on"),
    ("check_function_bodies", "on"),
    ("default_transaction_isolation", r"read\ committed"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "on"),
    ("client_min_messages", "notice"),
    ("lock_timeout", "0"),
    (MARK, "on"),
];

/// A setting that no other program makes. If it is missing, a pooler has dropped the options.
const MARK: &str = "convoke.session";

/// SQL for settings that depend on the server's version and defaults. Its last row tells whether the settings
/// hold and whether the session is read-only.
///
/// Every name is qualified with its schema, because a `search_path` can shadow `pg_catalog`: if a default
/// names `pg_catalog` late, it is moved to the front. A `search_path` in the URL is the operator's and stays.
pub(crate) const ADJUST: &str = r#"
select pg_catalog.set_config('timezone', 'UTC', false);
select pg_catalog.set_config('search_path',
       pg_catalog.concat('pg_catalog, ', pg_catalog.current_setting('search_path')), false)
 where pg_catalog.current_setting('search_path') operator(pg_catalog.~) 'pg_catalog'
   and pg_catalog.current_setting('search_path') operator(pg_catalog.!~) '^\s*"?pg_catalog"?\s*(,|$)'
   and (select source from pg_catalog.pg_settings where name operator(pg_catalog.=) 'search_path')
       operator(pg_catalog.<>) 'client';
select pg_catalog.set_config('synchronous_commit', 'on', false)
 where pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.=) 'off';
select pg_catalog.set_config('transaction_timeout', '0', false)
 where pg_catalog.current_setting('transaction_timeout', true) is not null;
select pg_catalog.current_setting('convoke.session', true) operator(pg_catalog.=) 'on',
       pg_catalog.current_setting('transaction_read_only');
"#;

/// Builds the startup parameter `options`: those of the URL, then the daemon's, which win, then the `own`
/// ones of this session.
pub(crate) fn options(target: &Target, own: &[(&str, String)]) -> String {
    let mut options = target.options().unwrap_or_default().to_owned();
    let settings = SETTINGS.iter().map(|(name, value)| (*name, *value));
    for (name, value) in settings.chain(own.iter().map(|(name, value)| (*name, value.as_str()))) {
        options.push_str(" -c ");
        options.push_str(name);
        options.push('=');
        options.push_str(value);
    }
    options
}

/// The last row of [`ADJUST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adjusted {
    /// Whether the server has applied the options; a connection pooler may drop them.
    pub(crate) holds: bool,
    /// Whether transactions of the session are read-only.
    pub(crate) read_only: bool,
}

impl Adjusted {
    /// Parses the values of the row in text form.
    pub(crate) fn read(holds: Option<&str>, read_only: Option<&str>) -> Self {
        Self { holds: holds == Some("t"), read_only: read_only == Some("on") }
    }

    pub(super) fn of(messages: &[SimpleQueryMessage]) -> Self {
        let rows = messages.iter().rev().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.len() == 2 => Some(row),
            _ => None,
        });
        rows.take(1).fold(Self::read(None, None), |_, row| Self::read(row.get(0), row.get(1)))
    }
}

/// The error for a session that dropped the daemon's settings.
pub(super) fn settings_dropped(target: &Target) -> Error {
    Error::Pooler { address: target.address(), lacks: "drops the settings of a session" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_url_come_first_and_are_overridden() {
        let target = Target::parse("postgres://a:b@c/d?options=-c%20datestyle%3DGerman").unwrap();
        let options = options(&target, &[("statement_timeout", "5".to_owned())]);
        assert!(options.starts_with("-c datestyle=German -c datestyle=ISO,YMD "), "{options}");
        assert!(options.ends_with(" -c convoke.session=on -c statement_timeout=5"), "{options}");
    }
}
