//! The page held to the loader and to the example: the same keys in all three, and each can be set as the page says.

use super::*;
use std::collections::BTreeSet;

/// The names that the loader knows in a section, from its refusal of one that it does not.
fn known(section: &Section) -> BTreeSet<String> {
    let refusal = read(&with(format!("{}.no_such_key", section.real).trim_start_matches('.'), "1"), &[]);
    let refusal = refusal.expect_err("nobody knows this key");
    let (_, names) = refusal.split_once("unknown key; expected ").unwrap_or_else(|| panic!("{refusal}"));
    let names = names.trim_start_matches("one of ").replace(" or ", ", ");
    names.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_that_the_loader_takes_is_on_the_page_and_no_other() {
    let sections = sections();
    assert!(sections.len() > 15, "only {} sections were found", sections.len());
    for section in &sections {
        let named: BTreeSet<String> = section.names.iter().cloned().collect();
        assert_eq!(named, known(section), "[{}]", section.path);
    }
}

#[test]
fn every_key_says_what_it_is_and_when_to_change_it() {
    for key in sections().iter().flat_map(|section| &section.keys) {
        for (what, text) in [("first", &key.meaning), ("second", &key.advice)] {
            assert!(text.len() > 8 && text.ends_with('.'), "{}: its doc comment needs a {what} paragraph", key.path);
            assert!(!text.contains("[`"), "{}: a link into the code leads nowhere on the page", key.path);
        }
    }
}

#[test]
fn what_has_no_default_has_to_be_given() {
    assert!(read("# Nothing.", &[]).expect_err("no URL").contains("source.url: it is missing"));
    let without = "source.url = \"postgres://w@localhost/shop\"\n[reports.r]\n";
    assert!(read(without, &[]).expect_err("no statement").contains("reports.r.sql"));
}

#[test]
fn every_variable_of_the_page_sets_its_key() {
    let file = std::env::temp_dir().join(format!("walhouse-page-{}", std::process::id()));
    fs::write(&file, "0123456789abcdef-other").unwrap();
    let file_name = file.to_str().expect("a path of ASCII");
    let base = format!(
        "source.url = \"postgres://w@localhost/shop\"\nobjects.url = \"s3://bucket\"\nclickhouse.url = \"https://localhost:8443\"\nqueue = {{}}\nreports.name.sql = \"{SQL}\"\n"
    );
    let usual = read(&base, &[]).expect("valid").redacted_toml().expect("TOML");
    // One of them is right for each key, and is no default.
    let values = [
        "7",
        "0.5",
        "false",
        "true",
        "7MiB",
        "33MiB",
        "100MiB",
        "7s",
        "other",
        "warn",
        "json",
        "clamp",
        "escape",
        "require",
        "public.other",
        "http://localhost:9",
        "s3://other",
        "127.0.0.1:9",
        "postgres://w@localhost/other",
        "0123456789abcdef-other",
        "SELECT 1, {merchant:String}",
        file_name,
    ];
    let set = |name: &str, value: &str| {
        let effective = read(&base, &[(name, value)]).ok()?.redacted_toml().expect("TOML");
        (effective != usual).then_some(())
    };
    let mut count = 0;
    for key in sections().iter().flat_map(|section| &section.keys) {
        let Some(name) = variable(key) else { continue };
        count += 1;
        let values: &[&str] = if key.of == "PathBuf" { &[file_name] } else { &values };
        // A file may need another one beside it, and be refused without: that is said of this key, and of this variable.
        let arrives = || {
            let refusal = read(&base, &[(&name, file_name)]).err().unwrap_or_default();
            refusal.starts_with(&format!("environment variable {name}: {}: ", key.path))
                && !refusal.contains("unknown key")
        };
        let is_set = values.iter().any(|value| set(&name, value).is_some());
        assert!(is_set || key.of == "PathBuf" && arrives(), "{name} sets nothing");
    }
    let _ = fs::remove_file(&file);
    assert!(count > 50, "only {count} variables were tried");
}

/// The keys of the example, those in comments too, with the page's names for what the one who configures names.
fn example() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/walhouse.example.toml");
    let (mut text, mut in_statement) = (String::new(), false);
    for line in fs::read_to_string(path).expect("the example").lines() {
        let line = line.trim_start_matches(['#', ' ']);
        let is_key = line
            .split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'.')));
        if is_key || in_statement || (line.starts_with('[') && line.ends_with(']')) {
            text += line;
            text += "\n";
        }
        in_statement ^= line.matches("\"\"\"").count() % 2 == 1;
    }
    let mut keys = BTreeSet::new();
    paths(&toml::from_str(&text).expect("the example without its comments"), "", &mut keys);
    keys
}

fn paths(table: &toml::Table, under: &str, keys: &mut BTreeSet<String>) {
    let named = NAMED.iter().find(|(section, ..)| under.rsplit('.').next() == Some(*section));
    for (name, value) in table {
        let name = named.map_or(name.as_str(), |(_, shown, _)| shown);
        let path = if under.is_empty() { name.to_owned() } else { format!("{under}.{name}") };
        match value {
            toml::Value::Table(inner) if !["mask", "settings", "column_types", "parameters"].contains(&name) => {
                paths(inner, &path, keys);
            }
            _ => {
                keys.insert(path);
            }
        }
    }
}

#[test]
fn the_example_has_every_key_and_no_unknown_one() {
    let sections = sections();
    let known: BTreeSet<&str> =
        sections.iter().flat_map(|section| &section.keys).map(|key| key.path.as_str()).collect();
    let (example, path) = (example(), Path::new(env!("CARGO_MANIFEST_DIR")).join("config/walhouse.example.toml"));
    let unknown: Vec<&String> = example.iter().filter(|key| !known.contains(key.as_str())).collect();
    assert!(unknown.is_empty(), "config/walhouse.example.toml has keys that nobody knows: {unknown:?}");
    // What several sections have alike is said of one of them, in a sentence.
    let text = fs::read_to_string(path).expect("the example");
    let said = |key: &str| text.contains(&format!("{} = ", key.rsplit('.').next().unwrap_or(key)));
    let missing: Vec<&&str> = known.iter().filter(|key| !example.contains(**key) && !said(key)).collect();
    assert!(missing.is_empty(), "config/walhouse.example.toml lacks {missing:?}");
}
