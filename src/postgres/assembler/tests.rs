use super::*;
use bytes::BufMut;

const OID: u32 = 16_384;

/// What a server sends, message by message.
#[derive(Default)]
struct Stream(BytesMut);

impl Stream {
    fn frame(mut self, tag: u8, body: &[u8]) -> Self {
        self.0.put_u8(tag);
        self.0.put_u32(4 + body.len() as u32);
        self.0.put_slice(body);
        self
    }

    fn message(self, at: u64, payload: &[u8]) -> Self {
        let place = at.to_be_bytes();
        self.frame(b'd', &[b"w", &place[..], &place, &[0; 8], payload].concat())
    }

    fn keepalive(self, end: u64, reply: u8) -> Self {
        self.frame(b'd', &[b"k", &end.to_be_bytes()[..], &[0; 8], &[reply]].concat())
    }

    fn begin(self, commit: u64) -> Self {
        self.message(1, &[b"B", &commit.to_be_bytes()[..], &[0; 8], &7_u32.to_be_bytes()].concat())
    }

    fn commit(self, commit: u64, end: u64) -> Self {
        self.message(commit, &[b"C\0", &commit.to_be_bytes()[..], &end.to_be_bytes(), &[0; 8]].concat())
    }

    fn relation(self) -> Self {
        self.message(0, &[b"R", &OID.to_be_bytes()[..], b"public\0t\0d\0\0"].concat())
    }

    fn row(self, at: u64) -> Self {
        self.message(at, &[b"I", &OID.to_be_bytes()[..], b"N\0\0"].concat())
    }

    fn truncate(self, at: u64) -> Self {
        self.message(at, &[b"T\0\0\0\x01\0", &OID.to_be_bytes()[..]].concat())
    }

    fn logical(self, at: u64, transactional: u8) -> Self {
        self.message(at, &[b"M", &[transactional][..], &at.to_be_bytes(), b"p\0\0\0\0\0"].concat())
    }

    /// What an assembler tells of all of it.
    fn take(mut self, assembler: &mut Assembler) -> Result<Vec<String>, StreamError> {
        let taken = assembler.take(&mut self.0, false)?;
        assert!(self.0.is_empty(), "every whole message is taken");
        Ok(told(&taken))
    }

    fn error(self) -> StreamError {
        self.take(&mut Assembler::new(Lsn(1))).expect_err("it is not in order")
    }
}

fn told(taken: &Taken) -> Vec<String> {
    let tell = |event: &Event| match event {
        Event::Relation(_) => "relation".to_owned(),
        Event::Begin(begun) => format!("begin {}", begun.commit.0),
        Event::Change(change) => format!("row {}", change.record.0),
        Event::Truncate { record, .. } => format!("truncate {}", record.0),
        Event::Message { record, .. } => format!("message {}", record.0),
        Event::Commit { end } => format!("commit {}", end.0),
        Event::Idle(end) => format!("idle {}", end.0),
    };
    taken.group.iter().flat_map(|group| group.events.iter().map(tell)).collect()
}

fn at(position: u64) -> Assembler {
    Assembler::new(Lsn(position))
}

#[test]
fn a_position_lies_behind_commits_and_idle_marks_alone() {
    let mut assembler = at(1);
    assert!(assembler.is_between_transactions());
    let open = Stream::default().relation().begin(90).row(10).keepalive(50, 0);
    assert_eq!(open.take(&mut assembler).unwrap(), ["relation", "begin 90", "row 10"]);
    assert_eq!((assembler.position(), assembler.is_between_transactions()), (Lsn(1), false));
    let rest = Stream::default().truncate(20).logical(30, 1).commit(90, 95);
    assert_eq!(rest.take(&mut assembler).unwrap(), ["truncate 20", "message 30", "commit 95"]);
    assert_eq!((assembler.position(), assembler.is_between_transactions()), (Lsn(95), true));
    assert!(Stream::default().keepalive(95, 0).take(&mut assembler).unwrap().is_empty());
    let idle = Stream::default().keepalive(80, 0).keepalive(95, 0).keepalive(96, 0).keepalive(99, 0).logical(97, 0);
    assert_eq!(idle.take(&mut assembler).unwrap(), ["idle 99", "message 97"]);
    // A reader that goes on may bring a commit that ends before what a keepalive has said.
    let earlier = Stream::default().begin(97).commit(97, 98);
    assert_eq!(earlier.take(&mut assembler).unwrap(), ["begin 97", "commit 98"]);
    assert_eq!(assembler.position(), Lsn(99));
}

