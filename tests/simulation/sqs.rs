//! A made-up SQS, behind AWS's own client: requests as that writes them, answers as it reads them.
//!
//! What has come in is worked on whether or not anybody waits for the answer.

use crate::world::{Shared, World};
use aws_sdk_sqs::{
    Client, Config,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig, timeout::TimeoutConfig},
};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use std::{io, time::Duration};
use tokio::sync::oneshot;

/// How long walhouse waits for an answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of it.
pub(crate) fn client(world: &Shared) -> Client {
    let connector = SharedHttpConnector::new(Connector(world.clone()));
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("sim", "sim", None, None, "sim"))
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build())
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

struct Connector(Shared);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is done, and answered.
    Done,
    /// It is done, and the answer is lost.
    Lost,
    /// Nothing is done, and there is no answer.
    Away,
    /// Nothing is done, and it is refused.
    Refused,
    /// Some entries are taken, and others are not.
    Some,
    /// It is done, and the answer comes after nobody waits for it any more.
    Late,
    /// It is too much at once.
    TooMuch,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let world = self.0.clone();
        let action = request.headers().get("x-amz-target").unwrap_or_default().to_owned();
        let body = request.body().bytes().map(|body| serde_json::from_slice(body).unwrap_or_default());
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(work(world, action, body.unwrap_or_default(), sender));
        HttpConnectorFuture::new(async move {
            let (status, body): (u16, Value) =
                receiver.await.map_err(|error| ConnectorError::io(io::Error::other(error).into()))?;
            let status = StatusCode::try_from(status).map_err(|error| ConnectorError::other(error.into(), None))?;
            Ok(HttpResponse::new(status, SdkBody::from(body.to_string())))
        })
    }
}

async fn work(world: Shared, action: String, body: Value, answer: oneshot::Sender<(u16, Value)>) {
    let (fate, before, after) = {
        let mut world = world.lock();
        (fate(&mut world), world.dice.pause() / 2, world.dice.pause() / 4)
    };
    tokio::time::sleep(before).await;
    let done = apply(&mut world.lock(), &action, &body, fate);
    let after = if fate == Fate::Late { after + ATTEMPT_TIMEOUT } else { after };
    tokio::time::sleep(after).await;
    if !matches!(fate, Fate::Lost | Fate::Away) {
        // Nobody waits any more, perhaps.
        let _ = answer.send(done);
    }
}

fn fate(world: &mut World) -> Fate {
    let percent = world.trouble.sqs;
    if !world.dice.chance(percent) {
        return Fate::Done;
    }
    match world.dice.below(12) {
        0..2 => Fate::Lost,
        2..4 => Fate::Away,
        4..6 => Fate::Refused,
        6..10 => Fate::Some,
        10 => Fate::TooMuch,
        _ => Fate::Late,
    }
}

fn refused(code: &str) -> (u16, Value) {
    (500, json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": "" }))
}

fn apply(world: &mut World, action: &str, body: &Value, fate: Fate) -> (u16, Value) {
    if fate != Fate::Done {
        world.note(|| format!("sqs       {fate:?}: {action}"));
    }
    match fate {
        Fate::Away => return (0, Value::Null),
        Fate::Refused => return refused("ServiceUnavailable"),
        _ => {}
    }
    match action {
        "AmazonSQS.GetQueueUrl" => (200, json!({ "QueueUrl": format!("http://sqs/1/{}", text(&body["QueueName"])) })),
        // One message by itself is not too much today, and little tomorrow.
        "AmazonSQS.SendMessageBatch" if fate == Fate::TooMuch && body["Entries"][1] != Value::Null => {
            refused("BatchRequestTooLong")
        }
        "AmazonSQS.SendMessageBatch" => (200, send(world, body, fate == Fate::Some)),
        other => {
            world.fail(format!("a request that nobody expected: {other}"));
            refused("InternalError")
        }
    }
}

/// Takes the messages of a batch, or some of them.
fn send(world: &mut World, body: &Value, some: bool) -> Value {
    let is_dead = text(&body["QueueUrl"]).contains("-dlq");
    let (mut taken, mut failed) = (Vec::new(), Vec::new());
    for entry in body["Entries"].as_array().into_iter().flatten() {
        let (id, message) = (text(&entry["Id"]), text(&entry["MessageBody"]));
        let fate = if some { world.dice.below(8) } else { 0 };
        // What a queue never takes, it never takes; that of the dead letters takes all.
        if !is_dead && (fate == 7 || world.refused.contains(message)) {
            world.note(|| format!("sqs       never takes {message:.60}"));
            world.refused.insert(message.to_owned());
            failed.push(json!({ "Id": id, "SenderFault": true, "Code": "InvalidMessageContents" }));
        } else if fate < 4 {
            arrive(world, message, is_dead);
            taken.push(json!({ "Id": id, "MessageId": "m", "MD5OfMessageBody": "0" }));
        } else if fate == 4 {
            // Taken, and not a word of it.
            arrive(world, message, is_dead);
        } else {
            failed.push(json!({ "Id": id, "SenderFault": false, "Code": "InternalError" }));
        }
    }
    json!({ "Successful": taken, "Failed": failed })
}

fn arrive(world: &mut World, message: &str, is_dead: bool) {
    let message: Value = serde_json::from_str(message).unwrap_or_default();
    let (token, id) = (text(&message["payload"]["actingUserId"]), text(&message["metadata"]["eventId"]));
    world.note(|| format!("sqs       has {token} as {id}, dead: {is_dead}"));
    world.arrive(token, id, is_dead);
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
