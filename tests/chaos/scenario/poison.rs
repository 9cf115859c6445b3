//! Rows and events that ClickHouse refuses, whatever else goes in: they become dead letters, and get home once the reason is mended,
//! as `docs/recovery.md` says it.

use std::time::Duration;

use rand::RngExt;

use crate::stage::Stage;
use crate::support::{eventually, walhouse};

const WAIT: Duration = Duration::from_secs(180);

pub(super) async fn rows_and_messages(stage: &mut Stage) {
    for round in 0..stage.rounds(1) {
        stage.work(10..40).await;
        let (id, digit) = (stage.rng.random_range(0..200), stage.rng.random_range(0..10));
        let ch = &stage.db.ch;
        ch.query(&format!("ALTER TABLE account ADD CONSTRAINT poison CHECK id % 40 != {}", id % 40)).await;
        // What somebody has added trips over some of the events.
        let some = format!("if(endsWith(acting_user_id, '{digit}'), 'someday', '2026-01-01')");
        ch.query(&format!("ALTER TABLE audit_log ADD COLUMN day Date MATERIALIZED toDate({some})")).await;
        stage.inject(format!("rows of account {} and events that end with {digit} are refused", id % 40));
        let update = format!("UPDATE account SET seq = nextval('commit_order') WHERE id = {}", id % 40);
        stage.db.pg.execute(&update).await;
        let (rows, events) = letters(stage).await;
        stage.note(format!("{rows} rows and {events} events are dead letters"));
        // Whatever else is committed goes on.
        stage.settle().await;
        let ch = &stage.db.ch;
        ch.query("ALTER TABLE account DROP CONSTRAINT poison").await;
        ch.query("ALTER TABLE audit_log DROP COLUMN day").await;
        stage.rest().await;
        stage.settle().await;
        home(stage).await;
        stage.write();
        stage.note(format!("round {round}: all letters are home"));
    }
}

/// Waits until there are some of both, with events that are refused if there is none.
async fn letters(stage: &Stage) -> (u64, u64) {
    let dead = format!("{}audit-log-dlq", stage.prefix());
    eventually(WAIT, async || {
        stage.db.pg.try_execute(&super::event(0)).await?;
        let rows = stage.db.ch.try_query("SELECT count() FROM _dead_letters").await?;
        let (rows, events) = (rows.parse().unwrap_or(0), stage.servers.sqs.count(&dead).await);
        if rows > 0 && events > 0 { Ok((rows, events)) } else { Err(format!("{rows} rows, {events} events")) }
    })
    .await
}

/// Sends all of them home, and removes the letters of the rows that are there.
async fn home(stage: &mut Stage) {
    let (config, prefix) = (stage.daemon().config().to_owned(), stage.prefix());
    for queue in ["audit-log", "data-sync"] {
        let sent = walhouse(&config, &["dlq", "redrive", "--queue", queue]).await;
        assert_eq!(sent.code, Some(0), "{sent:?}");
        eventually(WAIT, async || {
            let (waiting, dead) = (format!("{prefix}{queue}-queue"), format!("{prefix}{queue}-dlq"));
            match (stage.servers.sqs.count(&waiting).await, stage.servers.sqs.count(&dead).await) {
                (0, 0) => Ok(()),
                left => Err(format!("{left:?} messages are left in {queue}")),
            }
        })
        .await;
    }
    let equal = walhouse(&config, &["verify", "--table", "public.account"]).await;
    assert_eq!(equal.code, Some(0), "{equal:?}");
    let purged = walhouse(&config, &["dlq", "purge", "--rows", "--table", "public.account", "--yes"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
}
