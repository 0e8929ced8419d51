//! Amounts of dollars in decimal notation, as others write them, as whole numbers. Exact: no floating point.
use crate::json::COUNT_MAX;

/// An amount of dollars times ten to the power of `power`, rounded up; limited to [`COUNT_MAX`]. `None` for anything
/// else than a number in decimal notation, and for negative amounts.
pub(super) fn scaled(dollars: &str, power: i32) -> Option<u64> {
    let (mantissa, exponent) = match dollars.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (dollars, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    // 30 digits fit into 128 bits; no amount of money has more.
    let fits = (1..=30).contains(&(whole.len() + fraction.len()));
    if !fits || !is_plain(whole) || !is_plain(fraction) {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?.checked_add(power)?;
    let factor = 10_u128.checked_pow(shift.unsigned_abs());
    let amount = match (shift >= 0, factor) {
        _ if digits == 0 => 0,
        (true, factor) => factor.map_or(u128::MAX, |factor| digits.saturating_mul(factor)),
        (false, Some(factor)) => digits.div_ceil(factor),
        (false, None) => 1,
    };
    Some(u64::try_from(amount).unwrap_or(COUNT_MAX).min(COUNT_MAX))
}
