//! Rights are those at delivery: what was taken away before a change shows nothing of it, and no viewer's check leaves
//! anything for the next one.
use super::{
    sight::{SHOWN, SHOWN_WITH_KEY, sight, viewer},
    watch::{WatchedDaemon, briefs},
};
use convoke::access::rows::{Cell, Failure, Images, RowChange, Verdict};
use serde_json::json;

const HIDDEN: Verdict = Verdict::Hidden;

/// Each takes a right away from `{role}` in one statement or transaction and gives it back in another.
const TAKEN: [(&str, &str); 8] = [
    ("alter table t enable row level security", "alter table t disable row level security"),
    ("revoke select on t from {role}", "grant select on t to {role}"),
    (
        "alter table t enable row level security; alter policy p on t using (id < 0)",
        "alter policy p on t using (true)",
    ),
    (
        "create or replace function allowed() returns boolean language sql as 'select false';
         alter policy p on t using (allowed())",
        ALLOWED,
    ),
    ("create or replace function allowed() returns boolean language sql as 'select false'", ALLOWED),
    ("drop policy p on t", "create policy p on t to {group} using (true)"),
    ("revoke {group} from {role}", "grant {group} to {role}"),
    (
        "alter table t owner to current_user; alter policy p on t to current_user",
        "alter table t owner to {role}; grant select on t to {role}",
    ),
];
const ALLOWED: &str = "create or replace function allowed() returns boolean language sql as 'select true'";

#[tokio::test]
async fn a_right_that_was_taken_away_shows_no_row_that_is_committed_afterwards() {
    let rig = WatchedDaemon::with(
        "create table t (id int primary key);
         create policy p on t using (id < 0);
         create function allowed() returns boolean language sql as 'select false'",
        "t",
        // Only a configured role counts; this one is made below.
        |config| config.auth.roles.push(config.wal.slot.replace("_slot", "_reader")),
    )
    .await;
    let name = |what: &str| format!("{}_{what}", rig.db.name);
    let fill = |sql: &str| sql.replace("{role}", &name("reader")).replace("{group}", &name("group"));
    rig.run(&fill(
        "create role {role}; create role {group}; grant {role} to current_user; grant {group} to {role};
             grant usage, create on schema public to {role}; grant select on t, mark to {role};",
    ))
    .await;
    let claims = json!({"role": name("reader"), "sub": "s"});
    let mut reader = rig.watch_as(claims, json!([{"event": "INSERT", "table": "t"}])).await;
    let (mut expected, mut shown) = (Vec::new(), Vec::new());
    for (at, (take, give)) in TAKEN.iter().enumerate() {
        let id = i32::try_from(at * 10).unwrap();
        let insert = |id: i32| format!("insert into t values ({id})");
        // The third way is one transaction: its rights are those of its own row.
        for sql in [
            vec![(*take).to_owned(), insert(id)],
            vec![(*give).to_owned(), insert(id + 1)],
            vec![format!("begin; {take}; {}; commit", insert(id + 2))],
            vec![format!("begin; {give}; {}; commit", insert(id + 3))],
        ] {
            for sql in sql {
                rig.run(&fill(&sql)).await;
            }
            // Rights are those at delivery, so each row is awaited before the rights change again.
            let mut seen = rig.seen(&mut reader).await;
            // A table without the right to select is reported as an error without a row.
            seen.retain(|it| it["data"]["errors"].is_null());
            shown.extend(briefs(&seen));
        }
        expected.extend([1, 3].map(|more| json!(["INSERT", {"id": id + more}])));
    }
    assert_eq!(shown, expected);
    rig.running.stop().await;
    let drop = fill("drop table t; drop owned by {role}; drop role {role}; drop role {group}");
    rig.sql.batch_execute(&drop).await.unwrap();
}

