//! Wakes against the tables of a real database.
use super::definition;
use crate::support::empty_database;
use convoke::agent::{Metrics, WakeIndex};

#[tokio::test]
async fn wakes_are_held_against_the_tables_of_the_database() {
    let db = empty_database().await;
    let client = db.client().await;
    let tables = "create type mood as enum ('sad', 'glad'); create domain level as int4;
        create table tickets (id int8 primary key, priority int4, feeling mood, depth level, body jsonb)";
    client.batch_execute(tables).await.unwrap();
    let wake = |table: &str, filter: &str| {
        format!("[[wake]]\ntable = \"{table}\"\nfilter = \"{filter}\"\nrequest = {{ kind = \"k\" }}\n")
    };
    let text = [
        "id = \"a\"\n[run]\nkind = \"remote\"\n".to_owned(),
        wake("public.tickets", "priority=gte.3,feeling=eq.sad,depth=gt.2,body=is.null"),
        wake("tickets", "urgency=eq.1"),
        wake("tickets", "priority=gte.high"),
        wake("tickets", "body=eq.1"),
        wake("orders", ""),
    ];
    let index = WakeIndex::new([&definition(&text.concat())], &Metrics::default());
    let problems = index.check(&client).await.unwrap();
    let told: Vec<_> =
        problems.iter().map(|(_, problem)| format!("{}: {}", problem.key, problem.message)).collect();
    assert_eq!(
        told,
        [
            "wake.1.filter: column urgency is not among the published columns of public.tickets",
            "wake.2.filter: \"high\" is no value for column priority of type int4",
            "wake.3.filter: column body of type jsonb cannot be compared with eq",
            "wake.4.table: there is no table public.orders in the database",
        ]
    );
}
