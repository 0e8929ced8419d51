//! Whether the agents' files or that of the settings have changed, without reading them.
use super::agents::is_agent_file;
use sha2::{Digest, Sha256};
use std::{os::unix::fs::MetadataExt, path::Path};

/// The files of a folder of agents and that of the settings, by path, inode, size and time of the last change. Another
/// value means that a file was written, came or went. It takes the same room for any number of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    agents: usize,
    /// The sum of a hash for each file: the order in which a folder lists them does not matter.
    sum: u128,
}

impl Fingerprint {
    /// Looks at each agent's file of `dir` and at the file of the settings. What cannot be looked at counts as absent.
    #[must_use]
    pub fn of(dir: &Path, settings: Option<&Path>) -> Self {
        let mut found = Self::default();
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let agents = entries.map(|entry| entry.path()).filter(|path| is_agent_file(path));
        found.agents = agents.filter(|path| found.add(path)).count();
        if let Some(settings) = settings {
            found.add(settings);
        }
        found
    }

    /// Whether the folder had a file of an agent.
    #[must_use]
    pub fn has_agents(&self) -> bool {
        self.agents > 0
    }

    /// Returns whether there is such a file.
    fn add(&mut self, path: &Path) -> bool {
        // Follows links: a mounted folder may exchange what they point to.
        let Ok(file) = std::fs::metadata(path) else { return false };
        let mut hash = Sha256::new();
        hash.update(path.as_os_str().as_encoded_bytes());
        for number in
            [file.ino(), file.len(), file.mtime().cast_unsigned(), file.mtime_nsec().cast_unsigned()]
        {
            hash.update(number.to_be_bytes());
        }
        let mut first = [0; 16];
        first.iter_mut().zip(hash.finalize()).for_each(|(to, byte)| *to = byte);
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(first));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn every_change_of_a_file_and_no_other_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (agents, settings) = (dir.path().join("agents"), dir.path().join("convoke.toml"));
        let look = || Fingerprint::of(&agents, Some(&settings));
        let mut seen = vec![look()];
        assert!(!seen[0].has_agents(), "no folder");
        let mut changed = |what: &str| {
            let now = look();
            assert_eq!(now, look(), "{what}: the same files");
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
            now
        };
        fs::create_dir(&agents).unwrap();
        fs::write(agents.join("a.toml"), "a").unwrap();
        assert!(changed("a file").has_agents());
        fs::write(agents.join("b.toml"), "b").unwrap();
        changed("another file");
        fs::write(agents.join("b.toml"), "bb").unwrap();
        changed("a longer file");
        fs::rename(agents.join("b.toml"), agents.join("c.toml")).unwrap();
        changed("another name");
        fs::write(&settings, "").unwrap();
        changed("the settings");
        fs::write(agents.join("notes.txt"), "x").unwrap();
        fs::write(agents.join(".hidden.toml"), "x").unwrap();
        assert_eq!(look(), *seen.last().unwrap(), "a file of another kind");
        fs::remove_file(agents.join("a.toml")).unwrap();
        fs::remove_file(agents.join("c.toml")).unwrap();
        assert!(!look().has_agents());
    }
}
