//! An event that is refused for good, and is there twice: one dead letter, which can be sent home.

use serde_json::json;

use super::{Edge, handled, wait_handled};
use crate::support::{Daemon, Received, Sqs, settled, walhouse};

/// An application asks for what nobody can do.
async fn ask(edge: &Edge) -> String {
    let payload = json!({
        "operationType": "reportGeneration", "userId": "u1", "merchantAccountId": "m1", "parameters": {"report": "none"}
    });
    edge.db
        .pg
        .value(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('AsynchronousOperationRequested', '{payload}') RETURNING id"
        ))
        .await
}

/// Has the event sent twice, by a kill before walhouse knows of the first time.
async fn twice(edge: &Edge, sender: &mut Daemon) -> String {
    edge.queues.keep_answers(&["AmazonSQS.SendMessageBatch"]);
    let id = ask(edge).await;
    edge.queues.has_kept(1).await;
    sender.kill9();
    edge.mend();
    sender.start();
    settled(&edge.db).await;
    edge.has("async-operations-queue", 2).await;
    id
}

fn copy(original: &Received) -> (String, Vec<(&str, &str)>) {
    let attributes = original.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    (original.body.to_string(), attributes.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_sent_twice_around_a_kill_and_refused_for_good_is_one_letter_which_a_redrive_has_tried_again()
{
    let (edge, sqs) = (Edge::new("edge_poison").await, Sqs::shared());
    let mut sender = edge.sender().await;
    let id = twice(&edge, &mut sender).await;
    let workers = edge.workers();
    wait_handled(&workers, "operation", "known", 1).await;
    assert_eq!(handled(&workers, "operation", "dead").await, 1, "the handler has run once");
    workers.wait_log("an event with this id is a dead letter already", 1).await;
    edge.has("async-operations-queue", 0).await;
    edge.has("async-operations-dlq", 1).await;
    // Right away, in the same process: whoever sends it home wants it to be tried again, and nothing else.
    for tries in 2..4 {
        let exit = walhouse(workers.config(), &["dlq", "redrive", "--queue", "async-operations"]).await;
        assert_eq!(exit.code, Some(0), "{exit:?}");
        wait_handled(&workers, "operation", "dead", tries).await;
        edge.has("async-operations-dlq", 1).await;
    }
    let letter = sqs.take(&edge.queue("async-operations-dlq"), 1).await.remove(0);
    assert_eq!(letter.body["metadata"]["eventId"], id.as_str());
    // As SQS's own redrive sends it: with all of its attributes.
    let (body, attributes) = copy(&letter);
    let marks: Vec<_> = attributes.iter().copied().filter(|(name, _)| *name != "redriven").collect();
    assert_eq!(attributes.len(), marks.len() + 1);
    sqs.send_with(&edge.queue("async-operations-queue"), &body, &marks, None).await;
    wait_handled(&workers, "operation", "dead", 4).await;
    assert_eq!(handled(&workers, "operation", "known").await, 1);
    drop((sender, workers));
    edge.db.cleanup().await;
}
