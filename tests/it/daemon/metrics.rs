//! The metrics: documented, and named by the dashboard and the alert rules as they are.
use super::{Running, config, fresh};
use promql_parser::{
    parser::Expr,
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The metrics of `docs/METRICS.md` with their types.
fn documented() -> BTreeMap<String, String> {
    let text = read("docs/METRICS.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `convoke_"));
    let rows = rows.map(|row| {
        let (name, rest) = row.split_once("` | ").unwrap();
        (format!("convoke_{name}"), rest.split(" | ").next().unwrap().to_owned())
    });
    rows.collect()
}

/// The names of metrics that an expression of Prometheus reads.
#[derive(Default)]
struct Names(Vec<String>);

impl ExprVisitor for Names {
    type Error = ();

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, ()> {
        match expression {
            Expr::VectorSelector(selector) => self.0.extend(selector.name.clone()),
            Expr::MatrixSelector(selector) => self.0.extend(selector.vs.name.clone()),
            _ => {}
        }
        Ok(true)
    }
}

/// Parses an expression as Prometheus does, and returns the names of its metrics. Those of histograms without their
/// suffix.
fn names(expression: &str) -> Vec<String> {
    // Variables of Grafana, which puts times in their places.
    let plain = expression.replace("$__rate_interval", "5m").replace("$__range", "1h");
    let parsed = promql_parser::parser::parse(&plain).unwrap_or_else(|e| panic!("{expression}: {e}"));
    let mut names = Names::default();
    walk_expr(&mut names, &parsed).unwrap();
    let family = |name: &String| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    names.0.iter().map(family).collect()
}

#[tokio::test]
async fn every_metric_is_documented_with_its_type() {
    let (db, data) = fresh().await;
    let mut settings = config(&db, data.path());
    // So that the metrics of the export are there too. Nothing listens.
    settings.telemetry.otlp.endpoint = "http://127.0.0.1:9".into();
    let running = Running::start_with(settings, Vec::new()).await;
    let text =
        reqwest::get(format!("http://{}/metrics", running.parts.addr)).await.unwrap().text().await.unwrap();
    running.stop().await;
    let documented = documented();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut seen = 0;
    for (name, kind) in types {
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        assert_eq!(documented.get(&name).map(String::as_str), Some(kind), "{name} in docs/METRICS.md");
        seen += 1;
    }
    assert!(seen > 50, "{text}");
}

#[test]
fn every_documented_metric_is_registered() {
    fn sources(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                sources(&entry, text);
            } else if entry.extension().is_some_and(|end| end == "rs") {
                text.push_str(&fs::read_to_string(entry).unwrap());
            }
        }
    }
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    for name in documented().keys() {
        let own = name.trim_start_matches("convoke_");
        let own = own.strip_suffix("_total").unwrap_or(own);
        assert!(text.contains(&format!("\"{own}\"")), "{name} is in docs/METRICS.md and in no source");
    }
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_exist() {
    let documented = documented();
    let dashboard: Value = serde_json::from_str(&read("examples/observability/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 12 && dashboard["uid"] == "convoke");
    let mut expressions = Vec::new();
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && panel["gridPos"]["w"].is_u64(), "{panel}");
        expressions.extend(targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    let alerts: Value = serde_json::from_str(&read("examples/observability/alerts.json")).unwrap();
    for rule in alerts["groups"][0]["rules"].as_array().unwrap() {
        let is_whole = ["alert", "for"].iter().all(|key| rule[*key].is_string());
        assert!(is_whole && rule["annotations"]["summary"].is_string(), "{rule}");
        expressions.push(rule["expr"].as_str().unwrap().to_owned());
    }
    for expression in expressions {
        let found = names(&expression);
        assert!(!found.is_empty(), "{expression}");
        for name in found {
            // `up` is Prometheus' own.
            assert!(name == "up" || documented.contains_key(&name), "{name} of {expression}");
        }
    }
}
