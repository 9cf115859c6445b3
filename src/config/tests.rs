use std::{ffi::OsString, fs, path::PathBuf};

use secrecy::ExposeSecret;

use super::{load::load_with, *};

const MINIMAL: &str = "[source]\nurl = \"postgres://w@localhost/shop\"\n";

/// A directory of its own that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("walhouse-config-{}", uuid()));
        fs::create_dir(&path).expect("a fresh directory");
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a file in a fresh directory");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn uuid() -> String {
    format!("{}-{:x}", std::process::id(), rand::random::<u64>())
}

fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let directory = Directory::new();
    let path = directory.file("walhouse.toml", text);
    load_with(&path, variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

fn read(text: &str) -> Result<Config, ConfigError> {
    read_with(text, &[])
}

fn refusal(text: &str) -> String {
    read(text).expect_err(text).to_string()
}

fn toml_of(config: &Config) -> String {
    config.redacted_toml().expect("the tree is representable in TOML")
}

#[test]
fn the_text_may_be_a_variable() {
    let read = |name: &str, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        load_with(&PathBuf::from(format!("env:{name}")), variables)
    };
    let over = ("WALHOUSE__SOURCE__SLOT", "other");
    assert_eq!(read("TOML", &[("TOML", MINIMAL), over]).expect("it is valid").source.slot, "other");
    let refused = |variables: &[(&str, &str)]| read("TOML", variables).expect_err("refused").to_string();
    assert!(refused(&[over]).starts_with("env:TOML: there is no such environment variable; give "));
    assert!(refused(&[("TOML", "")]).starts_with("env:TOML: the environment variable is empty; give "));
    let wrong = refused(&[("TOML", "[source]\nurl = \"postgres://w@localhost/shop\"\nslod = \"canary\"")]);
    assert!(wrong.starts_with("env:TOML: source.slod: unknown key") && !wrong.contains("canary"), "{wrong}");
}

#[test]
fn the_example_is_the_defaults() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/walhouse.example.toml");
    let example = load_with(&path, std::iter::empty()).expect("the example is valid");
    let url = "postgres://walhouse@localhost:5432/shop".parse().expect("a URL");
    assert_eq!(toml_of(&example), toml_of(&Config::new(url)));
}

#[test]
fn every_commented_key_of_the_example_is_its_default() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/walhouse.example.toml");
    let text = fs::read_to_string(path).expect("the example");
    // Secrets, what the machine decides, and what there may be none of.
    let without = [
        "password",
        "salt",
        "viewer_token",
        "operator_token",
        "catch_up_sessions",
        "otlp_endpoint",
        "ssl",
        "channel_binding",
    ];
    let is_key = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|rest| is_key(rest) && !without.iter().any(|key| rest.starts_with(key)))
                .unwrap_or(line)
        })
        .collect();
    let url = "postgres://walhouse@localhost:5432/shop".parse().expect("a URL");
    let defaults = toml_of(&Config::new(url));
    assert_eq!(toml_of(&read(&uncommented.join("\n")).expect("still valid")), defaults);
    for key in defaults.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| format!("{key} = ")) {
        assert!(uncommented.iter().any(|line| line.starts_with(&key)), "{key} is not in the example");
    }
}

#[test]
fn the_effective_configuration_can_be_read_again() {
    let text = toml_of(&read(MINIMAL).expect("valid"));
    assert_eq!(toml_of(&read(&text).expect("its own output")), text);
}

#[test]
fn the_environment_lies_over_the_file() {
    let variables = [
        ("WALHOUSE__BATCH__MAX_DELAY", "250ms"),
        ("WALHOUSE__BATCH__MAX_ROWS", "7"),
        ("walhouse__source__snapshot__workers", "5"),
        ("WALHOUSE__SOURCE__CATCH_UP_SESSIONS", "0"),
        ("WALHOUSE__SOURCE__TABLES", "public.{a,b}, crm.Contact"),
        ("WALHOUSE__CLICKHOUSE__PASSWORD", "00123"),
        ("WALHOUSE__CLICKHOUSE__USER", ""),
        ("WALHOUSE_LOG", "ignored"),
    ];
    let config = read_with(&format!("{MINIMAL}[batch]\nmax_delay = \"3s\"\n"), &variables).expect("valid");
    assert_eq!(config.batch.max_delay, Timespan(Duration::from_millis(250)));
    assert_eq!(config.batch.max_rows, 7);
    assert_eq!(config.source.snapshot.workers, 5);
    assert_eq!(config.source.sessions(), 0);
    assert_eq!(config.source.tables.iter().map(Glob::to_string).collect::<Vec<_>>(), ["public.{a,b}", "crm.Contact"]);
    assert_eq!(config.clickhouse.password.map(|secret| secret.expose_secret().to_owned()).as_deref(), Some("00123"));
    assert_eq!(config.clickhouse.user, "default");
}

