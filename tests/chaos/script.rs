//! What sessions say: the statements of a session follow from its seed alone, whatever the server answers.
//!
//! Sessions meet on few keys, so they wait for each other: an INSERT for the DELETE of the same unique key, an UPDATE for the
//! row. `seq` notes the order in which a key's rows were committed. It is taken where the row is held already, by an UPDATE or by
//! the second half of ON CONFLICT: an INSERT, and a change of the key, may wait for a unique index after all their values
//! are there, so they leave it NULL, and an UPDATE follows them.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Tables whose rows are compared, in the words of the oracle.
pub(crate) const TABLES: [&str; 9] = ["item", "line", "account", "member", "whole", "bin", "bulk", "shape", "emitted"];

/// Those of them whose every version is watched: their shape stays as it is. With the key, and with what does not lie out of
/// line, of which a version has one value however often it comes.
pub(crate) const WATCHED: [(&str, &str, &str); 7] = [
    ("item", "toString(id)", "name, price, ok, at"),
    ("line", "concat(toString(head), '/', toString(n))", "sku, qty"),
    ("account", "toString(id)", "balance"),
    ("member", "toString(id)", "email, note"),
    ("whole", "toString(id)", "v"),
    ("bin", "toString(id)", "v"),
    ("bulk", "toString(id)", "filler"),
];

pub(crate) const SCHEMA: &str = "CREATE SEQUENCE commit_order;
    CREATE TABLE item (id int8 PRIMARY KEY, seq int8, name text, price numeric(12, 2), ok bool,
        at timestamptz DEFAULT now(), body text, note text, raw bytea);
    ALTER TABLE item ALTER body SET STORAGE EXTERNAL, ALTER note SET STORAGE EXTERNAL, ALTER raw SET STORAGE EXTERNAL;
    CREATE TABLE line (head int4, n int2, seq int8, sku text, qty int4, details text, PRIMARY KEY (head, n));
    ALTER TABLE line ALTER details SET STORAGE EXTERNAL;
    CREATE TABLE account (id int4 PRIMARY KEY, seq int8, balance int8 NOT NULL);
    CREATE TABLE member (id int4 PRIMARY KEY, seq int8, email text NOT NULL UNIQUE, note text);
    CREATE TABLE whole (id int4 PRIMARY KEY, seq int8, v text, body text);
    ALTER TABLE whole REPLICA IDENTITY FULL, ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE bin (id int4 PRIMARY KEY, seq int8, v int4);
    CREATE TABLE bulk (id int4 PRIMARY KEY, seq int8, filler text);
    CREATE TABLE shape (id int4 PRIMARY KEY, seq int8, v int4, w varchar(10));
    CREATE TABLE emitted (event_id uuid PRIMARY KEY);
    CREATE TABLE tick (n int8 PRIMARY KEY);
    CREATE TABLE tock (n int8 PRIMARY KEY, odd bool)";

const NEXT: &str = "nextval('commit_order')";

/// A step of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Run(String),
    /// The beginning of a subtransaction.
    Enter,
    /// Its end, by RELEASE or by ROLLBACK TO.
    Leave {
        keep: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    pub(crate) steps: Vec<Step>,
    /// In place of ROLLBACK.
    pub(crate) commit: bool,
}

/// What one session says, one transaction after the other.
pub(crate) struct Script {
    rng: StdRng,
    /// How many statements of a thousand change the shape of a table; one session alone does.
    ddl: u32,
    columns: Vec<String>,
    made: u32,
}

