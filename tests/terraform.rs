//! The queues of `docker/ecs` are those that `walhouse provision` would make: the same names and numbers, read from both
//! texts where the code keeps them to itself. And its alarms count lines that the log has.

use std::{fs, path::Path};

use walhouse::{
    config::WorkersConfig,
    event::envelope::Queue,
    queue::{claim::FOLDER, pending::MAX_BYTES, provision::visibility},
};

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The part of a file of Terraform from a line that begins so to the line that closes it.
fn block(text: &str, head: &str) -> String {
    let lines = text.lines().skip_while(|line| !line.starts_with(head)).take_while(|line| *line != "}");
    let block: Vec<_> = lines.collect();
    assert!(!block.is_empty(), "there is no {head}");
    block.join("\n")
}

/// What stands behind `name =` in a text, up to the end of its line or object, or a comma.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.match_indices(name).find_map(|(start, _)| {
        let is_whole =
            text[..start].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && before != '_');
        let rest = text[start + name.len()..].trim_start_matches(' ').strip_prefix('=')?;
        is_whole.then(|| rest.split(['\n', ',']).next().unwrap_or_default().trim_end_matches([' ', '}']).trim_start())
    })
}

fn number(text: &str, name: &str) -> u64 {
    let value = value(text, name).unwrap_or_else(|| panic!("there is no {name} in {text}"));
    value.parse().unwrap_or_else(|error| panic!("{name} = {value}: {error}"))
}

/// The seconds of a constant of `src/queue/provision.rs`, which may be a product.
fn constant(source: &str, name: &str) -> u64 {
    let head = format!("const {name}: Duration = Duration::from_secs(");
    let start = source.find(&head).unwrap_or_else(|| panic!("there is no {name} in seconds")) + head.len();
    let factors = source[start..].split(')').next().unwrap_or_default().split('*');
    factors.map(|factor| factor.trim().replace('_', "").parse::<u64>().expect("a number")).product()
}

#[test]
fn the_queues_of_terraform_are_those_of_the_code() {
    let (queues, source) = (text("docker/ecs/queues.tf"), text("src/queue/provision.rs"));
    let (live, dead) =
        (block(&queues, "resource \"aws_sqs_queue\" \"live\""), block(&queues, "resource \"aws_sqs_queue\" \"dead\""));
    assert_eq!(number(&live, "message_retention_seconds"), constant(&source, "RETENTION"));
    assert_eq!(number(&dead, "message_retention_seconds"), constant(&source, "RETENTION_OF_THE_DEAD"));
    assert!(constant(&source, "RETENTION") < constant(&source, "RETENTION_OF_THE_DEAD"));
    assert_eq!(number(&live, "receive_wait_time_seconds"), constant(&source, "LONG_POLL"));
    for queue in [&live, &dead] {
        assert_eq!(number(queue, "max_message_size"), MAX_BYTES as u64);
        assert_eq!(value(queue, "sqs_managed_sse_enabled"), Some("true"));
        assert_eq!(value(queue, "fifo_queue"), Some("var.fifo"));
    }
    let names = |queue: Queue| {
        let label = queue.label();
        let terraform = |text: &str| value(text, "name").map(|name| name.replace("${each.key}", label));
        let whole = |name: String| Some(format!("\"${{var.prefix}}{name}${{local.suffix}}\""));
        ((terraform(&live), terraform(&dead)), (whole(queue.name()), whole(queue.dead_letters())))
    };
    for queue in Queue::ALL {
        let (terraform, code) = names(queue);
        assert_eq!(terraform, code);
    }
}

#[test]
fn each_queue_of_terraform_has_the_tries_and_the_time_of_the_code() {
    let queues = text("docker/ecs/queues.tf");
    let (locals, workers) = (block(&queues, "locals {"), WorkersConfig::default());
    let live = block(&queues, "resource \"aws_sqs_queue\" \"live\"");
    let formula = "floor(lookup(var.timeouts, each.key, each.value.timeout)) + local.grace";
    assert!(live.contains(&format!("visibility_timeout_seconds = {formula}")), "{live}");
    assert_eq!(value(&live, "maxReceiveCount"), Some("each.value.receives"));
    for queue in Queue::ALL {
        let line = locals.lines().find(|line| line.trim_start().starts_with(&format!("{} ", queue.label())));
        let line = line.unwrap_or_else(|| panic!("there is no {} in {locals}", queue.label()));
        assert_eq!(number(line, "timeout"), queue.timeout().as_secs(), "{queue:?}");
        assert_eq!(
            number(line, "timeout") + number(&locals, "grace"),
            visibility(queue, &workers).as_secs(),
            "{queue:?}"
        );
        assert_eq!(number(line, "receives"), u64::from(queue.retries() + 1), "{queue:?}");
    }
    let others = locals.lines().filter(|line| line.contains("receives = ")).count();
    assert_eq!(others, Queue::ALL.len(), "no other queue is there");
}

