//! The last warnings and errors of the log, for the status page.
//!
//! [`KEPT`] of them at most, each cut at [`LONGEST`] bytes: some 50 KiB, whatever happens. They are what the log has, after its
//! level, so there are no row values and no secrets in them either.

use super::seconds;
use serde::Serialize;
use std::{
    collections::VecDeque,
    fmt::{self, Write},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// So many lines.
const KEPT: usize = 50;
/// So many bytes of each.
const LONGEST: usize = 1000;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// When: seconds since 1970.
    pub time: f64,
    /// `WARN` or `ERROR`.
    pub level: &'static str,
    /// The module that tells it.
    pub target: String,
    /// What it tells, and its fields.
    pub message: String,
}

static RECENT: Recent = Recent { lines: Mutex::new(VecDeque::new()) };

/// The last lines, the latest one first.
pub fn lines() -> Vec<Line> {
    RECENT.lines()
}

struct Recent {
    lines: Mutex<VecDeque<Line>>,
}

impl Recent {
    fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    fn keep(&self, line: Line) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Keeps what [`lines`] shows.
pub(super) struct Keeper;

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            _ => return,
        };
        let mut text = Text::default();
        event.record(&mut text);
        let Text { message, fields } = text;
        let target = event.metadata().target().to_owned();
        RECENT.keep(Line { time: seconds(SystemTime::now()), level, target, message: cut(message + &fields) });
    }
}

/// The message, and after it the fields in their order.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A text takes whatever is written into it.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn the_last_warnings_and_errors_are_kept_and_no_more_than_that() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Keeper), || {
            tracing::info!("recent-probe: nobody needs this");
            tracing::error!(table = "public.a", error = %"refused", "recent-probe: stopped");
            tracing::warn!("recent-probe: {}", "ä".repeat(LONGEST));
        });
        // Other tests may tell something as well.
        let own: Vec<Line> = lines().into_iter().filter(|line| line.message.starts_with("recent-probe")).collect();
        assert_eq!(own.len(), 2);
        assert_eq!(own[1].message, "recent-probe: stopped table=\"public.a\" error=refused");
        assert_eq!((own[1].level, own[1].target.as_str()), ("ERROR", "walhouse::telemetry::recent::tests"));
        assert_eq!(own[0].level, "WARN");
        assert!(own[0].message.len() <= LONGEST + 3 && own[0].message.ends_with('…'));

        let recent = Recent { lines: Mutex::default() };
        let line =
            |number: usize| Line { time: number as f64, level: "WARN", target: String::new(), message: String::new() };
        (0..KEPT + 7).for_each(|number| recent.keep(line(number)));
        let times: Vec<f64> = recent.lines().iter().map(|line| line.time).collect();
        assert_eq!((times.len(), times[0], times[KEPT - 1]), (KEPT, 56.0, 7.0));
    }
}
