//! A broker of our own, with a listener for TLS, ended with this process.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Where records come from.
pub(crate) struct Broker {
    script: Option<Child>,
    pub(crate) bootstrap: String,
    /// Somebody else's cluster has none that we know of.
    pub(crate) tls: Option<Tls>,
}

/// A listener that speaks TLS, and who vouches for it.
pub(crate) struct Tls {
    pub(crate) bootstrap: String,
    pub(crate) authority: PathBuf,
}

impl Broker {
    /// Somebody else's at `bootstrap`, or a new one.
    pub(crate) fn start(bootstrap: Option<&str>) -> Self {
        if let Some(bootstrap) = bootstrap {
            return Self {
                script: None,
                bootstrap: bootstrap.to_owned(),
                tls: None,
            };
        }
        let port = free_ports();
        let secure = format!("127.0.0.1:{}", port + 2);
        let (authority, server) = certificates();
        let settings = [
            format!(
                "listeners=PLAINTEXT://127.0.0.1:{port},SSL://{secure},CONTROLLER://127.0.0.1:{}",
                port + 1
            ),
            format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port},SSL://{secure}"),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT"
                .to_owned(),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", server.display()),
        ];
        let log = crate::scratch().join("broker.log");
        let mut script = Command::new(crate::repository().join("scripts/kafka"))
            .args(["--port", &port.to_string(), "--heap", "1g"])
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("a log file"))
            .spawn()
            .expect("scripts/kafka starts");
        let mut bootstrap = String::new();
        let stdout = script.stdout.take().expect("its output is piped");
        BufReader::new(stdout)
            .read_line(&mut bootstrap)
            .expect("scripts/kafka prints the address");
        assert!(
            !bootstrap.trim().is_empty(),
            "scripts/kafka did not start a broker: see {}",
            log.display()
        );
        Self {
            script: Some(script),
            bootstrap: bootstrap.trim().to_owned(),
            tls: Some(Tls {
                bootstrap: secure,
                authority,
            }),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(script) = &mut self.script {
            let pid = rustix::process::Pid::from_child(script);
            // Not an interrupt: a shell that was started in the background ignores those.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = script.wait();
        }
    }
}

/// The first of three in a row: clients, controller, clients over TLS.
fn free_ports() -> u16 {
    (0..100)
        .find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = first.local_addr().ok()?.port();
            let others = [port.checked_add(1)?, port.checked_add(2)?];
            let _held: Vec<_> = others
                .map(|other| TcpListener::bind(("127.0.0.1", other)))
                .into_iter()
                .collect::<Result<_, _>>()
                .ok()?;
            Some(port)
        })
        .expect("three free ports in a row")
}

/// An authority, and what a broker at 127.0.0.1 needs to be trusted by those
/// who trust it. Made anew for every run.
fn certificates() -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A name of its own: OpenSSL takes a certificate whose issuer is called like
    // its owner for one that is signed by itself.
    params
        .distinguished_name
        .push(DnType::CommonName, "benchmark authority");
    let authority = params.self_signed(&key).expect("a certificate");
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    params
        .subject_alt_names
        .push(SanType::IpAddress([127, 0, 0, 1].into()));
    let server = params
        .signed_by(&server_key, &issuer)
        .expect("a certificate");
    let write = |name: &str, text: String| {
        let path = crate::scratch().join(name);
        std::fs::write(&path, text).expect("a file below target");
        path
    };
    (
        write("authority.pem", authority.pem()),
        write(
            "broker.pem",
            format!(
                "{}{}{}",
                server_key.serialize_pem(),
                server.pem(),
                authority.pem()
            ),
        ),
    )
}
