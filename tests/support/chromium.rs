//! A real browser without a window: what it shows, what it asks for, what it complains about.
//!
//! It is spoken to in the protocol of its developer tools, over its standard input and output: JSON, each message
//! ended by a zero byte. So there is no port that others could reach, and the browser ends when the pipe does, also
//! when this process is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Guarded, thread};
use super::{PATIENT, wait_until};

/// Becomes the browser: the pipes are where it expects them, and nothing else is.
const LAUNCH: &str = r#"exec chromium "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;

/// Messages that the browser may be ahead of the test.
const QUEUE: usize = 100_000;

/// A running browser; killed on drop with all its processes.
#[derive(Debug)]
pub(crate) struct Chromium {
    // In this order: first the processes end, then what they write to is removed.
    process: Guarded,
    input: ChildStdin,
    messages: Receiver<Value>,
    asked: u64,
    /// What happened since the start, in all pages.
    events: Vec<Value>,
    _profile: TempDir,
}

impl Chromium {
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("bash");
        command
            .args([
                "-c",
                LAUNCH,
                "chromium",
                "--headless",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args([
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .args([
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if rustix::process::geteuid().is_root() {
            // Its sandbox refuses to be set up by root; the pages are our own.
            command.arg("--no-sandbox");
        }
        command.arg("about:blank");
        let mut process = Guarded::spawn(command);
        let input = process.child().stdin.take().expect("it is piped");
        let output = process.child().stdout.take().expect("it is piped");
        let (sender, messages) = bounded(QUEUE);
        // Ends with the pipe, so with the browser.
        drop(thread("chromium", move || read(output, &sender)));
        Self {
            process,
            input,
            messages,
            asked: 0,
            events: Vec::new(),
            _profile: profile,
        }
    }

    /// Asks and waits for the answer; everything else that comes is kept.
    fn call(&mut self, session: Option<&str>, method: &str, parameters: &Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        let deadline = Instant::now() + PATIENT;
        if let Err(error) = self.input.write_all(&bytes) {
            panic!(
                "chromium (is it installed? scripts/tools does): {error}; {:?}",
                self.process.ended()
            );
        }
        loop {
            let message = self.messages.recv_deadline(deadline).unwrap_or_else(|error| {
                panic!(
                    "chromium (is it installed? scripts/tools does) does not answer {method}: {error}; it ended: {:?}",
                    self.process.ended()
                )
            });
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Takes what has come meanwhile.
    fn listen(&mut self) {
        self.events.extend(self.messages.try_iter());
    }
}

fn read(output: impl Read, sender: &Sender<Value>) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while let Ok(1..) = output.read_until(0, &mut bytes) {
        let message = serde_json::from_slice(bytes.strip_suffix(&[0]).unwrap_or(&bytes));
        bytes.clear();
        if message.map(|message| sender.send(message)).is_err() {
            return;
        }
    }
}

/// Which of the two looks a page shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Light,
    Dark,
}

impl Look {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

/// An open page; closed on drop.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    browser: &'a mut Chromium,
    target: String,
    session: String,
}

impl<'a> Page<'a> {
    /// Opens a page and waits until it is loaded.
    pub(crate) fn open(
        browser: &'a mut Chromium,
        url: &str,
        (width, height): (u32, u32),
        look: Look,
    ) -> Self {
        let blank = json!({"url": "about:blank"});
        let target = browser.call(None, "Target.createTarget", &blank);
        let target = text(&target["targetId"]);
        let attach = json!({"targetId": target, "flatten": true});
        let session = browser.call(None, "Target.attachToTarget", &attach);
        let session = text(&session["sessionId"]);
        let mut page = Self {
            browser,
            target,
            session,
        };
        for domain in ["Runtime", "Log", "Network", "Page"] {
            page.call(&format!("{domain}.enable"), &json!({}));
        }
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        page.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!({"name": "prefers-color-scheme", "value": look.name()});
        page.call("Emulation.setEmulatedMedia", &json!({"features": [scheme]}));
        let navigated = page.call("Page.navigate", &json!({"url": url}));
        assert!(navigated["errorText"].is_null(), "{url}: {navigated}");
        page.wait_for(
            "the page to be loaded",
            "document.readyState === 'complete'",
        );
        page
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.browser.call(Some(&self.session), method, parameters)
    }

    /// The value of an expression in the page; a promise is waited for.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &parameters);
        let exception = &answer["exceptionDetails"];
        assert!(exception.is_null(), "{expression}: {exception}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&mut self, what: &str, expression: &str) {
        wait_until(PATIENT, what, || match self.evaluate(expression) {
            Value::Bool(true) => Ok(()),
            other => Err(other),
        });
    }

    /// All of the page, also what is below the window, as a PNG.
    pub(crate) fn screenshot(&mut self) -> Vec<u8> {
        let shot = json!({"captureBeyondViewport": true});
        self.capture(&shot)
    }

    /// The first element that `selector` finds, as a PNG.
    pub(crate) fn screenshot_of(&mut self, selector: &str) -> Vec<u8> {
        let place = format!(
            "(() => {{
                const place = document.querySelector({selector:?}).getBoundingClientRect();
                const [x, y] = [place.x + scrollX, place.y + scrollY];
                return {{ x, y, width: place.width, height: place.height, scale: 1 }};
            }})()"
        );
        let clip = self.evaluate(&place);
        self.capture(&json!({"captureBeyondViewport": true, "clip": clip}))
    }

    fn capture(&mut self, parameters: &Value) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", parameters);
        STANDARD.decode(text(&shot["data"])).expect("base64")
    }

    /// How many pixels of a PNG have about the colour `rgb`.
    pub(crate) fn count_pixels(&mut self, png: &[u8], rgb: [u8; 3]) -> u64 {
        let script = format!(
            "(async () => {{
                const bytes = Uint8Array.from(atob('{}'), (c) => c.charCodeAt(0));
                const picture = await createImageBitmap(new Blob([bytes], {{ type: 'image/png' }}));
                const context = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
                context.drawImage(picture, 0, 0);
                const {{ data }} = context.getImageData(0, 0, picture.width, picture.height);
                let count = 0;
                for (let at = 0; at < data.length; at += 4) {{
                    count += {rgb:?}.every((value, index) => Math.abs(data[at + index] - value) < 8);
                }}
                return count;
            }})()",
            STANDARD.encode(png)
        );
        self.evaluate(&script).as_u64().expect("a count")
    }

    /// The events of one kind in this page.
    fn events(&mut self, method: &str) -> Vec<Value> {
        self.browser.listen();
        let events = self.browser.events.iter();
        events
            .filter(|event| {
                event["sessionId"] == self.session.as_str() && event["method"] == method
            })
            .map(|event| event["params"].clone())
            .collect()
    }

    /// Errors and warnings of the console, and exceptions that nobody caught.
    pub(crate) fn complaints(&mut self) -> Vec<Value> {
        let mut complaints = self.events("Runtime.exceptionThrown");
        let mut logged = self.events("Log.entryAdded");
        logged.retain(|event| {
            event["entry"]["level"] == "error" || event["entry"]["level"] == "warning"
        });
        complaints.append(&mut logged);
        let mut console = self.events("Runtime.consoleAPICalled");
        console.retain(|event| {
            ["error", "warning", "assert"]
                .iter()
                .any(|kind| event["type"] == *kind)
        });
        complaints.append(&mut console);
        complaints
    }

    /// Every address that the page asked for.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        let requests = self.events("Network.requestWillBeSent");
        requests
            .iter()
            .map(|event| text(&event["request"]["url"]))
            .collect()
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        // A second panic would hide the first.
        if !std::thread::panicking() {
            let target = json!({"targetId": self.target});
            self.browser.call(None, "Target.closeTarget", &target);
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