#[test]
fn the_environment_alone_may_give_the_url() {
    let config = read_with("", &[("WALHOUSE__SOURCE__URL", "postgres://w@localhost/shop")]).expect("valid");
    assert_eq!(config.source.url.database(), "shop");
}

#[test]
fn an_error_names_the_variable_that_caused_it() {
    let error = read_with(MINIMAL, &[("WALHOUSE__BATCH__MAX_DELAY", "soon")]).expect_err("no time").to_string();
    assert!(error.starts_with("environment variable WALHOUSE__BATCH__MAX_DELAY: batch.max_delay: \"soon\""), "{error}");
    let error = read_with(MINIMAL, &[("WALHOUSE__BATCH__MAXDELAY", "1s")]).expect_err("no such key").to_string();
    assert!(
        error.starts_with("environment variable WALHOUSE__BATCH__MAXDELAY: batch.maxdelay: unknown key"),
        "{error}"
    );
}

#[test]
fn an_error_names_the_file_the_key_and_what_is_accepted() {
    for (text, words) in [
        ("[batch]\nmax_delay = \"soon\"", ["batch.max_delay: ", "250ms"]),
        ("[batch]\nmax_delay = \"2h\"", ["batch.max_delay: ", "1ms to 5m"]),
        ("[batch]\nmax_rows = 0", ["batch.max_rows: ", "1 to "]),
        ("[batch]\nmax_rows = \"many\"", ["batch.max_rows: ", "integer"]),
        ("[batch]\nmax_bytes = [8]", ["batch.max_bytes: ", "string"]),
        ("[batch]\nmax_bytes = \"1kB\"", ["batch.max_bytes: ", "64KiB to 1GiB"]),
        ("[batch]\nunrepresentable = \"drop\"", ["batch.unrepresentable: ", "\"dead_letter\""]),
        ("[batch]\nmax_dely = \"1s\"", ["batch.max_dely: unknown key", "max_delay"]),
        ("[sauce]\n", ["sauce: unknown key", "source"]),
        ("[memory]\nbudget = \"16MiB\"", ["memory.budget: ", "at least 24MiB"]),
        ("[objects]\nurl = \"file://objects\"", ["objects.url: ", "file:///absolute/path"]),
        ("[operation]\nmax_rows = 0", ["operation.max_rows: ", "1 to "]),
        ("[operation]\ncsv_formulas = \"drop\"", ["operation.csv_formulas: \"drop\" is none of ", "\"escape\""]),
        ("[reports.all]\nsql = \"SELECT 1\"", ["reports.all.sql: ", "{merchant:String}"]),
        ("[reports.all]\nsql = \"SELECT 1\"\nparameters = { a = \"Text\" }", ["reports.all.parameters.a", "UInt64"]),
        ("[reports.all]\nsql = \"SELECT 1\"\nquery = \"\"", ["reports.all.query: unknown key", "sql"]),
        ("[metrics]\nmax_tables = 1000000", ["metrics.max_tables: ", "0 to 100000"]),
        ("[http]\nlisten = \"9464\"", ["http.listen: ", "127.0.0.1:9464"]),
        ("[log]\nformat = \"xml\"", ["log.format: ", "\"json\""]),
        ("[log]\nlevel = \"walhouse=loud\"", ["log.level: ", "info"]),
        ("[log]\nlevel = \"warning\"", ["log.level: ", "warn, info"]),
        ("[log]\nlevel = \"info,verbose\"", ["log.level: ", "info"]),
        ("[clickhouse]\nurl = \"localhost:8123\"", ["clickhouse.url: ", "http://host:8123"]),
        ("[clickhouse]\nsslmode = \"require\"", ["clickhouse.url: ", "https://host:8443"]),
        ("[clickhouse]\nurl = \"https://ch\"\nsslmode = \"prefer\"", ["clickhouse.sslmode: ", "verify-full"]),
        ("sslmode = \"allow\"", ["source.sslmode: ", "\"verify-full\""]),
        ("sslcert = \"/c.pem\"", ["source.sslcert: ", "set sslkey"]),
        ("channel_binding = \"always\"", ["source.channel_binding: ", "\"require\""]),
        ("[clickhouse]\nurl = \"http://u:canary@ch\"", ["clickhouse.url: ", "clickhouse.user"]),
        ("[clickhouse]\ndatabase = \"system\"", ["clickhouse.database: ", "of its own"]),
        ("[clickhouse]\ndatabase = \"\"", ["clickhouse.database: ", "1 to 200"]),
        ("catch_up_sessions = 33", ["source.catch_up_sessions: ", "0 to 32"]),
        ("catch_up_window = \"1kB\"", ["source.catch_up_window: ", "64KiB to 4GiB"]),
        ("catch_up_lag = \"1MiB\"", ["source.catch_up_lag: ", "32MiB to "]),
        ("catch_up_timeout = \"0s\"", ["source.catch_up_timeout: ", "100ms to "]),
        ("[source.snapshot]\nworkers = 65", ["source.snapshot.workers: ", "1 to 64"]),
    ] {
        let error = refusal(&format!("{MINIMAL}{text}"));
        assert!(error.contains("walhouse.toml: "), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!error.contains("canary"), "{error}");
    }
}

