//! The reader of a queue, with handlers that fail in every way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_sqs::types::QueueAttributeName;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walhouse::config::{ObjectsConfig, QueueConfig, WorkersConfig};
use walhouse::event::envelope::{Queue, Schedule};
use walhouse::queue::claim::Claims;
use walhouse::queue::client::Sqs as Client;
use walhouse::queue::consumer::{Consumer, Event, HandleError, Handler, Settings};
use walhouse::queue::pending::Destination;
use walhouse::queue::provision::provision;
use walhouse::queue::redrive;
use walhouse::retry::Kind;

use crate::support::{Sqs, eventually};

type Deed = dyn Fn(usize) -> BoxFuture<'static, Result<(), HandleError>> + Send + Sync;

/// Notes when it was called, and for what.
struct Noting {
    runs: Mutex<Vec<(String, Instant)>>,
    /// What it does the so many-eth time.
    deed: Box<Deed>,
    /// If there is one, the deed is for this event alone, and the others are done.
    bad: Option<String>,
    /// What it depends on is there.
    there: Mutex<bool>,
    /// How often it was asked whether it is.
    asked: AtomicUsize,
}

impl Default for Noting {
    fn default() -> Self {
        Self {
            runs: Mutex::default(),
            deed: Box::new(|_| done()),
            bad: None,
            there: Mutex::new(true),
            asked: AtomicUsize::new(0),
        }
    }
}

impl Noting {
    fn new(deed: impl Fn(usize) -> BoxFuture<'static, Result<(), HandleError>> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { deed: Box::new(deed), ..Self::default() })
    }

    /// One that never can do what one event asks for, and says that this is so of all.
    fn but_for(bad: &str) -> Arc<Self> {
        let of_all = || failed(HandleError::Unavailable("it refuses everything".to_owned()));
        let handler = Self { bad: Some(bad.to_owned()), deed: Box::new(move |_| of_all()), ..Self::default() };
        Arc::new(handler)
    }

    fn runs_of(&self, id: &str) -> usize {
        self.runs().iter().filter(|(run, _)| run == id).count()
    }

    fn runs(&self) -> Vec<(String, Instant)> {
        self.runs.lock().expect("nobody panics here").clone()
    }
}

impl Handler for Noting {
    fn name(&self) -> &'static str {
        "noting"
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        let there = *self.there.lock().expect("nobody panics here");
        self.asked.fetch_add(1, Ordering::Relaxed);
        async move { if there { Ok(()) } else { Err("it is away".to_owned()) } }.boxed()
    }

    fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandleError>> {
        let id = &event.envelope.metadata.event_id;
        let run = {
            let mut runs = self.runs.lock().expect("nobody panics here");
            runs.push((id.clone(), Instant::now()));
            runs.len()
        };
        if self.bad.as_ref().is_some_and(|bad| bad != id) { done() } else { (self.deed)(run) }
    }
}

/// A queue of the test's own, with a reader.
struct Reading {
    sqs: Arc<Sqs>,
    client: Arc<Client>,
    prefix: String,
    stop: CancellationToken,
}

/// No event here refers to a payload.
fn no_claims() -> Arc<Claims> {
    Arc::new(Claims::new(&ObjectsConfig::default()))
}

impl Reading {
    async fn new(label: &str) -> Self {
        let (sqs, prefix) = (Sqs::shared(), format!("{label}-{:08x}-", rand::random::<u32>()));
        let config = QueueConfig {
            endpoint_url: Some(format!("http://127.0.0.1:{}", sqs.port())),
            region: Some("eu-central-1".to_owned()),
            prefix: prefix.clone(),
            ..QueueConfig::default()
        };
        let client = Arc::new(Client::new(&config, &WorkersConfig::default()).await);
        provision(&client, false).await.expect("queues");
        Self { sqs, client, prefix, stop: CancellationToken::new() }
    }

