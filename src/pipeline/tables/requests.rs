//! What operators ask for of single tables: to copy one anew, to pause it, to resume it.
//!
//! All tables share the slot. So the changes of a table that is paused are passed over, and gone for it: to resume it is to
//! copy it anew, beside the target that stood still meanwhile and can be read all the time.

use super::{SessionError, Tables};
use crate::{
    clickhouse::{
        requests::{Action, Answer, Request},
        sink::Command,
        state::{TableRecord, TableStatus},
    },
    postgres::{catalog, publication},
};
use tokio_postgres::Client;

impl Tables {
    /// Takes up what operators have asked for, and tells them what became of it.
    pub(super) async fn answer_requests(&mut self, control: &Client) -> Result<(), SessionError> {
        for request in self.shared.requests.open().await? {
            // A replay is the session's.
            if request.action == Action::Replay {
                continue;
            }
            let answer = self.answer_request(control, &request).await?;
            // Not again and again what was said already.
            let told = |answer: &Answer| request.begun && *answer == Answer::Begun(request.message.clone());
            if let Some(answer) = answer.filter(|answer| !told(answer)) {
                self.shared.requests.answer(&request, &answer).await?;
            }
        }
        Ok(())
    }

    /// `None` if nothing can be said yet.
    async fn answer_request(&mut self, control: &Client, request: &Request) -> Result<Option<Answer>, SessionError> {
        let records = self.shared.state.tables().await;
        let named = |record: &&TableRecord| record.schema == request.schema && record.name == request.name;
        let Some(record) = records.iter().find(named).filter(|record| record.is_adopted()) else {
            return Ok(Some(Answer::Refused("walhouse does not replicate such a table".to_owned())));
        };
        match (request.action, &record.status) {
            (Action::Pause, _) => Ok(self.pause(record, request).await),
            (Action::Resync, TableStatus::Paused(_)) if !request.begun => {
                let why = format!("it is paused; walhouse resume --table {} copies it anew", record.full_name());
                Ok(Some(Answer::Refused(why)))
            }
            (Action::Resume, TableStatus::Paused(_)) => {
                tracing::info!(table = record.full_name(), "a table is resumed; it is copied anew");
                let resume = |record: &mut TableRecord| {
                    record.status = TableStatus::Resync("it was paused, and its changes were passed over".to_owned());
                };
                self.shared.state.update_table(record.oid, resume).await?;
                self.soon = true;
                Ok(None)
            }
            (Action::Resume, TableStatus::Stopped(reason)) => Ok(Some(Answer::Refused(reason.clone()))),
            (Action::Resume, _) if !request.begun && record.fresh.is_none() && !record.status.is_frozen() => {
                Ok(Some(Answer::Refused("it is not paused".to_owned())))
            }
            _ => self.copy_anew(control, record, request).await,
        }
    }

    /// Freezes a table, and gives up what is filled beside it.
    async fn pause(&mut self, record: &TableRecord, request: &Request) -> Option<Answer> {
        match (&record.status, &record.fresh) {
            (TableStatus::Paused(_), None) => return Some(Answer::Done),
            (TableStatus::Stopped(reason), _) => return Some(Answer::Refused(format!("it has stopped: {reason}"))),
            // In a moment it is one or the other.
            (TableStatus::Gone | TableStatus::Swapping, _) => return None,
            (_, Some(fresh)) if fresh.status == TableStatus::Swapping => return None,
            _ => {}
        }
        let status = TableStatus::Paused(request.message.clone());
        tracing::warn!(
            table = record.full_name(),
            why = request.message,
            "a table is paused; its changes are passed over"
        );
        if let Some(fresh) = &record.fresh {
            self.command(Command::Abandon(record.oid, fresh.uuid.clone(), status.clone())).await;
        }
        self.freeze(record.oid, status).await;
        self.soon = true;
        None
    }

    /// Begins to fill a fresh target, and tells when it has taken its place.
    async fn copy_anew(
        &mut self,
        control: &Client,
        record: &TableRecord,
        request: &Request,
    ) -> Result<Option<Answer>, SessionError> {
        if request.begun {
            return Ok(match (&record.fresh, &record.status) {
                (Some(_), _) => None,
                (None, TableStatus::Stopped(reason)) => Some(Answer::Refused(reason.clone())),
                (None, TableStatus::Paused(reason)) => Some(Answer::Refused(format!("it was paused {reason}"))),
                (None, TableStatus::Resync(_)) => None,
                (None, _) if record.uuid != request.message => {
                    let why = "the copy was given up, as the log says; what was there stays. Ask again";
                    Some(Answer::Refused(why.to_owned()))
                }
                (None, _) => Some(Answer::Done),
            });
        }
        if record.fresh.is_none() {
            let Some((source, _)) = catalog::table(control, &self.source, record.oid).await? else {
                return Ok(Some(Answer::Refused("the table was dropped in PostgreSQL".to_owned())));
            };
            let membership =
                publication::memberships(control, &self.publication, Some(record.oid)).await?.remove(&record.oid);
            if membership.is_none() {
                return Ok(Some(Answer::Refused("the table is not in the publication".to_owned())));
            }
            self.begin_resync(control, record, &source, membership.as_ref()).await?;
        }
        let fresh = self.shared.state.table(record.oid).await.and_then(|record| record.fresh);
        Ok(fresh.map(|fresh| Answer::Begun(fresh.uuid)))
    }
}
