//! The classes of tasks that this node has seen made. The database computes a class, from the org and the
//! requirements of its task; a known one need not be computed again, nor waited for.
use crate::id::OrgId;
use parking_lot::Mutex;
use std::collections::HashMap;

/// Capacity of the cache. A full cache evicts all entries.
const CLASSES_MAX: usize = 1000;
/// Most requirements of a class that is kept, so that the memory is limited.
const REQUIRES_MAX: usize = 16;

/// Cache of classes by org and requirements.
#[derive(Debug, Default)]
pub(in crate::task) struct Classes(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    of_orgs: HashMap<OrgId, HashMap<Vec<String>, i64>>,
    count: usize,
}

impl Classes {
    /// The class of a task with these requirements, if one was made before.
    pub(in crate::task) fn known(&self, org: &OrgId, requires: &[String]) -> Option<i64> {
        self.0.lock().of_orgs.get(org)?.get(requires).copied()
    }

    /// Keeps the class of a task that was made.
    pub(in crate::task) fn learn(&self, org: &OrgId, requires: &[String], class: i64) {
        if requires.len() > REQUIRES_MAX || self.known(org, requires).is_some() {
            return;
        }
        let mut known = self.0.lock();
        if known.count >= CLASSES_MAX {
            *known = Known::default();
        }
        let before = known.of_orgs.entry(org.clone()).or_default().insert(requires.to_vec(), class);
        known.count += usize::from(before.is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_it_learned_of_each_org_and_is_bounded() {
        let classes = Classes::default();
        let (one, other): (OrgId, OrgId) = ("one".parse().unwrap(), "other".parse().unwrap());
        let needs = |at: usize| vec![format!("need{at}")];
        assert_eq!(classes.known(&one, &[]), None);
        classes.learn(&one, &[], 1);
        classes.learn(&other, &[], 2);
        classes.learn(&one, &needs(0), 3);
        assert_eq!(classes.known(&one, &[]), Some(1));
        assert_eq!(classes.known(&other, &[]), Some(2));
        assert_eq!(classes.known(&one, &needs(0)), Some(3));
        assert_eq!(classes.known(&other, &needs(0)), None);
        (0..CLASSES_MAX).for_each(|at| classes.learn(&one, &needs(at), 4));
        assert!(classes.0.lock().count <= CLASSES_MAX);
        assert_eq!(classes.known(&one, &needs(CLASSES_MAX - 1)), Some(4));
        assert_eq!(classes.known(&other, &[]), None);
        classes.learn(&one, &vec![String::new(); REQUIRES_MAX + 1], 5);
        assert_eq!(classes.known(&one, &vec![String::new(); REQUIRES_MAX + 1]), None);
    }
}