#[test]
fn payloads_outlive_every_message_that_may_refer_to_them() {
    let (objects, iam) = (text("docker/ecs/objects.tf"), text("docker/ecs/iam.tf"));
    let rule = block(&objects, "resource \"aws_s3_bucket_lifecycle_configuration\" \"payloads\"");
    let source = text("src/queue/provision.rs");
    let (live, dead) = (constant(&source, "RETENTION"), constant(&source, "RETENTION_OF_THE_DEAD"));
    // In its queue, as a dead letter, and in its queue once more.
    assert!(number(&rule, "days") * 86_400 > live + dead + live, "{rule}");
    let events = text("docs/events.md");
    assert!(
        events.contains(&format!("expire after **{} days**", number(&rule, "days"))),
        "docs/events.md says as many"
    );
    let prefix = format!("\"${{var.reports.prefix}}/{FOLDER}/\"");
    assert_eq!(value(&rule, "prefix"), Some(prefix.as_str()));
    let task = block(&iam, "data \"aws_iam_policy_document\" \"task\"");
    for action in ["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload", "s3:ListBucket"] {
        assert!(task.contains(&format!("\"{action}\"")), "{action}");
    }
    let people = block(&iam, "data \"aws_iam_policy_document\" \"dead_letters\"");
    assert!(people.contains("\"s3:GetObject\"") && people.contains(&format!("/{FOLDER}/*")), "{people}");
}

/// All sources of the program in one text, with the parts of strings that go on in the next line put together.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source can be read");
            let mut lines = text.split("\\\n");
            all.extend(lines.next());
            lines.for_each(|line| all += line.trim_start());
        }
    }
    all
}

#[test]
fn the_log_has_the_lines_that_alarms_count() {
    let (alarms, source) =
        (text("docker/ecs/log_alarms.tf"), sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));
    let runbooks = text("docs/runbooks.md");
    let told = block(&alarms, "locals {");
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let is_message = |line: &&str| line.contains("messages    = [\"") || line.starts_with("        \"");
    let messages: Vec<String> = told.lines().filter(is_message).filter_map(quoted).collect();
    assert!(messages.len() >= 8, "{messages:?}");
    for message in &messages {
        let begins = message.strip_suffix('*').map(|begin| format!("\"{begin}")).unwrap_or(format!("\"{message}\""));
        assert!(source.contains(&begins), "walhouse logs nothing that is {message:?}");
    }
    let alerts: Vec<&str> =
        told.split(|c: char| !c.is_alphanumeric()).filter(|one| one.starts_with("Walhouse")).collect();
    assert!(alerts.len() >= 6, "{alerts:?}");
    for alert in alerts {
        assert!(runbooks.contains(&format!("\n## {alert}\n")), "docs/runbooks.md has no section {alert}");
    }
    // What goes on for long is told often enough to be in each period.
    let pause = text("src/pipeline/pause.rs");
    let remind = constant(&pause, "REMIND");
    let paused = told.split("paused = {").nth(1).expect("an alarm on pauses");
    assert!(number(paused, "period") >= remind + 60, "{remind} s");
    assert!(number(paused, "period") * number(paused, "periods") >= 1800);
}

#[test]
fn every_alarm_says_its_response_and_reaches_those_who_act() {
    let mut count = 0;
    for file in ["docker/ecs/alarms.tf", "docker/ecs/log_alarms.tf"] {
        for alarm in text(file).split("\nresource \"aws_cloudwatch_metric_alarm\" ").skip(1) {
            let alarm = alarm.split("\n}").next().unwrap_or_default();
            let severity = match alarm.contains("each.value.severity") {
                true => "each.value.severity".to_owned(),
                false => ["critical", "warning"]
                    .into_iter()
                    .find(|severity| alarm.contains(&format!("local.severities.{severity}")))
                    .map(|severity| format!("\"{severity}\""))
                    .unwrap_or_else(|| panic!("an alarm has no response: {alarm}")),
            };
            for actions in ["alarm_actions", "ok_actions"] {
                assert_eq!(
                    value(alarm, actions),
                    Some(format!("[aws_sns_topic.alarms[{severity}].arn]").as_str()),
                    "{alarm}"
                );
            }
            assert!(value(alarm, "treat_missing_data").is_some(), "{alarm}");
            count += 1;
        }
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn values_are_found_by_their_whole_name() {
    let text = "a = { timeout = 30, receives = 4 }\n  grace = 5\n  other_grace = 6";
    assert_eq!((number(text, "timeout"), number(text, "receives"), number(text, "grace")), (30, 4, 5));
    assert_eq!(value(text, "ceives"), None);
    assert_eq!(constant("const A: Duration = Duration::from_secs(4 * 86_400);", "A"), 345_600);
}
