//! A real Prometheus, which scrapes one walhouse and evaluates the alerts that it ships, a minute of theirs being a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::eventually;
use super::http::get;
use super::process::{free_port, signal, tail};

const RULES: &str = include_str!("../../../docker/prometheus/alerts.yml");

/// Ends with the value.
pub(crate) struct Prometheus {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Prometheus {
    /// Scrapes `port` each second. What it keeps is in `directory`.
    pub(crate) fn scraping(port: u16, directory: &Path) -> Self {
        Self::scraping_by(port, directory, &[])
    }

    /// The same, by rules in which thresholds are others: what stands in an alert's expression, and what takes its place.
    pub(crate) fn scraping_by(port: u16, directory: &Path, thresholds: &[(&str, &str)]) -> Self {
        Self::scraping_as("walhouse", port, directory, thresholds)
    }

    /// The same, under another name of the job.
    pub(crate) fn scraping_as(job: &str, port: u16, directory: &Path, thresholds: &[(&str, &str)]) -> Self {
        let own = free_port();
        let (config, log) = (directory.join("prometheus.yml"), directory.join("prometheus.log"));
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [alerts.yml]\n\
             scrape_configs:\n  - job_name: {job}\n    static_configs: [{{ targets: ['127.0.0.1:{port}'] }}]\n"
        );
        fs::write(&config, text).expect("the configuration can be written");
        let rules = thresholds.iter().fold(RULES.to_owned(), |rules, (from, to)| {
            assert!(rules.contains(from), "no rule has {from}");
            rules.replace(from, to)
        });
        fs::write(directory.join("alerts.yml"), hurried(&rules)).expect("the rules can be written");
        let output = fs::File::create(&log).expect("the log can be made");
        let child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{own}"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file can be cloned"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus ({error}): run tests/services/install first"));
        Self { child, port: own, log }
    }

    /// Where it answers.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Has it read its configuration anew, as `systemctl reload` does.
    pub(crate) fn reload(&self) {
        signal("HUP", &[self.child.id()]);
    }

    /// Waits until walhouse was scraped.
    pub(crate) async fn scraped(&self) {
        eventually(Duration::from_secs(60), async || {
            let answer = get(self.port, "/api/v1/query?query=up").await?;
            if answer.body.contains(r#","1"]"#) { Ok(()) } else { Err(answer.body) }
        })
        .await;
    }

    /// Waits until a metric of walhouse was seen with a value that begins so.
    pub(crate) async fn sees(&self, metric: &str, value: &str) {
        eventually(Duration::from_secs(60), async || {
            let answer = get(self.port, &format!("/api/v1/query?query={metric}")).await?;
            if answer.body.contains(&format!(",\"{value}")) { Ok(()) } else { Err(answer.body) }
        })
        .await;
    }

    /// The alerts that fire, as they are told: each with its labels and annotations.
    pub(crate) async fn firing(&self, name: &str) -> Result<Vec<Value>, String> {
        let answer = get(self.port, "/api/v1/alerts").await?;
        let answer: Value = serde_json::from_str(&answer.body).map_err(|error| format!("{error}: {}", answer.body))?;
        let alerts = answer["data"]["alerts"].as_array().ok_or("no alerts")?;
        let of = |alert: &&Value| alert["labels"]["alertname"] == name && alert["state"] == "firing";
        Ok(alerts.iter().filter(of).cloned().collect())
    }

    /// The rules that could not be evaluated, with what was wrong, and how many there are in all.
    pub(crate) async fn unsound(&self) -> (Vec<String>, usize) {
        let answer = get(self.port, "/api/v1/rules").await.expect("Prometheus answers");
        let answer: Value = serde_json::from_str(&answer.body).expect("its answer is JSON");
        let groups = answer["data"]["groups"].as_array().expect("groups");
        let rules: Vec<&Value> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
        let failed = rules.iter().filter(|rule| rule["health"] != "ok").map(|rule| rule.to_string()).collect();
        (failed, rules.len())
    }

    /// Waits until an alert fires, and returns it.
    pub(crate) async fn fires(&self, name: &str) -> Value {
        eventually(Duration::from_secs(150), async || {
            self.firing(name).await?.pop().ok_or_else(|| format!("{name} does not fire"))
        })
        .await
    }

    /// Waits until it fires no more.
    pub(crate) async fn rests(&self, name: &str) {
        eventually(Duration::from_secs(150), async || {
            let alerts = self.firing(name).await?;
            if alerts.is_empty() { Ok(()) } else { Err(format!("it fires: {alerts:?}")) }
        })
        .await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the end of {}:\n{}\n---", self.log.display(), tail(&self.log, 20));
        }
    }
}

/// One of Prometheus's programs: what tests/services/install has unpacked, or the machine's own.
pub(crate) fn program(name: &str) -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/monitoring/usr/bin").join(name);
    if unpacked.exists() { unpacked } else { name.into() }
}

/// The rules, with each duration of minutes as many seconds, and a minute that is added to one as a second.
fn hurried(rules: &str) -> String {
    let mut text = String::with_capacity(rules.len());
    for line in rules.lines() {
        let is_duration = line.trim_start().starts_with("for: ");
        let line = if is_duration { minutes_as_seconds(line) } else { line.replace(" + 60", " + 1") };
        let mut ranges = line.split('[');
        text.extend(ranges.next());
        for range in ranges {
            let (inside, rest) = range.split_once(']').unwrap_or((range, ""));
            text += &format!("[{}]{rest}", minutes_as_seconds(inside));
        }
        text.push('\n');
    }
    text
}

fn minutes_as_seconds(duration: &str) -> String {
    duration.strip_suffix('m').map_or_else(|| duration.to_owned(), |number| format!("{number}s"))
}
