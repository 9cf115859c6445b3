//! Dead letters in SQS.

use super::{
    Answer, Error, Say, say_yes,
    table::{or_dash, table},
};
use crate::{
    cli::{DlqArgs, DlqCommand, FilterArgs, exit},
    config::{Config, QueueConfig},
    event::envelope::Queue,
    queue::{
        claim::{Claims, Referred},
        client::Sqs,
        letters::{Filter, Letter},
        messages::Message,
        redrive::{self, Deed, Done, Listed, Options},
    },
};
use serde_json::{Value, json};
use std::fmt::Write;
use tokio_util::sync::CancellationToken;

pub(super) async fn run(
    config: &Config,
    queue: &QueueConfig,
    args: &DlqArgs,
    stop: &CancellationToken,
    say: Say<'_>,
) -> Result<Answer, Error> {
    let sqs = Sqs::new(queue, &config.workers).await;
    let queue = || {
        let labels = Queue::ALL.map(Queue::label).join(", ");
        args.queue.ok_or_else(|| Error::Usage(format!("say which queue's dead letters: --queue with one of {labels}")))
    };
    match &args.command {
        DlqCommand::List(list) => {
            let filter = filter(&list.filter)?;
            let queues = args.queue.map_or_else(|| Queue::ALL.to_vec(), |queue| vec![queue]);
            let looks = queues.into_iter().map(|queue| redrive::list(&sqs, queue, &filter, list.limit));
            Ok(listed(&futures_util::future::try_join_all(looks).await?))
        }
        DlqCommand::Show(show) => match redrive::find(&sqs, queue()?, &show.id).await? {
            Some((letter, message)) => shown(config, &letter, &message, show.payload).await,
            None => Err(Error::Unfinished(absent(&show.id))),
        },
        DlqCommand::Redrive(redrive) => {
            let options = Options {
                filter: filter(&redrive.filter)?,
                limit: redrive.limit,
                rate: redrive.rate,
                dry_run: redrive.dry_run,
            };
            deal(&sqs, queue()?, Deed::Redrive, options, stop, say).await
        }
        DlqCommand::Purge(purge) => {
            let dry_run = purge.dry_run || !purge.yes;
            let options = Options { filter: filter(&purge.filter)?, limit: purge.limit, rate: None, dry_run };
            let answer = deal(&sqs, queue()?, Deed::Purge, options, stop, say).await?;
            match purge.yes || purge.dry_run {
                true => Ok(answer),
                false => Err(say_yes(answer.json["letters"].as_u64().unwrap_or_default(), "these letters")),
            }
        }
    }
}

fn filter(args: &FilterArgs) -> Result<Filter, Error> {
    if args.table.is_some() {
        return Err(Error::Usage("--table is for rows: say --rows too".to_owned()));
    }
    Ok(Filter { id: args.event_id.clone(), event_type: args.event_type.clone(), reason: args.reason.clone() })
}

fn absent(id: &str) -> String {
    format!(
        "there is no dead letter {id} here, or somebody else has it in hand at the moment; see walhouse dlq list for those \
         that there are"
    )
}

fn listed(queues: &[Listed]) -> Answer {
    let mut text = String::new();
    for Listed { queue, count, letters } in queues {
        // To a String it can not fail.
        let _ = writeln!(text, "{queue}: {count} {}", if *count == 1 { "letter" } else { "letters" });
        if !letters.is_empty() {
            let head = ["EVENT", "TYPE", "VERSION", "TRIES", "HANDLER", "TIME", "REASON"];
            text.push_str(&table(head, letters.iter().map(row)));
        }
        if !letters.is_empty() && usize::try_from(*count).is_ok_and(|count| count > letters.len()) {
            let behind = if is_fifo(queue) { "; in a FIFO queue some stand behind others of their group" } else { "" };
            let _ = writeln!(text, "{} of them are listed: see --limit and the filters{behind}", letters.len());
        }
    }
    Answer::new(text, json!({ "queues": queues }), exit::FINE)
}

/// SQS itself has it so that their names end in this.
fn is_fifo(queue: &str) -> bool {
    queue.ends_with(".fifo")
}

fn row(letter: &Letter) -> [String; 7] {
    let Letter { event_type, event_version, tries, handler, time, reason, payload_location, payload_bytes, .. } =
        letter;
    // One without an event's id is found by its message's.
    let id = letter.event_id.clone().unwrap_or_else(|| letter.message_id.clone());
    [
        id,
        or_dash(event_type.as_ref()),
        or_dash(event_version.as_ref()),
        or_dash(*tries),
        or_dash(handler.as_ref()),
        or_dash(time.as_ref()),
        match (payload_location, payload_bytes) {
            (Some(location), Some(bytes)) => format!("{reason} (payload of {bytes} bytes: {location})"),
            _ => reason.clone(),
        },
    ]
}