#[test]
fn names_that_postgresql_would_not_take_are_refused() {
    for slot in ["", "Walhouse", "wal-house", "wal house", &"s".repeat(64)] {
        assert!(refusal(&format!("{MINIMAL}slot = \"{slot}\"")).contains("source.slot: "));
    }
    read(&format!("{MINIMAL}slot = \"{}\"\npublication = \"Größe 1\"", "s".repeat(63))).expect("valid names");
    for publication in ["", &"p".repeat(64)] {
        assert!(refusal(&format!("{MINIMAL}publication = \"{publication}\"")).contains("source.publication: "));
    }
}

#[test]
fn patterns_are_compiled_and_their_place_in_the_list_is_named() {
    let error = refusal(&format!("{MINIMAL}tables = [\"public.*\", \"orders\"]"));
    assert!(error.contains("source.tables[1]: \"orders\""), "{error}");
    assert!(refusal(&format!("{MINIMAL}exclude = [\"public.[\"]")).contains("source.exclude[0]: "));
    assert!(refusal(&format!("{MINIMAL}tables = []")).contains("source.tables: "));
}

#[test]
fn what_a_later_version_knows_is_refused_as_such() {
    let error = refusal(&format!("{MINIMAL}[clickhouse]\ncluster = \"main\""));
    assert!(error.contains("clickhouse.cluster: this version of walhouse does not support it yet"), "{error}");
}

#[test]
fn a_table_has_its_options_under_its_own_name() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/walhouse.example.toml");
    let text = fs::read_to_string(path).expect("the example");
    let (_, section) = text.split_once("# [tables.").expect("an example of a table");
    let is_key = |line: &&str| line.split_once(" = ").is_some_and(|(key, _)| !key.trim_start().contains([' ', '"']));
    let keys =
        section.lines().filter_map(|line| line.strip_prefix("#   ")).filter(is_key).collect::<Vec<_>>().join("\n");
    let config = read(&format!("{MINIMAL}[tables.\"public.sales_order\"]\n{keys}")).expect("the example is valid");
    let options = config.table_options("public", "sales_order");
    let TableConfig { target, exclude_columns, column_types, mask, order_by, partition_by, settings, .. } =
        options.table;
    assert_eq!((target.as_deref(), exclude_columns), (Some("orders"), vec!["notes".to_owned()]));
    assert_eq!(column_types["total_amount"], "Decimal(18, 2)");
    assert_eq!([&mask["email"], &mask["phone"]], [&Masking::Hash, &Masking::Null]);
    assert_eq!(mask["city"], Masking::Fixed("(masked)".to_owned()));
    assert_eq!((order_by.len(), partition_by.as_deref()), (2, Some("intDiv(id, 10_000_000)")));
    assert_eq!(settings["index_granularity"], SettingValue::Integer(4096));
    assert_eq!(config.table_options("crm", "sales_order").table, TableConfig::default());
}

