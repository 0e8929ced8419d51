//! Definitions that a program builds are checked like files.
use super::{Echo, config, definition, fresh};
use convoke::app::Daemon;
use std::sync::Arc;
use tokio::sync::mpsc;

#[tokio::test]
async fn definition_in_code_with_a_typo_fails_the_build_and_names_it() {
    let (db, dir) = fresh().await;
    let wake = "[[wake]]\ntable = \"tickets\"\nfilter = \"priority>3\"\nrequest = { kind = \"k\" }";
    let cron = "[[schedule]]\ncron = \"61 * * * *\"\nrequest = { kind = \"k\" }";
    let agent = Arc::new(Echo(mpsc::channel(1).0));
    let builder = Daemon::builder(config(&db, dir.path()))
        .definitions(vec![definition("typo", wake)])
        .register("typo", agent.clone())
        .agent(definition("late", cron), agent);
    let error = builder.build().await.err().map(|error| format!("{error:#}")).unwrap();
    for named in ["agent typo: wake.0.filter: ", "agent late: schedule.0.cron: "] {
        assert!(error.contains(named), "{error}");
    }
}
