//! Who may import whom: the promise of `src/lib.rs`, read from the sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A module of the crate's root, and the ones that it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("allocator", &[]),
    ("event", &[]),
    ("privacy", &[]),
    ("quote", &[]),
    ("retry", &[]),
    ("status", &[]),
    ("config", &[]),
    ("store", &["config"]),
    ("mask", &["config"]),
    ("tls", &["config"]),
    ("trace", &["config"]),
    ("telemetry", &["config"]),
    ("checkpoint", &["event"]),
    ("lane", &["event", "retry"]),
    ("postgres", &["config", "event", "lane", "quote", "retry", "telemetry", "tls"]),
    (
        "clickhouse",
        &["checkpoint", "config", "event", "lane", "mask", "quote", "retry", "status", "telemetry", "tls", "trace"],
    ),
    ("queue", &["config", "event", "lane", "mask", "retry", "store", "telemetry", "trace"]),
    ("copy", &["clickhouse", "config", "event", "postgres", "retry", "telemetry"]),
    ("setup", &["clickhouse", "config", "event", "postgres", "quote"]),
    ("workers", &["clickhouse", "config", "event", "queue", "retry", "store", "telemetry"]),
    ("verify", &["event", "quote"]),
    ("cli", &["config", "event"]),
    // The API does what commands do, and tells the audit log by way of the queue.
    ("http", &["cli", "clickhouse", "commands", "config", "event", "queue", "retry", "status", "telemetry"]),
    // It asks all of them, on behalf of the metrics alone.
    ("probe", &["clickhouse", "config", "event", "postgres", "queue", "retry", "telemetry"]),
    (
        "pipeline",
        &[
            "checkpoint",
            "clickhouse",
            "config",
            "copy",
            "event",
            "lane",
            "postgres",
            "queue",
            "quote",
            "retry",
            "setup",
            "status",
            "telemetry",
        ],
    ),
    (
        "commands",
        &[
            "cli",
            "clickhouse",
            "config",
            "event",
            "mask",
            "postgres",
            "queue",
            "quote",
            "retry",
            "setup",
            // The words for where it stands, which the daemon uses of itself.
            "status",
            "store",
            "verify",
        ],
    ),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules of the root that a text names after `crate::`, alone or in braces.
fn named(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (start, _) in text.match_indices("crate::") {
        let rest = &text[start + "crate::".len()..];
        let Some(inside) = rest.strip_prefix('{') else {
            names.extend(word(rest));
            continue;
        };
        // The first word of each item at the outermost level of the braces.
        let (mut depth, mut item) = (0_u32, String::new());
        for byte in inside.chars() {
            match byte {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.extend(word(&std::mem::take(&mut item))),
                other if depth == 0 => item.push(other),
                _ => {}
            }
        }
        names.extend(word(&item));
    }
    names
}

fn word(text: &str) -> Option<String> {
    let word: String = text.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    (!word.is_empty() && word.starts_with(|c: char| c.is_ascii_lowercase())).then_some(word)
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for file in files {
        let relative = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let module = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{relative}: the module {module} has no place in the order yet"));
            continue;
        };
        seen.insert(module.clone());
        for name in named(&fs::read_to_string(&file).unwrap()) {
            if name != module && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{relative} imports {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen.len(), ALLOWED.len(), "every module of the order exists");
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "use crate::{\n    a::{b, c},\n    d::E,\n};\ncrate::f::g();\nuse crate::h;";
    let expected = ["a", "d", "f", "h"].map(str::to_owned);
    assert_eq!(named(text), BTreeSet::from(expected));
}
