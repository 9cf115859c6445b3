//! The outbox table: it is published, and not replicated.

use super::{SessionError, Tables};
use crate::{
    clickhouse::job::Failure,
    postgres::publication::{self, Membership},
    quote,
    retry::Kind,
};
use std::collections::HashMap;
use tokio_postgres::Client;

impl Tables {
    /// Sees to it that the publication carries the outbox table, once that is there. What was committed before is not an
    /// event: nobody was listening.
    pub(super) async fn publish_outbox(
        &mut self,
        control: &Client,
        memberships: &HashMap<u32, Membership>,
    ) -> Result<(), SessionError> {
        let Some((schema, name)) = &self.source.outbox else { return Ok(()) };
        let table = quote::postgres_table(schema, name);
        let oid: Option<u32> = control.query_one("SELECT to_regclass($1)::oid", &[&table]).await?.try_get(0)?;
        let carried = oid.and_then(|oid| memberships.get(&oid));
        match (oid, carried, &self.outbox) {
            (Some(_), Some(now), Some(before)) if *before != now.identity => tracing::error!(
                table,
                "the outbox table has left the publication, or is published in another way: what was written meanwhile may \
                 never be sent"
            ),
            (None | Some(_), None, Some(_)) => tracing::error!(
                table,
                "the outbox table is gone, or has left the publication: what is written into it is not sent"
            ),
            _ => {}
        }
        if let Some(now) = carried {
            // The next process has to know it too, whatever happens until then.
            self.shared.state.note_outbox(&now.identity).await.map_err(Failure::ClickHouse)?;
        }
        self.outbox = carried.map(|membership| membership.identity.clone());
        let Some(oid) = oid.filter(|_| carried.is_none()) else { return Ok(()) };
        if let Some(leaf) = publication::without_identity(control, oid).await? {
            if self.said.insert((oid, leaf.clone())) {
                tracing::error!(
                    table,
                    "the outbox table is not published, because nobody could update or delete its rows then: {leaf} has no \
                     usable replica identity. Give it a primary key"
                );
            }
            return Ok(());
        }
        match publication::add_to_publication(control, &self.source.publication, &table).await {
            Ok(true) => {
                tracing::info!(table, "events that are written into the outbox table are sent from now on");
                // Its identity is seen at the next look.
                self.soon = true;
            }
            // A writer of it keeps it out: at the next look, and not sooner, since all other writers wait behind this.
            Ok(false) => {}
            Err(error) if error.kind() == Kind::Transient => return Err(error.into()),
            Err(error) if self.said.insert((oid, error.to_string())) => {
                tracing::warn!(table, %error, "the outbox table can not be published, so its events are not sent");
            }
            Err(_) => {}
        }
        Ok(())
    }
}
