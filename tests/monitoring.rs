//! What Prometheus, Alertmanager and Grafana are given, held to the code and to the pages: whatever is named there exists.

// A test that can not go on has failed.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use walhouse::telemetry::names::{ALL, Kind, PROCESS};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A program of Prometheus or Alertmanager: the machine's, or the one that tests/services/install has unpacked.
fn program(name: &str) -> Command {
    let unpacked = path("target/monitoring/usr/bin").join(name);
    let mut command = if unpacked.exists() { Command::new(unpacked) } else { Command::new(name) };
    command.current_dir(path("docker/prometheus"));
    command
}

fn succeeds(name: &str, arguments: &[&str]) -> String {
    let output = program(name).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{name} ({error}): run tests/services/install first"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {arguments:?}: {said}");
    said
}

/// Every name that series may have.
fn series() -> HashSet<String> {
    let own = ALL.iter().flat_map(|metric| match metric.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count", ""].map(|end| format!("{}{end}", metric.name)).to_vec(),
        _ => vec![metric.name.to_owned()],
    });
    own.chain(PROCESS.iter().map(|(name, ..)| (*name).to_owned())).collect()
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_metric = |word: &&str| {
        let rest = word.strip_prefix("walhouse_").or_else(|| word.strip_prefix("process_"));
        rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    words.filter(is_metric).map(str::to_owned).collect()
}

/// The rules, by name.
fn rules() -> BTreeMap<String, Value> {
    let groups = yaml("docker/prometheus/alerts.yml")["groups"].as_array().unwrap().clone();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone());
    rules.map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule)).collect()
}

/// All strings under a key, at whatever depth.
fn strings<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == key => found.push(text),
                    value => strings(value, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| strings(item, key, found)),
        _ => {}
    }
}

/// The sections of the runbooks, by heading.
fn sections() -> BTreeMap<String, String> {
    let page = text("docs/runbooks.md");
    let parts = page.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(heading, body)| (heading.to_owned(), body.to_owned())).collect()
}

#[test]
fn every_metric_that_is_named_anywhere_exists() {
    let series = series();
    let pages = fs::read_dir(path("docs")).unwrap().map(|page| format!("docs/{}", page.unwrap().file_name().display()));
    let pages: Vec<String> = pages.filter(|page| page.ends_with(".md")).collect();
    let others = ["docker/prometheus/alerts.yml", "docker/prometheus/alerts_test.yml", "docker/grafana/walhouse.json"];
    let (mut unknown, mut count) = (Vec::new(), 0);
    for file in pages.iter().map(String::as_str).chain(others).chain(["README.md"]) {
        for name in named(&text(file)) {
            count += 1;
            // Names of events triggers and databases, which only look like it.
            if !series.contains(&name) && !["walhouse_ddl", "walhouse_drop"].contains(&name.as_str()) {
                unknown.push(format!("{file}: {name}"));
            }
        }
    }
    assert!(unknown.is_empty(), "no metric is called so: {unknown:#?}");
    assert!(count > 150, "only {count} names were found");
}

/// The integration tests, in one text.
fn integration_tests(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &integration_tests(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all += &fs::read_to_string(&path).unwrap();
        }
    }
    all
}

