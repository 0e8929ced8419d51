//! Row security and privileges on the changed row (`docs/spec/postgres-changes.md` §4, checklist 82 – 91).
use super::sight::{SHOWN, SHOWN_WITH_KEY, sight, sight_with, viewer};
use crate::support::PATIENCE;
use convoke::access::rows::{Cell, Config, Failure, Images, RowChange, Security, UnknownDeletes, Verdict};
use serde_json::json;
use std::time::Duration;

const ANN: &str = "11111111-1111-4111-8111-111111111111";
const BEN: &str = "22222222-2222-4222-8222-222222222222";

/// Orders that belong to somebody.
fn orders() -> String {
    format!(
        "create table orders (id int primary key, owner uuid, org text, body text); \
         alter table orders enable row level security; grant select on orders to {{role}}; \
         insert into orders values (1, '{ANN}', 'a', 'one'), (2, '{BEN}', 'b', 'two'), (3, null, 'a', 'three');"
    )
}

const OWN: &str = "create policy own on orders to {role} using (auth.uid() = owner);";

/// 82, 83
#[tokio::test]
async fn each_user_sees_only_own_rows_and_policies_see_every_claim() {
    let sight = sight(&(orders() + OWN)).await;
    let table = sight.table("orders").await;
    let changes = sight.inserts(&table, "orders order by id").await;
    let (ann, ben) = (sight.viewer(json!({"sub": ANN})), sight.viewer(json!({"sub": BEN})));
    assert_eq!(sight.sees(&ann, &changes).await, [SHOWN, Verdict::Hidden, Verdict::Hidden]);
    assert_eq!(sight.sees(&ben, &changes).await, [Verdict::Hidden, SHOWN, Verdict::Hidden]);
    let (asked, remembered) = (sight.counted("row_checks"), sight.counted("row_checks_remembered"));
    assert_eq!(sight.sees(&ben, &changes).await, [Verdict::Hidden, SHOWN, Verdict::Hidden]);
    assert_eq!(sight.counted("row_checks"), asked, "the outcome depends on row and claims alone");
    assert_eq!(sight.counted("row_checks_remembered"), remembered + 3);

    sight.run("create policy org on orders using ((auth.jwt() -> 'app' ->> 'org') = org)").await;
    let table = sight.table("orders").await;
    let changes = sight.inserts(&table, "orders order by id").await;
    let both = sight.viewer(json!({"sub": BEN, "app": {"org": "a"}}));
    assert_eq!(sight.sees(&both, &changes).await, [SHOWN, SHOWN, SHOWN]);
    sight.stop().await;
}

/// The cache of outcomes saves checks and changes no verdict (decision 32).
#[tokio::test]
async fn verdicts_are_equal_with_and_without_the_cache() {
    let mut verdicts = Vec::new();
    for cache in [true, false] {
        let config = Config { cache, check_timeout: Duration::from_secs(10), ..Config::default() };
        let sight = sight_with(&(orders() + OWN), config).await;
        let table = sight.table("orders").await;
        let images = sight.images(&table, "orders order by id").await;
        let mut changes = sight.inserts(&table, "orders order by id").await;
        let update = Images::Update { new: images[0].clone(), old: Some(images[1].clone()) };
        changes.push(RowChange { table: table.clone(), images: update });
        changes.push(RowChange {
            table: table.clone(),
            images: Images::Delete { old: Some(images[1].clone()) },
        });
        let viewers = [ANN, BEN].map(|sub| sight.viewer(json!({ "sub": sub })));
        let mut seen = Vec::new();
        for _ in 0..2 {
            for viewer in &viewers {
                seen.push(sight.sees(viewer, &changes).await);
            }
        }
        assert_eq!(seen[..2], seen[2..], "a repeated check has the same verdicts");
        if cache {
            // The first fingerprint check evicts the plan, and with it what was cached until then.
            while sight.counted("row_checks_remembered") == 0 {
                assert_eq!(sight.sees(&viewers[0], &changes).await, seen[0]);
            }
        } else {
            // Two viewers, two rounds, and three rows that differ in what the policy reads.
            let counts = (sight.counted("row_checks"), sight.counted("row_checks_remembered"));
            assert_eq!(counts, (12, 0));
        }
        sight.run("alter policy own on orders using (auth.uid() is distinct from owner)").await;
        sight.rows.refresh(&[]).await;
        let changed = sight.sees(&viewers[0], &changes).await;
        assert_eq!(changed[..2], [Verdict::Hidden, SHOWN], "an outcome of the old policy is not used");
        seen.push(changed);
        verdicts.push(seen);
        sight.stop().await;
    }
    assert_eq!(verdicts[0], verdicts[1]);
}

