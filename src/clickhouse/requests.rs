//! What operators ask the daemon for, by way of ClickHouse: so the command needs no way to the
//! daemon, and a request waits while the daemon is away.

use super::retrying;
use clickhouse::{Client, Row, error::Error};
use serde::Deserialize;

/// A request that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its id, a UUID.
    pub id: String,
    /// The source table's schema.
    pub schema: String,
    /// The source table's name.
    pub name: String,
    /// The UUID of the fresh target, if it was taken up.
    pub begun: Option<String>,
    revision: u64,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was taken up; the UUID of the fresh target.
    Begun(String),
    /// It is done.
    Done,
    /// It can not be done, for this reason.
    Refused(String),
}

/// The requests of one slot.
pub struct Requests {
    client: Client,
    slot: String,
}

#[derive(Row, Deserialize)]
struct RequestRow {
    id: String,
    schema_name: String,
    table_name: String,
    state: String,
    message: String,
    revision: u64,
}

impl Requests {
    /// Those of `slot`; the migrations must have run.
    pub fn new(client: Client, slot: &str) -> Self {
        Self { client, slot: slot.to_owned() }
    }

    /// Asks for a table to be copied anew, and returns the request's id.
    pub async fn resync(&self, schema: &str, name: &str) -> Result<String, Error> {
        let request = Request {
            id: uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
            schema: schema.to_owned(),
            name: name.to_owned(),
            begun: None,
            revision: 0,
        };
        self.write(&request, "asked", "").await?;
        Ok(request.id)
    }

    /// The requests that are not answered yet, oldest first.
    pub async fn open(&self) -> Result<Vec<Request>, Error> {
        let sql = "SELECT toString(id) AS id, schema_name, table_name, toString(state) AS state, message, revision \
                   FROM _requests FINAL WHERE slot = {slot: String} AND state IN ('asked', 'begun') ORDER BY updated_at";
        let read = || self.client.query_raw(sql).param("slot", &self.slot).fetch_all::<RequestRow>();
        let rows = retrying("look for requests", read).await?;
        let request = |row: RequestRow| Request {
            id: row.id,
            schema: row.schema_name,
            name: row.table_name,
            begun: (row.state == "begun").then_some(row.message),
            revision: row.revision,
        };
        Ok(rows.into_iter().map(request).collect())
    }

    /// Tells what became of a request.
    pub async fn answer(&self, request: &Request, answer: &Answer) -> Result<(), Error> {
        let (state, message) = match answer {
            Answer::Begun(uuid) => ("begun", uuid.as_str()),
            Answer::Done => ("done", ""),
            Answer::Refused(reason) => ("refused", reason.as_str()),
        };
        self.write(request, state, message).await
    }

    /// What became of the request with this id so far; `None` if nobody has taken it up.
    pub async fn outcome(&self, id: &str) -> Result<Option<Answer>, Error> {
        let sql = "SELECT toString(id) AS id, schema_name, table_name, toString(state) AS state, message, revision \
                   FROM _requests FINAL WHERE slot = {slot: String} AND _requests.id = toUUID({id: String})";
        let read = || {
            let query = self.client.query_raw(sql).param("slot", &self.slot).param("id", id);
            query.fetch_optional::<RequestRow>()
        };
        let row = retrying("look for a request", read).await?;
        Ok(row.and_then(|row| match row.state.as_str() {
            "begun" => Some(Answer::Begun(row.message)),
            "done" => Some(Answer::Done),
            "refused" => Some(Answer::Refused(row.message)),
            _ => None,
        }))
    }

    async fn write(&self, request: &Request, state: &str, message: &str) -> Result<(), Error> {
        retrying("store a request", || {
            self.client
                .query(
                    "INSERT INTO _requests (slot, id, action, schema_name, table_name, state, message, revision) \
                     SETTINGS async_insert = 0 VALUES (?, ?, 'resync', ?, ?, ?, ?, ?)",
                )
                .bind(&self.slot)
                .bind(&request.id)
                .bind(&request.schema)
                .bind(&request.name)
                .bind(state)
                .bind(message)
                .bind(request.revision + 1)
                .execute()
        })
        .await
    }
}
