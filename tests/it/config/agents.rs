//! Reports of problems in agents' files.
use convoke::config::load_agents;
use std::fs;

/// The problems of these files as displayed, without the folder.
fn problems(files: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let outcome = load_agents(folder.path()).map(|agents| agents.len());
    let prefix = format!("{}/", folder.path().display());
    outcome.unwrap_err().to_string().replace(&prefix, "")
}

#[test]
fn each_bad_key_is_reported_with_its_line() {
    let text = "\
id = \"Triage!\"
slots = \"four\"
capabilites = [\"x\"]

[run]
kind = \"comand\"
argv = [\"/bin/true\", 5]

[[wake]]
table = \"public.tickets\"
events = [\"INSERT\", \"UPSERT\"]

[wake.request]
kind = \"x\"
inputs = {}
";
    insta::assert_snapshot!(problems(&[("a.toml", text)]), @r#"
    a.toml:1: id: "Triage!" is not a name: use 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit
    a.toml:2: slots: found string "four", expected a whole number from 0 to 4294967295; write a whole number
    a.toml:3: capabilites: unknown key; did you mean `capabilities`?
    a.toml:6: run.kind: unknown value "comand"; did you mean "command"?
    a.toml:7: run.argv.1: found integer 5, expected text; write it in quotes
    a.toml:11: wake.0.events.1: unknown value "UPSERT"; did you mean "INSERT"?
    a.toml:15: wake.0.request.inputs: unknown key; did you mean `input`?
    "#);
}

#[test]
fn problems_across_keys_are_reported_with_a_line() {
    let text = "\
id = \"a\"

[run]
kind = \"command\"
argv = [\"no-such-program-anywhere\"]
url = \"http://127.0.0.1:1\"

[[wake]]
table = \"tickets\"
filter = \"priority=gt.3,colour\"
request = { kind = \"x\", input = { ticket = \"{{ new\" } }

[offer]
confidence = 7
";
    insta::assert_snapshot!(problems(&[("a.toml", text)]), @r#"
    a.toml:5: run.argv: there is no command no-such-program-anywhere on PATH; install it, correct the name, or give its full path
    a.toml:6: run.url: url belongs to kind = "http", not to "command"
    a.toml:10: wake.0.filter: ["colour"] is not a condition of the form column=operator.value
    a.toml:11: wake.0.request.input.ticket: syntax error: unexpected end of input, expected end of variable block
    a.toml:14: offer.confidence: 7 is not in 0 to 1
    "#);
}

#[test]
fn duplicate_id_is_reported_at_the_second_file() {
    let agent = "id = \"a\"\n[run]\nkind = \"remote\"\n";
    insta::assert_snapshot!(problems(&[("one.toml", agent), ("two.toml", agent), ("three.toml", "id = \n")]), @r"
    three.toml:1: not valid TOML: string values must be quoted, expected literal string
    two.toml:1: id: a is already the id of the agent in one.toml; give every agent its own id
    ");
}

#[test]
fn example_agents_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/triage/agents");
    let agents = load_agents(&folder).unwrap();
    let ids: Vec<_> = agents.iter().map(|agent| agent.id.as_str()).collect();
    assert_eq!(ids, ["classifier", "keyword", "refunds", "thinker"]);
}

#[test]
fn readme_agent_is_valid() {
    let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let agent = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("triage.toml"), agent).unwrap();
    let agents = load_agents(folder.path()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(agents[0].id.as_str(), "triage");
}

#[test]
fn missing_folder_has_no_agents() {
    assert_eq!(load_agents(std::path::Path::new("/nowhere/agents")).unwrap().len(), 0);
}
