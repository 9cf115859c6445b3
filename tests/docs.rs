//! The pages held to each other: whatever they link to is there, and who begins at the README finds every page.

// A test that can not go on has failed.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All pages of the repository, by their path in it.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let name = PathBuf::from(entry.unwrap().file_name());
            let path = folder.join(&name);
            if root().join(&path).is_dir() {
                let hidden = name.to_string_lossy().starts_with('.');
                if !hidden && name != Path::new("target") && name != Path::new("node_modules") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(root().join(&path)).unwrap();
                pages.insert(path, text);
            }
        }
    }
    pages
}

/// The lines of a page outside of fenced code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(page) {
        let text = line.trim_start_matches('#');
        if !line.starts_with('#') || !text.starts_with(' ') {
            continue;
        }
        let kept = text.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = (1..).map(|count| format!("{anchor}-{count}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|anchor| !anchors.contains(anchor));
        anchors.insert(free.unwrap());
    }
    anchors
}

/// Where a page's links lead, outside of code.
fn links(page: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(page) {
        // Every second part is between backticks, unless the text of a link is code itself.
        for (at, _) in line.match_indices("](") {
            let in_code = line[..at].matches('`').count() % 2 == 1;
            let target = line[at + 2..].split(')').next().unwrap();
            if !in_code && !target.is_empty() {
                links.push(target.split(' ').next().unwrap().to_owned());
            }
        }
    }
    links
}

/// A path without what leads up and down again.
fn resolved(from: &Path, target: &str) -> PathBuf {
    let mut path = from.parent().unwrap_or(Path::new("")).to_path_buf();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => assert!(path.pop(), "{}: {target} leads out of the repository", from.display()),
            part => path.push(part),
        }
    }
    path
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let (mut broken, mut count) = (Vec::new(), 0);
    for (from, page) in &pages {
        for link in links(page).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            count += 1;
            let (target, anchor) = link.split_once('#').map_or((link.as_str(), None), |(to, at)| (to, Some(at)));
            let to = if target.is_empty() { from.clone() } else { resolved(from, target) };
            let known = |anchor: &str| pages.get(&to).is_none_or(|page| anchors(page).contains(anchor));
            if !root().join(&to).exists() || !anchor.is_none_or(known) {
                broken.push(format!("{}: {link}", from.display()));
            }
        }
    }
    assert!(broken.is_empty(), "these lead nowhere: {broken:#?}");
    assert!(count > 150, "only {count} links were found");
}

/// The pages that a page links to.
fn led_to(pages: &BTreeMap<PathBuf, String>, from: &Path) -> BTreeSet<PathBuf> {
    let local = links(&pages[from]).into_iter().filter(|link| !link.contains("://"));
    local.map(|link| resolved(from, link.split('#').next().unwrap())).collect()
}

#[test]
fn every_page_of_docs_is_linked_from_the_readme_or_from_that_of_its_folder() {
    let pages = pages();
    let mut linked = led_to(&pages, Path::new("README.md"));
    let folders: Vec<_> = linked.iter().filter(|page| page.ends_with("README.md")).cloned().collect();
    linked.extend(folders.iter().flat_map(|folder| led_to(&pages, folder)));
    let alone: Vec<&PathBuf> =
        pages.keys().filter(|page| page.starts_with("docs") && !linked.contains(*page)).collect();
    assert!(alone.is_empty(), "{alone:?}");
}

#[test]
fn anchors_are_made_as_github_makes_them() {
    let page =
        "# A page\n## `[source]`\n### `source.catch_up_lag`\n## Back, and forth: 2\n## Same\n```\n# no\n```\n## Same\n";
    let expected = ["a-page", "back-and-forth-2", "same", "same-1", "source", "sourcecatch_up_lag"];
    assert_eq!(anchors(page).into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(links("[a](b.md#c), `[d](e)` and [`f`](g.md \"h\")\n```\n[i](j)\n```\n"), ["b.md#c", "g.md"]);
}

/// Every file below a folder.
fn sources(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn the_tests_that_the_threat_model_names_are_there() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut all = String::new();
    sources(&root().join("tests"), &mut all);
    sources(&root().join("src"), &mut all);
    // A test is a sentence.
    let is_test = |word: &&str| word.matches('_').count() > 3 && !word.contains([' ', '(']);
    let named: Vec<_> = page.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).filter(is_test).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        assert!(all.contains(&format!("fn {name}()")), "docs/security.md names the test {name}, and there is none");
    }
}
