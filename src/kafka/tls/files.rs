//! Certificates and keys, out of files, directories and text.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pkcs8::EncryptedPrivateKeyInfo;
use pkcs8::der::SecretDocument;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::Roots;
use crate::error::Problem;
use crate::kafka::security::{Unusable, given, not_spoken};

/// A file of certificates or a key is not longer.
const LONGEST: u64 = 4 * 1024 * 1024;

/// Who we are, to a broker that asks.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// Where the key is from.
    pub(super) from: String,
}

/// What PEM text is read from, for problems: the property, and what it says
/// unless that is the text itself.
struct Origin<'a> {
    property: &'static str,
    shown: &'a str,
}

impl Origin<'_> {
    fn problem(&self, rule: impl Into<String>, remedy: &str) -> Problem {
        Problem::new(self.property, self.shown, rule, remedy)
    }
}

/// The text of a property, or of the file that another names.
fn pem<'a>(
    properties: &'a BTreeMap<String, String>,
    text: &'static str,
    location: &'static str,
) -> Result<Option<(Origin<'a>, Vec<u8>)>, Problem> {
    if let Some(pem) = given(properties, text) {
        let origin = Origin {
            property: text,
            shown: "(text)",
        };
        return Ok(Some((origin, pem.as_bytes().to_vec())));
    }
    let Some(path) = given(properties, location) else {
        return Ok(None);
    };
    let origin = Origin {
        property: location,
        shown: path,
    };
    let bytes = read(path.as_ref())
        .map_err(|error| origin.problem(error, "give a file in PEM form that can be read"))?;
    Ok(Some((origin, bytes)))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let length = fs::metadata(path)
        .map_err(|error| format!("it cannot be read: {error}"))?
        .len();
    if length > LONGEST {
        return Err("it is longer than any certificate or key".to_owned());
    }
    fs::read(path).map_err(|error| format!("it cannot be read: {error}"))
}

/// Whom to trust: what the properties name, else what the system trusts.
pub(super) fn authorities(
    properties: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Roots {
    match try_authorities(properties) {
        Ok(roots) => roots,
        Err(problem) => {
            problems.push(problem);
            RootCertStore::empty()
        }
    }
}

fn try_authorities(properties: &BTreeMap<String, String>) -> Result<Roots, Problem> {
    let location = given(properties, "ssl.ca.location");
    if let Some(directory) = location.filter(|path| Path::new(path).is_dir()) {
        return of_directory(directory);
    }
    // "probe" is librdkafka's word for the system's.
    let is_systems = location.is_none_or(|location| location == "probe");
    if is_systems && given(properties, "ssl.ca.pem").is_none() {
        return of_system();
    }
    let Some((origin, bytes)) = pem(properties, "ssl.ca.pem", "ssl.ca.location")? else {
        return of_system();
    };
    let remedy = "give the certificate of the authority in PEM form";
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate =
            certificate.map_err(|error| origin.problem(format!("no PEM: {error}"), remedy))?;
        roots
            .add(certificate)
            .map_err(|error| origin.problem(format!("no certificate: {error}"), remedy))?;
    }
    if roots.is_empty() {
        return Err(origin.problem("no certificate is in it", remedy));
    }
    Ok(roots)
}

/// Every certificate in every file of a directory; other files are none of our
/// business.
fn of_directory(directory: &str) -> Result<Roots, Problem> {
    let origin = Origin {
        property: "ssl.ca.location",
        shown: directory,
    };
    let remedy = "give a file, or a directory of files, in PEM form";
    let entries = fs::read_dir(directory)
        .map_err(|error| origin.problem(format!("it cannot be read: {error}"), remedy))?;
    let mut roots = RootCertStore::empty();
    for path in entries.flatten().map(|entry| entry.path()) {
        if let Some(bytes) = path.is_file().then(|| read(&path).ok()).flatten() {
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).flatten());
        }
    }
    if roots.is_empty() {
        return Err(origin.problem("no file in it has a certificate", remedy));
    }
    Ok(roots)
}

fn of_system() -> Result<Roots, Problem> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map(|error| format!(" ({error})"));
        return Err(Problem::new(
            "ssl.ca.location",
            "\"\"",
            format!(
                "the system trusts no authorities{}",
                reason.unwrap_or_default()
            ),
            "install them (ca-certificates), or give the authority that signed the brokers' \
             certificates",
        ));
    }
    Ok(roots)
}

