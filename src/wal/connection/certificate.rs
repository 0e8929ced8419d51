//! The `tls-server-end-point` hash of a certificate (RFC 5929 §4.1), for SCRAM channel binding.
//!
//! The certificate's signature algorithm selects the hash. A certificate that cannot be parsed, or whose
//! algorithm has no hash of its own (Ed25519), has none; the login then goes without channel binding.
use pkcs1::RsaPssParams;
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::{
    Certificate,
    der::{Decode, asn1::ObjectIdentifier, oid::db::rfc5912::*},
    spki::AlgorithmIdentifierOwned,
};

const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");

/// MD5 and SHA-1 are replaced by SHA-256, as the RFC asks.
const SHA256_ALGORITHMS: [ObjectIdentifier; 7] = [
    MD_5_WITH_RSA_ENCRYPTION,
    SHA_1_WITH_RSA_ENCRYPTION,
    ECDSA_WITH_SHA_1,
    SHA_256_WITH_RSA_ENCRYPTION,
    ECDSA_WITH_SHA_256,
    ID_SHA_1,
    ID_SHA_256,
];
const SHA384_ALGORITHMS: [ObjectIdentifier; 3] =
    [SHA_384_WITH_RSA_ENCRYPTION, ECDSA_WITH_SHA_384, ID_SHA_384];
const SHA512_ALGORITHMS: [ObjectIdentifier; 3] =
    [SHA_512_WITH_RSA_ENCRYPTION, ECDSA_WITH_SHA_512, ID_SHA_512];

/// Returns the hash that binds a login to this DER certificate. `None` if there is none.
pub(super) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let hash = hash_algorithm(&parsed.signature_algorithm)?;
    if SHA256_ALGORITHMS.contains(&hash) {
        Some(Sha256::digest(certificate).to_vec())
    } else if SHA384_ALGORITHMS.contains(&hash) {
        Some(Sha384::digest(certificate).to_vec())
    } else if SHA512_ALGORITHMS.contains(&hash) {
        Some(Sha512::digest(certificate).to_vec())
    } else {
        None
    }
}

/// RSASSA-PSS names its hash in its parameters; the name of every other algorithm contains it.
fn hash_algorithm(algorithm: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    if algorithm.oid != ID_RSASSA_PSS {
        return Some(algorithm.oid);
    }
    let parameters: RsaPssParams<'_> = algorithm.parameters.as_ref()?.decode_as().ok()?;
    Some(parameters.hash.oid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use x509_cert::{
        TbsCertificate, Version,
        der::{Any, Encode, asn1::BitString, oid::db::rfc8410::ID_ED_25519},
        name::Name,
        serial_number::SerialNumber,
        spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoOwned},
        time::Validity,
    };

    fn certificate(algorithm: &AlgorithmIdentifierOwned) -> Vec<u8> {
        let bits = || BitString::from_bytes(&[7; 300]).unwrap();
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::from(7u32),
            signature: algorithm.clone(),
            issuer: Name::default(),
            validity: Validity::from_now(Duration::from_secs(60)).unwrap(),
            subject: Name::default(),
            subject_public_key_info: SubjectPublicKeyInfoOwned {
                algorithm: plain(RSA_ENCRYPTION),
                subject_public_key: bits(),
            },
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: None,
        };
        let signature_algorithm = algorithm.clone();
        Certificate { tbs_certificate, signature_algorithm, signature: bits() }.to_der().unwrap()
    }

    fn plain(oid: ObjectIdentifier) -> AlgorithmIdentifierOwned {
        AlgorithmIdentifierOwned { oid, parameters: None }
    }

    fn pss(hash: ObjectIdentifier) -> AlgorithmIdentifierOwned {
        let mut parameters = RsaPssParams::default();
        parameters.hash = AlgorithmIdentifierRef { oid: hash, parameters: None };
        AlgorithmIdentifierOwned {
            oid: ID_RSASSA_PSS,
            parameters: Some(Any::encode_from(&parameters).unwrap()),
        }
    }

    #[test]
    fn signature_algorithm_selects_the_hash() {
        let cases = [
            (plain(SHA_1_WITH_RSA_ENCRYPTION), Some(32)),
            (plain(ECDSA_WITH_SHA_256), Some(32)),
            (plain(ECDSA_WITH_SHA_384), Some(48)),
            (plain(SHA_512_WITH_RSA_ENCRYPTION), Some(64)),
            (pss(ID_SHA_384), Some(48)),
            (pss(ID_SHA_1), Some(32)),
            (plain(ID_RSASSA_PSS), None),
            (plain(ID_ED_25519), None),
        ];
        for (algorithm, expected) in cases {
            let hash = end_point_hash(&certificate(&algorithm));
            assert_eq!(hash.map(|hash| hash.len()), expected, "{algorithm:?}");
        }
    }

    #[test]
    fn truncated_certificate_has_no_hash() {
        let good = certificate(&plain(SHA_256_WITH_RSA_ENCRYPTION));
        for cut in 0..good.len() {
            assert_eq!(end_point_hash(&good[..cut]), None, "cut to {cut}");
        }
        assert_eq!(end_point_hash(&good).map(|hash| hash.len()), Some(32));
    }
}
