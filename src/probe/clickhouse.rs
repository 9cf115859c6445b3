//! ClickHouse: whether it answers, how many parts it has to merge, and how many dead letters nobody has purged.

use super::{Neighbour, PATIENCE, SILENCE};
use crate::{
    clickhouse::{client, dead_letters},
    config::Config,
    telemetry::{names, tables},
};
use ::clickhouse::{Client, Row, error::Error};
use metrics::SharedString;
use serde::Deserialize;
use std::{collections::HashSet, future::Future, time::Duration};
use tokio::time::{sleep, timeout};

/// How often it is asked whether it is there, and the rest every so many times.
const INTERVAL: Duration = Duration::from_secs(10);
const EVERY: u32 = 3;
/// Tables with letters that are told of; more of them are wrong for one reason.
const MOST: usize = 100;

#[derive(Row, Deserialize)]
struct Parts {
    all: u64,
    most: u64,
}

#[derive(Row, Deserialize)]
struct Letters {
    table: String,
    count: u64,
}

/// Asks for ever.
pub(super) async fn run(config: &Config) {
    let client = client::client(&config.clickhouse);
    let own = client.clone().with_database(&config.clickhouse.database);
    let mut neighbour = Neighbour::new("clickhouse");
    let (mut told, mut turn) = (HashSet::new(), 0);
    loop {
        let is_there = neighbour.answered(answer(client.query("SELECT 1").fetch_one::<u8>()).await).is_some();
        // Without its database, or the rights to look, there are no figures, and nothing else is the worse for it.
        if is_there && turn == 0 {
            if let Err(error) = answer(parts(&client, &config.clickhouse.database)).await {
                tracing::debug!(error, "the parts can not be counted");
            }
            match answer(letters(&own, &config.source.slot)).await {
                Ok(letters) => show(letters, &mut told),
                Err(error) => tracing::debug!(error, "the dead letters can not be counted"),
            }
        }
        turn = if is_there { (turn + 1) % EVERY } else { 0 };
        sleep(INTERVAL).await;
    }
}

async fn answer<T>(question: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    let answer = timeout(PATIENCE, question).await.map_err(|_| SILENCE.to_owned())?;
    answer.map_err(|error| client::describe(&error))
}

async fn parts(client: &Client, database: &str) -> Result<(), Error> {
    let query = "SELECT sum(n) AS all, max(n) AS most FROM (SELECT count() AS n FROM system.parts \
        WHERE database = ? AND active GROUP BY table, partition_id)";
    let parts = client.query(query).bind(database).fetch_one::<Parts>().await?;
    metrics::gauge!(names::PARTS).set(parts.all as f64);
    metrics::gauge!(names::PARTS_MOST).set(parts.most as f64);
    Ok(())
}

async fn letters(client: &Client, slot: &str) -> Result<Vec<Letters>, Error> {
    let query = format!(
        "SELECT concat(schema_name, '.', table_name) AS table, count() AS count FROM {} FINAL WHERE slot = ? \
         GROUP BY table ORDER BY count DESC LIMIT {MOST}",
        dead_letters::TABLE
    );
    client.query(&query).bind(slot).fetch_all().await
}

/// Tables whose letters have gone have none, rather than as many as before.
fn show(letters: Vec<Letters>, told: &mut HashSet<SharedString>) {
    let before = std::mem::take(told);
    for Letters { table, count } in letters {
        if let Some(label) = tables::measured(&table) {
            metrics::gauge!(names::LETTERS_STORED, "table" => label.clone()).set(count as f64);
            told.insert(label);
        }
    }
    for gone in before.difference(told) {
        metrics::gauge!(names::LETTERS_STORED, "table" => gone.clone()).set(0.0);
    }
}
