//! The configuration that tests run walhouse with, and a test's own lines laid over it.

/// Lays `extra` over `base`: a key replaces the one of the same section, all else is added.
///
/// Knows sections and `key = value` lines, values over several lines only where the key is new.
pub(crate) fn overlay(base: &str, extra: &str) -> String {
    let mut sections = split(base);
    for (header, lines) in split(extra) {
        let Some((_, own)) = sections.iter_mut().find(|(name, _)| *name == header) else {
            sections.push((header, lines));
            continue;
        };
        let new: Vec<_> = lines.iter().filter_map(|line| key(line)).collect();
        own.retain(|line| !key(line).is_some_and(|key| new.contains(&key)));
        own.extend(lines);
    }
    sections.iter().map(|(header, lines)| format!("{header}\n{}\n", lines.join("\n"))).collect()
}

/// `[section]` lines with what follows each; what stands before the first has an empty one.
fn split(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut sections = vec![("", Vec::new())];
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with('[') && line.ends_with(']') && !line.contains('=') {
            sections.push((line, Vec::new()));
        } else if let Some((_, lines)) = sections.last_mut() {
            lines.push(line);
        }
    }
    sections
}

fn key(line: &str) -> Option<&str> {
    line.split_once('=').map(|(key, _)| key.trim())
}

#[test]
fn a_tests_own_lines_replace_and_extend_the_configuration() {
    let base = "[source]\nslot = \"a\"\ntables = [\"x\"]\n[http]\nlisten = \"l\"\n";
    let all = overlay(base, "[source]\nslot = \"b\"\n[batch]\nmax_rows = 1\n");
    assert_eq!(all, "\n\n[source]\ntables = [\"x\"]\nslot = \"b\"\n[http]\nlisten = \"l\"\n[batch]\nmax_rows = 1\n");
}
