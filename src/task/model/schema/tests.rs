use super::*;
use serde_json::json;

fn doubling(times: usize, last: Value) -> Value {
    let mut defs = Map::new();
    for at in 0..times {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        defs.insert(format!("d{at}"), json!({ "allOf": [next, next] }));
    }
    defs.insert(format!("d{times}"), last);
    json!({ "$ref": "#/$defs/d0", "$defs": defs })
}

#[test]
fn schema_that_doubles_by_references_is_refused() {
    let refused = check_shape(&doubling(60, json!({}))).unwrap_err();
    assert!(refused.contains("expand it to more than 20000"), "{refused}");
    check_shape(&doubling(5, json!({}))).unwrap();
}

#[test]
fn every_bound_is_checked() {
    let long: Map<String, Value> = (0..70)
        .map(|at| (format!("d{at}"), json!({ "$ref": format!("#/$defs/d{}", (at + 1).min(69)) })))
        .collect();
    let many: Map<String, Value> = (0..101).map(|at| (format!("^{at}"), json!({}))).collect();
    for (schema, words) in [
        (json!(42), "neither an object nor a boolean"),
        (json!({ "$comment": "x".repeat(SCHEMA_BYTES_MAX) }), "larger than 65536 bytes"),
        (json!({ "properties": { "a": { "$ref": "http://example.com/a" } } }), "leads out of it"),
        (json!({ "$ref": "file:///etc/passwd" }), "leads out of it"),
        (json!({ "$ref": "#/$defs/none" }), "leads to no schema"),
        (json!({ "x": {}, "$ref": "#/x" }), "leads to no schema"),
        (json!({ "$ref": "#" }), "leads back to its own place"),
        (json!({ "anyOf": [{ "not": { "$ref": "#" } }] }), "leads back to its own place"),
        (json!({ "properties": { "a": { "$id": "http://example.com/a" } } }), "may have an $id"),
        (json!({ "$ref": "#/$defs/d0", "$defs": long }), "one within the other"),
        (json!({ "patternProperties": many }), "101 regular expressions"),
    ] {
        let refused = check_shape(&schema).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
}

#[tokio::test]
async fn recursion_anchors_and_data_like_references_are_allowed() {
    let schemas = Schemas::default();
    let tree = json!({
        "type": "object",
        "properties": { "children": { "type": "array", "items": { "$ref": "#" } },
            "kind": { "enum": ["leaf", { "$ref": "http://example.com" }] }, "$ref": { "$ref": "#here" } },
        "$defs": { "a b": { "$anchor": "here", "type": "string" } },
        "additionalProperties": { "$ref": "#/$defs/a%20b" },
    });
    let good = json!({ "children": [{ "children": [], "kind": "leaf" }], "$ref": "text", "more": "text" });
    assert_eq!(schemas.fits(&tree, &good).await.unwrap(), Ok(()));
    let bad = json!({ "children": [{ "children": [3] }] });
    let refused = schemas.fits(&tree, &bad).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("/children/0/children/0"), "{refused}");
    let clock = schemas.fits(&json!({ "additionalProperties": false }), &json!({ CLOCK: 1 })).await.unwrap();
    assert!(clock.is_err(), "the keyword is no property");
}

#[tokio::test]
async fn validation_that_doubles_with_each_level_stops_at_the_deadline() {
    let schemas = Schemas::default();
    let twice = json!({ "allOf": [{ "$ref": "#" }, { "$ref": "#" }] });
    let schema = json!({ "items": twice });
    let deep = (0..80).fold(json!(1), |inner, _| json!([inner]));
    assert_eq!(schemas.fits(&schema, &deep).await.unwrap(), Err(SchemaMismatch::TooLong));
    // Its turn is free again, and the next run succeeds.
    assert_eq!(schemas.fits(&json!({ "type": "array" }), &deep).await.unwrap(), Ok(()));
}