#[test]
fn keys_of_the_file_keep_their_case_and_their_dots() {
    let text = "[tables.\"public.Sales Order\"]\ntarget = \"a\"\n[tables.\"public.ÄÖ[0]\"]\ntarget = \"b\"\n";
    let config = read(&format!("{MINIMAL}{text}")).expect("valid");
    let target = |name| config.table_options("public", name).table.target;
    assert_eq!(target("Sales Order").as_deref(), Some("a"));
    assert_eq!(target("ÄÖ[0]").as_deref(), Some("b"));
    assert_eq!(target("sales order"), None);
}

#[test]
fn the_policy_of_a_column_wins_over_its_table_and_that_over_the_batch() {
    let text = "[tables.\"public.t\"]\nunrepresentable = \"fail\"\ncolumns.a.unrepresentable = \"dead_letter\"";
    let config = read(&format!("{MINIMAL}{text}")).expect("valid");
    let policy = |table, column| config.table_options("public", table).unrepresentable(column);
    assert_eq!(policy("t", "a"), Unrepresentable::DeadLetter);
    assert_eq!(policy("t", "b"), Unrepresentable::Fail);
    assert_eq!(policy("u", "b"), Unrepresentable::DeadLetter);
}

#[test]
fn options_of_a_table_that_can_not_be_are_refused_with_their_path() {
    let long = "x".repeat(201);
    for (table, options, words) in [
        ("orders", "", "tables.\"orders\": it is not the name of one table"),
        ("public.*", "", "tables.\"public.*\": it is not the name of one table"),
        ("crm.t", "", "tables.\"crm.t\": source.tables and source.exclude do not let this table in"),
        ("public.t", "exclude_column = [\"a\"]", "tables.public.t.exclude_column: unknown key; expected one of target"),
        ("public.t", &format!("target = \"{long}\""), "tables.\"public.t\".target: "),
        ("public.t", "exclude_columns = [\"a\", \"a\"]", ".exclude_columns: \"a\" is in it twice"),
        (
            "public.t",
            "exclude_columns = [\"a\"]\nmask = { a = \"hash\" }",
            ".mask.a: the column is in exclude_columns too",
        ),
        ("public.t", "mask = { a = \"md5\" }", ".mask.a: \"md5\" is none of \"hash\", \"null\""),
        ("public.t", "mask = { a = { fix = \"x\" } }", ".mask.a: it is none of \"hash\""),
        ("public.t", "mask = { a = \"hash\" }\ncolumn_types = { a = \"UUID\" }", ".column_types.a: the column's mask"),
        ("public.t", "partition_by = \" \"", ".partition_by: it is empty"),
        ("public.t", "settings = { \"x, y\" = 1 }", ".settings.x, y: it is not the name"),
        ("public.t", "settings = { allow_experimental_replacing_merge_with_cleanup = 1 }", "tombstones must stay"),
        ("public.t", "columns.a.policy = \"null\"", "columns.a.policy: unknown key"),
        ("public.t", "on_drop_column = \"hide\"", "on_drop_column: \"hide\" is none of \"keep\", \"drop\""),
    ] {
        let error = refusal(&format!("{MINIMAL}[tables.\"{table}\"]\n{options}"));
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_salt_is_a_secret() {
    let directory = Directory::new();
    let file = directory.file("salt", "canary\n");
    let config = read(&format!("{MINIMAL}[masking]\nsalt_file = {file:?}")).expect("valid");
    assert_eq!(config.table_options("public", "t").salt.expect("a salt").expose_secret(), "canary");
    assert!(!format!("{config:?}{}", toml_of(&config)).contains("canary"));
    assert!(refusal(&format!("{MINIMAL}[masking]\nsalt = \"\"")).contains("masking.salt: it is empty"));
}

#[test]
fn a_missing_url_is_named() {
    for text in ["", "[source]\nslot = \"s\"", "[batch]\nmax_rows = 1"] {
        assert!(refusal(text).contains("source.url: it is missing"), "{}", refusal(text));
    }
}

#[test]
fn a_missing_file_is_named_with_the_flag_that_mends_it() {
    let error =
        load_with(&PathBuf::from("/nowhere/walhouse.toml"), std::iter::empty()).expect_err("absent").to_string();
    assert!(error.starts_with("/nowhere/walhouse.toml: ") && error.contains("--config"), "{error}");
}

#[test]
fn a_password_file_is_read_without_its_last_line_break() {
    let directory = Directory::new();
    for (content, password) in
        [("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), (" s3cret ", " s3cret "), ("a\n\n", "a\n")]
    {
        let file = directory.file("password", content);
        let text = format!("{MINIMAL}password_file = {file:?}\n[clickhouse]\npassword_file = {file:?}\n");
        let config = read(&text).expect("valid");
        assert_eq!(config.source.url.connection().get_password(), Some(password.as_bytes()));
        assert_eq!(config.clickhouse.password.expect("a password").expose_secret(), password);
    }
}

#[test]
fn a_password_file_that_is_empty_absent_or_beside_a_password_is_refused() {
    let directory = Directory::new();
    let empty = directory.file("empty", "\n");
    assert!(refusal(&format!("{MINIMAL}password_file = {empty:?}")).contains("source.password_file: "));
    assert!(refusal(&format!("{MINIMAL}password_file = \"/nowhere/p\"")).contains("/nowhere/p can not be read"));
    let full = directory.file("full", "canary");
    let error = refusal(&format!("{MINIMAL}[clickhouse]\npassword = \"canary\"\npassword_file = {full:?}"));
    assert!(error.contains("clickhouse.password is set too") && !error.contains("canary"), "{error}");
}

#[test]
fn a_token_that_is_short_unfit_for_a_header_or_of_both_roles_is_refused_without_being_shown() {
    for (key, token) in [("viewer_token", "canary"), ("operator_token", "canary with spaces in it")] {
        let error = refusal(&format!("{MINIMAL}[http]\n{key} = \"{token}\""));
        assert!(error.contains(&format!("http.{key}: a token ")) && error.contains("openssl rand"), "{error}");
        assert!(!error.contains("canary"), "{error}");
    }
    let one = "canary-canary-canary";
    let error = refusal(&format!("{MINIMAL}[http]\nviewer_token = \"{one}\"\noperator_token = \"{one}\""));
    assert!(error.contains("give two different ones") && !error.contains(one), "{error}");
    let directory = Directory::new();
    let file = directory.file("token", &format!("{one}\n"));
    let config = read(&format!("{MINIMAL}[http]\nviewer_token = \"{one}-2\"\noperator_token_file = {file:?}"));
    let config = config.expect("valid");
    assert_eq!(config.http.operator_token.as_ref().expect("a token").expose_secret(), one);
    for output in [format!("{config:?}"), toml_of(&config), serde_json::to_string(&config).expect("JSON")] {
        assert!(!output.contains(one), "{output}");
    }
}

#[test]
fn a_password_overrides_the_one_in_the_url() {
    let config = read("[source]\nurl = \"postgres://w:old@localhost/shop\"\npassword = \"new\"").expect("valid");
    assert_eq!(config.source.url.connection().get_password(), Some(&b"new"[..]));
}

#[test]
fn no_output_shows_a_secret() {
    let text = "[source]\nurl = \"postgres://w:canary1@localhost/shop\"\npassword = \"canary2\"\n[clickhouse]\npassword = \"canary3\"";
    let config = read(text).expect("valid");
    let json = serde_json::to_string(&config).expect("JSON");
    for output in [format!("{config:?}"), format!("{config:#?}"), toml_of(&config), json] {
        assert!(!output.contains("canary"), "{output}");
        assert!(output.contains("(redacted)") || output.contains("REDACTED"), "{output}");
    }
}

#[test]
fn no_error_shows_a_secret() {
    for text in [
        "source = \"postgres://w:canary@localhost/shop\"",
        "[source]\nurl = \"postgres://w:canary@10.0.0.1/shop?sslmode=canary\"",
        "[source]\nurl = \"postgres://w:canary@localhost/shop",
        "[source]\nurl = \"postgres://w@localhost/shop\"\npassword = \"canary",
        "[source]\nurl = \"postgres://w@localhost/shop\"\npassword = canary",
        "[source]\nurl = \"postgres://w@localhost/shop\"\npassword = 'canary' x",
        "[source]\nurl = \"postgres://w@localhost/shop\"\npassword = [\"canary\"]",
        "[source]\nurl = \"postgres://w@localhost/shop\"\npassword = { canary1 = 1 }",
        "[source]\nurl = \"postgres://w@localhost/shop\"\npassword = \"\"\"\ncanary\nx | canary\n",
        "[source]\nurl = \"postgres://w@localhost/shop\"\nclickhouse = \"canary, expected canary\"",
    ] {
        let error = read(text).expect_err(text);
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = refusal("[source]\nurl = \"postgres://w@localhost/shop\n");
    assert!(error.contains("line 2"), "{error}");
}