/// The WAL shows a commit before new snapshots do.
#[tokio::test]
async fn check_waits_until_snapshots_see_the_transaction_of_a_change() {
    let schema = "create table t (id int); alter table t enable row level security;
        create policy p on t to {role} using (true)";
    let sight = sight(schema).await;
    let table = sight.table("t").await;
    let changes = sight.inserts(&table, "(values (1)) as t(id)").await;
    let viewer = sight.viewer(json!({}));
    sight.rows.refresh(&[]).await;
    assert_eq!(sight.sees(&viewer, &changes).await, [SHOWN]);
    sight.run("begin; alter policy p on t using (false)").await;
    let id = "select pg_current_xact_id()::text::bigint & 4294967295";
    let id: i64 = sight.sql.query_one(id, &[]).await.unwrap().get(0);
    let seen = [u32::try_from(id).unwrap()];
    let rows = sight.rows.clone();
    let mut refreshed = Box::pin(async move { rows.refresh(&seen).await });
    tokio::select! {
        biased;
        () = &mut refreshed => panic!("the transaction has not committed"),
        () = async { for _ in 0..20 { sight.rows.refresh(&[]).await } } => {}
    }
    sight.run("commit").await;
    refreshed.await;
    assert_eq!(sight.sees(&viewer, &changes).await, [HIDDEN]);
    sight.stop().await;
}

/// The check keeps the roles that it found, until it finds a change.
#[tokio::test]
async fn membership_that_ends_anywhere_in_its_chain_counts_at_once() {
    let schema = "create table t (id int); alter table t enable row level security";
    let sight = sight(schema).await;
    sight
        .run_as_admin(
            "create role {role}_near; create role {role}_far; create role {role}_between;
             grant {role}_far to {role}_near; grant {role}_near to {role};",
        )
        .await;
    sight.run("create policy p on t to {role}_far using (true)").await;
    let table = sight.table("t").await;
    let changes = sight.inserts(&table, "(values (1)) as t(id)").await;
    let viewer = sight.viewer(json!({}));
    for (change, seen) in [
        ("select 1", SHOWN),
        ("revoke {role}_far from {role}_near", HIDDEN),
        ("grant {role}_far to {role}_between; grant {role}_between to {role}_near", SHOWN),
        // Of a role that was no part of the chain when it was found first.
        ("revoke {role}_far from {role}_between", HIDDEN),
        ("grant {role}_far to {role}_between", SHOWN),
        ("revoke {role}_near from {role}", HIDDEN),
        ("grant {role}_near to {role}", SHOWN),
    ] {
        sight.run_as_admin(change).await;
        // The first check after a change finds the roles again, the later ones use them.
        for _ in 0..3 {
            sight.rows.refresh(&[]).await;
            assert_eq!(sight.sees(&viewer, &changes).await, [seen], "{change}");
        }
    }
    sight.run("drop policy p on t").await;
    sight.run_as_admin("drop role {role}_near; drop role {role}_far; drop role {role}_between").await;
    sight.stop().await;
}

/// Outcomes that were evaluated beside the look at the catalog count only if it finds the rights unchanged.
#[tokio::test]
async fn prefetched_outcome_of_a_policy_that_has_changed_is_not_used() {
    let schema = "create table t (id int); alter table t enable row level security;
        create policy p on t to {role} using (id > 0)";
    let sight = sight(schema).await;
    let table = sight.table("t").await;
    let changes = sight.inserts(&table, "(values (1), (2)) as t(id)").await;
    let viewers = [sight.viewer(json!({}))];
    let asked = [(0, 0), (1, 0)];
    sight.rows.prefetch(&changes, &viewers, &asked).await;
    assert_eq!(sight.counted("row_checks"), 0, "no plan is known");
    // The first check evicts the plan that was read before it.
    assert_eq!(sight.sees(&viewers[0], &changes[..1]).await, [SHOWN]);
    sight.rows.refresh(&[]).await;
    assert_eq!(sight.sees(&viewers[0], &changes[..1]).await, [SHOWN]);
    sight.rows.refresh(&[]).await;
    let before = sight.counted("row_checks");
    sight.rows.prefetch(&changes, &viewers, &asked).await;
    assert_eq!(sight.counted("row_checks"), before + 1, "the first is cached");
    sight.rows.refresh(&[]).await;
    assert_eq!(sight.sees(&viewers[0], &changes).await, [SHOWN, SHOWN]);
    assert_eq!(sight.counted("row_checks"), before + 1, "judged by what was prefetched");
    sight.run("alter policy p on t using (id > 1)").await;
    sight.rows.prefetch(&changes, &viewers, &asked).await;
    sight.rows.refresh(&[]).await;
    assert_eq!(sight.sees(&viewers[0], &changes).await, [HIDDEN, SHOWN]);
    sight.stop().await;
}