#[tokio::test]
async fn regular_expressions_share_a_limit_of_their_compiled_size() {
    let schemas = Schemas::default();
    let pattern = |at| (format!("^\\p{{L}}{{1,100}}{at}$"), json!({}));
    let all: Map<String, Value> = (0..PATTERNS_MAX).map(pattern).collect();
    let one: Map<String, Value> = (0..1).map(pattern).collect();
    schemas.compile(&json!({ "patternProperties": one })).await.unwrap();
    let refused = schemas.compile(&json!({ "patternProperties": all })).await.unwrap_err();
    assert!(matches!(refused, Error::BadRequest(_)), "{refused}");
    assert!(!refused.to_string().contains("processor time"), "refused for its size, at once: {refused}");
    // As many simple ones as there may be are good.
    let simple: Map<String, Value> =
        (0..PATTERNS_MAX).map(|at| (format!("^x_{at}_[a-z]+$"), json!({}))).collect();
    schemas.compile(&json!({ "patternProperties": simple })).await.unwrap();
}

/// References by other names, identifiers and keywords that only some drafts know.
#[tokio::test]
async fn no_keyword_leads_out_of_a_schema_or_around_its_bounds() {
    for (schema, words) in [
        (json!({ "$dynamicRef": "http://127.0.0.1:9/x" }), "leads out of it"),
        (json!({ "$recursiveRef": "http://127.0.0.1:9/x" }), "leads out of it"),
        (json!({ "unevaluatedProperties": { "$ref": "file:///etc/passwd" } }), "leads out of it"),
        (json!({ "dependentSchemas": { "a": { "$ref": "//127.0.0.1/x" } } }), "leads out of it"),
        (json!({ "contentSchema": { "$ref": "x.json" } }), "leads out of it"),
        (json!({ "$defs": { "a": { "$id": "urn:a", "$ref": "#" } } }), "may have an $id"),
        (json!({ "$dynamicAnchor": "a", "$dynamicRef": "#a" }), "leads back to its own place"),
        (json!({ "allOf": [{ "$dynamicRef": "#a", "$dynamicAnchor": "a" }] }), "leads back to its own place"),
    ] {
        let refused = check_shape(&schema).unwrap_err();
        assert!(refused.contains(words), "{schema}: {refused}");
    }
    let schemas = Schemas::default();
    let fits = async |schema: Value, value: Value| schemas.fits(&schema, &value).await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    for odd in [
        json!({ "$schema": format!("{url}/draft"), "type": "string" }),
        json!({ "$id": format!("{url}/whole"), "$ref": "#/$defs/a", "$defs": { "a": { "type": "string" } } }),
        json!({ "$vocabulary": { format!("{url}/v"): true }, "type": "string" }),
        json!({ "format": "regex", "type": "string" }),
    ] {
        let _either = fits(odd.clone(), json!(1)).await;
        assert!(listener.accept().is_err(), "nothing is fetched: {odd}");
    }
    // Back references and nested repetition: the steps are counted.
    for pattern in ["^(a+)+\\1$", "(x+x+)+y", "^(?=(a+)+$)b", "(.*)*\\1{50}z"] {
        let value = json!("a".repeat(50_000) + &"x".repeat(50_000));
        assert!(fits(json!({ "pattern": pattern }), value).await.is_err(), "{pattern}");
    }
    // What is not evaluated is looked for along every branch, level by level.
    let branches: Vec<Value> = (0..100).map(|at| json!({ "properties": { format!("p{at}"): {} } })).collect();
    let schema = json!({ "anyOf": branches, "unevaluatedProperties": false });
    let wide: Map<String, Value> = (0..5000).map(|at| (format!("p{at}"), json!(at))).collect();
    assert!(fits(schema, Value::Object(wide)).await.is_err());
}

#[tokio::test]
async fn longest_chain_over_the_deepest_value_fits_the_stack() {
    let schemas = Schemas::default();
    let mut defs = Map::new();
    for at in 0..CHAIN_MAX - 3 {
        defs.insert(format!("d{at}"), json!({ "allOf": [{ "$ref": format!("#/$defs/d{}", at + 1) }] }));
    }
    defs.insert(format!("d{}", CHAIN_MAX - 3), json!({ "items": { "$ref": "#/$defs/d0" } }));
    let schema = json!({ "$ref": "#/$defs/d40", "$defs": defs });
    let deep = (0..crate::task::JSON_DEPTH_MAX).fold(json!(1), |inner, _| json!([inner]));
    match check_shape(&schema) {
        Ok(()) => assert_eq!(schemas.fits(&schema, &deep).await.unwrap(), Ok(())),
        Err(why) => assert!(why.contains("one within the other"), "{why}"),
    }
}

