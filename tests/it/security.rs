//! What somebody who means harm would try, and what would tell them more than they may know.

mod canaries;
mod core;
mod grants;
mod iam;
mod injection;
mod json;

use std::collections::BTreeMap;

pub(crate) use core::owner_of_memory;

/// Texts by the name of where they were found, and what must be in none of them.
#[derive(Default)]
struct Findings {
    said: BTreeMap<String, String>,
}

impl Findings {
    fn add(&mut self, place: &str, text: impl Into<String>) {
        self.said.entry(place.to_owned()).or_default().push_str(&text.into());
    }

    /// Every place that has one of these, with what stands around it.
    fn of(&self, canaries: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for (place, text) in &self.said {
            for canary in canaries {
                if let Some(at) = text.find(canary.as_str()) {
                    let around = &text.as_bytes()[at.saturating_sub(200)..(at + canary.len() + 100).min(text.len())];
                    let around = String::from_utf8_lossy(around);
                    found.push(format!("{place} has {canary}: …{around}…"));
                }
            }
        }
        found
    }
}
