//! `walhouse check`: connects to everything, changes nothing, and says what is ready and what is not.
//!
//! Every line names a thing, what it is like, and the remedy where there is something to do. One
//! thing that fails does not hide the others, as far as they can still be seen.

mod clickhouse;
mod columns;
mod ddl;
mod objects;
mod outbox;
mod position;
mod postgres;
mod protection;
mod queue;
mod workers;

use std::fmt::{self, Write};

use serde::Serialize;

use crate::config::Config;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Ready.
    Ok,
    /// It works, but somebody should know.
    Warning,
    /// It will not work.
    Failed,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `PostgreSQL`, `tables`, `columns` or `ClickHouse`; with `[queue]`, `queue`, `objects`, `workers` or `reports` too.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which things depend on each other.
    pub checks: Vec<Check>,
}

/// Looks at all sides, at the same time.
pub async fn run(config: &Config) -> Report {
    let time64 = clickhouse::has_time64(&config.clickhouse).await;
    let (mut all, target, queue, objects, workers) = futures_util::future::join5(
        Box::pin(postgres::check(config, time64)),
        Box::pin(clickhouse::check(&config.clickhouse)),
        Box::pin(queue::check(config)),
        Box::pin(objects::check(config)),
        Box::pin(workers::check(config)),
    )
    .await;
    all.checks.extend([target, queue, objects, workers].into_iter().flat_map(|report| report.checks));
    all
}

impl Report {
    /// Whether nothing failed.
    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|check| check.outcome != Outcome::Failed)
    }

    /// 0 when nothing failed, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.is_ok())
    }

    /// For machines: `{"ok": …, "checks": […]}`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "ok": self.is_ok(), "checks": self.checks })
    }

    fn push(&mut self, area: &'static str, name: impl Into<String>, found: Found) {
        let Found { outcome, what, remedy } = found;
        self.checks.push(Check { area, name: name.into(), outcome, what, remedy });
    }
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |text: fn(&Check) -> &str| self.checks.iter().map(|check| text(check).chars().count()).max().unwrap_or(0);
        let (areas, names) = (width(|check| check.area), width(|check| &check.name).min(32));
        for check in &self.checks {
            let mark = match check.outcome {
                Outcome::Ok => '✓',
                Outcome::Warning => '!',
                Outcome::Failed => '✗',
            };
            writeln!(f, "{mark} {:areas$}  {:names$}  {}", check.area, check.name, check.what)?;
            if let Some(remedy) = &check.remedy {
                writeln!(f, "  {:areas$}  {:names$}  → {remedy}", "", "")?;
            }
        }
        let count = |outcome| self.checks.iter().filter(|check| check.outcome == outcome).count();
        let (failed, warnings) = (count(Outcome::Failed), count(Outcome::Warning));
        match (failed, warnings) {
            (0, 0) => f.write_str("All is ready."),
            (0, _) => write!(f, "Ready, with {}.", plural(warnings, "warning")),
            _ => {
                write!(f, "Not ready: {} of {} failed", failed, plural(self.checks.len(), "check"))?;
                if warnings > 0 {
                    write!(f, ", {}", plural(warnings, "warning"))?;
                }
                f.write_char('.')
            }
        }
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// What a check found, before it has a place in the report.
struct Found {
    outcome: Outcome,
    what: String,
    remedy: Option<String>,
}

fn fine(what: impl Into<String>) -> Found {
    Found { outcome: Outcome::Ok, what: what.into(), remedy: None }
}

fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found { outcome: Outcome::Warning, what: what.into(), remedy: Some(remedy.into()) }
}

fn failed(what: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found { outcome: Outcome::Failed, what: what.into(), remedy: Some(remedy.into()) }
}

/// A message of ours is `what; remedy`.
fn failed_as_told(message: &str) -> Found {
    let (what, remedy) = message.split_once("; ").map_or((message, None), |(what, remedy)| (what, Some(remedy)));
    Found { outcome: Outcome::Failed, what: what.to_owned(), remedy: remedy.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_shows_what_to_do_and_decides_the_exit_code() {
        let mut report = Report::default();
        report.push("PostgreSQL", "version", fine("15.8"));
        assert_eq!(
            (report.to_string().as_str(), report.exit_code()),
            ("✓ PostgreSQL  version  15.8\nAll is ready.", 0)
        );
        report.push("PostgreSQL", "slot", warning("in use", "stop the other"));
        assert_eq!(report.exit_code(), 0);
        report.push("tables", "public.t", failed_as_told("it has no primary key; add one"));
        assert_eq!(report.exit_code(), 1);
        let text = report.to_string();
        assert!(text.contains("✗ tables      public.t  it has no primary key\n"), "{text}");
        assert!(text.ends_with("→ add one\nNot ready: 1 of 3 checks failed, 1 warning."), "{text}");
        assert_eq!(report.json()["checks"][2]["outcome"], "failed");
        assert_eq!(report.json()["ok"], false);
    }
}
