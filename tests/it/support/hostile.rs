//! A database with unfavorable defaults: settings, encoding, rights, row security.
//!
//! Text is LATIN1, the role is not a superuser, row security is enabled for every table, and the defaults of
//! the database and of the role change the form of values, the parsing of literals, the resolution of names
//! and the timeouts. With `CONVOKE_TEST_DATABASE=hostile` in the environment, every test's database is one.
use tokio_postgres::Client;

/// The daemon's role in such databases. Roles belong to the server, so all tests share it.
pub const ROLE: &str = "hostile";
pub const PASSWORD: &str = "hostile";

/// The defaults that a session of the daemon has before it applies its own settings.
const DEFAULTS: &[(&str, &str)] = &[
    ("datestyle", "SQL, DMY"),
    ("intervalstyle", "sql_standard"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("xmlbinary", "hex"),
    ("timezone", "Pacific/Chatham"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("transform_null_equals", "on"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "on"),
    ("client_encoding", "LATIN1"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("row_security", "off"),
    ("synchronous_commit", "off"),
    ("statement_timeout", "20ms"),
    ("lock_timeout", "1ms"),
    ("idle_in_transaction_session_timeout", "5ms"),
    ("idle_session_timeout", "1s"),
    ("plan_cache_mode", "force_custom_plan"),
    ("client_min_messages", "debug1"),
];

/// Objects that shadow those of the system: the `search_path` has `evil` before `pg_catalog`.
const EVIL: &str = "
    create schema evil; grant usage on schema evil to public;
    create function evil.now() returns timestamptz language sql as 'select ''epoch''::timestamptz';
    create function evil.clock_timestamp() returns timestamptz language sql as 'select ''epoch''::timestamptz';
    create function evil.lower(text) returns text language sql as 'select ''evil''::text';
    create function evil.length(text) returns int language sql as 'select -1';
    create function evil.not_equal(text, text) returns boolean language sql as 'select true';
    create operator evil.= (leftarg = text, rightarg = text, function = evil.not_equal);";

/// Enables row security without policies, which only lets the owner through.
const ROW_SECURITY: &str = "
    do $$ declare t regclass; begin
        for t in select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.relkind in ('r', 'p') and n.nspname in ('convoke', 'realtime', 'public')
        loop execute format('alter table %s enable row level security', t); end loop;
    end $$";

/// Whether all tests run on such databases.
pub fn is_wanted() -> bool {
    std::env::var("CONVOKE_TEST_DATABASE").is_ok_and(|kind| kind == "hostile")
}

/// Creates the role on the server, with the documented rights only.
pub async fn make_role(admin: &Client) {
    let sql = format!(
        "do $$ declare r text; begin
            foreach r in array array['anon', 'authenticated', 'service_role'] loop
                if not exists (select from pg_roles where rolname = r) then execute format('create role %I', r); end if;
            end loop;
            if not exists (select from pg_roles where rolname = '{ROLE}') then
                create role {ROLE} login replication nosuperuser createrole password '{PASSWORD}';
                grant anon, authenticated, service_role, pg_signal_backend to {ROLE};
                alter role service_role bypassrls;
            end if;
        end $$"
    );
    admin.batch_execute(&sql).await.unwrap();
}

/// Sets the defaults of a database, both for the role and in general.
pub async fn set_defaults(admin: &Client, database: &str) {
    let mut sql = String::new();
    for (name, value) in DEFAULTS {
        sql.push_str(&format!("alter database {database} set {name} = '{value}';"));
        sql.push_str(&format!("alter role {ROLE} in database {database} set {name} = '{value}';"));
    }
    sql.push_str(&format!(
        "alter role {ROLE} in database {database} set search_path = public, evil, pg_catalog;"
    ));
    admin.batch_execute(&sql).await.unwrap();
}

/// Creates the shadowing objects, and enables row security.
pub async fn poison(sql: &Client) {
    // The set-up is not under test, and can take longer than the timeouts of the database.
    sql.batch_execute("set statement_timeout = 0; set lock_timeout = 0").await.unwrap();
    sql.batch_execute(EVIL).await.unwrap();
    sql.batch_execute(ROW_SECURITY).await.unwrap();
}

/// Resets the defaults in a test's own session, which is not under test.
pub async fn calm(sql: &Client) {
    let reset = "set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0;
        set idle_session_timeout = 0; set default_transaction_isolation = 'read committed';
        set default_transaction_deferrable = off; set standard_conforming_strings = on; set search_path = public;
        set row_security = on; set datestyle = 'ISO, YMD'; set timezone = 'UTC'; set array_nulls = on;
        set intervalstyle = 'postgres'; set extra_float_digits = 1; set bytea_output = 'hex'; set xmlbinary = 'base64';
        set transform_null_equals = off; set client_min_messages = warning; set quote_all_identifiers = off";
    sql.batch_execute(reset).await.unwrap();
}
