//! A broker with a listener of every kind, the certificates that it takes, and what its clients have to say.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

use super::kafka::Kafka;

/// The user of every mechanism, and a password that must never be seen.
pub(crate) const USER: &str = "keeper";
pub(crate) const PASSWORD: &str = "hunter2=not,shown";

/// What the broker listens with, beside PLAINTEXT.
const LISTENERS: [(&str, &str); 6] = [
    ("TLS", "SSL"),
    // It wants to see a certificate.
    ("MUTUAL", "SSL"),
    ("SASL", "SASL_PLAINTEXT"),
    ("BOTH", "SASL_SSL"),
    // Its certificate has expired.
    ("EXPIRED", "SSL"),
    // Its certificate is for other.example.
    ("OTHER", "SSL"),
];

/// A broker and the files that belong to it.
pub(crate) struct Secure {
    pub(crate) kafka: Kafka,
    files: Files,
}

/// Certificates and keys in PEM form.
struct Files {
    directory: TempDir,
}

impl Secure {
    /// The broker that the tests of this binary share; for tests that do it no harm.
    pub(crate) fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Secure>> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::launch(test, &[], true))
            .as_ref()
    }

    /// A broker of the test's own, with further settings.
    pub(crate) fn start(test: &str, settings: &[&str]) -> Option<Self> {
        Self::launch(test, settings, false)
    }

    fn launch(test: &str, settings: &[&str], shared: bool) -> Option<Self> {
        let files = Files::create();
        let mut all = files.settings();
        all.extend(settings.iter().map(|&setting| setting.to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let kafka = Kafka::listening(test, &LISTENERS, &all, shared)?;
        let secure = Self { kafka, files };
        secure.set_password(PASSWORD);
        Some(secure)
    }

    /// Gives the SCRAM user a password; PLAIN has the first one for ever.
    pub(crate) fn set_password(&self, password: &str) {
        // One after the other: a user's credentials are not altered twice in one request.
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            // The tool takes brackets around values with commas.
            let credential = format!("{mechanism}=[password={password}]");
            let arguments = ["--alter", "--add-config", &credential];
            let user = ["--entity-type", "users", "--entity-name", USER];
            let output = self.kafka.tool(
                "kafka.admin.ConfigCommand",
                &[&arguments[..], &user].concat(),
                Duration::from_mins(2),
            );
            assert_eq!(output.code, Some(0), "{output:?}");
        }
    }

    /// `127.0.0.1:PORT` of a listener.
    pub(crate) fn listener(&self, name: &str) -> String {
        self.kafka.listener(name)
    }

    /// A file of certificates or a key.
    pub(crate) fn file(&self, name: &str) -> String {
        self.files.path(name).display().to_string()
    }

    /// The properties of a client that trusts the broker's certificates.
    pub(crate) fn tls(&self) -> Vec<String> {
        vec![
            "security.protocol=ssl".to_owned(),
            format!("ssl.ca.location={}", self.file("authority.pem")),
        ]
    }

    /// As [`Secure::tls`], with a certificate of its own.
    pub(crate) fn mutual(&self) -> Vec<String> {
        let mut properties = self.tls();
        properties.extend([
            format!("ssl.certificate.location={}", self.file("client.pem")),
            format!("ssl.key.location={}", self.file("client.key")),
        ]);
        properties
    }

    /// The properties of a client that authenticates by `mechanism`.
    pub(crate) fn sasl(&self, protocol: &str, mechanism: &str, password: &str) -> Vec<String> {
        let mut properties = self.tls();
        properties[0] = format!("security.protocol={protocol}");
        properties.extend([
            format!("sasl.mechanism={mechanism}"),
            format!("sasl.username={USER}"),
            format!("sasl.password={password}"),
        ]);
        properties
    }
}

impl Files {
    fn create() -> Self {
        let files = Self {
            directory: tempfile::tempdir().expect("there is room"),
        };
        let (authority, issuer) = new_authority("keepup's tests");
        files.write("authority.pem", &authority);
        let (stranger, _) = new_authority("nobody");
        files.write("stranger.pem", &stranger);
        let names = ["127.0.0.1", "localhost"];
        files.identity("broker", &issuer, &names, 2100);
        files.identity("expired", &issuer, &names, 2021);
        files.identity("other", &issuer, &["other.example"], 2100);
        files.identity("client", &issuer, &[USER], 2100);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("there is room");
    }

    /// NAME.pem, NAME.key, and NAME.both with the two of them, as a broker wants it.
    fn identity(&self, name: &str, issuer: &Issuer<'_, KeyPair>, names: &[&str], until: i32) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, issuer).expect("a certificate").pem();
        let key = key.serialize_pem();
        self.write(&format!("{name}.pem"), &certificate);
        self.write(&format!("{name}.key"), &key);
        self.write(&format!("{name}.both"), &format!("{key}{certificate}"));
    }

    /// What the broker is told about its listeners.
    fn settings(&self) -> Vec<String> {
        let mut settings = Vec::new();
        for (listener, _) in LISTENERS {
            let certificate = match listener {
                "EXPIRED" => "expired.both",
                "OTHER" => "other.both",
                _ => "broker.both",
            };
            let mut set = |key: &str, value: &str| {
                let listener = listener.to_lowercase();
                settings.push(format!("listener.name.{listener}.{key}={value}"));
            };
            set("ssl.keystore.type", "PEM");
            set("ssl.keystore.location", &text(&self.path(certificate)));
            if listener == "MUTUAL" {
                set("ssl.client.auth", "required");
                set("ssl.truststore.type", "PEM");
                set(
                    "ssl.truststore.location",
                    &text(&self.path("authority.pem")),
                );
            }
            let module = "org.apache.kafka.common.security";
            set(
                "sasl.enabled.mechanisms",
                "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            );
            set(
                "plain.sasl.jaas.config",
                &format!("{module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"),
            );
            for hash in ["256", "512"] {
                set(
                    &format!("scram-sha-{hash}.sasl.jaas.config"),
                    &format!("{module}.scram.ScramLoginModule required;"),
                );
            }
        }
        settings
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn new_authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names are valid");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), Issuer::new(params, key))
}
