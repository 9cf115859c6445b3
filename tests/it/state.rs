//! What walhouse stores of a slot, and what it reads at its next start.

use std::time::Duration;

use clickhouse::Client;
use walhouse::clickhouse::ddl;
use walhouse::clickhouse::state::{Checkpoint, State};
use walhouse::event::{Epoch, Lsn};

use crate::support::{Proxy, TestDb};

const GIB: u64 = 1 << 30;

/// Everything up to 100 is stored, and nothing beyond it was sent.
async fn begun(db: &TestDb, client: Client) -> State {
    let state = State::load(client, &db.name).await.expect("ClickHouse answers");
    let checkpoint = Checkpoint {
        epoch: Epoch(0),
        lsn: Lsn(100),
        queue_lsn: Lsn(100),
        ceiling: Lsn(100),
        system_identifier: 7,
        timeline: 1,
        publication: "walhouse:1".to_owned(),
        outbox: String::new(),
    };
    state.set_checkpoint(checkpoint).await.expect("it is stored");
    state
}

/// By way of a proxy, into a database with walhouse's own tables.
async fn warehouse(label: &str) -> (TestDb, Proxy, Client) {
    let db = TestDb::new(label).await;
    let proxy = Proxy::to(db.clickhouse.port()).await;
    let server = Client::default().with_url(format!("http://127.0.0.1:{}", proxy.port()));
    let client = server.clone().with_database(&db.name);
    ddl::migrate(&server, &client, &db.name).await.expect("the tables are made");
    (db, proxy, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_given_up_does_not_win_over_the_next_one() {
    let (db, proxy, client) = warehouse("state_given_up").await;
    let state = begun(&db, client.clone()).await;
    // It is stored, and who waited for that has gone.
    proxy.keep_answers(&["_checkpoint"]);
    let reserved = tokio::time::timeout(Duration::from_secs(2), state.reserve(Lsn(5000))).await;
    assert!(reserved.is_err(), "{reserved:?}");
    proxy.has_kept(1).await;
    proxy.mend();
    state.advance(Lsn(200), Lsn(200)).await.expect("it is stored");
    let revisions = "SELECT count(), uniqExact(revision) FROM _checkpoint";
    assert_eq!(db.ch.query(revisions).await, "3\t3");
    let next = State::load(client, &db.name).await.expect("ClickHouse answers");
    assert_eq!(next.checkpoint().await.expect("one is stored").lsn, Lsn(200));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_sends_nothing_keeps_the_ceiling_above_what_the_one_before_may_have_sent() {
    let (db, _proxy, client) = warehouse("state_inherit").await;
    begun(&db, client.clone()).await.reserve(Lsn(5000)).await.expect("it is stored");
    // That one is gone, without a word on how far it came.
    let ceiling = async |state: &State| state.checkpoint().await.expect("one is stored").ceiling;
    let next = State::load(client, &db.name).await.expect("ClickHouse answers");
    assert_eq!(ceiling(&next).await, Lsn(5000 + GIB));
    next.inherit(Lsn(8000));
    next.settle().await.expect("it is stored");
    assert_eq!(ceiling(&next).await, Lsn(8000));
    db.cleanup().await;
}
