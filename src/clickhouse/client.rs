//! The HTTP client, and what ClickHouse's errors mean.
//!
//! An error's text may quote the row that it stumbled over, so only its code and that code's name
//! are for logs: [`describe`].

mod https;

use clickhouse::{Client, error::Error};
use secrecy::ExposeSecret;

use crate::{config::ClickHouseConfig, retry::Kind, tls};

/// A client for the configured server and user.
///
/// It names no database, which may not exist yet: statements name theirs, or callers add
/// `with_database`.
pub fn client(config: &ClickHouseConfig) -> Client {
    let client = match config.tls() {
        Some(tls) => https::client(tls),
        None => Client::default(),
    };
    let client = client.with_url(&config.url).with_user(&config.user);
    match &config.password {
        Some(password) => client.with_password(password.expose_secret()),
        None => client,
    }
}

/// Codes that time may mend, by the names that ClickHouse gives them (`errorCodeToName`).
const TRANSIENT: [u32; 30] = [
    32,  // ATTEMPT_TO_READ_AFTER_EOF: the body of an insert was cut
    33,  // CANNOT_READ_ALL_DATA: likewise
    74,  // CANNOT_READ_FROM_FILE_DESCRIPTOR
    75,  // CANNOT_WRITE_TO_FILE_DESCRIPTOR: a full disk
    159, // TIMEOUT_EXCEEDED
    160, // TOO_SLOW
    198, // DNS_ERROR
    202, // TOO_MANY_SIMULTANEOUS_QUERIES
    203, // NO_FREE_CONNECTION
    204, // CANNOT_FSYNC: a full disk, where room is looked for as late as that
    209, // SOCKET_TIMEOUT
    210, // NETWORK_ERROR
    225, // NO_ZOOKEEPER
    236, // ABORTED
    241, // MEMORY_LIMIT_EXCEEDED
    242, // TABLE_IS_READ_ONLY: a replica without its Keeper
    243, // NOT_ENOUGH_SPACE
    252, // TOO_MANY_PARTS
    279, // ALL_CONNECTION_TRIES_FAILED
    285, // TOO_FEW_LIVE_REPLICAS
    286, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
    289, // REPLICA_IS_NOT_IN_QUORUM
    319, // UNKNOWN_STATUS_OF_INSERT
    394, // QUERY_WAS_CANCELLED
    425, // SYSTEM_ERROR
    439, // CANNOT_SCHEDULE_TASK
    473, // DEADLOCK_AVOIDED
    499, // S3_ERROR
    745, // SERVER_OVERLOADED
    999, // KEEPER_EXCEPTION
];

/// Codes of calls to the operating system that need room on the disk, and fail for many other reasons.
const CALLS: [u32; 5] = [
    75,   // CANNOT_WRITE_TO_FILE_DESCRIPTOR
    76,   // CANNOT_OPEN_FILE
    204,  // CANNOT_FSYNC
    521,  // ATOMIC_RENAME_FAIL
    1001, // STD_EXCEPTION: a directory that can not be made, or not be given its name
];

/// Of a statement that waits for a mutation which could not be done to some part so far.
const UNFINISHED: u32 = 341;

/// Whether such a call says that there is no room for more bytes, or for more files.
///
/// ClickHouse looks at the bytes that are free before it writes, and says `NOT_ENOUGH_SPACE`. What it
/// can not know is said by the call that fails: the disk became full in between, there are too many
/// files, or a directory needs another block.
fn is_of_full_disk(code: u32, text: &str) -> bool {
    let reasons = ["No space left on device", "Disk quota exceeded"];
    CALLS.contains(&code) && reasons.iter().any(|reason| text.contains(reason))
}

/// Whether to try again.
pub fn kind(error: &Error) -> Kind {
    match error {
        Error::Network(_) | Error::TimedOut => Kind::Transient,
        Error::BadResponse(text) => match cause(text) {
            Some((code, text)) if TRANSIENT.contains(&code) || is_of_full_disk(code, text) => Kind::Transient,
            Some(_) => Kind::Definite,
            None if ["502", "503", "504", "429"].iter().any(|status| text.starts_with(status)) => Kind::Transient,
            None => Kind::Definite,
        },
        _ => Kind::Definite,
    }
}

