//! `convoke check` reports every problem for which `convoke up` fails before it opens a database, with the same text.
use super::{convoke_in, text};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// The exit codes and outputs of `check` and `up`.
fn both(folder: &Path, environment: &[(&str, &str)]) -> [(Option<i32>, String); 2] {
    ["check", "up"].map(|command| {
        let output = convoke_in(folder, &[command, "--listen", "127.0.0.1:0"], environment);
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    })
}

#[test]
fn check_reports_the_settings_that_up_refuses() {
    for (settings, told) in [
        ("[auth]\njwt_secret = 'short'", "convoke.toml:2: auth.jwt_secret: 5 bytes"),
        ("[auth]\njwks = 'none'", "convoke.toml:2: auth.jwks: cannot be used"),
        ("[auth]\njwks_file = 'nowhere.json'", "convoke.toml:2: auth.jwks_file: cannot be used"),
        ("[auth]\njwks_url = 'ftp://x/y'", "convoke.toml:2: auth.jwks_url: cannot be used"),
        ("[[auth.api_keys]]\nkey = 'sb_short'\nrole = 'anon'", "auth.api_keys.0: must begin with sb_"),
        (
            "[database]\nurl = 'mysql://a:hunter2@b/c'",
            "convoke.toml:2: database.url: must look like postgres://",
        ),
        ("[database]\nurl = 'postgres://a@b/c?sslmode=maybe'", "database.url: has sslmode=maybe"),
        (
            "[database]\nurl = 'postgres://a@b/c?sslmode=verify-full&sslrootcert=/nowhere.pem'",
            "convoke.toml:2: database.url: ",
        ),
        ("[database]\nbin_dir = '/nowhere'", "convoke.toml:2: database.bin_dir: /nowhere has no PostgreSQL"),
        ("[database]\npool_size_max = 0", "convoke.toml:2: database.pool_size_max"),
        ("[wal]\nslot = 'Bad Slot'", "convoke.toml:2: wal.slot"),
        ("[telemetry]\nlog = 'convoke=loud'", "convoke.toml:2: telemetry.log"),
        ("[task.policy]\naward = 'banana'", "task.policy"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("convoke.toml"), settings).unwrap();
        let [(check, checked), (up, refused)] = both(folder.path(), &[]);
        assert_eq!((check, up), (Some(78), Some(78)), "{settings}\n{checked}\n{refused}");
        for said in [&checked, &refused] {
            assert!(said.contains(told), "{settings}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        assert!(!folder.path().join(".convoke").exists(), "nothing is created");
    }
}

#[test]
fn variable_with_a_wrong_section_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [("CONVOKE_SERVR__LISTEN", "127.0.0.1:1"), ("CONVOKE_GATEWAY__LIMTS__BURST", "1s")];
    for (code, told) in both(folder.path(), &environment) {
        assert_eq!(code, Some(78), "{told}");
        assert!(told.contains("CONVOKE_SERVR__LISTEN: servr: unknown key; did you mean `server`?"), "{told}");
        assert!(told.contains("CONVOKE_GATEWAY__LIMTS__BURST: gateway.limts: unknown key"), "{told}");
    }
}

#[test]
fn data_folder_and_secret_that_others_can_write_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join(".convoke");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    for (code, told) in both(folder.path(), &[]) {
        assert!(
            code == Some(78) && told.contains(".convoke can be written to by other users (mode 777)"),
            "{told}"
        );
    }
    assert_eq!(convoke_in(folder.path(), &["token"], &[]).status.code(), Some(78));
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(convoke_in(folder.path(), &["token"], &[]).status.code(), Some(0));

    let secret = data.join("jwt.secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o666)).unwrap();
    let output = convoke_in(folder.path(), &["check"], &[]);
    let told = text(&output.stdout);
    assert!(
        output.status.code() == Some(78) && told.contains("jwt.secret can be written to by other users"),
        "{told}"
    );
    let output = convoke_in(folder.path(), &["token"], &[]);
    let told = text(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("jwt.secret can be written to"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");

    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let output = convoke_in(folder.path(), &["token"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let told = text(&output.stderr);
    assert!(told.contains("secret was readable by other users") && told.lines().count() == 1, "{told}");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn agents_whose_program_cannot_be_executed_are_problems() {
    let folder = tempfile::tempdir().unwrap();
    let agents = folder.path().join("agents");
    fs::create_dir(&agents).unwrap();
    let script = agents.join("job");
    fs::write(&script, "echo 1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(agents.join("a.toml"), "id = 'a'\n[run]\nkind = 'command'\nargv = ['./job']\n").unwrap();
    let hook =
        "id = 'b'\n[run]\nkind = 'command'\nargv = ['/bin/sh']\n[offer]\nby = 'command'\nargv = ['./job']\n";
    fs::write(agents.join("b.toml"), hook).unwrap();
    let output = convoke_in(folder.path(), &["check"], &[]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(78), "{told}");
    for line in ["agents/a.toml:4: run.argv: ", "agents/b.toml:7: offer.argv: "] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert_eq!(told.matches("has no #! line").count(), 2, "{told}");
}

#[test]
fn rust_agent_without_registered_code_is_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("agents")).unwrap();
    fs::write(folder.path().join("agents/c.toml"), "id = 'c'\n[run]\nkind = 'rust'\n").unwrap();
    let output = convoke_in(folder.path(), &["check"], &[]);
    let told = text(&output.stdout);
    let line = "agents/c.toml:3: run.kind: this program has no code that is registered as \"c\"";
    assert!(output.status.code() == Some(78) && told.starts_with(line), "{told}");
}

#[test]
fn rust_agent_without_code_is_listed_with_the_problems_of_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let agents = folder.path().join("agents");
    fs::create_dir(&agents).unwrap();
    for (file, text) in [
        ("broken.toml", "id = \n"),
        ("coded.toml", "id = 'coded'\n[run]\nkind = 'rust'\n"),
        ("coded_too.toml", "id = 'coded_too'\nslots = 'many'\n[run]\nkind = 'rust'\n"),
        ("same_id.toml", "id = 'coded'\n[run]\nkind = 'command'\nargv = ['/bin/true']\n"),
        ("unknown.toml", "id = 'd'\ncolour = 1\n[run]\nkind = 'remote'\n"),
    ] {
        fs::write(agents.join(file), text).unwrap();
    }
    fs::write(agents.join("bytes.toml"), [0xff, 0xfe]).unwrap();
    let output = convoke_in(folder.path(), &["check"], &[]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(78), "{told}");
    for line in [
        "agents/broken.toml:1: ",
        "agents/bytes.toml",
        "agents/coded.toml:3: run.kind: this program has no code that is registered as \"coded\"",
        "agents/coded_too.toml:2: slots: ",
        "agents/coded_too.toml:4: run.kind: this program has no code that is registered as \"coded_too\"",
        "agents/same_id.toml:1: id: ",
        "agents/unknown.toml:2: colour: ",
    ] {
        assert!(told.lines().any(|said| said.starts_with(line)), "{line}\n{told}");
    }
    assert_eq!(told.matches("has no code").count(), 2, "{told}");
}