/// 84, and W15: a delete is delivered only to viewers who could see the row.
#[tokio::test]
async fn without_a_policy_nothing_is_shown_and_deletes_only_where_the_original_behaviour_is_wanted() {
    for (unknown_deletes, verdict) in
        [(UnknownDeletes::Hide, Verdict::Hidden), (UnknownDeletes::ShowKey, SHOWN_WITH_KEY)]
    {
        let sight = sight_with(&orders(), Config { unknown_deletes, ..Config::default() }).await;
        let table = sight.table("orders").await;
        let mut changes = sight.inserts(&table, "orders order by id").await;
        let Images::Insert { new } = changes[0].images.clone() else { unreachable!() };
        let gone = |old| RowChange { table: table.clone(), images: Images::Delete { old } };
        changes.push(gone(None));
        changes.push(gone(Some(new)));
        let seen = sight.sees(&sight.viewer(json!({"sub": ANN})), &changes).await;
        assert_eq!(seen, [Verdict::Hidden, Verdict::Hidden, Verdict::Hidden, verdict, Verdict::Hidden]);
        sight.stop().await;
    }
}

/// W15, W19
#[tokio::test]
async fn old_row_is_delivered_only_to_viewers_who_could_see_it() {
    let sight = sight(&(orders() + OWN)).await;
    let table = sight.table("orders").await;
    let images = sight.images(&table, "orders order by id").await;
    let change = |images| RowChange { table: table.clone(), images };
    let (anns, bens) = (images[0].clone(), images[1].clone());
    let changes = [
        change(Images::Update { new: anns.clone(), old: Some(bens.clone()) }),
        change(Images::Update { new: anns.clone(), old: Some(anns.clone()) }),
        change(Images::Update { new: anns.clone(), old: None }),
        change(Images::Update { new: bens.clone(), old: Some(anns.clone()) }),
        change(Images::Delete { old: Some(anns) }),
        change(Images::Delete { old: Some(bens) }),
        change(Images::Delete { old: None }),
    ];
    let hidden = Verdict::Hidden;
    let seen = sight.sees(&sight.viewer(json!({"sub": ANN})), &changes).await;
    assert_eq!(seen, [SHOWN_WITH_KEY, SHOWN, SHOWN_WITH_KEY, hidden, SHOWN_WITH_KEY, hidden, hidden]);
    sight.stop().await;
}

/// 85, 86
#[tokio::test]
async fn column_privileges_decide_which_columns_there_are() {
    let sight = sight(
        "create table t (id int primary key, open text, secret text, made int generated always as (id + 1) stored); \
         grant select (id, open) on t to {role};",
    )
    .await;
    let table = sight.table("t").await;
    let rights = sight.rights(&table).await.unwrap();
    assert_eq!(rights.selectable, [true, true, false]);
    assert_eq!((rights.primary_key.as_deref(), rights.selects_key()), (Some(&[0][..]), true));
    assert_eq!(rights.security, Security::Off);

    sight.run("revoke select (id) on t from {role}").await;
    let table = sight.table("t").await;
    assert!(!sight.rights(&table).await.unwrap().selects_key());

    sight.run("grant select on t to {role}; revoke usage on schema public from public").await;
    let table = sight.table("t").await;
    assert_eq!(sight.columns(&table).await, [""; 0], "a table cannot be read without its schema");
    assert_eq!(sight.rows.rights(&table, "no_such_role").await, Err(Failure::UnknownRole));
    sight.stop().await;
}

