//! What operators ask the daemon for, by way of ClickHouse: so the command needs no way to the
//! daemon, and a request waits while the daemon is away.

use super::retrying;
use clickhouse::{Client, Row, error::Error};
use serde::{Deserialize, Serialize};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// That a table is copied anew.
    Resync,
    /// That a table's changes are not applied any more.
    Pause,
    /// That a paused table is copied anew, and its changes are applied again.
    Resume,
    /// That the stream is delivered again from an earlier position on.
    Replay,
}

impl Action {
    const ALL: [Self; 4] = [Self::Resync, Self::Pause, Self::Resume, Self::Replay];

    /// Its word on the command line, and as it is stored.
    pub fn label(self) -> &'static str {
        match self {
            Self::Resync => "resync",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Replay => "replay",
        }
    }
}

/// A request that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Its id, a UUID.
    pub id: String,
    /// What is asked for.
    pub action: Action,
    /// The source table's schema; empty if it is not about a table.
    pub schema: String,
    /// The source table's name.
    pub name: String,
    /// Whether it was taken up.
    pub begun: bool,
    /// What was said with it; once it was taken up, what the daemon notes about it: the UUID of the fresh target of a table.
    pub message: String,
    /// How long ago that was, in seconds.
    pub age_seconds: u64,
    #[serde(skip)]
    revision: u64,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was taken up, with what the daemon notes about it.
    Begun(String),
    /// It is done.
    Done,
    /// It can not be done, for this reason.
    Refused(String),
}

/// The requests of one slot.
#[derive(Clone)]
pub struct Requests {
    client: Client,
    slot: String,
}

#[derive(Row, Deserialize)]
struct RequestRow {
    id: String,
    action: String,
    schema_name: String,
    table_name: String,
    state: String,
    message: String,
    age: i64,
    revision: u64,
}

const REQUESTS: &str = "SELECT toString(id) AS id, toString(action) AS action, schema_name, table_name, \
    toString(state) AS state, message, dateDiff('second', updated_at, now64(3, 'UTC')) AS age, revision \
    FROM _requests FINAL WHERE slot = {slot: String}";

impl Requests {
    /// Those of `slot`; the migrations must have run.
    pub fn new(client: Client, slot: &str) -> Self {
        Self { client, slot: slot.to_owned() }
    }

    /// Asks for something, of a table or of the whole, and returns the request's id.
    pub async fn ask(&self, action: Action, schema: &str, name: &str, message: &str) -> Result<String, Error> {
        let request = Request {
            id: uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
            action,
            schema: schema.to_owned(),
            name: name.to_owned(),
            begun: false,
            message: message.to_owned(),
            age_seconds: 0,
            revision: 0,
        };
        self.write(&request, "asked", message).await?;
        Ok(request.id)
    }

    /// The requests that are not answered yet, oldest first.
    pub async fn open(&self) -> Result<Vec<Request>, Error> {
        retrying("look for requests", || self.look()).await
    }

    /// The same, in one attempt.
    pub async fn look(&self) -> Result<Vec<Request>, Error> {
        let sql = format!("{REQUESTS} AND state IN ('asked', 'begun') ORDER BY updated_at");
        let rows = self.client.query_raw(&sql).param("slot", &self.slot).fetch_all::<RequestRow>().await?;
        let request = |row: RequestRow| {
            Some(Request {
                // What a later version asks for stays open until that one answers.
                action: Action::ALL.into_iter().find(|action| action.label() == row.action)?,
                id: row.id,
                schema: row.schema_name,
                name: row.table_name,
                begun: row.state == "begun",
                message: row.message,
                age_seconds: row.age.try_into().unwrap_or(0),
                revision: row.revision,
            })
        };
        Ok(rows.into_iter().filter_map(request).collect())
    }

    /// Tells what became of a request.
    pub async fn answer(&self, request: &Request, answer: &Answer) -> Result<(), Error> {
        let (state, message) = match answer {
            Answer::Begun(note) => ("begun", note.as_str()),
            Answer::Done => ("done", ""),
            Answer::Refused(reason) => ("refused", reason.as_str()),
        };
        self.write(request, state, message).await
    }

    /// What became of the request with this id so far; `None` if nobody has taken it up.
    pub async fn outcome(&self, id: &str) -> Result<Option<Answer>, Error> {
        let sql = format!("{REQUESTS} AND _requests.id = toUUID({{id: String}})");
        let read = || {
            let query = self.client.query_raw(&sql).param("slot", &self.slot).param("id", id);
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
                     SETTINGS async_insert = 0 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind(&self.slot)
                .bind(&request.id)
                .bind(request.action.label())
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