#[test]
fn what_the_server_asks_and_says_beside_the_stream_is_told() {
    let mut buffer = Stream::default().keepalive(7, 1).keepalive(5, 0).0;
    let taken = at(9).take(&mut buffer, false).unwrap();
    assert_eq!((taken.reply_requested, taken.heard, taken.group.is_none()), (true, Some(Lsn(5)), true));
    let others = Stream::default().frame(b'N', b"\0").frame(b'S', b"a\0b\0").begin(90);
    assert_eq!(others.take(&mut at(1)).unwrap(), ["begin 90"]);
    for tag in [b'c', b'C'] {
        assert!(matches!(Stream::default().frame(tag, b"").error(), StreamError::Ended));
    }
    let refused = Stream::default().frame(b'E', b"SERROR\0C57P01\0Mgone\0\0").error();
    assert!(matches!(refused, StreamError::Connection(ConnectionError::Server { .. })), "{refused}");
    let strange = Stream::default().frame(b'T', b"").error();
    assert!(matches!(strange, StreamError::Connection(ConnectionError::Protocol(_))), "{strange}");
}

#[test]
fn an_incomplete_message_stays_until_it_is_whole() {
    let mut buffer = Stream::default().begin(90).0;
    let last = buffer.split_off(buffer.len() - 1);
    let mut assembler = at(1);
    assert!(assembler.take(&mut buffer, false).unwrap().group.is_none());
    buffer.unsplit(last);
    assert_eq!(told(&assembler.take(&mut buffer, false).unwrap()), ["begin 90"]);
}

#[test]
fn up_to_the_commit_is_not_beyond_it() {
    let mut assembler = at(1);
    Stream::default().begin(90).take(&mut assembler).unwrap();
    let mut buffer = Stream::default().commit(90, 95).begin(190).0;
    assert_eq!(told(&assembler.take(&mut buffer, true).unwrap()), ["commit 95"]);
    assert!(!buffer.is_empty() && assembler.take(&mut buffer, true).unwrap().group.is_none());
    assert_eq!(told(&assembler.take(&mut buffer, false).unwrap()), ["begin 190"]);
}

#[test]
fn what_has_no_place_where_it_stands_is_refused() {
    let new = Stream::default;
    for (stream, word) in [
        (new().begin(90).begin(91), "inside another"),
        (new().commit(90, 95), "does not belong"),
        (new().begin(90).commit(91, 95), "does not belong"),
        (new().begin(90).commit(90, 90), "ends before it begins"),
        (new().relation().row(10), "a row outside"),
        (new().begin(90).row(10), "not announced"),
        (new().truncate(10), "a truncate outside"),
        (new().logical(10, 1), "outside of one"),
    ] {
        let error = stream.error();
        assert!(matches!(error, StreamError::Order { .. }) && error.to_string().contains(word), "{word}: {error}");
    }
    assert!(matches!(new().message(10, b"?").error(), StreamError::Decode { at: Lsn(10), .. }));
}

/// An assembler that was interrupted when it had handed over these rows of the transaction 90.
fn interrupted(rows: &[u64]) -> Assembler {
    let mut assembler = at(1);
    let begun = rows.iter().fold(Stream::default().relation().begin(90), |stream, &row| stream.row(row));
    begun.take(&mut assembler).unwrap();
    assembler.begin_anew();
    assembler
}

#[test]
fn what_was_handed_over_of_an_interrupted_transaction_is_left_out() {
    // Rows of one record share its position.
    let mut assembler = interrupted(&[10, 10]);
    assert!(!assembler.is_between_transactions());
    let again = || Stream::default().relation().begin(90).row(10);
    assert_eq!(again().take(&mut assembler).unwrap(), ["relation"]);
    // Once more, and before it had come as far.
    assembler.begin_anew();
    let whole = again().row(10).row(10).truncate(20).commit(90, 95).begin(190);
    assert_eq!(whole.take(&mut assembler).unwrap(), ["relation", "row 10", "truncate 20", "commit 95", "begin 190"]);
    let mut further = interrupted(&[10, 20]);
    let whole = Stream::default().relation().begin(90).row(10).row(20).row(30);
    assert_eq!(whole.take(&mut further).unwrap(), ["relation", "row 30"]);
    let mut nothing = interrupted(&[]);
    assert_eq!(Stream::default().begin(90).commit(90, 95).take(&mut nothing).unwrap(), ["commit 95"]);
    assert!(nothing.is_between_transactions());
}

#[test]
fn a_transaction_that_comes_back_as_another_one_is_noticed() {
    let again = || Stream::default().relation();
    for stream in [
        again().begin(91),
        again().begin(90).row(10).row(21),
        again().begin(90).row(10).commit(90, 95),
        again().begin(90).commit(90, 95),
    ] {
        let error = stream.take(&mut interrupted(&[10, 20])).expect_err("it is another one");
        assert!(matches!(error, StreamError::Again { .. }), "{error}");
    }
}

#[test]
fn relations_are_announced_to_each_reader() {
    let row = Stream::default().begin(90).row(10);
    assert!(matches!(row.take(&mut interrupted(&[10])), Err(StreamError::Order { .. })));
}
