//! Settings files: defaults, layers, and the reports of problems.
mod agents;

use convoke::config::{self, Config, Options, Problem};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Loads `text` as a settings file, with these variables and flags.
fn load(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[(&'static str, &'static str, &str)],
) -> Result<Config, Vec<Problem>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("convoke.toml");
    fs::write(&file, text).unwrap();
    let options = Options {
        file: Some(file),
        flags: flags.iter().map(|(name, key, value)| (*name, *key, (*value).to_owned())).collect(),
        environment: Some(environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()),
    };
    config::load(&options).map(|loaded| loaded.config).map_err(|problems| problems.0)
}

/// The problems as displayed, without the folder.
fn problems(outcome: Result<Config, Vec<Problem>>) -> String {
    let short = |mut problem: Problem| {
        problem.file = problem.file.rsplit('/').next().unwrap_or_default().to_owned();
        problem.to_string()
    };
    outcome.unwrap_err().into_iter().map(short).collect::<Vec<_>>().join("\n")
}

fn reference() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/convoke.toml");
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn repository_file_has_the_defaults() {
    let config = load(&reference(), &[], &[]).unwrap();
    assert_eq!(format!("{config:#?}"), format!("{:#?}", Config::default()));
}

#[test]
fn repository_file_has_every_key_with_a_comment() {
    let text = reference();
    for (section, key) in config::keys(&text) {
        let body = text.split(&format!("[{section}]\n")).nth(1).unwrap_or_else(|| panic!("no [{section}]"));
        let body = body.split("\n[").next().unwrap();
        let named = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
        let at = body.lines().position(named).unwrap_or_else(|| panic!("{section}.{key} is not there"));
        let before = body.lines().nth(at - 1).unwrap();
        assert!(before.starts_with("# "), "{section}.{key} has no comment");
    }
}

#[test]
fn each_layer_overrides_the_ones_before() {
    let file = "[server]\nlisten = '127.0.0.1:1'\n[telemetry]\nlog = 'warn'\n";
    let env = [("CONVOKE_SERVER__LISTEN", "127.0.0.1:2"), ("CONVOKE_URL", "http://127.0.0.1:9")];
    let port = |outcome: Result<Config, _>| outcome.unwrap().server.listen.port();
    assert_eq!(port(load("", &[], &[])), 7700);
    assert_eq!(port(load(file, &[], &[])), 1);
    assert_eq!(port(load(file, &env, &[])), 2);
    assert_eq!(port(load(file, &env, &[("--listen", "server.listen", "127.0.0.1:3")])), 3);
    assert_eq!(load(file, &env, &[]).unwrap().telemetry.log, "warn", "the other keys stay");
}

#[test]
fn variable_of_digits_is_text_or_number_by_the_settings_type() {
    let digits = "12345678901234567890123456789012345";
    let env = [("CONVOKE_AUTH__JWT_SECRET", digits), ("CONVOKE_DATABASE__POOL_SIZE_MAX", "3")];
    let config = load("", &env, &[]).unwrap();
    let secret = config.auth.jwt_secret.unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&secret), digits);
    assert_eq!(config.database.pool_size_max, 3);
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let file = "\
[server]
lisetn = '127.0.0.1:1'

[telemetry]
log = 5
format = 'xml'

[sever]
";
    insta::assert_snapshot!(problems(load(file, &[], &[])), @r#"
    convoke.toml:2: server.lisetn: unknown key; did you mean `listen`?
    convoke.toml:5: telemetry.log: found integer 5, expected text; write it in quotes
    convoke.toml:6: telemetry.format: unknown value "xml"; use one of text, json
    convoke.toml:8: sever: unknown key; did you mean `server`?
    "#);
    let env = [("CONVOKE_SERVER__LISTEN", "localhost"), ("CONVOKE_TELEMETRY__COLOUR", "yes")];
    let flags = [("--log", "telemetry.log", "convoke=loud")];
    insta::assert_snapshot!(problems(load("", &env, &flags)), @r#"
    --log: telemetry.log: "convoke=loud" is not a log filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5; use a level like "info", or "convoke=debug"
    CONVOKE_SERVER__LISTEN: server.listen: not an address with a port; write numbers like "127.0.0.1:7700", or "[::1]:7700"
    CONVOKE_TELEMETRY__COLOUR: telemetry.colour: unknown key; the keys here are log, format, otlp
    "#);
}

#[test]
fn missing_file_is_reported() {
    let options = Options { file: Some("/nowhere/convoke.toml".into()), ..Options::default() };
    let problems = config::load(&options).unwrap_err();
    insta::assert_snapshot!(problems, @"/nowhere/convoke.toml: cannot be read: No such file or directory (os error 2); name a file that exists");
}

#[test]
fn settings_and_agents_that_every_user_can_write_to_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let agents = folder.path().join("agents");
    let (settings, agent) = (folder.path().join("convoke.toml"), agents.join("a.toml"));
    fs::create_dir(&agents).unwrap();
    fs::write(&settings, "").unwrap();
    fs::write(&agent, "id = \"a\"\nrun = { kind = \"command\", argv = [\"/bin/true\"] }\n").unwrap();
    let with_mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let prefix = format!("{}/", folder.path().display());
    let settings_options = Options { file: Some(settings.clone()), ..Options::default() };
    let outcomes = || {
        let loaded = config::load(&settings_options).map(|_| ());
        let outcomes = [loaded, config::load_agents(&agents).map(|_| ())];
        outcomes.map(|outcome| outcome.err().map(|problems| problems.to_string().replace(&prefix, "")))
    };
    for mode in [0o600, 0o644, 0o664] {
        [&settings, &agent].into_iter().for_each(|path| with_mode(path, mode));
        assert_eq!(outcomes(), [None, None], "{mode:o}");
    }
    with_mode(&settings, 0o666);
    with_mode(&agent, 0o646);
    insta::assert_snapshot!(outcomes().map(Option::unwrap).join("\n"), @r"
    convoke.toml: cannot be read: every user of this machine can write to it (mode 666); run chmod o-w on it: its writers decide what the daemon runs and trusts
    agents/a.toml: cannot be read: every user of this machine can write to it (mode 646); run chmod o-w on it: its writers decide what the daemon runs and trusts
    ");
    with_mode(&agent, 0o644);
    with_mode(&agents, 0o777);
    let [_, problems] = outcomes();
    insta::assert_snapshot!(problems.unwrap(), @"agents: cannot be read: every user of this machine can write to it (mode 777); run chmod o-w on it: its writers decide what the daemon runs and trusts");
}

#[test]
fn every_syntax_error_of_a_file_is_reported() {
    insta::assert_snapshot!(problems(load("[server]\nlisten = \n[telemetry\nlog = 'info'\n", &[], &[])), @r"
    convoke.toml:2: not valid TOML: string values must be quoted, expected literal string
    convoke.toml:3: not valid TOML: unclosed table, expected `]`
    ");
}

#[test]
fn invalid_slot_name_is_reported_before_the_start() {
    let problem = problems(load("[wal]\nslot = \"Bad Slot\"\n", &[], &[]));
    assert!(problem.starts_with("convoke.toml:2: wal.slot: \"Bad Slot\" is no slot name"), "{problem}");
}

#[test]
fn limit_of_zero_is_refused_with_its_key() {
    let told = problems(load("[gateway.limits]\nmessages_total = 0\nburst = \"0s\"\n", &[], &[]));
    for key in ["gateway.limits.messages_total", "gateway.limits.burst"] {
        assert!(told.contains(key), "{told}");
    }
    assert!(load("[gateway.limits]\nmode = \"supabase\"\n", &[], &[]).is_ok());
}
