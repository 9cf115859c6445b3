//! The label `table`, and how many values it may have.
//!
//! Each table costs a handful of series in every scrape, so their number is bounded by `metrics.max_tables`: tables beyond it share
//! one series of each counter, and have no gauges of their own. A name that was seen once counts until the process ends, also
//! if its table is dropped: who creates tables all the time comes to that number too, and no further.

use super::names::TABLE_STOPPED;
use metrics::SharedString;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// What further tables are called together. No table is called this: it has no schema.
const OTHERS: &str = "(others)";

/// The tables that have series of their own, in the order in which they came.
struct Known {
    /// Their labels, and how many of them there may be.
    names: Mutex<(HashMap<String, Arc<str>>, usize)>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| Known::new(usize::MAX));

impl Known {
    fn new(most: usize) -> Self {
        Self { names: Mutex::new((HashMap::new(), most)) }
    }

    fn of(&self, name: &str) -> Option<Arc<str>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, most) = &mut *names;
        if let Some(own) = known.get(name) {
            return Some(Arc::clone(own));
        }
        if known.len() >= *most {
            return None;
        }
        let own: Arc<str> = name.into();
        known.insert(name.to_owned(), Arc::clone(&own));
        Some(own)
    }
}

/// Bounds how many tables may have series of their own, from now on.
pub(super) fn at_most(most: usize) {
    KNOWN.names.lock().unwrap_or_else(PoisonError::into_inner).1 = most;
}

/// The label of a table on a counter: its name, or what it shares with others.
pub fn counted(name: &str) -> SharedString {
    KNOWN.of(name).map_or(OTHERS.into(), SharedString::from_shared)
}

/// The label of a table on a gauge, if it may have one of its own: those of several tables say nothing together.
pub fn measured(name: &str) -> Option<SharedString> {
    KNOWN.of(name).map(SharedString::from_shared)
}

/// Shows which tables are stopped. Those that were, and are not any more, are shown as that.
pub fn show_stopped(names: &[String]) {
    static SHOWN: LazyLock<Mutex<HashSet<SharedString>>> = LazyLock::new(Mutex::default);
    let stopped: HashSet<SharedString> = names.iter().filter_map(|name| measured(name)).collect();
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for gone in shown.difference(&stopped) {
        metrics::gauge!(TABLE_STOPPED, "table" => gone.clone()).set(0.0);
    }
    for name in &stopped {
        metrics::gauge!(TABLE_STOPPED, "table" => name.clone()).set(1.0);
    }
    *shown = stopped;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_tables_than_allowed_have_a_label_and_those_keep_it() {
        let known = Known::new(2);
        let label = |name| known.of(name).map(|own| own.to_string());
        assert_eq!(label("public.a").as_deref(), Some("public.a"));
        assert_eq!(label("public.b").as_deref(), Some("public.b"));
        assert_eq!(label("public.c"), None);
        assert_eq!(label("public.a").as_deref(), Some("public.a"));
    }

    #[test]
    fn a_hundred_thousand_tables_of_whatever_name_are_a_page_of_bounded_size_that_can_be_read() {
        const MOST: usize = 2_000;
        let (known, recorder) =
            (Known::new(MOST), metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder());
        // A quotation mark, a line's end, what ends labels and what looks like a series: each at the longest, in bytes.
        let hostile = ["\"", "\n", "\\", "}", "{", "\",x=\"", " 7\nfake_total 1", "\u{0}\r\t", "é", "\u{202e}"];
        metrics::with_local_recorder(&recorder, || {
            for number in 0..100_000 {
                let odd = hostile[number % hostile.len()].repeat(8);
                let name = format!("public.{odd}{number}");
                let label = known.of(&name).map_or(OTHERS.into(), SharedString::from_shared);
                metrics::counter!("probe_total", "table" => label).increment(1);
            }
        });
        let page = recorder.handle().render();
        let series: Vec<&str> = page.split('\n').filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(series.len(), MOST + 1);
        assert!(
            series.iter().all(|line| line.starts_with("probe_total{table=\"") && line.contains("\"} ")),
            "{page:.500}"
        );
        let counted: u64 = series.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(counted, 100_000);
        assert!(page.len() < MOST * 300, "{} bytes", page.len());
    }
}
