//! Policies that change their session: what one does for a viewer never reaches the check of another viewer or table.
use super::sight::{SHOWN, sight};
use convoke::access::rows::Verdict;
use serde_json::json;

const HIDDEN: Verdict = Verdict::Hidden;

/// What each policy of table `a` does before it compares the tenant. All run as the viewer, as functions in policies do.
const ATTACKS: [(&str, &str); 12] = [
    ("search path", "set_config('search_path', 'decoy, public', false) is not null"),
    ("claims of another", r#"set_config('request.jwt.claims', '{"tenant":"tenant0"}', false) is not null"#),
    ("subject of another", "set_config('request.jwt.claim.sub', 'tenant0', false) is not null"),
    ("role of the session", "set_config('role', '{bypassing}', false) is not null"),
    ("no row security", "set_config('row_security', 'off', false) is not null"),
    ("no time limit", "set_config('statement_timeout', '0', false) is not null"),
    ("writable", "set_config('transaction_read_only', 'off', false) is not null"),
    ("writable later", "set_config('default_transaction_read_only', 'off', false) is not null"),
    ("other text form of rows", "set_config('datestyle', 'German', false) is not null"),
    ("escapes in literals", "set_config('standard_conforming_strings', 'off', false) is not null"),
    ("seed", "setseed(0.5) is not null"),
    ("named cursor", "public.opens_cursor()"),
];

#[tokio::test]
async fn a_policy_that_changes_its_session_changes_no_other_check() {
    for (what, attack) in ATTACKS {
        let sight = sight(
            "create schema decoy; grant usage on schema decoy, public to {role};
             create table decoy.members (tenant text); insert into decoy.members select 'tenant' || g from generate_series(0, 9) g;
             create table public.members (tenant text); insert into public.members select 'tenant' || g from generate_series(0, 9) g
                where g % 2 = 0;
             grant select on decoy.members, public.members to {role};
             create function public.is_member() returns boolean language sql stable as
                $$ select exists (select from members m where m.tenant = auth.jwt() ->> 'tenant') $$;
             create function public.opens_cursor() returns boolean language plpgsql as
                $$ declare c refcursor := 'left_open'; begin open c for select 1; return true; end $$;
             create table a (id int primary key, tenant text); alter table a enable row level security;
             create table b (like a including all); alter table b enable row level security;
             grant select on a, b to {role};
             create policy p on b using (tenant = auth.jwt() ->> 'tenant' and public.is_member());",
        )
        .await;
        let attack = attack.replace("{bypassing}", sight.bypassing());
        sight
            .run(&format!("create policy p on a using ({attack} and tenant = auth.jwt() ->> 'tenant')"))
            .await;
        let (a, b) = (sight.table("a").await, sight.table("b").await);
        let rows = "(select g, 'tenant' || g from generate_series(0, 9) g) v(id, tenant)";
        let mut changes = sight.inserts(&a, rows).await;
        changes.extend(sight.inserts(&b, rows).await);
        let viewers: Vec<_> =
            (0..10).map(|at| sight.viewer(json!({ "tenant": format!("tenant{at}") }))).collect();
        // Each viewer looks at both tables, the hostile one first.
        let asked: Vec<_> = (0..10).flat_map(|viewer| (0..20).map(move |change| (change, viewer))).collect();
        for round in 0..2 {
            let seen = sight.rows.judge(&changes, &viewers, &asked).await;
            for ((change, viewer), seen) in asked.iter().zip(seen) {
                let (of_b, row) = (*change >= 10, change % 10);
                // The hostile policy may say of its own table what it likes.
                if of_b {
                    let expected = if row == *viewer && row % 2 == 0 { SHOWN } else { HIDDEN };
                    assert_eq!(seen, expected, "{what}, round {round}: row {row}, viewer {viewer}");
                }
            }
        }
        sight.stop().await;
    }
}

/// Outcomes that do not follow from the row and the claims are asked for each time.
#[tokio::test]
async fn an_outcome_that_follows_from_more_than_row_and_claims_is_not_remembered() {
    for volatile in [
        "random() < 2",
        "pg_backend_pid() > 0",
        "current_user::text <> ''",
        "session_user::text <> ''",
        "now() > '2000-01-01'",
        "clock_timestamp() > '2000-01-01'",
        "txid_current_if_assigned() is null",
        "inet_server_port() is null or true",
        "current_setting('app.any', true) is null",
        "current_setting('request.' || 'jwt.claims', true) is not null",
        "nextval('public.numbers') > 0 or true",
        "public.looks_immutable()",
        "public.reads_by_its_own_path()",
        "exists (select from public.switch)",
    ] {
        let sight = sight(
            "create sequence public.numbers; create table public.switch (on_ boolean); insert into public.switch values (true);
             grant all on public.switch, public.numbers to {role};
             create function public.looks_immutable() returns boolean language plpgsql immutable as
                $$ begin return exists (select from public.switch); end $$;
             create function public.current_setting(text, boolean) returns text language sql as $$ select 'x' $$;
             create function public.reads_by_its_own_path() returns boolean language sql set search_path = public, pg_catalog as
                $$ select coalesce(current_setting('request.jwt.claims', true), '') <> '' $$;
             create table t (id int primary key, tenant text); alter table t enable row level security;
             grant select on t to {role};",
        )
        .await;
        sight
            .run(&format!("create policy p on t using (({volatile}) and tenant = auth.jwt() ->> 'tenant')"))
            .await;
        let table = sight.table("t").await;
        let changes = sight.inserts(&table, "(values (1, 'acme'), (2, 'other')) v(id, tenant)").await;
        let acme = sight.viewer(json!({ "tenant": "acme" }));
        for _ in 0..2 {
            let seen = sight.sees(&acme, &changes).await;
            assert_eq!(seen[1], HIDDEN, "{volatile}");
        }
        assert_eq!(sight.counted("row_checks_remembered"), 0, "{volatile}");
        sight.stop().await;
    }
}
