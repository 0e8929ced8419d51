//! Fair shares: a large backlog of one org delays no other org. Pure.
use crate::id::OrgId;
use std::collections::BTreeMap;

/// How many tasks of a class could be awarded now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::task) struct Want {
    pub(in crate::task) class: i64,
    /// `None` for an org whose name cannot be read: its tasks end as soon as a poll reads them.
    pub(in crate::task) org: Option<OrgId>,
    pub(in crate::task) most: u32,
}

/// Shares `total` equally among the orgs, and within an org among its classes; a share that one does not need goes to
/// the others. When there is less than one for each, `turn` rotates who is served first, so that all are served in
/// time. Classes without a share are left out.
pub(in crate::task) fn share(wants: Vec<Want>, total: u32, turn: usize) -> Vec<(i64, u32)> {
    let mut orgs: BTreeMap<Option<OrgId>, Vec<(i64, u32)>> = BTreeMap::new();
    for Want { class, org, most } in wants.into_iter().filter(|want| want.most > 0) {
        orgs.entry(org).or_default().push((class, most));
    }
    let orgs: Vec<Vec<(i64, u32)>> = orgs.into_values().collect();
    let sums =
        orgs.iter().map(|classes| classes.iter().fold(0, |sum: u32, (_, most)| sum.saturating_add(*most)));
    let shares = level(&sums.collect::<Vec<_>>(), total, turn);
    let each = orgs.into_iter().zip(shares).flat_map(|(mut classes, share)| {
        classes.sort_unstable();
        let wants: Vec<u32> = classes.iter().map(|(_, most)| *most).collect();
        let shares = level(&wants, share, turn);
        classes.into_iter().zip(shares).map(|((class, _), share)| (class, share)).collect::<Vec<_>>()
    });
    each.filter(|(_, share)| *share > 0).collect()
}

/// Equal shares of `total`, none larger than wanted.
fn level(wants: &[u32], total: u32, turn: usize) -> Vec<u32> {
    let count = wants.len();
    let mut shares = vec![0; count];
    // The smallest wants first, so that what they leave is shared by the rest; equal wants rotate with `turn`.
    let mut order: Vec<usize> = (0..count).collect();
    order
        .sort_by_key(|at| (wants.get(*at).copied().unwrap_or(0), (at + count - turn % count.max(1)) % count));
    let enough = u32::try_from(count).is_ok_and(|count| total >= count);
    if !enough {
        order.sort_by_key(|at| (at + count - turn % count.max(1)) % count);
    }
    let mut left = total;
    for (place, at) in order.into_iter().enumerate() {
        let others = u32::try_from(count - place).unwrap_or(u32::MAX);
        let fair = if enough { left / others } else { left.min(1) };
        let want = wants.get(at).copied().unwrap_or(0);
        let given = want.min(fair);
        if let Some(share) = shares.get_mut(at) {
            *share = given;
        }
        left -= given;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn want(class: i64, org: &str, most: u32) -> Want {
        Want { class, org: Some(org.try_into().unwrap()), most }
    }

    #[test]
    fn large_backlog_of_one_org_leaves_the_others_their_share() {
        let flood = (0..500).map(|class| want(class, "loud", 200));
        let wants: Vec<Want> = flood.chain([want(1000, "quiet", 3), want(1001, "calm", 80)]).collect();
        let shares = share(wants, 200, 0);
        let of = |class: i64| shares.iter().find(|(found, _)| *found == class).map_or(0, |(_, share)| *share);
        assert_eq!((of(1000), of(1001)), (3, 80));
        assert_eq!(shares.iter().map(|(_, share)| share).sum::<u32>(), 200);
    }

    #[test]
    fn more_orgs_than_places_rotate() {
        let wants: Vec<Want> = (0..10).map(|at| want(at, &format!("org{at}"), 5)).collect();
        let mut served: Vec<i64> = Vec::new();
        for turn in [0, 4, 8] {
            let shares = share(wants.clone(), 4, turn);
            assert_eq!(shares.len(), 4);
            served.extend(shares.iter().map(|(class, _)| *class));
        }
        served.sort_unstable();
        served.dedup();
        assert_eq!(served.len(), 10);
    }

    proptest! {
        #[test]
        fn shares_never_exceed_wants_and_use_the_total(
            wants in prop::collection::vec((0..6_u8, 0..50_u32), 0..30), total in 0..300_u32, turn in 0..50_usize,
        ) {
            let wants: Vec<Want> = wants.into_iter().enumerate()
                .map(|(at, (org, most))| want(i64::try_from(at).unwrap(), &org.to_string(), most)).collect();
            let shares = share(wants.clone(), total, turn);
            for (class, share) in &shares {
                let asked = wants.iter().find(|want| want.class == *class).unwrap();
                prop_assert!(*share <= asked.most);
            }
            let given: u32 = shares.iter().map(|(_, share)| *share).sum();
            let wanted: u32 = wants.iter().map(|want| want.most).sum();
            prop_assert!(given <= total.min(wanted));
            if total >= 100 {
                prop_assert_eq!(given, total.min(wanted));
            }
        }
    }
}
