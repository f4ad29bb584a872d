//! The page of a run in a real browser: what it shows, and what it leaves alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keepup::Record;
use keepup::testing::EmbeddedCluster;
use serde_json::Value;

use crate::support::chromium::{Chromium, Look, Page};
use crate::support::process::{repository, thread};
use crate::support::run::work_for;
use crate::support::{PATIENT, SOON};

/// Records that a burst leaves in each partition, and how long a handler takes for one: the lag goes up at once and
/// down within seconds.
const BURST: i32 = 400;
const WORK: Duration = Duration::from_millis(4);

/// Curves that are neither flat nor empty: points whose heights differ, in a part without a gap.
const MOVING: &str = "[...document.querySelectorAll('#svg path.curve')].filter((path) => \
     new Set(path.getAttribute('d').match(/,[0-9.]+/g)).size > 3).length";

/// The colour of the first curve, as three numbers.
const COLOUR: &str = "getComputedStyle(document.querySelector('#svg path.curve')).stroke.match(/[0-9]+/g).map(Number)";

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
                for number in 0..3 * BURST {
                    let sent = producer.try_send("orders", number % 3, None, Some(b"an order"));
                    sent.expect("it takes a record");
                }
                producer.flush(SOON).expect("they are written");
                work_for(5 * BURST.unsigned_abs() * WORK / 4);
            }
        }
    });

    let mut browser = Chromium::start();
    for (width, height) in [(400, 800), (1280, 900)] {
        for look in [Look::Light, Look::Dark] {
            let mut page = Page::open(&mut browser, &origin, (width, height), look);
            looks_right(&mut page, &origin);
            let shot = page.screenshot(true);
            let colour = page.evaluate(COLOUR);
            let colour = [0, 1, 2].map(|part| {
                let part = colour[part].as_u64().expect("a number");
                u8::try_from(part).expect("a part of a colour")
            });
            let name = format!("{width}-{}", look.name());
            std::fs::write(picture(&name), &shot).expect("a file");
            drop(page);
            // Elsewhere: the page's own policy would refuse to load it again.
            let mut blank = Page::open(&mut browser, "about:blank", (100, 100), Look::Light);
            let pixels = blank.count_pixels(&shot, colour);
            assert!(pixels > 100, "{name}: {pixels} pixels of {colour:?}");
        }
    }

    let mut page = Page::open(&mut browser, &origin, (1280, 900), Look::Light);
    page.wait_for(
        "an answer",
        "document.getElementById('group').textContent === 'page'",
    );
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
    std::fs::write(picture("away"), page.screenshot(false)).expect("a file");
}

fn looks_right(page: &mut Page<'_>, origin: &str) {
    page.wait_for("three curves that move", &format!("{MOVING} === 3"));
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
    assert!(
        requests.iter().any(|url| url.contains("history?after=")),
        "{requests:?}"
    );
    for url in requests {
        assert!(url.starts_with(origin) || url.starts_with("data:"), "{url}");
    }
}
