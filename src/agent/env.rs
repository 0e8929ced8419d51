//! Environment variables as an argument, so that a test can have its own.
use std::{collections::HashMap, fmt, sync::Arc};

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The environment in which the variables of definitions are looked up. Clones share it.
#[derive(Clone)]
pub struct Env(Arc<Lookup>);

impl Default for Env {
    fn default() -> Self {
        Self::process()
    }
}

impl Env {
    /// The environment of this process; a value that is not Unicode counts as absent.
    #[must_use]
    pub fn process() -> Self {
        Self(Arc::new(|name| std::env::var(name).ok()))
    }

    /// Exactly these variables.
    #[must_use]
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Self {
        let map: HashMap<_, _> =
            variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self(Arc::new(move |name| map.get(name).cloned()))
    }

    /// The value of a variable; an empty one counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}
