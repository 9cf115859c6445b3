//! Whether `walhouse run` can go on from where it left off: what is stored, held against the slot, the publication and the
//! cluster. By the code of `run` itself, which halts where something may have been missed.

use super::{Found, failed, fine, warning};
use crate::{
    clickhouse::{
        client::client,
        state::{Checkpoint, State},
    },
    config::Config,
    postgres::{connection::ReplicationConnection, publication, slot::Server},
    setup::{self, SetupError},
};
use std::time::Duration;
use tokio_postgres::Client;

/// How long ClickHouse may take to tell what is stored.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A daemon that is going moves what is compared: what does not fit is looked at once more.
const LOOKS: u32 = 2;

/// `None` if nothing is stored, so that `run` would begin; and if ClickHouse can not be asked, of which its own lines tell.
pub(super) async fn look(config: &Config, control: &Client) -> Option<Found> {
    let mut found = None;
    for _ in 0..LOOKS {
        match compare(config, control).await? {
            Ok(stored) => return Some(fine(format!("run goes on from {}", stored.lsn))),
            Err(SetupError::Gap(gap)) => found = Some(failed(format!("walhouse run halts: {}", gap.what), gap.remedy)),
            Err(SetupError::Definite(what)) => found = Some(failed(format!("walhouse run halts: {what}"), ABOVE)),
            Err(error) => return Some(warning(format!("it can not be told whether run can go on: {error}"), ABOVE)),
        }
    }
    found
}

const ABOVE: &str = "mend what the lines above name, then check again";

/// The stored checkpoint, or why the source does not go on from there.
async fn compare(config: &Config, control: &Client) -> Option<Result<Checkpoint, SetupError>> {
    // The slot before the checkpoint: a daemon moves it only once that is stored.
    let asked = ask(config, control).await;
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let loaded = tokio::time::timeout(TIMEOUT, State::load(target, &config.source.slot)).await;
    let stored = loaded.ok()?.ok()?.checkpoint().await?;
    Some(match asked {
        Ok((server, mut replication)) => {
            setup::goes_on(&stored, &server, &config.source.slot, &mut replication).await.map(|()| stored)
        }
        Err(error) => Err(error),
    })
}

async fn ask(config: &Config, control: &Client) -> Result<(Server, ReplicationConnection), SetupError> {
    let source = &config.source;
    let found = publication::publication(control, &source.publication).await?;
    let mut replication = ReplicationConnection::connect(&source.url, "walhouse check").await?;
    let server = Server::ask(control, &mut replication, &source.slot, found.as_ref()).await?;
    Ok((server, replication))
}
