//! The tables of `docs/metrics.md`, made of the list itself.

use super::names::{ALL, Kind, PROCESS};
use std::{collections::HashSet, fs, path::Path};

const BEGIN: &str =
    "<!-- Made by the test the_page_of_metrics_is_what_the_code_has: run it with WALHOUSE_WRITE_DOCS=1. -->\n";
const END: &str = "<!-- The end of what it makes. -->\n";

fn tables() -> String {
    let (mut text, mut about) = (String::new(), "");
    for metric in ALL {
        if metric.about != about {
            about = metric.about;
            text += &format!("\n## {about}\n\n| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
        }
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels) = (metric.name, metric.kind.label(), labels.join(", "));
        text += &format!("| `{name}` | {kind} | {labels} | {} |\n", metric.help);
    }
    for (name, kind, help) in PROCESS {
        text += &format!("| `{name}` | {kind} |  | {help} |\n");
    }
    text + "\n"
}

#[test]
fn the_page_of_metrics_is_what_the_code_has() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/metrics.md has the mark where the tables begin");
    let (_, after) = rest.split_once(END).expect("docs/metrics.md has the mark where the tables end");
    let made = format!("{before}{BEGIN}{}{END}{after}", tables());
    if std::env::var_os("WALHOUSE_WRITE_DOCS").is_some() {
        fs::write(&path, &made).unwrap();
    } else {
        assert_eq!(page, made, "docs/metrics.md is not what the code has; run this test with WALHOUSE_WRITE_DOCS=1");
    }
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    let mut seen = HashSet::new();
    for metric in ALL {
        let name = metric.name;
        assert!(seen.insert(name), "{name} is there twice");
        assert!(name.starts_with("walhouse_"), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        assert!(!name.contains("_ms") && !name.contains("milli"), "{name}: seconds and bytes are the units");
        assert!(!metric.help.is_empty() && !metric.help.contains('|'), "{name}");
    }
}