    fn read(&self, handler: Arc<Noting>, timeout: Duration) -> JoinHandle<()> {
        let queue = Queue::AuditLog;
        let settings =
            Settings { concurrency: 4, timeout, schedule: queue.schedule(), retries: queue.retries(), max_payload: 0 };
        self.read_with(handler, settings)
    }

    fn read_with(&self, handler: Arc<Noting>, settings: Settings) -> JoinHandle<()> {
        let consumer = Consumer::new(Arc::clone(&self.client), no_claims(), Queue::AuditLog, handler, settings);
        tokio::spawn(consumer.run(self.stop.clone()))
    }

    fn queue(&self) -> String {
        format!("{}audit-log-queue", self.prefix)
    }

    fn dead(&self) -> String {
        format!("{}audit-log-dlq", self.prefix)
    }

    /// Sends an event, and returns its id.
    async fn send(&self) -> String {
        let id = uuid::Uuid::from_u128(rand::random()).to_string();
        self.send_again(&id).await;
        id
    }

    async fn send_again(&self, id: &str) {
        let event = json!({
            "metadata": {
                "eventId": id, "eventTimestamp": "2026-01-01T00:00:00Z", "eventType": "SecurityEventOccurred",
                "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
            },
            "payload": {"eventType": "login", "actingUserId": "u", "outcome": "success"}
        });
        self.sqs.send(&self.queue(), &event.to_string()).await;
    }

    async fn empty(&self) {
        eventually(Duration::from_secs(120), async || match self.sqs.count(&self.queue()).await {
            0 => Ok(()),
            left => Err(format!("{left} messages are left")),
        })
        .await;
    }
}

fn done() -> BoxFuture<'static, Result<(), HandleError>> {
    async { Ok(()) }.boxed()
}