/// The stream goes on with what another publication has.
#[tokio::test]
async fn table_removed_from_one_publication_is_not_delivered_by_another() {
    let rig = WatchedDaemon::new("create table t (id int primary key, n int default 1);", "t").await;
    rig.run("alter publication convoke add table t").await;
    let mut watch = rig.watch(json!([{"table": "t"}])).await;
    let mut seen = Vec::new();
    for (id, change) in [
        "select 1",
        "alter publication supabase_realtime set table mark, t where (id > 1000)",
        "alter publication supabase_realtime drop table t",
    ]
    .into_iter()
    .enumerate()
    {
        rig.run(change).await;
        rig.run(&format!("insert into t values ({id})")).await;
        seen.extend(briefs(&rig.seen(&mut watch).await));
    }
    let expected = [json!(["INSERT", {"id": 0, "n": 1}])];
    assert_eq!(seen, expected);
    rig.running.stop().await;
}

/// A tenant that a policy remembers, however it remembers it.
#[tokio::test]
async fn policy_state_of_one_viewer_reaches_no_other() {
    let remember = |how: &str| {
        format!(
            "create or replace function remembered() returns text language plpgsql as $$ begin
                if coalesce(current_setting('app.tenant', true), '') = '' then
                    perform set_config('app.tenant', auth.jwt() ->> 'tenant', {how});
                end if;
                return current_setting('app.tenant'); end $$;"
        )
    };
    let prepared = "create or replace function remembered() returns text language plpgsql as $$
        declare tenant text; begin
            if not exists (select from pg_prepared_statements where name = 'who') then
                execute format('prepare who as select %L::text', auth.jwt() ->> 'tenant');
            end if;
            execute 'execute who' into tenant; return tenant; end $$;";
    let locked = "create or replace function remembered() returns text language plpgsql as $$ begin
        return case when pg_try_advisory_lock(42) then auth.jwt() ->> 'tenant' else 'locked' end; end $$;";
    for how in [remember("true"), remember("false"), prepared.to_owned(), locked.to_owned()] {
        let sight = sight(&format!(
            "create table t (id int primary key, tenant text); alter table t enable row level security;
             grant select on t to {{role}}; {how} create policy p on t using (tenant = remembered());"
        ))
        .await;
        let table = sight.table("t").await;
        let changes = sight
            .inserts(&table, "(select g, 'tenant' || g from generate_series(0, 39) g) v(id, tenant)")
            .await;
        let viewers: Vec<_> =
            (0..40).map(|at| sight.viewer(json!({"tenant": format!("tenant{at}")}))).collect();
        let asked: Vec<_> = (0..40).flat_map(|viewer| (0..40).map(move |change| (change, viewer))).collect();
        // One connection's lock is in the way of another one's.
        let asked = if how == locked { asked[..3 * 40].to_vec() } else { asked };
        let seen = sight.rows.judge(&changes, &viewers, &asked).await;
        for ((change, viewer), seen) in asked.iter().zip(seen) {
            assert_eq!(
                seen,
                if change == viewer { SHOWN } else { HIDDEN },
                "row {change}, viewer {viewer}: {how}"
            );
        }
        sight.stop().await;
    }
}

