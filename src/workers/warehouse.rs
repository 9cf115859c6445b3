//! Has the star schema made, once what it stands on is there.

use crate::{
    clickhouse::{
        self,
        client::describe,
        warehouse::{Applied, apply},
    },
    config::Config,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often it is looked for what is missing.
const PAUSE: Duration = Duration::from_secs(2);

/// Runs until the star schema is there, or never can be.
pub(super) async fn run(config: Arc<Config>, stop: CancellationToken) {
    if !config.warehouse.enabled {
        return;
    }
    let client = clickhouse::client::client(&config.clickhouse).with_database(&config.clickhouse.database);
    let _ = stop.run_until_cancelled(make(&client)).await;
}

async fn make(client: &::clickhouse::Client) {
    let mut told = Vec::new();
    loop {
        match apply(client).await {
            Ok(Applied::Yes) => return tracing::info!("the star schema is there"),
            Ok(Applied::Missing(missing)) if missing != told => {
                tracing::info!(missing = missing.join(", "), "the star schema waits for tables");
                told = missing;
            }
            Ok(Applied::Missing(_)) => {}
            Ok(Applied::Taken(name)) => {
                return tracing::error!(
                    name,
                    "the star schema is not made: there is a table of that name, which is not a view. Rename it, or set \
                     warehouse.enabled = false"
                );
            }
            // The database itself may be about to be made.
            Err(error) if clickhouse::client::code(&error) == Some(81) => {}
            Err(error) => {
                return tracing::error!(
                    error = describe(&error),
                    "the star schema can not be made: it fits the tables of docker/demo/shop.sql, with all of their columns"
                );
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