/// 87, and the other roles that row security does not limit.
#[tokio::test]
async fn owner_and_bypassrls_see_all_rows_unless_row_security_is_forced() {
    let sight = sight(&orders()).await;
    let table = sight.table("orders").await;
    let changes = sight.inserts(&table, "orders").await;
    let service = viewer(sight.bypassing(), json!({}));
    assert_eq!(sight.sees(&service, &changes).await, [SHOWN, SHOWN, SHOWN]);
    assert_eq!(sight.rights(&table).await.unwrap().security, Security::On);

    // The new owner of a table needs the right to create it.
    sight.run("grant create on schema public to {role}; alter table orders owner to {role}").await;
    let table = sight.table("orders").await;
    let changes = sight.inserts(&table, "orders").await;
    let owner = sight.viewer(json!({}));
    assert_eq!(sight.sees(&owner, &changes).await, [SHOWN, SHOWN, SHOWN]);
    assert_eq!(sight.rights(&table).await.unwrap().security, Security::Exempt);

    sight.run("alter table orders force row level security").await;
    // The rows are those from before: the test's own role may be a member of the owner, and see none any more.
    let table = sight.table("orders").await;
    let moved = |change: RowChange| RowChange { table: table.clone(), ..change };
    let changes: Vec<RowChange> = changes.into_iter().map(moved).collect();
    assert_eq!(sight.sees(&owner, &changes).await, [Verdict::Hidden, Verdict::Hidden, Verdict::Hidden]);
    sight.stop().await;
}

/// 88, 89, W4: what is judged is the row as it was changed, whatever has become of it.
#[tokio::test]
async fn the_image_is_judged_and_not_the_table() {
    let sight = sight(&(orders() + OWN)).await;
    let table = sight.table("orders").await;
    let changes = sight.inserts(&table, "orders order by id").await;
    sight
        .run(&format!("update orders set owner = '{BEN}' where id = 1; delete from orders where id = 2"))
        .await;
    let (ann, ben) = (sight.viewer(json!({"sub": ANN})), sight.viewer(json!({"sub": BEN})));
    assert_eq!(sight.sees(&ann, &changes).await[0], SHOWN);
    assert_eq!(sight.sees(&ben, &changes).await[..2], [Verdict::Hidden, SHOWN]);
    sight.stop().await;
}

#[tokio::test]
async fn restrictive_policies_other_commands_and_other_roles_count_as_in_postgres() {
    let sight = sight(&(orders() + OWN)).await;
    sight
        .run(
            "create policy r on orders as restrictive for select using (org <> 'a' or body = 'one'); \
             create policy i on orders for update using (true); \
             create policy o on orders to pg_monitor using (true)",
        )
        .await;
    let ann = sight.viewer(json!({"sub": ANN}));
    let seen = async || {
        let table = sight.table("orders").await;
        let changes = sight.inserts(&table, "orders order by id").await;
        sight.sees(&ann, &changes).await
    };
    assert_eq!(seen().await, [SHOWN, Verdict::Hidden, Verdict::Hidden]);
    sight.run("grant pg_monitor to {role}").await;
    assert_eq!(seen().await, [SHOWN, SHOWN, Verdict::Hidden], "as a member of the policy's role");
    sight.run("alter role {role} noinherit").await;
    assert_eq!(seen().await, [SHOWN, Verdict::Hidden, Verdict::Hidden], "without its rights");
    sight.stop().await;
}

