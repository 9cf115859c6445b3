//! A real browser without a window: Chromium, driven by chromedriver over the few requests of WebDriver that are needed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::eventually;
use super::process::{free_port, run_directory};

/// A browser with one page, and a profile of its own.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    profile: PathBuf,
}

impl Browser {
    /// Starts it.
    pub(crate) async fn start() -> Self {
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver can be started; tests/services/install installs it");
        let profile = run_directory().join(format!("chromium-{port}"));
        let mut browser = Self { driver, port, session: String::new(), profile };
        let ready = async || request(port, "GET", "/status", "").await.map(drop).map_err(|error| error.to_string());
        eventually(Duration::from_secs(60), ready).await;
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &format!("--user-data-dir={}", browser.profile.display()),
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let made = browser.command("/session", &capabilities).await;
        browser.session = made["sessionId"].as_str().expect("a session has an id").to_owned();
        // The browser's own first page asks for things of the browser: that is nobody's doing.
        browser.open("about:blank").await;
        browser.log("performance").await;
        browser
    }

    /// Opens an address, and waits until it is loaded.
    pub(crate) async fn open(&self, url: &str) {
        self.ask("url", &json!({ "url": url })).await;
    }

    /// What a function body returns; it may await.
    pub(crate) async fn run(&self, script: &str) -> Value {
        let script = format!("return (async () => {{ {script} }})()");
        self.ask("execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&self, expression: &str) {
        eventually(Duration::from_secs(120), async || match self.run(&format!("return Boolean({expression})")).await {
            Value::Bool(true) => Ok(()),
            _ => Err(format!("{expression}; the page shows:\n{}", self.text().await)),
        })
        .await;
    }

    /// All that the page shows.
    pub(crate) async fn text(&self) -> String {
        self.run("return document.body.innerText").await.as_str().unwrap_or_default().to_owned()
    }

    /// One of the browser's own commands, as its developer tools give them.
    pub(crate) async fn tool(&self, command: &str, parameters: Value) -> Value {
        self.ask("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await
    }

    /// Light or dark, as the person's system would have it.
    pub(crate) async fn scheme(&self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.tool("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
    }

    /// A screen so wide, in CSS pixels.
    pub(crate) async fn width(&self, width: u32) {
        let screen = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.tool("Emulation.setDeviceMetricsOverride", screen).await;
    }

    /// Writes the whole page as `target/screenshots/{name}.png`.
    pub(crate) async fn picture(&self, name: &str) {
        let taken = self.tool("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots");
        std::fs::create_dir_all(&directory).expect("the directory of pictures can be made");
        let bytes = decoded(taken["data"].as_str().expect("a picture"));
        std::fs::write(directory.join(format!("{name}.png")), bytes).expect("a picture can be written");
    }

    /// Presses Tab.
    pub(crate) async fn tab(&self) {
        for kind in ["keyDown", "keyUp"] {
            let key = json!({ "type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9 });
            self.tool("Input.dispatchKeyEvent", key).await;
        }
    }

    /// What came since the last call, in `browser` (the console) or `performance` (requests).
    pub(crate) async fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.ask("se/log", &json!({ "type": kind })).await;
        log.as_array().cloned().unwrap_or_default()
    }

    async fn ask(&self, command: &str, body: &Value) -> Value {
        self.command(&format!("/session/{}/{command}", self.session), body).await
    }

    async fn command(&self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let asked = tokio::time::timeout(Duration::from_secs(60), request(self.port, "POST", path, &body));
        let body = asked.await.unwrap_or_else(|_| panic!("{path}: no answer within 60 s"));
        let body = body.unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        let value = answer["value"].take();
        assert!(value["error"].is_null(), "{path}: {value}");
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All that descends from it, which is the browser: it does not end with its driver.
        let family: Vec<u32> = super::process::family(self.driver.id());
        super::signal("KILL", &family);
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// One request; chromedriver keeps the connection open, so its answer ends where it says.
async fn request(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let head = "Host: localhost\r\nContent-Type: application/json";
    let asked = format!("{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(asked.as_bytes()).await?;
    let (mut line, mut length) = (String::new(), 0);
    while stream.read_line(&mut line).await? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        line.clear();
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    String::from_utf8(answer).map_err(std::io::Error::other)
}

/// Base64.
fn decoded(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for character in text.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        (bits, held) = (bits << 6 | u32::from(value), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}
