use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;
use crate::clock::Clock;
use crate::telemetry::fixture;

/// Long enough for anything on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pages(snapshot: LagSnapshot) -> Pages {
    let board = Arc::new(Board::default());
    board.remember(&snapshot);
    board
        .hang(0, Arc::new(snapshot))
        .expect("nothing newer hangs there");
    Pages {
        board,
        metrics: Box::new(|snapshot, text| {
            text.push_str("group ");
            text.push_str(&snapshot.group);
        }),
    }
}

fn not_broken() -> Broke {
    Box::new(|panic| panic!("it broke: {panic}"))
}

fn bind() -> Server {
    Server::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port")
}

fn start(snapshot: LagSnapshot) -> Running {
    bind()
        .start(pages(snapshot), not_broken())
        .expect("it starts")
}

fn connect(to: &Running) -> TcpStream {
    let stream = TcpStream::connect(to.local_addr()).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.set_write_timeout(Some(SOON)).expect("a timeout");
    stream
}

/// Sends `request` and reads until the server closes.
fn exchange(to: &Running, request: &str) -> String {
    let mut stream = connect(to);
    stream.write_all(request.as_bytes()).expect("it reads");
    rest(&mut stream).expect("an answer")
}

fn rest(stream: &mut TcpStream) -> io::Result<String> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn ask(to: &Running, method: &str, path: &str) -> (u16, String, String) {
    let answer = exchange(
        to,
        &format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    );
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head[9..12].parse().expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn get(to: &Running, path: &str) -> (u16, String, String) {
    ask(to, "GET", path)
}

#[test]
fn every_path_answers_in_its_type_and_is_not_stored() {
    let running = start(fixture::snapshot("orders", 2));
    for (path, content_type, begins) in [
        ("/metrics", METRICS_TYPE, "group billing"),
        ("/lag", "application/json", r#"{"group":"billing","#),
        ("/history", "application/json", r#"{"first":0,"#),
        ("/history?after=0", "application/json", r#"{"first":1,"#),
        ("/history?after=x", "application/json", r#"{"first":0,"#),
        ("/health/live", "text/plain; charset=utf-8", "ok\n"),
        ("/health/ready", "text/plain; charset=utf-8", "ok\n"),
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
    ] {
        let (status, head, body) = get(&running, path);
        assert_eq!(status, 200, "{path}");
        assert!(body.starts_with(begins), "{path}: {body}");
        for line in [
            format!("content-type: {content_type}"),
            format!("content-length: {}", body.len()),
            "cache-control: no-store".to_owned(),
            "x-content-type-options: nosniff".to_owned(),
            "cross-origin-resource-policy: same-origin".to_owned(),
        ] {
            assert!(head.lines().any(|found| found == line), "{path}: {head}");
        }
        assert!(!head.contains("access-control"), "{head}");

        let (status, of_head, body) = ask(&running, "HEAD", path);
        assert_eq!((status, body.as_str()), (200, ""), "{path}");
        let length = |head: &str| {
            let mut lines = head.lines();
            let line = lines.find(|line| line.starts_with("content-length"));
            line.map(str::to_owned)
        };
        assert_eq!(length(&of_head), length(&head), "{path}");
    }
}

#[test]
fn health_is_told_with_a_reason_on_each_line() {
    let mut snapshot = fixture::snapshot("orders", 2);
    snapshot.health.not_live = vec!["stuck\nsince noon".to_owned(), "dead".to_owned()];
    snapshot.health.not_ready = Some("not joined".to_owned());
    let running = start(snapshot);
    let (status, _, body) = get(&running, "/health/live");
    assert_eq!((status, body.as_str()), (503, "stuck since noon\ndead\n"));
    let (status, _, body) = get(&running, "/health/ready");
    assert_eq!((status, body.as_str()), (503, "not joined\n"));
}

#[test]
fn the_page_allows_its_own_script_and_nothing_else() {
    let running = start(fixture::snapshot("orders", 2));
    let nonce = || {
        let (_, head, body) = get(&running, "/");
        let policy = head
            .lines()
            .find_map(|line| line.strip_prefix("content-security-policy: "))
            .expect("a policy")
            .to_owned();
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let (_, nonce) = policy.split_once("'nonce-").expect("a nonce");
        let nonce = nonce.split('\'').next().expect("an end").to_owned();
        assert!(body.contains(&format!("<script nonce=\"{nonce}\">")));
        assert!(!body.contains("{nonce}"));
        nonce
    };
    assert_ne!(nonce(), nonce());
}

#[test]
fn other_paths_and_other_methods_are_refused_with_what_there_is() {
    let running = start(fixture::snapshot("orders", 2));
    let (status, _, body) = get(&running, "/lags");
    assert_eq!(status, 404);
    for path in PATHS.lines() {
        assert_eq!(get(&running, path).0, 200, "{path}");
    }
    assert!(body.ends_with(PATHS), "{body}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let (status, head, body) = ask(&running, method, "/lag");
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("\r\nallow: get,head"), "{head}");
        assert!(body.contains(method), "{body}");
    }
}

#[test]
fn a_body_is_not_read_and_closes_the_connection() {
    let running = start(fixture::snapshot("orders", 2));
    for body in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        let answer = exchange(
            &running,
            &format!("POST /lag HTTP/1.1\r\nHost: a\r\n{body}\r\n\r\n"),
        );
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[test]
fn what_is_not_http_or_too_long_is_refused() {
    let running = start(fixture::snapshot("orders", 2));
    let path = format!("/{}", "a".repeat(9_000));
    assert_eq!(get(&running, &path).0, 431);
    let many = "X-A: b\r\n".repeat(200);
    let answer = exchange(&running, &format!("GET / HTTP/1.1\r\n{many}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = exchange(&running, "\x16\x03\x01 hello\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(get(&running, "/health/live").0, 200);
}

#[test]
fn a_head_that_does_not_come_ends_the_connection() {
    let mut server = bind();
    server.limits.head_wait = Duration::from_millis(200);
    let running = server
        .start(pages(fixture::snapshot("orders", 2)), not_broken())
        .expect("starts");
    let mut silent = connect(&running);
    let mut slow = connect(&running);
    slow.write_all(b"GET / HTTP/1.1\r\nX: ").expect("it reads");
    for stream in [&mut silent, &mut slow] {
        // Ended either way, with or without a complaint; not by our timeout.
        if let Err(error) = rest(stream) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn a_reader_that_does_not_read_is_cut_off() {
    let mut server = bind();
    server.limits.lifetime = Duration::from_millis(400);
    let mut pages = pages(fixture::snapshot("orders", 2));
    // More than the system's buffers hold.
    pages.metrics = Box::new(|_, text| *text = "a".repeat(64 << 20));
    let running = server.start(pages, not_broken()).expect("starts");
    let mut stream = connect(&running);
    let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).expect("it reads");
    let start = Clock::System.now();
    while Clock::System.now() - start < Duration::from_millis(1_200) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.len() < 64 << 20, "it waited for the reader");
    assert_eq!(get(&running, "/health/live").0, 200);
}

#[test]
fn answers_that_nobody_reads_do_not_pile_up() {
    const SIZE: usize = 16 << 20;
    let mut server = bind();
    server.limits.answer_bytes = 40 << 20;
    let mut pages = pages(fixture::snapshot("orders", 2));
    pages.metrics = Box::new(|_, text| *text = "a".repeat(SIZE));
    let running = server.start(pages, not_broken()).expect("starts");
    let mut asked: Vec<_> = (0..6)
        .map(|_| {
            let mut stream = connect(&running);
            let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            stream.write_all(request).expect("it reads");
            // Not before the answer began: they come in this order.
            stream.read_exact(&mut [0]).expect("an answer");
            stream
        })
        .collect();
    let whole: Vec<bool> = asked
        .iter_mut()
        .map(|stream| rest(stream).is_ok_and(|answer| answer.len() > SIZE))
        .collect();
    assert_eq!(whole, [false, false, false, false, true, true]);
}

#[test]
fn two_hundred_idle_connections_do_not_keep_a_health_check_waiting() {
    let running = start(fixture::snapshot("orders", 2));
    let mut held: Vec<_> = (0..200).map(|_| connect(&running)).collect();
    let start = Clock::System.now();
    assert_eq!(get(&running, "/health/live").0, 200);
    assert!(Clock::System.now() - start < Limits::DEFAULT.head_wait);
    // The first were closed for the last: at most 63 and ours at a time.
    let closed = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).expect("a flag");
        let got = stream.read(&mut [0]);
        !matches!(got, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    };
    let closed = held.iter_mut().map(closed).filter(|closed| *closed).count();
    assert!(closed >= 200 - 64, "{closed}");
}

#[test]
fn a_connection_in_use_survives_those_that_only_hold_theirs() {
    let running = start(fixture::snapshot("orders", 2));
    let mut used = connect(&running);
    let mut idle = Vec::new();
    for _ in 0..10 {
        used.write_all(b"HEAD /lag HTTP/1.1\r\nHost: a\r\n\r\n")
            .expect("it is open");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            used.read_exact(&mut byte).expect("it is open");
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 200"));
        idle.extend((0..20).map(|_| connect(&running)));
    }
}

#[test]
fn a_panic_in_an_answer_ends_one_connection() {
    let mut pages = pages(fixture::snapshot("orders", 2));
    pages.metrics = Box::new(|_, _| panic!("on purpose"));
    let running = bind().start(pages, not_broken()).expect("starts");
    assert_eq!(
        exchange(&running, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
        ""
    );
    assert_eq!(get(&running, "/health/live").0, 200);
}

#[test]
fn a_stop_does_not_wait_for_open_connections() {
    let running = start(fixture::snapshot("orders", 2));
    let mut held: Vec<_> = (0..3).map(|_| connect(&running)).collect();
    let mut half = connect(&running);
    half.write_all(b"GET /lag HTTP/1.1\r\n").expect("it reads");
    assert_eq!(get(&running, "/health/live").0, 200);
    let address = running.local_addr();
    let start = Clock::System.now();
    running.stop(Duration::from_secs(2));
    assert!(Clock::System.now() - start < Duration::from_secs(2));
    held.push(half);
    for stream in &mut held {
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte), Ok(0) | Err(_)));
    }
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn dropping_it_stops_it_too() {
    let running = start(fixture::snapshot("orders", 2));
    let address = running.local_addr();
    drop(running);
    assert!(TcpStream::connect(address).is_err());
    Server::bind(address).expect("the port is free again");
}

#[test]
fn a_port_in_use_is_refused_at_once() {
    let server = bind();
    let error = Server::bind(server.local_addr()).expect_err("it is in use");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn a_panic_of_the_thread_is_told_and_the_end_waits_for_nobody() {
    let mut server = bind();
    server.limits.panics = true;
    let (told, heard) = bounded(1);
    let broke: Broke = Box::new(move |panic| told.send(panic.to_owned()).expect("one listens"));
    let running = server
        .start(pages(fixture::snapshot("orders", 2)), broke)
        .expect("starts");
    let mut stream = connect(&running);
    assert_eq!(heard.recv_timeout(SOON).as_deref(), Ok("planted"));
    // Whoever asked is not left waiting.
    assert!(matches!(rest(&mut stream).as_deref(), Ok("") | Err(_)));
    let began = Clock::System.now();
    running.stop(SOON);
    assert!(Clock::System.now() - began < SOON);
}