/// Our own certificate and its key, where the properties name them.
pub(super) fn identity(
    properties: &BTreeMap<String, String>,
) -> Result<Option<Identity>, Unusable> {
    let wrong = |problem| Unusable::Wrong(vec![problem]);
    let chain = pem(
        properties,
        "ssl.certificate.pem",
        "ssl.certificate.location",
    );
    let key = pem(properties, "ssl.key.pem", "ssl.key.location");
    let (chain, key) = match (chain, key) {
        (Ok(chain), Ok(key)) => (chain, key),
        (Err(one), Err(other)) => return Err(Unusable::Wrong(vec![one, other])),
        (Err(problem), _) | (_, Err(problem)) => return Err(wrong(problem)),
    };
    match (chain, key) {
        (None, None) => Ok(None),
        (Some((origin, _)), None) => Err(wrong(origin.problem(
            "a certificate is of no use without its key",
            "set ssl.key.location too",
        ))),
        (None, Some((origin, _))) => Err(wrong(origin.problem(
            "a key is of no use without its certificate",
            "set ssl.certificate.location too",
        ))),
        (Some((chain_origin, chain)), Some((key_origin, key))) => {
            let chain = certificates(&chain_origin, &chain).map_err(wrong)?;
            let password = properties.get("ssl.key.password").map(String::as_str);
            let key = private_key(&key_origin, &key, password)?;
            Ok(Some(Identity {
                chain,
                key,
                from: key_origin.shown.to_owned(),
            }))
        }
    }
}

fn certificates(
    origin: &Origin<'_>,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let remedy = "give our certificate in PEM form, those that signed it after it";
    let chain = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| origin.problem(format!("no PEM: {error}"), remedy))?;
    if chain.is_empty() {
        return Err(origin.problem("no certificate is in it", remedy));
    }
    Ok(chain)
}

const ENCRYPTED: (&str, &str) = (
    "-----BEGIN ENCRYPTED PRIVATE KEY-----",
    "-----END ENCRYPTED PRIVATE KEY-----",
);

fn private_key(
    origin: &Origin<'_>,
    bytes: &[u8],
    password: Option<&str>,
) -> Result<PrivateKeyDer<'static>, Unusable> {
    let wrong = |rule: String, remedy| Unusable::Wrong(vec![origin.problem(rule, remedy)]);
    let text = String::from_utf8_lossy(bytes);
    // The form of before PKCS#8, which OpenSSL still reads.
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(not_spoken(origin.property, origin.shown));
    }
    let encrypted = text.find(ENCRYPTED.0).and_then(|begin| {
        let rest = text.get(begin..)?;
        let end = rest.find(ENCRYPTED.1)? + ENCRYPTED.1.len();
        rest.get(..end)
    });
    if let Some(encrypted) = encrypted {
        return decrypt(origin, encrypted, password);
    }
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| {
        let remedy = "give the key of our certificate in PEM form";
        match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                wrong("no private key is in it".to_owned(), remedy)
            }
            // Whatever it says of the content is not shown.
            _ => wrong("it is no PEM".to_owned(), remedy),
        }
    })
}

fn decrypt(
    origin: &Origin<'_>,
    pem: &str,
    password: Option<&str>,
) -> Result<PrivateKeyDer<'static>, Unusable> {
    let wrong = |rule: &str, remedy: &str| Unusable::Wrong(vec![origin.problem(rule, remedy)]);
    let Some(password) = password.filter(|password| !password.is_empty()) else {
        return Err(wrong("the key is encrypted", "set ssl.key.password"));
    };
    let (_, document) = SecretDocument::from_pem(pem)
        .map_err(|_| wrong("it is no PEM", "give the key in PEM form"))?;
    let encrypted = EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .map_err(|_| not_spoken(origin.property, origin.shown))?;
    match encrypted.decrypt(password) {
        Ok(key) => Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
            key.as_bytes().to_vec(),
        ))),
        // A password that is wrong decrypts to what is no key.
        Err(
            pkcs8::Error::EncryptedPrivateKey(
                pkcs8::pkcs5::Error::DecryptFailed | pkcs8::pkcs5::Error::EncryptFailed,
            )
            | pkcs8::Error::Asn1(_)
            | pkcs8::Error::KeyMalformed,
        ) => Err(wrong(
            "the password does not decrypt it",
            "set ssl.key.password to the key's password",
        )),
        // By a cipher that OpenSSL may know.
        Err(_) => Err(not_spoken(origin.property, origin.shown)),
    }
}
