//! The process's own metrics, read back from the text that Prometheus is given: so the status page shows the same numbers
//! as a dashboard, and nothing is measured twice.

/// One series and its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Series<'a> {
    /// The metric's name, with `_bucket`, `_sum` or `_count` for the parts of a histogram.
    pub(super) name: &'a str,
    labels: &'a str,
    pub(super) value: f64,
}

/// Every series of a page of metrics. Comments, and lines that are none of this form, are passed over.
pub(super) fn series(page: &str) -> impl Iterator<Item = Series<'_>> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        Some(Series { name, labels, value: value.parse().ok()? })
    })
}

impl Series<'_> {
    /// The value of a label.
    pub(super) fn label(&self, name: &str) -> Option<String> {
        let mut rest = self.labels;
        while let Some((label, quoted)) = rest.split_once("=\"") {
            let (value, after) = unquoted(quoted)?;
            if label == name {
                return Some(value);
            }
            rest = after.trim_start_matches(',');
        }
        None
    }
}

/// The text up to the quotation mark that ends it, and what follows.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_with_whatever_is_in_their_labels() {
        let page = "# HELP a what it is\n# TYPE a counter\na 7\nb{table=\"public.a b\",x=\"\"} 1.5\n\
                    c{t=\"q\\\"{}\\\\ \\n,x=\",le=\"+Inf\"} 3\nnonsense\nd{le=\"1\" 2\ne +Inf\n";
        let all: Vec<_> = series(page).collect();
        let names: Vec<_> = all.iter().map(|one| (one.name, one.value)).collect();
        assert_eq!(names, [("a", 7.0), ("b", 1.5), ("c", 3.0), ("e", f64::INFINITY)]);
        assert_eq!(all[0].label("table"), None);
        assert_eq!(all[1].label("table").as_deref(), Some("public.a b"));
        assert_eq!(all[1].label("x").as_deref(), Some(""));
        assert_eq!(all[2].label("t").as_deref(), Some("q\"{}\\ \n,x="));
        assert_eq!(all[2].label("le").as_deref(), Some("+Inf"));
    }
}
