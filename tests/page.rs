//! The page of a run in a real browser: what it shows, and what it leaves alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keepup::Record;
use keepup::testing::EmbeddedCluster;
use serde_json::Value;

use crate::support::SOON;
use crate::support::chromium::{Chromium, Look, Page};
use crate::support::process::{repository, thread};
use crate::support::run::work_for;

/// Records that a burst leaves in each partition, how long a handler takes for one, and the time from one burst to the
/// next: the lag goes up at once, and down to nothing before it goes up again.
const BURST: [i32; 3] = [200, 300, 400];
const WORK: Duration = Duration::from_millis(4);
const PAUSE: Duration = Duration::from_millis(2_500);

/// How many curves have at least five points whose heights differ.
const MOVING: &str = "[...document.querySelectorAll('#svg path.curve')].filter((path) =>
    new Set(path.getAttribute('d').match(/,[0-9.]+/g)).size >= 5).length";

/// The colours of the curves, each as three numbers.
const COLOURS: &str = "[...document.querySelectorAll('#svg path.curve')].map((path) =>
    getComputedStyle(path).stroke.match(/[0-9]+/g).map(Number))";

/// Where pictures are left for people.
fn picture(name: &str) -> PathBuf {
    let folder = repository().join("target/page");
    std::fs::create_dir_all(&folder).expect("a directory");
    folder.join(format!("{name}.png"))
}

#[test]
fn the_page_shows_the_lag_curve_at_both_sizes_without_errors_or_foreign_requests() {
    let cluster = EmbeddedCluster::start(1).expect("a cluster");
    cluster.create_topic("orders", 3).expect("a topic");
    let handle = keepup::builder(cluster.bootstrap(), "page")
        .topic("orders")
        .listen("127.0.0.1:0".parse().expect("an address"))
        .start(|_worker| |_record: &Record<'_>| work_for(WORK))
        .expect("a run");
    let origin = format!("http://{}/", handle.listens_at().expect("it listens"));

    let enough = Arc::new(AtomicBool::new(false));
    let producing = thread("bursts", {
        let (enough, producer) = (Arc::clone(&enough), cluster.producer().expect("a producer"));
        move || {
            while !enough.load(Ordering::Relaxed) {
                for (partition, records) in (0..).zip(BURST) {
                    for _ in 0..records {
                        let sent = producer.try_send("orders", partition, None, Some(b"an order"));
                        sent.expect("it takes a record");
                    }
                }
                producer.flush(SOON).expect("they are written");
                work_for(PAUSE);
            }
        }
    });

    let mut browser = Chromium::start();
    for (width, height) in [(400, 800), (1280, 900)] {
        for look in [Look::Light, Look::Dark] {
            let mut page = Page::open(&mut browser, &origin, (width, height), look);
            looks_right(&mut page, &origin);
            let name = format!("{width}-{}", look.name());
            std::fs::write(picture(&name), page.screenshot()).expect("a file");
            let chart = page.screenshot_of("#svg");
            let colours: Vec<[u8; 3]> =
                serde_json::from_value(page.evaluate(COLOURS)).expect("colours");
            drop(page);
            // Elsewhere: the page's own policy does not let it look at pictures.
            let mut blank = Page::open(&mut browser, "about:blank", (100, 100), Look::Light);
            for colour in colours {
                let pixels = blank.count_pixels(&chart, colour);
                assert!(pixels > 20, "{name}: {pixels} pixels of {colour:?}");
            }
        }
    }

    let mut page = Page::open(&mut browser, &origin, (1280, 900), Look::Light);
    page.wait_for(
        "an answer",
        "document.getElementById('group').textContent === 'page'",
    );
    page.wait_for(
        "the advice",
        "/^Busy for .* the load wants [1-3]/.test(document.getElementById('advice').textContent)",
    );
    std::fs::write(picture("advice"), page.screenshot()).expect("a file");
    enough.store(true, Ordering::Relaxed);
    producing.join().expect("it produced");
    drop(handle);
    page.wait_for(
        "the page to say that nobody answers",
        "document.getElementById('away').textContent.includes('No answer since')",
    );
    assert_eq!(
        page.evaluate("document.getElementById('total').textContent.length > 0"),
        true
    );
    std::fs::write(picture("away"), page.screenshot()).expect("a file");
}

fn looks_right(page: &mut Page<'_>, origin: &str) {
    page.wait_for("three curves that move", &format!("{MOVING} === 3"));
    page.wait_for(
        "a rebalance mark",
        "document.querySelectorAll('#svg .mark').length > 0",
    );
    let asked = "performance.getEntriesByType('resource').some((entry) => entry.name.includes('/history?after='))";
    page.wait_for("a question for what is new", asked);
    let number = |page: &mut Page<'_>, what: &str| page.evaluate(what).as_f64().expect("a number");
    let wide = number(page, "document.scrollingElement.scrollWidth");
    assert!(
        wide <= number(page, "document.scrollingElement.clientWidth"),
        "{wide}"
    );
    assert_eq!(
        page.evaluate("document.querySelectorAll('#partitions tbody tr').length"),
        3
    );
    assert_eq!(
        page.evaluate("document.querySelectorAll('#workers tbody tr').length"),
        3
    );
    let live = page.evaluate("document.getElementById('live').textContent + document.getElementById('ready').textContent");
    assert_eq!(live, "✓ live✓ ready");
    assert_eq!(page.complaints(), Vec::<Value>::new());
    let requests = page.requests();
    assert!(requests.len() >= 5, "{requests:?}");
    for url in requests {
        assert!(url.starts_with(origin) || url.starts_with("data:"), "{url}");
    }
}