async fn shown(config: &Config, letter: &Letter, message: &Message, fetch: bool) -> Result<Answer, Error> {
    let mut body = serde_json::from_str(&message.body).unwrap_or_else(|_| Value::String(message.body.clone()));
    let mut text = format!("\n{body:#}");
    if let Some(referred) = Referred::of(&body).filter(|_| fetch) {
        let fetched = Claims::new(&config.objects).fetch(referred.reference(), u64::MAX).await;
        let found = fetched.map_err(|error| Error::Unfinished(error.to_string()))?;
        let value = || serde_json::from_str(&found).unwrap_or_else(|_| Value::String(found.clone()));
        match referred {
            Referred::Payload(_) => body["payload"] = value(),
            Referred::Event(_) => body = value(),
        }
        // As it was written.
        text.push_str("\n\n");
        text.push_str(&found);
    } else if letter.payload_location.is_some() {
        text.push_str("\n\nIts payload was too large for a queue; to print that too, say --payload.");
    }
    let mut all = serde_json::to_value(letter).unwrap_or_default();
    all["attributes"] = json!(message.attributes);
    all["group"] = json!(message.group);
    all["body"] = body.clone();
    let mut head = String::new();
    let lines = [
        ("message", Some(&letter.message_id)),
        ("event", letter.event_id.as_ref()),
        ("correlation", letter.correlation_id.as_ref()),
        ("reason", Some(&letter.reason)),
        ("handler", letter.handler.as_ref()),
        ("time", letter.time.as_ref()),
        ("group", message.group.as_ref()),
        ("payload", letter.payload_location.as_ref()),
    ];
    for (name, value) in lines {
        let _ = writeln!(head, "{name:12} {}", or_dash(value));
    }
    let _ = writeln!(head, "{:12} {}", "tries", or_dash(letter.tries));
    for (name, value) in message.attributes.iter().filter(|(name, _)| !name.starts_with("deadLetter")) {
        let _ = writeln!(head, "{name:12} {value}");
    }
    Ok(Answer::new(head + &text, all, exit::FINE))
}

async fn deal(
    sqs: &Sqs,
    queue: Queue,
    deed: Deed,
    options: Options,
    stop: &CancellationToken,
    say: Say<'_>,
) -> Result<Answer, Error> {
    match redrive::deal(sqs, queue, deed, &options, stop, say).await {
        Ok(done) => match &options.filter.id {
            Some(id) if done.letters + done.refused == 0 && !done.stopped => Err(Error::Unfinished(absent(id))),
            _ => Ok(dealt(deed, &done)),
        },
        Err((error, done)) => {
            let Done { letters, .. } = done;
            Err(Error::Unfinished(format!(
                "{error}. Before that, {letters} letters were done; do it again for the rest"
            )))
        }
    }
}

fn dealt(deed: Deed, done: &Done) -> Answer {
    let Done { queue, letters, twice, refused, behind, passed_over, later, .. } = done;
    let verb = match (deed, done.dry_run) {
        (Deed::Redrive, false) => "sent home",
        (Deed::Redrive, true) => "would be sent home",
        (Deed::Purge, false) => "removed for good",
        (Deed::Purge, true) => "would be removed for good",
    };
    let mut text = format!("{queue}: {letters} {verb}");
    if *passed_over > 0 {
        let _ = write!(text, ", {passed_over} passed over");
    }
    if is_fifo(queue) && (*passed_over > 0 || done.dry_run) {
        text.push_str("; those that stand behind one of these in their group were not in sight");
    }
    if *later > 0 {
        let _ = write!(text, ", {later} left alone that came meanwhile or failed once more");
    }
    if *twice > 0 {
        let _ = write!(
            text,
            "\n{twice} of them could not be removed and are there twice: the second time they have no effect"
        );
    }
    if let Some(why) = &done.refusal {
        let _ = write!(text, "\n{refused} are not taken by their queue ({why}) and stay");
        if *behind > 0 {
            let _ = write!(text, ", and {behind} behind them in their group");
        }
        text.push_str(": see walhouse dlq list");
    }
    if done.stopped {
        text.push_str("\nstopped before it was through; nothing is lost, do it again for the rest");
    }
    let code = if done.stopped || *refused > 0 { exit::FOUND } else { exit::FINE };
    Answer::new(text, json!(done), code)
}