#[tokio::test]
async fn schema_that_does_not_compile_is_refused_with_the_reason() {
    let schemas = Schemas::default();
    for schema in [json!({ "type": "nonsense" }), json!({ "pattern": "(" })] {
        let refused = schemas.compile(&schema).await.unwrap_err().to_string();
        assert!(refused.starts_with("policy.result_schema: "), "{refused}");
    }
}

#[tokio::test]
async fn schemas_of_one_requester_do_not_delay_those_of_others() {
    let schemas = Schemas::default();
    let org = |name: &str| name.parse::<OrgId>().unwrap();
    // Each takes all of its processor time.
    let slow = json!({ "items": { "allOf": [{ "$ref": "#" }, { "$ref": "#" }] } });
    let deep = (0..80).fold(json!(1), |inner, _| json!([inner]));
    let greedy = schemas.of(&org("a"), "user:#greedy");
    let backlog: Vec<_> = (0..6).map(|_| greedy.fits(&slow, &deep)).collect();
    let mut backlog: futures_util::stream::FuturesUnordered<_> = backlog.into_iter().collect();
    let mut over = 0;
    for other in [schemas.of(&org("a"), "user:#other"), schemas.of(&org("b"), "user:#greedy")] {
        let small = json!({ "type": "array" });
        let mut asked = std::pin::pin!(other.fits(&small, &deep));
        loop {
            tokio::select! {
                biased;
                Some(verdict) = futures_util::StreamExt::next(&mut backlog) => {
                    assert_eq!(verdict.unwrap(), Err(SchemaMismatch::TooLong));
                    over += 1;
                }
                verdict = &mut asked => break assert_eq!(verdict.unwrap(), Ok(())),
            }
        }
    }
    // First come, first served would be all of them.
    assert!(over <= 3, "{over} of the backlog before the others");
}

#[tokio::test]
async fn schema_runs_at_low_priority() {
    let turn = FairQueue::new(1).turn(TurnOwner::daemon("test")).await.unwrap();
    let nice = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
    let usual = nice();
    let run = std::thread::spawn(move || {
        on_thread(&json!({ "type": "object" }), Some(&json!({})), turn).unwrap();
        nice()
    });
    let lowered = run.join().unwrap();
    assert_eq!(lowered > usual, cfg!(target_os = "linux"), "{lowered} after {usual}");
}

#[tokio::test]
async fn plain_schemas_have_the_same_verdict_without_a_thread() {
    let schemas = Schemas::default();
    let call = json!({ "type": "object", "required": ["n"], "additionalProperties": false, "title": "t",
        "properties": { "n": { "type": "integer", "minimum": 1 }, "all": { "items": { "enum": ["a", 2] } } } });
    let values = [
        json!({ "n": 1, "all": ["a", 2] }),
        json!({ "n": 0 }),
        json!({ "n": 1, "all": ["b"] }),
        json!({ "n": 1, "more": 1 }),
        json!({}),
        json!(null),
    ];
    for schema in [&call, &json!(true), &json!(false), &json!({ "type": 5 }), &json!({ "required": "n" })] {
        assert!(is_plain(schema, 0), "{schema}");
        for value in &values {
            let on_thread = schemas.run(schema.clone(), Some(value.clone())).await.unwrap();
            assert_eq!(schemas.fits(schema, value).await.unwrap(), on_thread, "{schema} {value}");
        }
    }
    assert_eq!(schemas.fits(&call, &values[0]).await.unwrap(), Ok(()));
    assert!(schemas.fits(&call, &values[1]).await.unwrap().is_err());
}

#[test]
fn schema_whose_time_a_requester_chooses_is_not_plain() {
    let deep = (0..=PLAIN_DEPTH_MAX).fold(json!({}), |inner, _| json!({ "items": inner }));
    for schema in [
        json!({ "pattern": "a" }),
        json!({ "properties": { "a": { "pattern": "a" } } }),
        json!({ "properties": 1 }),
        json!({ "items": [{}] }),
        json!({ "items": { "uniqueItems": true } }),
        json!({ "additionalProperties": { "$ref": "#" } }),
        json!({ "anyOf": [{}] }),
        json!({ "format": "email" }),
        json!({ CLOCK: true }),
        json!(42),
        deep,
    ] {
        assert!(!is_plain(&schema, 0), "{schema}");
    }
    assert!(!is_small(&json!("x".repeat(PLAIN_BYTES_MAX))));
}
