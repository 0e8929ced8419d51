//! The `tls-server-end-point` hash of a certificate (RFC 5929 §4.1).
//!
//! Which hash is said by the certificate's signature algorithm, so a few
//! levels of its DER are walked. What cannot be understood has no hash, and
//! the log-in then goes without channel binding.
use sha2::{Digest, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const CONTEXT_0: u8 = 0xA0;

/// The hash that binds a log-in to this certificate.
pub(super) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let (content, _) = element(SEQUENCE, certificate)?;
    let (_, rest) = element(SEQUENCE, content)?;
    let (algorithm, _) = element(SEQUENCE, rest)?;
    let (oid, parameters) = element(OBJECT_IDENTIFIER, algorithm)?;
    // RSASSA-PSS names its hash in its parameters.
    let oid = if oid == RSASSA_PSS { pss_hash(parameters)? } else { oid };
    match oid {
        MD5_RSA | SHA1_RSA | SHA1_ECDSA | SHA256_RSA | SHA256_ECDSA | SHA1 | SHA256 => {
            Some(Sha256::digest(certificate).to_vec())
        }
        SHA384_RSA | SHA384_ECDSA | SHA384 => Some(Sha384::digest(certificate).to_vec()),
        SHA512_RSA | SHA512_ECDSA | SHA512 => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

fn pss_hash(parameters: &[u8]) -> Option<&[u8]> {
    let (parameters, _) = element(SEQUENCE, parameters)?;
    // Left out, it is SHA-1.
    let Some((hash, _)) = element(CONTEXT_0, parameters) else { return Some(SHA1) };
    let (hash, _) = element(SEQUENCE, hash)?;
    Some(element(OBJECT_IDENTIFIER, hash)?.0)
}

/// The content of the DER element `tag` at the front, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    if found == tag { rest.split_at_checked(length) } else { None }
}

const MD5_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 4];
const SHA1_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 5];
const RSASSA_PSS: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 10];
const SHA256_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 11];
const SHA384_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 12];
const SHA512_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 13];
const SHA1_ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 1];
const SHA256_ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2];
const SHA384_ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 3];
const SHA512_ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 4];
const SHA1: &[u8] = &[0x2B, 0x0E, 3, 2, 0x1A];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag, 0x82];
        out.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        out.extend_from_slice(content);
        out
    }

    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let body = [der(SEQUENCE, &[7; 300]), der(SEQUENCE, algorithm), vec![3, 1, 0]].concat();
        der(SEQUENCE, &body)
    }

    #[test]
    fn the_signature_algorithm_chooses_the_hash() {
        let pss = |hash: &[u8]| {
            let hash = der(CONTEXT_0, &der(SEQUENCE, &der(OBJECT_IDENTIFIER, hash)));
            [der(OBJECT_IDENTIFIER, RSASSA_PSS), der(SEQUENCE, &hash)].concat()
        };
        let ed25519 = der(OBJECT_IDENTIFIER, &[0x2B, 0x65, 0x70]);
        let cases = [
            (der(OBJECT_IDENTIFIER, SHA1_RSA), Some(32)),
            (der(OBJECT_IDENTIFIER, SHA256_ECDSA), Some(32)),
            (der(OBJECT_IDENTIFIER, SHA384_ECDSA), Some(48)),
            (der(OBJECT_IDENTIFIER, SHA512_RSA), Some(64)),
            (pss(SHA384), Some(48)),
            (ed25519, None),
        ];
        for (algorithm, expected) in cases {
            let hash = end_point_hash(&certificate(&algorithm));
            assert_eq!(hash.map(|hash| hash.len()), expected, "{algorithm:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_hash() {
        let good = certificate(&der(OBJECT_IDENTIFIER, SHA256_RSA));
        for cut in 0..good.len() - 3 {
            assert_eq!(end_point_hash(&good[..cut]), None, "cut to {cut}");
        }
    }
}
