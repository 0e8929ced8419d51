//! Databases that are not the daemon's own: what is there stays as it is, and what lacks is said by name.
use super::{MessagesDaemon, next_json, private};
use crate::support::{crypto, empty_database};
use convoke::{access, db, scope::Scope};
use serde_json::json;
use tokio_postgres::Client;

/// A schema as an older Supabase has it, with an owner of its own.
const SUPABASE: &str = "
do $$ begin create role it_realtime_admin nologin; exception when duplicate_object or unique_violation then null; end $$;
do $$ begin create role authenticated nologin noinherit; exception when duplicate_object or unique_violation then null; end $$;
create schema realtime authorization it_realtime_admin;
create schema auth authorization it_realtime_admin;
create table realtime.messages (
  topic text not null, extension text not null, payload jsonb, event text, private boolean default false,
  updated_at timestamp not null default now(), inserted_at timestamp not null default now(),
  id uuid not null default gen_random_uuid(), primary key (id, inserted_at)) partition by range (inserted_at);
alter table realtime.messages enable row level security;
alter table realtime.messages owner to it_realtime_admin;
grant usage on schema realtime to authenticated;
grant select, insert, update on realtime.messages to authenticated;
create function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns text language sql as $$ select 'theirs' $$;
create function realtime.topic() returns text language sql stable as
  $$ select nullif(current_setting('realtime.topic', true), '') $$;
create policy r on realtime.messages for select to authenticated using (realtime.topic() = 't');";

async fn functions(sql: &Client) -> Vec<String> {
    let rows = "select n.nspname || '.' || p.proname || ' ' || pg_get_userbyid(n.nspowner) || ' ' || p.prosrc
                  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where n.nspname in ('realtime', 'auth') order by 1";
    sql.query(rows, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn existing_supabase_schema_is_used_unchanged() {
    crypto();
    let db = empty_database().await;
    let sql = db.client().await;
    sql.batch_execute(SUPABASE).await.unwrap();
    let before = functions(&sql).await;
    let rig = MessagesDaemon::on(db, tempfile::tempdir().unwrap()).await;
    assert_eq!(functions(&sql).await, before);
    let default = "select to_regclass('realtime.messages_default') is null";
    assert!(sql.query_one(default, &[]).await.unwrap().get::<_, bool>(0));

    crate::daemon::soon("the days", async {
        let days = "select count(*) from pg_inherits where inhparent = 'realtime.messages'::regclass";
        while sql.query_one(days, &[]).await.unwrap().get::<_, i64>(0) < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut socket = rig.joined(true, "t", private()).await;
    sql.batch_execute(
        "insert into realtime.messages (topic, extension, event, payload, private)
         values ('t', 'broadcast', 'e', '{\"v\": 1}', true)",
    )
    .await
    .unwrap();
    assert_eq!(next_json(&mut socket).await.2, json!({"v": 1}));
    let config = json!({"private": true, "broadcast": {"replay": {"since": 0}}});
    let mut back = rig.joined(true, "t", config).await;
    assert_eq!(back.next().await.payload["payload"], json!({"v": 1}));
    let denied = rig.join(true, "u", private()).await.1;
    assert_eq!(
        denied.reason(),
        "Unauthorized: You do not have permissions to read from this Channel topic: u"
    );
}

/// A role with no more rights than its own database: everything but the roles is made, and what lacks is said
/// with the statement that mends it.
#[tokio::test]
async fn rights_that_the_role_lacks_are_reported() {
    let scope = Scope::default();
    let db = empty_database().await;
    let admin = db.client().await;
    let role = format!("it_app_{}", db.name);
    admin
        .batch_execute(&format!(
            "create role {role} login password 'x'; alter database {} owner to {role};
             revoke all on database {0} from public",
            db.name
        ))
        .await
        .unwrap();
    let target = db::Target::parse(&db.url).unwrap();
    let url = target.url().replacen(&format!("{}:", target.user), &format!("{role}:"), 1);
    let password = url.split(':').nth(2).unwrap().split('@').next().unwrap().to_owned();
    let url = url.replacen(&password, "x", 1);
    let database =
        db::Database::open(&db::Config { url: Some(url.into()), ..db.config() }, &scope).await.unwrap();
    db::migrate(&database).await.unwrap();

    let findings = access::prepare(&database).await.unwrap();
    let of = |what: &str| findings.iter().find(|finding| finding.what == what).unwrap().clone();
    // The roles are there already, made by other tests of this server: acting as them is what lacks.
    let anon = of("role anon");
    assert!(!anon.ok, "{anon:?}");
    assert_eq!(anon.remedy.as_deref(), Some(&*format!("grant anon to {role}")));
    assert!(of("schema realtime").ok, "{findings:?}");
    assert_eq!(access::inspect(&database).await.unwrap(), findings);

    for finding in &findings {
        if let Some(remedy) = &finding.remedy {
            admin.batch_execute(remedy).await.unwrap();
        }
    }
    let mended = access::prepare(&database).await.unwrap();
    assert!(mended.iter().all(|finding| finding.ok), "{mended:?}");
    database.stop().await.unwrap();
    drop(admin);
    let admin = db.client().await;
    admin
        .batch_execute(&format!("reassign owned by {role} to current_user; drop owned by {role}"))
        .await
        .unwrap();
    admin
        .batch_execute(&format!("alter database {} owner to current_user; drop role {role}", db.name))
        .await
        .unwrap();
}