/// Whether nobody has answered, or only somebody in front of it.
pub fn is_away(error: &Error) -> bool {
    match error {
        Error::Network(_) | Error::TimedOut => true,
        Error::BadResponse(text) => {
            code(error).is_none() && ["502", "503", "504"].iter().any(|status| text.starts_with(status))
        }
        _ => false,
    }
}

/// ClickHouse's error code: `Code: 516. DB::Exception: …`.
pub fn code(error: &Error) -> Option<u32> {
    let Error::BadResponse(text) = error else { return None };
    first_code(text)
}

fn first_code(text: &str) -> Option<u32> {
    // An exception in the middle of a response has text before it.
    let digits = &text[text.find("Code: ")? + "Code: ".len()..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// The code that says what is in the way, and the text from there on.
///
/// Of an `ALTER` or a `DELETE` that waits for its mutation it is what the mutation has met: ClickHouse
/// goes on trying that, and the statement may be sent again.
fn cause(text: &str) -> Option<(u32, &str)> {
    let code = first_code(text)?;
    let met = (code == UNFINISHED).then(|| text.split_once(" reason: '")).flatten();
    Some(met.and_then(|(_, met)| Some((first_code(met)?, met))).unwrap_or((code, text)))
}

/// The error without anything that may come from a row.
pub fn describe(error: &Error) -> String {
    match (error, code(error)) {
        (Error::BadResponse(text), Some(497)) => {
            // What is missing: a statement's rights, never a value.
            let missing = text.split("necessary to have the grant ").nth(1).and_then(|rest| rest.split(". ").next());
            let missing = missing.map_or(String::new(), |grant| format!(" the grant {grant}"));
            format!(
                "ClickHouse: the user of clickhouse.user lacks{missing} (ACCESS_DENIED): walhouse check names what it needs"
            )
        }
        (Error::BadResponse(_), Some(516 | 192 | 193 | 194)) => {
            "ClickHouse does not take this user and password: correct clickhouse.user and clickhouse.password_file"
                .to_owned()
        }
        (Error::BadResponse(text), Some(code)) => {
            let (code, text) = cause(text).unwrap_or((code, text));
            let reason = if is_of_full_disk(code, text) { ": its disk is full" } else { "" };
            match name(text) {
                Some(name) => format!("ClickHouse: {name} (code {code}){reason}"),
                None => format!("ClickHouse: code {code}{reason}"),
            }
        }
        (Error::BadResponse(_), None) => "ClickHouse: an answer that is not ClickHouse's".to_owned(),
        (Error::Network(cause), _) => match tls::refusal(cause.as_ref(), "clickhouse") {
            Some(why) => format!("TLS to ClickHouse: {why}"),
            None => format!("ClickHouse can not be reached: {}", innermost(cause.as_ref())),
        },
        (Error::TimedOut, _) => "ClickHouse has not answered in time".to_owned(),
        (Error::SchemaMismatch(what), _) => format!("ClickHouse: an answer of another shape than asked for: {what}"),
        _ => "ClickHouse: the answer can not be read".to_owned(),
    }
}

/// Whether it is TLS that does not come about; [`describe`] says why.
pub fn is_of_tls(error: &Error) -> bool {
    matches!(error, Error::Network(cause) if tls::refusal(cause.as_ref(), "clickhouse").is_some())
}

/// The last parenthesis that holds a code's name: `… (TYPE_MISMATCH) (version …)`.
fn name(text: &str) -> Option<&str> {
    let is_name = |word: &&str| {
        word.contains('_') && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    text.rsplit('(').filter_map(|rest| rest.split(')').next()).find(is_name)
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(text: &str) -> Error {
        Error::BadResponse(text.to_owned())
    }

    #[test]
    fn codes_are_found_and_decide() {
        for (text, expected, kind_expected) in [
            (
                "Code: 516. DB::Exception: default: Authentication failed. (AUTHENTICATION_FAILED)",
                Some(516),
                Kind::Definite,
            ),
            ("Code: 252. DB::Exception: Too many parts. (TOO_MANY_PARTS) (version 26.7)", Some(252), Kind::Transient),
            ("Code: 241", Some(241), Kind::Transient),
            ("503 Service Unavailable", None, Kind::Transient),
            ("404 Not Found", None, Kind::Definite),
            ("Code: many", None, Kind::Definite),
        ] {
            let error = bad(text);
            assert_eq!((code(&error), kind(&error)), (expected, kind_expected), "{text}");
        }
        for (text, expected) in
            [("503 Service Unavailable", true), ("429 Too Many Requests", false), ("Code: 210. (NETWORK_ERROR)", false)]
        {
            assert_eq!(is_away(&bad(text)), expected, "{text}");
        }
        assert_eq!((kind(&Error::TimedOut), is_away(&Error::TimedOut)), (Kind::Transient, true));
        assert_eq!(kind(&Error::RowNotFound), Kind::Definite);
    }

    #[test]
    fn a_full_disk_is_waited_out_whichever_call_it_fails_and_so_is_what_holds_up_a_mutation() {
        let file = "Code: 76. DB::ErrnoException: Cannot open file /var/lib/clickhouse/store/a/tmp_insert_all_1_1_0/data.bin: ";
        let directory = "std::exception. Code: 1001, type: std::__1::filesystem::filesystem_error, e.what() = filesystem error: in create_directories: ";
        for (text, expected, description) in [
            (
                format!("{file}, errno: 28, strerror: No space left on device. (CANNOT_OPEN_FILE)\nTotal space: 1 GiB"),
                Kind::Transient,
                "ClickHouse: CANNOT_OPEN_FILE (code 76): its disk is full",
            ),
            (
                format!("{file}, errno: 13, strerror: Permission denied. (CANNOT_OPEN_FILE)"),
                Kind::Definite,
                "ClickHouse: CANNOT_OPEN_FILE (code 76)",
            ),
            (
                format!("{directory}No space left on device [\"/var/lib/clickhouse/store\"]"),
                Kind::Transient,
                "ClickHouse: code 1001: its disk is full",
            ),
            (
                format!("{directory}Disk quota exceeded [\"/var/lib/clickhouse/store\"]"),
                Kind::Transient,
                "ClickHouse: code 1001: its disk is full",
            ),
            (
                format!("{directory}Read-only file system [\"/var/lib/clickhouse/store\"]"),
                Kind::Definite,
                "ClickHouse: code 1001",
            ),
            (
                format!(
                    "Code: 341. DB::Exception: Exception happened during execution of mutation 'mutation_2.txt' with part \
                     'all_1_1_0' reason: '{file}, errno: 28, strerror: No space left on device. (CANNOT_OPEN_FILE)'. This \
                     error maybe retryable or not. (UNFINISHED) (version 26.7.2.1)"
                ),
                Kind::Transient,
                "ClickHouse: CANNOT_OPEN_FILE (code 76): its disk is full",
            ),
            (
                "Code: 341. DB::Exception: Exception happened during execution of mutation 'mutation_2.txt' with part \
                 'all_1_1_0' reason: 'Code: 241. DB::Exception: (total) memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)'. This \
                 error maybe retryable or not."
                    .to_owned(),
                Kind::Transient,
                "ClickHouse: MEMORY_LIMIT_EXCEEDED (code 241)",
            ),
            (
                "Code: 341. DB::Exception: Exception happened during execution of mutation 'mutation_2.txt' with part \
                 'all_1_1_0' reason: 'Code: 349. DB::Exception: Cannot convert NULL value to non-Nullable type. \
                 (CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN)'. This error maybe retryable or not."
                    .to_owned(),
                Kind::Definite,
                "ClickHouse: CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN (code 349)",
            ),
            // A row that speaks of it.
            (
                "Code: 27. DB::Exception: Cannot parse input: expected ',' before: 'No space left on device'"
                    .to_owned(),
                Kind::Definite,
                "ClickHouse: code 27",
            ),
        ] {
            let error = bad(&text);
            assert_eq!((kind(&error), describe(&error).as_str()), (expected, description), "{text}");
        }
    }

    #[test]
    fn a_description_names_the_code_and_quotes_no_row() {
        let error = bad(
            "Code: 27. DB::Exception: Cannot parse input: expected ',' before: 'canary': (at row 1)\n: (CANNOT_PARSE_INPUT_ASSERTION_FAILED) (version 26.7.3.1)",
        );
        assert_eq!(describe(&error), "ClickHouse: CANNOT_PARSE_INPUT_ASSERTION_FAILED (code 27)");
        assert!(!describe(&bad("canary")).contains("canary"));
    }
}