fn failed(error: HandleError) -> BoxFuture<'static, Result<(), HandleError>> {
    async { Err(error) }.boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_tried_again_three_times_with_growing_pauses_and_is_a_dead_letter_then() {
    let reading = Reading::new("retries").await;
    let handler = Noting::new(|_| failed(HandleError::Transient("a full moon".to_owned())));
    reading.read(handler.clone(), Duration::from_secs(5));
    let id = reading.send().await;
    let letters = reading.sqs.take(&reading.dead(), 1).await;
    let attribute = |name: &str| letters[0].attributes[name].as_str();
    assert_eq!(attribute("deadLetterReason"), "given up after 4 tries: a full moon");
    assert_eq!((attribute("deadLetterTries"), attribute("deadLetterHandler")), ("4", "noting"));
    assert_eq!(letters[0].body["metadata"]["eventId"], id.as_str());
    let runs = handler.runs();
    let pauses: Vec<f64> = runs.windows(2).map(|two| (two[1].1 - two[0].1).as_secs_f64()).collect();
    println!("pauses between four tries: {pauses:.2?} s");
    assert_eq!(pauses.len(), 3);
    // A quarter of jitter, rounded up to whole seconds, and what the queue needs to hand it out.
    for (pause, wanted) in pauses.iter().zip([2.0, 4.0, 8.0]) {
        assert!((wanted - 0.1..wanted * 1.25 + 2.0).contains(pause), "{pauses:?}");
    }
    reading.empty().await;
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_for_good_is_a_dead_letter_at_once() {
    let reading = Reading::new("definite").await;
    let handler = Noting::new(|_| failed(HandleError::Definite("there is no such report".to_owned())));
    reading.read(handler.clone(), Duration::from_secs(5));
    reading.send().await;
    let letters = reading.sqs.take(&reading.dead(), 1).await;
    assert_eq!(letters[0].attributes["deadLetterReason"], "there is no such report");
    assert_eq!((letters[0].attributes["deadLetterTries"].as_str(), handler.runs().len()), ("1", 1));
    reading.empty().await;
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_is_ended_at_its_limit_and_tried_again() {
    let reading = Reading::new("hangs").await;
    let handler = Noting::new(|run| if run == 1 { std::future::pending().boxed() } else { done() });
    reading.read(handler.clone(), Duration::from_secs(1));
    reading.send().await;
    eventually(Duration::from_secs(20), async || match handler.runs().len() {
        2 => Ok(()),
        runs => Err(format!("{runs} runs")),
    })
    .await;
    let runs = handler.runs();
    let between = (runs[1].1 - runs[0].1).as_secs_f64();
    assert!((2.9..6.5).contains(&between), "its limit of a second, and a pause of two: {between}");
    reading.empty().await;
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_handler_takes_longer_than_the_lease_is_not_handled_twice() {
    let reading = Reading::new("long").await;
    let handler = Noting::new(|_| tokio::time::sleep(Duration::from_secs(40)).map(Ok).boxed());
    // Two readers, as of two processes.
    reading.read(handler.clone(), Duration::from_secs(60));
    reading.read(handler.clone(), Duration::from_secs(60));
    reading.send().await;
    // Once it is handled, its lease has come to its end more than once.
    reading.empty().await;
    assert_eq!(handler.runs().len(), 1);
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_twice_is_handled_once() {
    let reading = Reading::new("twice").await;
    let handler = Noting::new(|_| tokio::time::sleep(Duration::from_millis(300)).map(Ok).boxed());
    reading.read(handler.clone(), Duration::from_secs(5));
    let id = reading.send().await;
    reading.send_again(&id).await;
    reading.send_again(&id).await;
    // One that comes while it is in hand does not wait for the end of its own lease.
    reading.empty().await;
    reading.send_again(&id).await;
    reading.empty().await;
    assert_eq!(handler.runs().len(), 1);
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_while_it_is_in_hand_waits_for_how_that_ends() {
    let reading = Reading::new("twin").await;
    // For longer than a lease: the one that waits is kept too.
    let slowly = || tokio::time::sleep(Duration::from_secs(35));
    let handler = Noting::new(move |run| match run {
        1 => slowly().map(|()| Err(HandleError::Transient("not now".to_owned()))).boxed(),
        _ => done(),
    });
    reading.read(handler.clone(), Duration::from_secs(60));
    let id = reading.send().await;
    eventually(Duration::from_secs(10), async || match handler.runs().len() {
        1 => Ok(()),
        runs => Err(format!("{runs} runs")),
    })
    .await;
    reading.send_again(&id).await;
    eventually(Duration::from_secs(120), async || match handler.runs().len() {
        2 => Ok(()),
        runs => Err(format!("{runs} runs")),
    })
    .await;
    let runs = handler.runs();
    let between = (runs[1].1 - runs[0].1).as_secs_f64();
    // And not when SQS hands it out again, half a minute later.
    assert!((34.9..60.0).contains(&between), "it is handled once the first one has failed: {between}");
    reading.empty().await;
    assert_eq!((handler.runs().len(), reading.sqs.count(&reading.dead()).await), (2, 0), "it was done by the second");
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_what_is_refused_for_good_is_left_out_until_the_letter_is_sent_home() {
    let reading = Reading::new("copy").await;
    let (refuse, refused) = tokio::sync::watch::channel(false);
    let handler = Noting::new(move |run| match run {
        1 => {
            let mut refused = refused.clone();
            async move {
                let _ = refused.wait_for(|refused| *refused).await;
                Err(HandleError::Definite("never".to_owned()))
            }
            .boxed()
        }
        _ => done(),
    });
    reading.read(handler.clone(), Duration::from_secs(60));
    let id = reading.send().await;
    // One that waits for how the first one ends, and one that comes after it.
    reading.send_again(&id).await;
    eventually(Duration::from_secs(20), async || {
        let hidden = QueueAttributeName::ApproximateNumberOfMessagesNotVisible;
        match reading.sqs.attribute(&reading.queue(), hidden).await.as_deref() {
            Some("2") => Ok(()),
            hidden => Err(format!("{hidden:?} in hand")),
        }
    })
    .await;
    refuse.send_replace(true);
    reading.empty().await;
    reading.send_again(&id).await;
    reading.empty().await;
    assert_eq!((handler.runs().len(), reading.sqs.count(&reading.dead()).await), (1, 1));
    let (stop, options) = (CancellationToken::new(), redrive::Options::default());
    let dealt = redrive::deal(&reading.client, Queue::AuditLog, redrive::Deed::Redrive, &options, &stop, &|_| {}).await;
    assert_eq!(dealt.expect("it is sent home").letters, 1);
    eventually(Duration::from_secs(20), async || match handler.runs().len() {
        2 => Ok(()),
        runs => Err(format!("{runs} runs")),
    })
    .await;
    reading.empty().await;
    assert_eq!(reading.sqs.count(&reading.dead()).await, 0);
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_says_that_it_is_there_and_refuses_everything_is_asked_less_and_less() {
    let reading = Reading::new("refuses").await;
    let handler = Noting::new(|_| failed(HandleError::Unavailable("it refuses everything".to_owned())));
    reading.read(handler.clone(), Duration::from_secs(5));
    let id = reading.send().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let runs = handler.runs_of(&id);
    println!("{runs} runs in 20 s");
    // Full jitter: each pause is a quarter of a second at least.
    assert!((3..40).contains(&runs), "{runs}");
    let (first, later): (Vec<_>, Vec<_>) =
        handler.runs().into_iter().partition(|(_, at)| at.elapsed() > Duration::from_secs(10));
    assert!(later.len() <= first.len(), "{} and then {}", first.len(), later.len());
    assert_eq!(reading.sqs.count(&reading.dead()).await, 0);
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_while_others_are_handled_holds_nobody_up_and_is_a_dead_letter_in_the_end() {
    let reading = Reading::new("itself").await;
    let bad = uuid::Uuid::from_u128(rand::random()).to_string();
    let handler = Noting::but_for(&bad);
    let settings = Settings {
        concurrency: 4,
        timeout: Duration::from_secs(5),
        schedule: Schedule::Fixed(Duration::from_secs(1)),
        retries: 1,
        max_payload: 0,
    };
    reading.send_again(&bad).await;
    reading.read_with(handler.clone(), settings);
    let mut good = Vec::new();
    let letters = eventually(Duration::from_secs(90), async || {
        good.push(reading.send().await);
        match reading.sqs.count(&reading.dead()).await {
            0 => Err(format!("{} runs", handler.runs_of(&bad))),
            _ => Ok(reading.sqs.take(&reading.dead(), 1).await),
        }
    })
    .await;
    assert_eq!(letters[0].attributes["deadLetterReason"], "given up after 2 tries: it refuses everything");
    assert_eq!(letters[0].body["metadata"]["eventId"], bad.as_str());
    println!("{} runs of the bad one beside {} good ones", handler.runs_of(&bad), good.len());
    assert!((6..=40).contains(&handler.runs_of(&bad)), "three for each of its tries, and those beside which none came");
    reading.empty().await;
    assert!(good.iter().all(|id| handler.runs_of(id) == 1));
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_somebody_elses_is_let_go_for_good() {
    let reading = Reading::new("gone").await;
    let from = Destination { queue: Queue::AuditLog, dead: false };
    reading.send().await;
    let second = Duration::from_secs(1);
    let taken = reading.client.take(from, 1, 30 * second, 10 * second).await.expect("a message");
    reading.client.hide(from, &taken[0], 30 * second).await.expect("it is in hand");
    reading.client.delete(from, &[taken[0].receipt.clone()]).await.expect("it is deleted");
    let error = reading.client.hide(from, &taken[0], 30 * second).await.expect_err("it is gone");
    assert_eq!(error.kind, Kind::Definite, "{error}");
    // What SQS may do another time is no such error.
    let nowhere = QueueConfig {
        endpoint_url: Some("http://127.0.0.1:1".to_owned()),
        region: Some("eu-central-1".to_owned()),
        ..QueueConfig::default()
    };
    let nowhere = Client::new(&nowhere, &WorkersConfig::default()).await;
    let error = nowhere.hide(from, &taken[0], second).await.expect_err("nobody is there");
    assert_eq!(error.kind, Kind::Transient, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_dependency_panics_ends_instead_of_waiting_for_ever() {
    struct Panicking;
    impl Handler for Panicking {
        fn name(&self) -> &'static str {
            "panicking"
        }

        fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
            panic!("on purpose")
        }

        fn handle<'a>(&'a self, _: &'a Event) -> BoxFuture<'a, Result<(), HandleError>> {
            done()
        }
    }
    let reading = Reading::new("panics").await;
    let queue = Queue::AuditLog;
    let settings = Settings {
        concurrency: 1,
        timeout: Duration::from_secs(1),
        schedule: queue.schedule(),
        retries: queue.retries(),
        max_payload: 0,
    };
    let consumer = Consumer::new(Arc::clone(&reading.client), no_claims(), queue, Arc::new(Panicking), settings);
    let ended = tokio::time::timeout(Duration::from_secs(10), tokio::spawn(consumer.run(reading.stop.clone()))).await;
    assert!(ended.expect("it ends").is_err_and(|error| error.is_panic()));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_what_it_depends_on_is_away_an_event_stays_in_hand_and_no_other_is_taken() {
    let reading = Reading::new("away").await;
    let away = || failed(HandleError::Unavailable("it is away".to_owned()));
    let handler = Noting::new(move |run| if run == 1 { away() } else { done() });
    *handler.there.lock().expect("nobody panics here") = true;
    let settings = Settings {
        concurrency: 1,
        timeout: Duration::from_secs(5),
        schedule: Schedule::Fixed(Duration::from_secs(1)),
        retries: 0,
        max_payload: 0,
    };
    let there = |there| *handler.there.lock().expect("nobody panics here") = there;
    let first = reading.send().await;
    reading.read_with(handler.clone(), settings);
    eventually(Duration::from_secs(10), async || match handler.runs().len() {
        0 => Err("nothing was handled".to_owned()),
        _ => Ok(()),
    })
    .await;
    there(false);
    reading.send().await;
    let asked = handler.asked.load(Ordering::Relaxed);
    eventually(Duration::from_secs(120), async || match handler.asked.load(Ordering::Relaxed) - asked {
        times if times > 4 => Ok(()),
        times => Err(format!("it was asked for {times} times")),
    })
    .await;
    there(true);
    reading.empty().await;
    let runs: Vec<String> = handler.runs().into_iter().map(|(id, _)| id).collect();
    assert_eq!(runs.iter().filter(|id| **id == first).count(), 2, "{runs:?}");
    // Without any retry to use up.
    assert_eq!(reading.sqs.count(&reading.dead()).await, 0);
    reading.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_in_the_middle_gives_back_what_is_in_hand() {
    let reading = Reading::new("stops").await;
    let handler = Noting::new(|run| if run == 1 { std::future::pending().boxed() } else { done() });
    let first = reading.read(handler.clone(), Duration::from_secs(300));
    reading.send().await;
    eventually(Duration::from_secs(10), async || match handler.runs().len() {
        1 => Ok(()),
        runs => Err(format!("{runs} runs")),
    })
    .await;
    reading.stop.cancel();
    tokio::time::timeout(Duration::from_secs(18), first).await.expect("it stops in time").expect("without a panic");
    let begun = Instant::now();
    let next = Reading { stop: CancellationToken::new(), ..reading };
    next.read(handler.clone(), Duration::from_secs(300));
    next.empty().await;
    assert!(begun.elapsed() < Duration::from_secs(14), "it need not wait for the end of a lease");
    assert_eq!(handler.runs().len(), 2);
    next.stop.cancel();
}
