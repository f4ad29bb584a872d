use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::clock::Clock;
use crate::kafka::ConnectionSettings;
use crate::kafka::connection::{Connection, ConnectionError, StopFlag, parse_address};
use crate::kafka::messages::MetadataRequest;
use crate::kafka::security::{NotSpoken, Security};

/// An authority, and what it signed.
struct Office {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Office {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for `name` and its key, both in PEM form.
    fn sign(&self, name: &str, until: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        (certificate, key.serialize_pem())
    }
}

fn roots(pem: &str) -> RootCertStore {
    use rustls::pki_types::pem::PemObject;

    let mut roots = RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    roots
}

/// A server that takes one connection and does with it as told.
fn server(
    (certificate, key): &(String, String),
    clients: Option<&str>,
    act: impl FnOnce(&mut StreamOwned<ServerConnection, TcpStream>) + Send + 'static,
) -> (String, thread::JoinHandle<()>) {
    use rustls::pki_types::pem::PemObject;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)), provider)
                .build()
                .unwrap(),
        ),
    };
    let chain = rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = Arc::new(builder.with_single_cert(vec![chain], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = thread::Builder::new()
        .name("test-tls-server".to_owned())
        .spawn(move || {
            let socket = listener.accept().unwrap().0;
            let connection = ServerConnection::new(config).unwrap();
            act(&mut StreamOwned::new(connection, socket));
        })
        .unwrap();
    (address, thread)
}

fn properties(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::from([("security.protocol".to_owned(), "ssl".to_owned())]);
    for (name, value) in more {
        properties.insert((*name).to_owned(), (*value).to_owned());
    }
    properties
}

fn settings(more: &[(&str, &str)]) -> ConnectionSettings {
    ConnectionSettings {
        request_timeout: Duration::from_secs(20),
        security: Security::of(&properties(more)).unwrap(),
        ..ConnectionSettings::new(Vec::new())
    }
}

fn open(address: &str, more: &[(&str, &str)]) -> Result<Connection, ConnectionError> {
    Connection::open(
        &parse_address(address)?,
        &settings(more),
        &Clock::System,
        &StopFlag::default(),
    )
}

fn refused(address: &str, more: &[(&str, &str)]) -> TlsFault {
    match open(address, more) {
        Err(ConnectionError::Tls { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

/// Reads a request, and gives its correlation id.
fn request(stream: &mut impl Read) -> [u8; 4] {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame[4..8].try_into().unwrap()
}

fn say(stream: &mut impl Write, frame: &[u8], step: usize) {
    let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(frame);
    for piece in bytes.chunks(step) {
        stream.write_all(piece).unwrap();
        stream.flush().unwrap();
    }
}

/// ApiVersions 3: Metadata 1 and nothing else.
fn speaks_metadata(stream: &mut (impl Read + Write), step: usize) {
    let mut frame = request(stream).to_vec();
    frame.extend([0, 0, 2, 0, 3, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    say(stream, &frame, step);
}

/// Metadata 1 of so many brokers, each with a host of 200 bytes.
fn answer_metadata(stream: &mut (impl Read + Write), brokers: u32, step: usize) {
    let mut frame = request(stream).to_vec();
    frame.extend(brokers.to_be_bytes());
    for id in 0..brokers {
        frame.extend(id.to_be_bytes());
        frame.extend([0, 200]);
        frame.extend([b'h'; 200]);
        frame.extend([0, 0, 0x23, 0x84, 0xff, 0xff]);
    }
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    say(stream, &frame, step);
}

fn ask(connection: &mut Connection) -> usize {
    let deadline = Clock::System.now() + Duration::from_secs(20);
    let answer = connection.ask(&MetadataRequest { topics: Vec::new() }, deadline);
    answer.unwrap().brokers.len()
}

#[test]
fn answers_of_any_length_and_in_any_pieces_come_through() {
    let office = Office::new();
    let identity = office.sign("127.0.0.1", 2100);
    for step in [1, 7, 1_000_000] {
        let (address, thread) = server(&identity, None, move |stream| {
            speaks_metadata(stream, step);
            answer_metadata(stream, 3, step);
            // More than fits into a read, in records of all sizes.
            answer_metadata(stream, 5_000, step.max(3_000));
            answer_metadata(stream, 0, step);
        });
        let ca = [("ssl.ca.pem", &*office.certificate)];
        let mut connection = open(&address, &ca).unwrap();
        assert_eq!(ask(&mut connection), 3, "in pieces of {step}");
        assert_eq!(ask(&mut connection), 5_000, "in pieces of {step}");
        assert_eq!(ask(&mut connection), 0, "in pieces of {step}");
        thread.join().unwrap();
    }
}

#[test]
fn a_broker_that_is_not_what_it_says_is_refused_with_the_reason() {
    let office = Office::new();
    let ca = [("ssl.ca.pem", &*office.certificate)];
    let try_it = |identity: (String, String), more: &[(&str, &str)]| {
        let (address, thread) = server(&identity, None, |stream| {
            let _ = stream.read(&mut [0; 64]);
        });
        let fault = refused(&address, more);
        thread.join().unwrap();
        assert!(fault.is_refusal(), "{fault}");
        fault
    };
    let fault = try_it(office.sign("127.0.0.1", 2021), &ca);
    assert!(matches!(fault, TlsFault::Expired(_)), "{fault}");
    let TlsFault::WrongName {
        expected,
        presented,
    } = try_it(office.sign("other.example", 2100), &ca)
    else {
        panic!("another name is taken");
    };
    assert_eq!(expected, "127.0.0.1");
    assert!(presented.contains("other.example"), "{presented}");
    let stranger = Office::new().sign("127.0.0.1", 2100);
    assert_eq!(try_it(stranger, &ca), TlsFault::UnknownAuthority);
    // Without a look at the name the rest is looked at all the same.
    let nameless = [ca[0], ("ssl.endpoint.identification.algorithm", "none")];
    let fault = try_it(office.sign("other.example", 2021), &nameless);
    assert!(matches!(fault, TlsFault::Expired(_)), "{fault}");
    let stranger = Office::new().sign("other.example", 2100);
    assert_eq!(try_it(stranger, &nameless), TlsFault::UnknownAuthority);
}

#[test]
fn what_is_not_to_be_verified_is_not() {
    let office = Office::new();
    let ca = ("ssl.ca.pem", &*office.certificate);
    for (identity, more) in [
        (
            office.sign("other.example", 2100),
            [ca, ("ssl.endpoint.identification.algorithm", "none")],
        ),
        (
            Office::new().sign("other.example", 2021),
            [ca, ("enable.ssl.certificate.verification", "false")],
        ),
    ] {
        let (address, thread) = server(&identity, None, |stream| {
            speaks_metadata(stream, 100);
            answer_metadata(stream, 1, 100);
        });
        assert_eq!(ask(&mut open(&address, &more).unwrap()), 1);
        thread.join().unwrap();
    }
}

#[test]
fn a_broker_that_wants_our_certificate_gets_it_or_says_why_not() {
    let office = Office::new();
    let identity = office.sign("127.0.0.1", 2100);
    let (certificate, key) = office.sign("me", 2100);
    let ca = ("ssl.ca.pem", &*office.certificate);
    let mine = [
        ca,
        ("ssl.certificate.pem", &*certificate),
        ("ssl.key.pem", &*key),
    ];
    let (address, thread) = server(&identity, Some(&office.certificate), |stream| {
        speaks_metadata(stream, 100);
        answer_metadata(stream, 1, 100);
    });
    assert_eq!(ask(&mut open(&address, &mine).unwrap()), 1);
    thread.join().unwrap();

    let (address, thread) = server(&identity, Some(&office.certificate), |stream| {
        assert!(stream.read(&mut [0; 64]).is_err());
    });
    let fault = refused(&address, &[ca]);
    assert!(
        matches!(&fault, TlsFault::Alert { remedy, .. } if remedy.contains("ssl.key.location")),
        "{fault}"
    );
    thread.join().unwrap();
}

#[test]
fn a_peer_without_tls_is_told_from_one_that_hangs_up() {
    let office = Office::new();
    let ca = [("ssl.ca.pem", &*office.certificate)];
    for (said, fault, is_refusal) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            TlsFault::NotTls,
            true,
        ),
        (b"", TlsFault::Closed, false),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = thread::Builder::new()
            .name("test-peer".to_owned())
            .spawn(move || {
                let mut socket = listener.accept().unwrap().0;
                // All of the first message: a reset could overtake the bytes.
                let mut header = [0; 5];
                socket.read_exact(&mut header).unwrap();
                let length = u16::from_be_bytes([header[3], header[4]]);
                socket
                    .read_exact(&mut vec![0; usize::from(length)])
                    .unwrap();
                socket.write_all(said).unwrap();
                socket.shutdown(std::net::Shutdown::Write).unwrap();
                let _ = std::io::copy(&mut socket, &mut std::io::sink());
            })
            .unwrap();
        assert_eq!(refused(&address, &ca), fault);
        assert_eq!(fault.is_refusal(), is_refusal);
        thread.join().unwrap();
    }
}

#[test]
fn a_handshake_that_stops_in_the_middle_costs_the_request_timeout() {
    let office = Office::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let settings = ConnectionSettings {
        request_timeout: Duration::from_millis(300),
        ..settings(&[("ssl.ca.pem", &*office.certificate)])
    };
    let begin = Clock::System.now();
    let error = Connection::open(
        &parse_address(&address).unwrap(),
        &settings,
        &Clock::System,
        &StopFlag::default(),
    )
    .unwrap_err();
    assert!(
        matches!(error, ConnectionError::TimedOut { what, .. } if what.contains("handshake")),
        "{error}"
    );
    assert!(Clock::System.now() - begin < Duration::from_secs(5));
    drop(listener);
}

fn of(more: &[(&str, &str)]) -> Result<Security, Unusable> {
    Security::of(&properties(more))
}

fn wrong(more: &[(&str, &str)]) -> Vec<Problem> {
    match of(more) {
        Err(Unusable::Wrong(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

/// The only problem's setting and rule.
fn problem(more: &[(&str, &str)]) -> (String, String) {
    match &wrong(more)[..] {
        [problem] => (problem.setting.clone(), problem.rule.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn certificates_and_keys_are_found_as_files_directories_and_text() {
    let office = Office::new();
    let (certificate, key) = office.sign("me", 2100);
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = write("ca.pem", &office.certificate);
    write("README", "nothing of ours");
    let certificate_path = write("me.pem", &certificate);
    let key_path = write("me.key", &key);
    let directory = directory.path().display().to_string();
    for authority in [
        ("ssl.ca.location", &*ca),
        ("ssl.ca.location", &directory),
        ("ssl.ca.pem", &office.certificate),
    ] {
        for identity in [
            [
                ("ssl.certificate.location", &*certificate_path),
                ("ssl.key.location", &key_path),
            ],
            [("ssl.certificate.pem", &certificate), ("ssl.key.pem", &key)],
        ] {
            let [one, two] = identity;
            assert!(of(&[authority, one, two]).is_ok(), "{authority:?}");
        }
    }
}

#[test]
fn what_is_wrong_with_files_is_told_all_at_once_and_keys_are_not_shown() {
    let office = Office::new();
    let ca = ("ssl.ca.pem", &*office.certificate);
    let (certificate, key) = office.sign("me", 2100);
    let (_, other_key) = office.sign("me", 2100);
    let certificate = ("ssl.certificate.pem", &*certificate);
    let key = ("ssl.key.pem", &*key);

    let missing = [
        ("ssl.ca.location", "/nowhere/ca.pem"),
        ("ssl.certificate.location", "/nowhere/me.pem"),
        ("ssl.key.location", "/nowhere/me.key"),
    ];
    let settings: Vec<String> = wrong(&missing)
        .into_iter()
        .map(|problem| problem.setting)
        .collect();
    assert_eq!(
        settings,
        [
            "ssl.ca.location",
            "ssl.certificate.location",
            "ssl.key.location"
        ]
    );
    let (setting, rule) = problem(&[ca, certificate]);
    assert!(setting == "ssl.certificate.pem" && rule.contains("without its key"));
    let (setting, rule) = problem(&[ca, key]);
    assert!(setting == "ssl.key.pem" && rule.contains("without its certificate"));
    let (setting, _) = problem(&[("ssl.ca.pem", "hunter2")]);
    assert_eq!(setting, "ssl.ca.pem");
    for bad in ["hunter2", "-----BEGIN PRIVATE KEY-----\nhunter2\n"] {
        let problems = wrong(&[ca, certificate, ("ssl.key.pem", bad)]);
        assert_eq!(problems[0].setting, "ssl.key.pem");
        assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
    }
    let problems = wrong(&[ca, certificate, ("ssl.key.pem", &other_key)]);
    assert!(
        problems[0].rule.contains("does not go with"),
        "{problems:?}"
    );
}

#[test]
fn an_encrypted_key_needs_its_password_and_the_form_of_old_is_librdkafkas() {
    let office = Office::new();
    let ca = ("ssl.ca.pem", &*office.certificate);
    let (certificate, key) = office.sign("me", 2100);
    let certificate = ("ssl.certificate.pem", &*certificate);
    let encrypted = encrypted(&key, "hunter2");
    let key = ("ssl.key.pem", &*encrypted);
    assert!(of(&[ca, certificate, key, ("ssl.key.password", "hunter2")]).is_ok());
    let (_, rule) = problem(&[ca, certificate, key]);
    assert_eq!(rule, "the key is encrypted");
    let problems = wrong(&[ca, certificate, key, ("ssl.key.password", "hunter3")]);
    let text = format!("{problems:?}");
    assert!(
        text.contains("does not decrypt") && !text.contains("hunter3"),
        "{text}"
    );

    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
               DEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    for old in [
        [ca, certificate, ("ssl.key.pem", old)],
        [ca, certificate, ("ssl.keystore.location", "/etc/me.p12")],
        [ca, certificate, ("ssl.cipher.suites", "AES128-SHA")],
    ] {
        assert!(
            matches!(of(&old), Err(Unusable::NotSpoken(NotSpoken { .. }))),
            "{:?}",
            old[2]
        );
    }
}

/// The key as OpenSSL would encrypt it.
fn encrypted(pem: &str, password: &str) -> String {
    use pkcs8::der::Decode as _;
    use pkcs8::der::pem::LineEnding;
    use pkcs8::pkcs5::pbes2;
    use pkcs8::{PrivateKeyInfo, SecretDocument};

    let (_, document) = SecretDocument::from_pem(pem).unwrap();
    let key = PrivateKeyInfo::from_der(document.as_bytes()).unwrap();
    let parameters = pbes2::Parameters::pbkdf2_sha256_aes256cbc(2_048, &[7; 16], &[9; 16]).unwrap();
    key.encrypt_with_params(parameters, password)
        .unwrap()
        .to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF)
        .unwrap()
        .to_string()
}