#[test]
fn every_metric_is_looked_at_by_a_test_against_real_servers() {
    let tests = named(&integration_tests(&path("tests/it")));
    let is_looked_at =
        |name: &str| ["", "_bucket", "_count", "_sum"].iter().any(|end| tests.contains(&format!("{name}{end}")));
    let missing: Vec<&str> = ALL.iter().map(|metric| metric.name).filter(|name| !is_looked_at(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let dashboard = named(&text("docker/grafana/walhouse.json"));
    // What an alert or a rate is made of, and says nothing by itself.
    let apart = ["walhouse_checkpoint_position_bytes"];
    let shown = |name: &str| {
        ["", "_bucket", "_count"].iter().any(|end| dashboard.contains(&format!("{name}{end}"))) || apart.contains(&name)
    };
    let missing: Vec<&str> = ALL.iter().map(|metric| metric.name).filter(|name| !shown(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_alert_says_how_urgent_it_is_and_where_its_runbook_is() {
    let (rules, sections) = (rules(), sections());
    for (name, rule) in &rules {
        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap_or_else(|| panic!("{name} has no {key}"));
        let expected = match rule["labels"]["severity"].as_str() {
            Some("critical") => ("Acknowledge within 15 minutes.", "on-call engineer, then lead engineer"),
            Some("warning") => ("Investigate within 1 hour.", "on-call engineer"),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!((annotation("response"), annotation("escalation")), expected, "{name}");
        assert!(!annotation("summary").is_empty() && !annotation("description").is_empty());
        // A heading's anchor is its text in lower case.
        assert_eq!(annotation("runbook_url"), format!("docs/runbooks.md#{}", name.to_lowercase()));
        let section = sections.get(name).unwrap_or_else(|| panic!("docs/runbooks.md has no section {name}"));
        for part in ["**Means.**", "**Harm.**", "**Urgency.**", "**Look.**", "**Do.**", "**Escalate.**"] {
            assert!(section.contains(part), "{name} has no {part}");
        }
        // How soon and by whom, where the one who is called reads it.
        let severity = rule["labels"]["severity"].as_str().unwrap();
        let (response, escalation) = (annotation("response").to_lowercase(), annotation("escalation"));
        let repeated = format!("{severity}: {} ({escalation})", response.trim_end_matches('.'));
        let urgency = section.split("**Urgency.**").nth(1).unwrap().trim_start().to_lowercase();
        assert!(urgency.starts_with(&repeated), "docs/runbooks.md, {name}, **Urgency.**: begin it with {repeated:?}");
    }
    let stray: Vec<&String> = sections.keys().filter(|section| !rules.contains_key(*section)).collect();
    assert!(stray.is_empty(), "no alert leads to {stray:?}");
}

#[test]
fn every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() {
    let tests = yaml("docker/prometheus/alerts_test.yml");
    let mut seen: BTreeMap<bool, BTreeSet<String>> = BTreeMap::new();
    for test in tests["tests"].as_array().unwrap() {
        for check in test["promql_expr_test"].as_array().into_iter().flatten() {
            let expr = check["expr"].as_str().unwrap();
            if let Some((_, rest)) = expr.split_once("alertname=\"") {
                let name = rest.split('"').next().unwrap().to_owned();
                let fires = !check["exp_samples"].as_array().unwrap().is_empty();
                seen.entry(fires).or_default().insert(name);
            }
        }
    }
    let all: BTreeSet<String> = rules().into_keys().collect();
    assert_eq!(seen.get(&true), Some(&all));
    assert_eq!(seen.get(&false), Some(&all));
}

#[test]
fn the_rules_pass_their_tests_and_the_configurations_are_valid() {
    succeeds("promtool", &["check", "config", "prometheus.yml"]);
    succeeds("promtool", &["test", "rules", "alerts_test.yml"]);
    succeeds("amtool", &["check-config", "alertmanager.yml"]);
}

#[test]
fn alerts_reach_those_who_are_to_act() {
    let receivers = |severity: &str| {
        let label = format!("severity={severity}");
        succeeds("amtool", &["config", "routes", "test", "--config.file=alertmanager.yml", &label])
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(receivers("critical"), "on-call,lead");
    assert_eq!(receivers("warning"), "on-call-slack");
    // What an inhibition names is an alert.
    let alertmanager = text("docker/prometheus/alertmanager.yml");
    let rules = rules();
    let words = alertmanager.split(|c: char| !c.is_ascii_alphanumeric());
    for word in words.filter(|word| word.starts_with("Walhouse")) {
        assert!(rules.contains_key(word), "no alert is called {word}");
    }
}

#[test]
fn the_dashboards_queries_are_promql() {
    let dashboard: Value = serde_json::from_str(&text("docker/grafana/walhouse.json")).unwrap();
    let mut queries = Vec::new();
    strings(&dashboard, "expr", &mut queries);
    assert!(queries.len() > 50, "{}", queries.len());
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(index, query)| {
            let query = query.replace("$__rate_interval", "5m");
            serde_json::json!({"record": format!("query:{index}"), "expr": query})
        })
        .collect();
    // JSON is YAML too.
    let rules = serde_json::json!({"groups": [{"name": "queries", "rules": rules}]});
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("queries-{}.yml", std::process::id()));
    fs::write(&file, rules.to_string()).unwrap();
    succeeds("promtool", &["check", "rules", file.to_str().unwrap()]);
    fs::remove_file(file).unwrap();
}

#[test]
fn compose_mounts_what_is_there_and_ties_it_together() {
    let compose = yaml("docker/compose.yml");
    let services = compose["services"].as_object().unwrap();
    for service in services.values() {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            let exists = match from.strip_prefix("./") {
                Some(file) => path("docker").join(file).exists(),
                None => compose["volumes"].as_object().unwrap().contains_key(from),
            };
            assert!(exists, "docker/compose.yml mounts {from}, which is not there");
        }
    }
    let prometheus = yaml("docker/prometheus/prometheus.yml");
    let target = |value: &Value| {
        let address = value["static_configs"][0]["targets"][0].as_str().unwrap();
        let (host, port) = address.split_once(':').unwrap();
        assert!(services.contains_key(host), "{host} is no service");
        port.parse::<u16>().unwrap()
    };
    assert_eq!(prometheus["scrape_configs"][0]["job_name"], "walhouse");
    assert_eq!(target(&prometheus["scrape_configs"][0]), 9464);
    assert_eq!(target(&prometheus["alerting"]["alertmanagers"][0]), 9093);
    assert_eq!(yaml("docker/grafana/datasource.yml")["datasources"][0]["url"], "http://prometheus:9090");
    let dashboards = yaml("docker/grafana/dashboards.yml")["providers"][0]["options"]["path"].clone();
    let mounted = services["grafana"]["volumes"].to_string();
    assert!(mounted.contains(&format!(":{}/walhouse.json", dashboards.as_str().unwrap())), "{mounted}");
}