/// Names are resolved as where the policy was made, and other tables are read with the viewer's rights.
#[tokio::test]
async fn policies_may_look_at_other_tables_whole_rows_and_generated_columns() {
    let sight = sight(
        "create schema \"Odd one\"; grant usage on schema \"Odd one\" to {role}; \
         create table \"Odd one\".members (uid uuid, \"select\" int); \
         alter table \"Odd one\".members enable row level security; \
         grant select on \"Odd one\".members to {role}; \
         create policy own on \"Odd one\".members using (uid = auth.uid()); \
         create table gone (a int, b int, \"t\" int, \"The Org\" int, dropped text, \
            twice int generated always as (b * 2) stored, tags text[], note text); \
         alter table gone drop column dropped; \
         alter table gone enable row level security; \
         create function fits(gone) returns boolean language sql as $$ select ($1).note is distinct from 'no' $$; \
         create schema hidden; \
         create function hidden.small(int) returns boolean language sql as $$ select $1 < 100 $$; \
         create policy p on gone as restrictive using (fits(gone) and hidden.small(gone.\"t\")); \
         create policy q on gone using (exists (select from \"Odd one\".members m where m.\"select\" = \"The Org\")); \
         create policy g on gone using (twice = 14 and 'x' = any(tags)); \
         grant select on gone to {role};",
    )
    .await;
    sight.run(&format!("insert into \"Odd one\".members values ('{ANN}', 5), ('{BEN}', 6)")).await;
    let table = sight.table("gone").await;
    let rows = "(values (1, 1, 1, 5, null::text[], 'yes'), (2, 1, 1, 6, null, null), (3, 1, 1, 5, null, 'no'), \
                (4, 7, 1, 0, '{\"x\",\"q \\\"\\\\,\"}', E'a\"b\\\\'), (5, 7, 100, 5, '{x}', ''), (6, 8, 1, 0, '{x}', '')) \
                as v(a, b, t, \"The Org\", tags, note)";
    let changes = sight.inserts(&table, rows).await;
    let ann = sight.viewer(json!({"sub": ANN}));
    let hidden = Verdict::Hidden;
    // The function's schema may not be used by the role; a policy calls it all the same, but where a policy
    // also reads a table with row security Postgres reads it again as the viewer.
    let seen = sight.sees(&ann, &changes).await;
    assert_eq!(seen, [Verdict::Failed(Failure::Policy); 6]);
    sight.run("grant usage on schema hidden to {role}").await;
    let again = sight.table("gone").await;
    let changes: Vec<_> = changes.into_iter().map(|c| RowChange { table: again.clone(), ..c }).collect();
    let seen = sight.sees(&ann, &changes).await;
    assert_eq!(seen, [SHOWN, hidden, hidden, SHOWN, hidden, hidden]);
    sight.stop().await;
}

#[tokio::test]
async fn policy_may_call_a_function_that_its_viewer_may_not() {
    let sight = sight(
        "create schema hidden; create table hidden.members (uid uuid); \
         create function hidden.is_member() returns boolean security definer language sql stable as $$ \
            select exists (select from hidden.members where uid = auth.uid()) $$; \
         create table t (id int primary key); alter table t enable row level security; \
         grant select on t to {role}; create policy p on t using (hidden.is_member());",
    )
    .await;
    sight.run(&format!("insert into hidden.members values ('{ANN}')")).await;
    let table = sight.table("t").await;
    let changes = sight.inserts(&table, "(values (1), (2)) v(id)").await;
    assert_eq!(sight.sees(&sight.viewer(json!({"sub": ANN})), &changes).await, [SHOWN, SHOWN]);
    assert_eq!(
        sight.sees(&sight.viewer(json!({"sub": BEN})), &changes).await,
        [Verdict::Hidden, Verdict::Hidden]
    );
    // The outcome depends on a table: it is not remembered.
    sight
        .run(&format!("insert into hidden.members values ('{BEN}'); analyze hidden.members; analyze t"))
        .await;
    assert_eq!(sight.sees(&sight.viewer(json!({"sub": BEN})), &changes).await, [SHOWN, SHOWN]);
    sight.stop().await;
}