impl Script {
    pub(crate) fn new(seed: u64, ddl: u32) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), ddl, columns: Vec::new(), made: 0 }
    }

    /// Rows that are there before walhouse is.
    pub(crate) fn first_rows(&mut self) -> String {
        let mut rows = String::new();
        for id in (0..200).step_by(2) {
            rows +=
                &format!("INSERT INTO item (id, name, body, note) VALUES ({id}, 'first', {}, 'short');", self.big());
        }
        rows + "INSERT INTO account SELECT i, NULL, 1000 FROM generate_series(0, 39) i;
            INSERT INTO shape (id, v) SELECT i, i FROM generate_series(0, 19) i;
            INSERT INTO whole SELECT i, NULL, 'first', repeat('w', 3000) FROM generate_series(0, 19) i;
            INSERT INTO bulk SELECT i, NULL, 'first' FROM generate_series(0, 999) i;"
    }

    pub(crate) fn transaction(&mut self) -> Transaction {
        if self.rng.random_range(0..1000) < self.ddl {
            return Transaction { steps: vec![Step::Run(self.change_of_shape())], commit: true };
        }
        let mut steps = Vec::new();
        for _ in 0..if self.rng.random_bool(0.4) { 1 } else { self.rng.random_range(2..7) } {
            let depth = if self.rng.random_bool(0.25) { self.rng.random_range(1..3) } else { 0 };
            steps.extend((0..depth).map(|_| Step::Enter));
            for _ in 0..=depth {
                let statement = self.statement();
                steps.push(Step::Run(statement));
            }
            steps.extend((0..depth).map(|_| Step::Leave { keep: self.rng.random_bool(0.5) }));
        }
        // Others come by meanwhile.
        if self.rng.random_bool(0.1) {
            let at = self.rng.random_range(0..=steps.len());
            steps.insert(at, Step::Run(format!("SELECT pg_sleep(0.0{})", self.rng.random_range(1..5))));
        }
        Transaction { steps, commit: self.rng.random_bool(0.9) }
    }

    fn statement(&mut self) -> String {
        match self.rng.random_range(0..1000) {
            0..330 => self.item(),
            330..500 => self.line(),
            500..600 => self.account(),
            600..720 => self.member(),
            720..790 => self.whole(),
            790..865 => self.bin(),
            865..869 => self.bulk(),
            869..920 => self.shape(),
            _ => self.event(),
        }
    }

    fn item(&mut self) -> String {
        let (id, to) = (self.below(200), self.below(200));
        let price = format!("{}.{:02}", self.below(100_000), self.below(100));
        let (word, big) = (self.word(), self.big());
        let seq = format!("UPDATE item SET seq = {NEXT} WHERE id =");
        match self.rng.random_range(0..100) {
            0..20 => format!(
                "INSERT INTO item (id, name, price, body, note, raw) VALUES ({id}, '{word}', {price}, {big}, {big}, {})
                ON CONFLICT (id) DO UPDATE SET seq = {NEXT}, name = excluded.name, note = excluded.note; {seq} {id}",
                self.bytes()
            ),
            // These leave alone whatever is stored out of line.
            20..45 => format!(
                "UPDATE item SET seq = {NEXT}, price = {price}, ok = NOT ok, at = clock_timestamp() WHERE id = {id}"
            ),
            45..50 => format!("UPDATE item SET seq = {NEXT}, name = '{word}' WHERE id % 37 = {}", id % 37),
            50..62 => format!("UPDATE item SET seq = NULL, id = {to} WHERE id = {id}; {seq} {to}"),
            // These change some of it.
            62..72 => format!("UPDATE item SET seq = {NEXT}, body = {big} WHERE id = {id}"),
            72..78 => format!("UPDATE item SET seq = {NEXT}, note = {big}, raw = {} WHERE id = {id}", self.bytes()),
            78..82 => format!("UPDATE item SET seq = {NEXT}, body = NULL, note = '' WHERE id = {id}"),
            82..87 => format!("UPDATE item SET seq = NULL, id = {to}, note = {big} WHERE id = {id}; {seq} {to}"),
            87..94 => format!("DELETE FROM item WHERE id = {id}"),
            // Gone and back within one transaction.
            _ => format!(
                "DELETE FROM item WHERE id = {id}; INSERT INTO item (id, name, body) VALUES ({id}, 'again', {big}); {seq} {id}"
            ),
        }
    }

    fn line(&mut self) -> String {
        let (head, n, to_head, to_n) = (self.below(30), self.below(6), self.below(30), self.below(6));
        let (qty, word, big) = (self.below(1000), self.word(), self.big());
        let seq = format!("UPDATE line SET seq = {NEXT} WHERE head =");
        match self.rng.random_range(0..100) {
            0..35 => format!(
                "INSERT INTO line VALUES ({head}, {n}, NULL, '{word}', {qty}, {big})
                ON CONFLICT (head, n) DO UPDATE SET seq = {NEXT}, qty = line.qty + excluded.qty; {seq} {head} AND n = {n}"
            ),
            35..55 => format!("UPDATE line SET seq = {NEXT}, qty = {qty} WHERE head = {head}"),
            55..70 => format!(
                "UPDATE line SET seq = NULL, head = {to_head}, n = {to_n} WHERE head = {head} AND n = {n};
                {seq} {to_head} AND n = {to_n}"
            ),
            70..80 => format!("UPDATE line SET seq = {NEXT}, details = {big} WHERE head = {head} AND n = {n}"),
            80..92 => format!("DELETE FROM line WHERE head = {head} AND n = {n}"),
            92..96 => format!("DELETE FROM line WHERE head = {head}"),
            _ => format!(
                "INSERT INTO line SELECT {head}, n, NULL, 'many', n, {big} FROM generate_series(0, 5) n
                ON CONFLICT DO NOTHING; {seq} {head}"
            ),
        }
    }

    /// Two rows in one transaction.
    fn account(&mut self) -> String {
        let (from, to, amount) = (self.below(40), self.below(40), self.below(50));
        format!(
            "UPDATE account SET seq = {NEXT}, balance = balance - {amount} WHERE id = {from};
            UPDATE account SET seq = {NEXT}, balance = balance + {amount} WHERE id = {to}"
        )
    }

    /// A second unique index, on which an INSERT waits for a DELETE, or fails.
    fn member(&mut self) -> String {
        let (id, to, email, word) = (self.below(20), self.below(20), self.below(12), self.word());
        let seq = format!("UPDATE member SET seq = {NEXT} WHERE id =");
        match self.rng.random_range(0..100) {
            0..30 => format!("INSERT INTO member VALUES ({id}, NULL, 'e{email}', '{word}'); {seq} {id}"),
            30..55 => format!("DELETE FROM member WHERE email = 'e{email}'"),
            55..75 => format!(
                "DELETE FROM member WHERE email = 'e{email}' OR id = {id};
                INSERT INTO member VALUES ({id}, NULL, 'e{email}', '{word}'); {seq} {id}"
            ),
            75..90 => format!("UPDATE member SET seq = NULL, id = {to} WHERE id = {id}; {seq} {to}"),
            _ => format!(
                "INSERT INTO member VALUES ({id}, NULL, 'e{email}', '{word}')
                ON CONFLICT (email) DO UPDATE SET seq = {NEXT}, note = excluded.note; {seq} {id}"
            ),
        }
    }

    /// REPLICA IDENTITY FULL.
    fn whole(&mut self) -> String {
        let (id, to, word) = (self.below(30), self.below(30), self.word());
        let seq = format!("UPDATE whole SET seq = {NEXT} WHERE id =");
        match self.rng.random_range(0..100) {
            0..30 => format!(
                "INSERT INTO whole VALUES ({id}, NULL, '{word}', {})
                ON CONFLICT (id) DO UPDATE SET seq = {NEXT}, v = excluded.v; {seq} {id}",
                self.big()
            ),
            30..65 => format!("UPDATE whole SET seq = {NEXT}, v = '{word}' WHERE id = {id}"),
            65..80 => format!("UPDATE whole SET seq = NULL, id = {to} WHERE id = {id}; {seq} {to}"),
            _ => format!("DELETE FROM whole WHERE id = {id}"),
        }
    }

    /// A table that is emptied now and then.
    fn bin(&mut self) -> String {
        let id = self.below(30);
        let insert =
            format!("INSERT INTO bin VALUES ({id}, NULL, {}) ON CONFLICT (id) DO UPDATE SET seq = {NEXT}", id * 3);
        match self.rng.random_range(0..100) {
            0..60 => format!("{insert}; UPDATE bin SET seq = {NEXT} WHERE id = {id}"),
            60..75 => format!("UPDATE bin SET seq = {NEXT}, v = v + 1"),
            75..90 => format!("DELETE FROM bin WHERE id = {id}"),
            90..95 => "TRUNCATE bin".to_owned(),
            // What was written before it is gone, what comes after it is not.
            _ => format!("{insert}; TRUNCATE bin; {insert}; UPDATE bin SET seq = {NEXT} WHERE id = {id}"),
        }
    }

    /// A transaction of thousands of rows.
    fn bulk(&mut self) -> String {
        let (from, rows, word) = (self.below(2000), self.rng.random_range(100..1000), self.word());
        match self.rng.random_range(0..100) {
            0..50 => format!(
                "INSERT INTO bulk SELECT i, NULL, '{word}' || i FROM generate_series({from}, {from} + {rows}) i
                ON CONFLICT (id) DO UPDATE SET seq = {NEXT}, filler = excluded.filler"
            ),
            50..80 => {
                format!("UPDATE bulk SET seq = {NEXT}, filler = '{word}' WHERE id BETWEEN {from} AND {from} + {rows}")
            }
            _ => format!("DELETE FROM bulk WHERE id BETWEEN {from} AND {from} + {rows}"),
        }
    }

    fn shape(&mut self) -> String {
        let (id, v, word) = (self.below(30), self.below(10_000), self.word());
        match self.rng.random_range(0..100) {
            0..30 => format!("INSERT INTO shape (id, v, w) VALUES ({id}, {v}, '{word}') ON CONFLICT DO NOTHING"),
            30..60 => format!("UPDATE shape SET v = {v} WHERE id = {id}"),
            60..80 => format!("UPDATE shape SET w = '{word}' WHERE id % 7 = {}", id % 7),
            80..90 => format!("UPDATE shape SET id = {} WHERE id = {id}", self.below(30)),
            _ => format!("DELETE FROM shape WHERE id = {id}"),
        }
    }

    /// Columns come, are renamed, become wider, and go.
    fn change_of_shape(&mut self) -> String {
        let at = (!self.columns.is_empty()).then(|| self.below(self.columns.len() as u32) as usize);
        let alter = "ALTER TABLE shape";
        match (self.rng.random_range(0..100), at) {
            (60..75, Some(at)) => {
                let name = self.fresh();
                let old = std::mem::replace(&mut self.columns[at], name.clone());
                format!("{alter} RENAME COLUMN {old} TO {name}")
            }
            (75..90, Some(at)) => format!("{alter} DROP COLUMN IF EXISTS {}", self.columns.swap_remove(at)),
            // A table that is rewritten.
            (90..93, _) => format!("{alter} ALTER v TYPE int8"),
            // One that is not.
            (93..100, _) => format!("{alter} ALTER w TYPE text"),
            _ => {
                let (name, value) = (self.fresh(), self.below(1000));
                self.columns.push(name.clone());
                let kinds =
                    [format!("int4 DEFAULT {value}"), "text".to_owned(), format!("text NOT NULL DEFAULT 'd{value}'")];
                let kind = &kinds[self.below(3) as usize];
                format!(
                    "{alter} ADD COLUMN IF NOT EXISTS {name} {kind}; UPDATE shape SET {name} = {value} WHERE id % 5 = 0"
                )
            }
        }
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("c{}", self.made)
    }

    /// An event, by the outbox or by a message without a table, and a row that tells that its transaction has committed.
    fn event(&mut self) -> String {
        let id = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid();
        let payload = format!(r#"{{"eventType": "login", "actingUserId": "u-{id}", "outcome": "success"}}"#);
        let emitted = format!("INSERT INTO emitted VALUES ('{id}')");
        let insert = format!(
            "INSERT INTO outbox_event (id, aggregate_id, event_type, payload)
            VALUES ('{id}', 'a{}', 'SecurityEventOccurred', '{payload}')",
            self.below(10)
        );
        match self.rng.random_range(0..100) {
            0..50 => format!("{emitted}; {insert}"),
            50..70 => format!("{insert}; DELETE FROM outbox_event WHERE id = '{id}'; {emitted}"),
            _ => format!(
                "SELECT pg_logical_emit_message(true, 'walhouse.outbox',
                '{{\"eventType\": \"SecurityEventOccurred\", \"eventId\": \"{id}\", \"payload\": {payload}}}'); {emitted}"
            ),
        }
    }

    fn below(&mut self, end: u32) -> u32 {
        self.rng.random_range(0..end)
    }

    fn word(&mut self) -> String {
        format!("{:x}", self.rng.random::<u32>())
    }

    /// Text, quoted, and always stored out of line, where nothing is compressed. A new word again and again: to draw each letter
    /// would take longer than all the rest.
    fn big(&mut self) -> String {
        let times = self.rng.random_range(260..560);
        format!("'{}'", format!("{:08x}", self.rng.random::<u32>()).repeat(times))
    }

    fn bytes(&mut self) -> String {
        let times = self.rng.random_range(260..370);
        format!("'\\x{}'", format!("{:016x}", self.rng.random::<u64>()).repeat(times))
    }
}

#[test]
fn the_statements_of_a_session_follow_from_its_seed() {
    let said = |seed| {
        let mut script = Script::new(seed, 50);
        (0..200).map(|_| format!("{:?}", script.transaction())).collect::<Vec<_>>()
    };
    assert_eq!(said(1), said(1));
    assert_ne!(said(1), said(2));
}
