//! Text that people may see in place of a secret.

/// Stands for a value that is not shown.
pub const HIDDEN: &str = "set";

/// The URL without the login before `@`; any other text as it is.
#[must_use]
pub fn without_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_is_removed_and_the_rest_stays() {
        for (url, shown) in [
            ("https://user:s3cret@example.org/offer?x=1@2", "https://example.org/offer?x=1@2"),
            ("https://user:s3@cret@example.org:8443", "https://example.org:8443"),
            ("https://example.org?mail=a@b", "https://example.org?mail=a@b"),
            ("https://example.org/a@b", "https://example.org/a@b"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(without_login(url), shown);
        }
    }
}