/// 90
#[tokio::test]
async fn a_policy_that_raises_hides_only_the_rows_and_viewers_it_raises_for() {
    let sight = sight(
        "create table t (id int primary key, n int); alter table t enable row level security; \
         grant select on t to {role}; \
         create policy p on t to {role} using (10 / n > 0 or (auth.jwt() ->> 'x')::int > 0); \
         create table other (id int primary key); grant select on other to {role};",
    )
    .await;
    let table = sight.table("t").await;
    let changes = sight
        .inserts(&table, "generate_series(0, 40) g(id), lateral (select g.id % 20 as n) v order by g.id")
        .await;
    let fine = sight.viewer(json!({"x": "1"}));
    let raises = sight.viewer(json!({"x": "no number"}));
    let viewers = [raises, fine, viewer(sight.bypassing(), json!({})), viewer("ghost", json!({}))];
    let asked: Vec<_> = (0..41).flat_map(|change| (0..4).map(move |viewer| (change, viewer))).collect();
    let seen = sight.rows.judge(&changes, &viewers, &asked).await;
    for (at, seen) in seen.chunks(4).enumerate() {
        let n = at % 20;
        let failed = Verdict::Failed(Failure::Policy);
        let raising = if (1..=10).contains(&n) { SHOWN } else { failed };
        let fine = if n == 0 { failed } else { SHOWN };
        assert_eq!(seen, [raising, fine, SHOWN, Verdict::Failed(Failure::UnknownRole)], "row {at}");
    }
    sight.stop().await;
}

#[tokio::test]
async fn a_policy_that_takes_too_long_rests_and_the_others_go_on() {
    let config = Config { check_timeout: Duration::from_millis(300), ..Config::default() };
    let sight = sight_with(
        "create table t (id int primary key); alter table t enable row level security; grant select on t to {role}; \
         create function slow() returns boolean language plpgsql as $$ begin \
            if auth.jwt() ? 'slow' then perform pg_sleep(60); end if; return true; end $$; \
         create policy p on t using (slow());",
        config,
    )
    .await;
    let table = sight.table("t").await;
    let changes = sight.inserts(&table, "generate_series(1, 3) g(id)").await;
    let (slow, fine) = (sight.viewer(json!({"slow": 1})), sight.viewer(json!({})));
    let asked = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let failed = Verdict::Failed(Failure::Slow);
    for _ in 0..20 {
        let seen = sight.rows.judge(&changes, &[slow.clone(), fine.clone()], &asked).await;
        assert_eq!(seen, [failed, SHOWN, failed, SHOWN]);
    }
    sight.stop().await;
}

/// 91, W5: what the log's row does not have is not guessed.
#[tokio::test]
async fn a_column_that_the_row_lacks_is_not_selectable_and_a_policy_on_it_shows_nothing() {
    let sight = sight(&(orders() + OWN)).await;
    let before = sight.table("orders").await;
    let mut changes = sight.inserts(&before, "orders order by id").await;
    sight.run("alter table orders rename owner to belongs_to; alter table orders rename body to words").await;
    let ann = sight.viewer(json!({"sub": ANN}));
    assert_eq!(sight.columns(&before).await, ["id", "org"]);
    assert_eq!(sight.sees(&ann, &changes[..1]).await, [Verdict::Failed(Failure::Column)]);

    // A value that the log does not carry is as unknown as one of a column that it does not have.
    let table = sight.table("orders").await;
    changes = sight.inserts(&table, "orders order by id").await;
    for (column, verdict) in [(3, SHOWN), (1, Verdict::Failed(Failure::Column))] {
        let Images::Insert { mut new } = changes[0].images.clone() else { unreachable!() };
        new[column] = Cell::Unknown;
        let change = RowChange { table: table.clone(), images: Images::Update { new, old: None } };
        let verdict = if verdict == SHOWN { SHOWN_WITH_KEY } else { verdict };
        assert_eq!(sight.sees(&ann, &[change]).await, [verdict]);
    }
    sight.run("drop table orders").await;
    let gone = std::sync::Arc::new((*table).clone());
    let Images::Insert { new } = changes[0].images.clone() else { unreachable!() };
    let change = RowChange { table: gone.clone(), images: Images::Insert { new } };
    assert_eq!(sight.sees(&ann, &[change]).await, [Verdict::Hidden]);
    assert_eq!(sight.columns(&gone).await, [""; 0]);
    sight.stop().await;
}

