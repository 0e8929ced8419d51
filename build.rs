//! Lists what is embedded at compile time: a new file in these folders must rebuild the crate.
use std::{env, fmt::Write, fs, io, path::Path};

/// The built page of the dashboard.
const PAGE: &str = "web/dashboard/dist";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed={PAGE}");
    let root = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    let mut files = Vec::new();
    list(&Path::new(&root).join(PAGE), "", &mut files)?;
    files.sort();
    let mut text = String::from("&[\n");
    for (at, (name, path)) in files.iter().enumerate() {
        // A copy: the page may be built again while the crate compiles.
        let copy = Path::new(&out).join(format!("dashboard_{at}"));
        fs::copy(path, &copy)?;
        let _ = writeln!(text, "    ({name:?}, include_bytes!({:?})),", copy.display().to_string());
    }
    text.push(']');
    fs::write(Path::new(&out).join("dashboard_files.rs"), text)
}

/// Appends the files below `folder` with their names relative to it; none if the folder is missing.
fn list(folder: &Path, prefix: &str, files: &mut Vec<(String, String)>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push((name, entry.path().display().to_string()));
        }
    }
    Ok(())
}