/// Outcomes are remembered only where they depend on nothing that another policy, or the server, can set.
#[tokio::test]
async fn an_outcome_that_depends_on_other_settings_is_not_remembered() {
    let sight = sight(
        "create table a (id int primary key, tenant text); alter table a enable row level security;
         create table b (like a including all); alter table b enable row level security;
         grant select on a, b to {role};
         create policy remembers on a using (set_config('app.tenant', auth.jwt() ->> 'tenant', true) = tenant);
         create policy reads on b using (tenant = current_setting('app.tenant', true));",
    )
    .await;
    let (a, b) = (sight.table("a").await, sight.table("b").await);
    let mut changes = sight.inserts(&a, "(values (1, 'acme')) v(id, tenant)").await;
    changes.extend(sight.inserts(&b, "(values (1, 'acme')) v(id, tenant)").await);
    let acme = sight.viewer(json!({"tenant": "acme"}));
    for _ in 0..2 {
        assert_eq!(sight.sees(&acme, &changes).await, [SHOWN, HIDDEN]);
    }
    assert_eq!(sight.counted("row_checks_remembered"), 0);
    sight.stop().await;
}

/// Of a delete, only what policies look at must be known.
#[tokio::test]
async fn a_delete_is_judged_by_the_columns_that_are_known() {
    let sight = sight(
        "create table t (id int primary key, tenant text not null, body text); alter table t enable row level security;
         grant select on t to {role}; create policy p on t using (true);",
    )
    .await;
    let table = sight.table("t").await;
    let text = |text: &'static str| Cell::Text(text.into());
    let gone = |id| RowChange {
        table: table.clone(),
        images: Images::Delete { old: Some(vec![text(id), Cell::Unknown, Cell::Unknown]) },
    };
    let changes = [gone("1"), gone("2")];
    let viewer = viewer(sight.role(), json!({"tenant": "a"}));
    for (policy, seen) in [
        ("true", [SHOWN_WITH_KEY, SHOWN_WITH_KEY]),
        ("id = 1", [SHOWN_WITH_KEY, HIDDEN]),
        ("id = 1 or tenant = 'a'", [HIDDEN, HIDDEN]),
        ("id = 1 and auth.jwt() ->> 'tenant' = 'a'", [SHOWN_WITH_KEY, HIDDEN]),
        ("t.* is not null", [HIDDEN, HIDDEN]),
        ("exists (select from pg_class where oid = id) or id = 2", [HIDDEN, SHOWN_WITH_KEY]),
        ("false", [HIDDEN, HIDDEN]),
    ] {
        sight.run(&format!("alter policy p on t using ({policy})")).await;
        sight.rows.refresh(&[]).await;
        assert_eq!(sight.sees(&viewer, &changes).await, seen, "{policy}");
    }
    sight.stop().await;
}

#[tokio::test]
async fn a_policy_that_looks_at_system_columns_is_asked_or_named() {
    let sight = sight(
        "create table t (id int primary key); alter table t enable row level security;
         create table parts (id int primary key) partition by range (id); alter table parts enable row level security;
         grant select on t, parts to {role};
         create policy p on t using (true); create policy p on parts using (tableoid = 'parts'::regclass);",
    )
    .await;
    let table = sight.table("t").await;
    let changes = sight.inserts(&table, "(values (1)) v(id)").await;
    let viewer = viewer(sight.role(), json!({}));
    let unknown = Verdict::Failed(Failure::Column);
    for (policy, seen) in [
        ("tableoid = 't'::regclass", SHOWN),
        ("tableoid = 'parts'::regclass and id = 1", HIDDEN),
        ("xmin is not null", unknown),
        ("ctid > '(0,0)' or tableoid = 't'::regclass", unknown),
    ] {
        sight.run(&format!("alter policy p on t using ({policy})")).await;
        sight.rows.refresh(&[]).await;
        assert_eq!(sight.sees(&viewer, &changes).await, [seen], "{policy}");
    }
    let parts = sight.table("parts").await;
    let changes = sight.inserts(&parts, "(values (1)) v(id)").await;
    assert_eq!(sight.sees(&viewer, &changes).await, [unknown], "which partition is not told");
    sight.stop().await;
}