/// W26
#[tokio::test]
async fn a_partition_without_policies_has_those_of_its_root() {
    let sight = sight(
        "create table root (id int, owner uuid) partition by range (id); \
         create table leaf (owner uuid, id int not null); alter table root attach partition leaf for values from (0) to (9); \
         alter table root enable row level security; grant select on root to {role}; \
         create policy p on root using (owner = auth.uid());",
    )
    .await;
    let ann = sight.viewer(json!({"sub": ANN}));
    let rows = format!("(values (1, '{ANN}'), (2, '{BEN}')) v(id, owner)");
    let table = sight.table("leaf").await;
    assert_eq!(sight.columns(&table).await, ["owner", "id"], "by the right to the root");
    let changes = sight.inserts(&table, &rows).await;
    assert_eq!(sight.sees(&ann, &changes).await, [SHOWN, Verdict::Hidden]);
    sight.run("alter table leaf enable row level security; create policy l on leaf using (id = 2)").await;
    let table = sight.table("leaf").await;
    let changes = sight.inserts(&table, &rows).await;
    assert_eq!(sight.sees(&ann, &changes).await, [Verdict::Hidden, SHOWN], "its own come first");
    sight.stop().await;
}

/// Without a new description of the table, within seconds; nothing but waiting for it can show that.
#[tokio::test]
async fn changes_of_policies_rights_roles_and_functions_take_effect() {
    let sight = sight(&(orders() + OWN)).await;
    let table = sight.table("orders").await;
    let changes = sight.inserts(&table, "orders order by id").await;
    let ann = sight.viewer(json!({"sub": ANN}));
    let until = async |seen: &[Verdict], columns: &[&str]| {
        let wait = async {
            while sight.sees(&ann, &changes).await != seen || sight.columns(&table).await != columns {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the change took no effect");
    };
    let all = ["id", "owner", "org", "body"];
    let hidden = Verdict::Hidden;
    until(&[SHOWN, hidden, hidden], &all).await;
    sight.run("alter policy own on orders using (org = 'a')").await;
    until(&[SHOWN, hidden, SHOWN], &all).await;
    sight.run("revoke select on orders from {role}; grant select (id) on orders to {role}").await;
    until(&[SHOWN, hidden, SHOWN], &["id"]).await;
    sight.run("drop policy own on orders").await;
    until(&[hidden, hidden, hidden], &["id"]).await;
    sight.run_as_admin("alter role {role} bypassrls").await;
    until(&[SHOWN, SHOWN, SHOWN], &["id"]).await;
    sight.run_as_admin("alter role {role} nobypassrls").await;
    sight.run(OWN).await;
    until(&[SHOWN, hidden, hidden], &["id"]).await;
    sight.run(&format!("create or replace function auth.uid() returns uuid stable language sql as $$ select '{BEN}'::uuid $$")).await;
    until(&[hidden, SHOWN, hidden], &["id"]).await;
    sight.stop().await;
}

/// A restart of the database is waited for; nothing is shown or hidden by it.
#[tokio::test]
async fn a_lost_connection_changes_no_verdict() {
    let sight = sight(
        &(orders()
            + "create policy own on orders using (owner = auth.uid() and pg_sleep(0.002) is not null);"),
    )
    .await;
    let table = sight.table("orders").await;
    let changes = sight.inserts(&table, "orders order by id").await;
    let ann = sight.viewer(json!({"sub": ANN}));
    for _ in 0..3 {
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity \
                    where application_name = 'convoke row checks' and datname = current_database()";
        let (seen, _) = tokio::join!(sight.sees(&ann, &changes), sight.sql.execute(kill, &[]));
        assert_eq!(seen, [SHOWN, Verdict::Hidden, Verdict::Hidden]);
    }
    sight.stop().await;
}
