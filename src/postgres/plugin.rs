//! What the output plugin is asked for: the same by every reader, since a replay through another one
//! must give the same rows.

use crate::quote;

/// The options of pgoutput, as names and values, for whoever reads `publication`.
fn options(publication: &str) -> [(&'static str, String); 3] {
    // The server parses a list of identifiers there.
    let publications = quote::postgres(publication);
    [("proto_version", "1".to_owned()), ("publication_names", publications), ("messages", "true".to_owned())]
}

/// As START_REPLICATION takes them, between its parentheses.
pub fn replication_options(publication: &str) -> String {
    options(publication).map(|(name, value)| format!("{name} {}", quote::postgres_string(&value))).join(", ")
}

/// As the SQL functions take them, for their variadic parameter.
pub fn function_options(publication: &str) -> String {
    options(publication).map(|(name, value)| format!("'{name}', {}", quote::postgres_string(&value))).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_can_be_called_anything() {
        let options = r#"proto_version '1', publication_names '"a''b""c"', messages 'true'"#;
        assert_eq!(replication_options(r#"a'b"c"#), options);
        let options = r#"'proto_version', '1', 'publication_names', '"a''b""c"', 'messages', 'true'"#;
        assert_eq!(function_options(r#"a'b"c"#), options);
    }
}
