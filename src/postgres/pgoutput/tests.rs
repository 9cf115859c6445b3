use super::*;
use crate::event::{Span, Value};
use proptest::prelude::*;
use std::time::{Duration, UNIX_EPOCH};

/// 2026-01-02 03:04:05.000006 UTC, in microseconds since 2000-01-01.
const TIME: [u8; 8] = [0x00, 0x02, 0xea, 0x5d, 0xbb, 0x15, 0x13, 0x46];

fn begin_bytes() -> Vec<u8> {
    [
        &b"B"[..],
        b"\x00\x00\x00\x16\xb3\x74\xd8\x48", // final LSN
        &TIME,                               // commit timestamp
        b"\x00\x00\x02\xf1",                 // xid
    ]
    .concat()
}

fn commit_bytes() -> Vec<u8> {
    [
        &b"C"[..],
        b"\x00",                             // flags
        b"\x00\x00\x00\x16\xb3\x74\xd8\x48", // commit LSN
        b"\x00\x00\x00\x16\xb3\x74\xd8\x78", // end LSN
        &TIME,                               // commit timestamp
    ]
    .concat()
}

fn origin_bytes() -> Vec<u8> {
    [
        &b"O"[..],
        b"\x00\x00\x00\x00\x00\x00\x00\x2a", // commit LSN on the origin
        b"upstream\0",                       // name
    ]
    .concat()
}

fn relation_bytes() -> Vec<u8> {
    [
        &b"R"[..],
        b"\x00\x00\x40\x01",      // relation oid
        b"shop\0",                // schema
        "Caf\u{e9}\0".as_bytes(), // name
        b"d",                     // replica identity
        b"\x00\x02",              // number of columns
        b"\x01id\0",              // flags: key; name
        b"\x00\x00\x00\x14",      // int8
        b"\xff\xff\xff\xff",      // no modifier
        b"\x00note\0",            // flags: none; name
        b"\x00\x00\x04\x13",      // varchar
        b"\x00\x00\x00\x44",      // varchar(64)
    ]
    .concat()
}

fn type_bytes() -> Vec<u8> {
    [
        &b"Y"[..],
        b"\x00\x00\x40\x02", // type oid
        b"\0",               // schema: pg_catalog
        b"mood\0",           // name
    ]
    .concat()
}

const NEW: &[u8] = b"\x00\x04t\x00\x00\x00\x0242nub\x00\x00\x00\x02\xff\x00";
const KEY: &[u8] = b"\x00\x02t\x00\x00\x00\x0241n";
const OLD: &[u8] = b"\x00\x02t\x00\x00\x00\x0241t\x00\x00\x00\x00";
const OID: &[u8] = b"\x00\x00\x40\x01";

fn insert_bytes() -> Vec<u8> {
    [b"I", OID, b"N", NEW].concat()
}

fn update_bytes(old: &[&[u8]]) -> Vec<u8> {
    [b"U", OID, &old.concat(), b"N", NEW].concat()
}

fn delete_bytes(kind: &[u8], old: &[u8]) -> Vec<u8> {
    [b"D", OID, kind, old].concat()
}

fn truncate_bytes() -> Vec<u8> {
    [
        &b"T"[..],
        b"\x00\x00\x00\x02", // number of relations
        b"\x02",             // options: restart identity, no cascade
        OID,
        b"\xff\xff\xff\xff",
    ]
    .concat()
}

fn message_bytes() -> Vec<u8> {
    [
        &b"M"[..],
        b"\x01",                             // flags: transactional
        b"\x00\x00\x00\x00\x00\x00\x01\x00", // LSN
        b"audit\0",                          // prefix
        b"\x00\x00\x00\x03",                 // content length
        b"\xfe\x00\xff",                     // content
    ]
    .concat()
}

/// As PostgreSQL 18.4 sent it, unasked.
fn stream_abort_bytes() -> Vec<u8> {
    [
        &b"A"[..],
        b"\x00\x00\x02\xf2", // xid
        b"\x00\x00\x02\xf3", // subtransaction xid
    ]
    .concat()
}

/// Every message that the decoder knows, in every form, with the name that errors give it.
fn fixtures() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("Begin", begin_bytes()),
        ("Commit", commit_bytes()),
        ("Origin", origin_bytes()),
        ("Relation", relation_bytes()),
        ("Type", type_bytes()),
        ("Insert", insert_bytes()),
        ("Update", update_bytes(&[])),
        ("Update", update_bytes(&[b"K", KEY])),
        ("Update", update_bytes(&[b"O", OLD])),
        ("Delete", delete_bytes(b"K", KEY)),
        ("Delete", delete_bytes(b"O", OLD)),
        ("Truncate", truncate_bytes()),
        ("Message", message_bytes()),
        ("Stream Abort", stream_abort_bytes()),
    ]
}

fn error(bytes: &[u8]) -> DecodeError {
    decode(bytes).err().expect("no message")
}

fn values(row: Row<'_>) -> Vec<Value<'_>> {
    row.tuple.values().collect()
}

fn time() -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(1_767_323_045_000_006)
}

#[test]
fn begin_tells_what_the_transaction_is() {
    let bytes = begin_bytes();
    let Ok(Message::Begin(begun)) = decode(&bytes) else { panic!("no Begin") };
    assert_eq!(begun, Transaction { commit: Lsn(0x16_b374_d848), time: time(), xid: 753 });
}

#[test]
fn begin_without_a_commit_lsn_is_an_error() {
    let mut bytes = begin_bytes();
    bytes[1..9].fill(0);
    assert_eq!(error(&bytes), DecodeError::Invalid { message: "Begin", field: "final LSN" });
}

#[test]
fn begin_takes_any_timestamp() {
    for micros in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
        let mut bytes = begin_bytes();
        bytes[9..17].copy_from_slice(&micros.to_be_bytes());
        let expected = DecodeError::Invalid { message: "Begin", field: "commit timestamp" };
        assert!(decode(&bytes).err().is_none_or(|error| error == expected), "{micros}");
    }
}

#[test]
fn commit_tells_where_it_ends() {
    let bytes = commit_bytes();
    let Ok(Message::Commit { commit, end, time: at }) = decode(&bytes) else { panic!("no Commit") };
    assert_eq!((commit, end, at), (Lsn(0x16_b374_d848), Lsn(0x16_b374_d878), time()));
}

#[test]
fn commit_with_flags_is_an_error() {
    let mut bytes = commit_bytes();
    bytes[1] = 1;
    assert_eq!(error(&bytes), DecodeError::Invalid { message: "Commit", field: "flags" });
}

#[test]
fn origin_has_a_name() {
    let bytes = origin_bytes();
    let Ok(Message::Origin { commit, name }) = decode(&bytes) else { panic!("no Origin") };
    assert_eq!((commit, name), (Lsn(42), "upstream"));
}

#[test]
fn relation_gives_the_shape_of_its_rows() {
    let bytes = relation_bytes();
    let Ok(Message::Relation(relation)) = decode(&bytes) else { panic!("no Relation") };
    let column = |name: &str, type_oid, type_modifier, key| RelationColumn {
        name: name.to_owned(),
        type_oid,
        type_modifier,
        key,
    };
    let expected = Relation {
        oid: 0x4001,
        schema: "shop".to_owned(),
        name: "Caf\u{e9}".to_owned(),
        identity: ReplicaIdentity::Default,
        columns: vec![column("id", 20, -1, true), column("note", 1043, 68, false)],
    };
    assert_eq!(relation, expected);
}

#[test]
fn relation_without_columns_in_pg_catalog_is_one() {
    let bytes = b"R\x00\x00\x00\x01\0t\0f\x00\x00";
    let Ok(Message::Relation(relation)) = decode(bytes) else { panic!("no Relation") };
    assert_eq!((relation.schema.as_str(), relation.identity), ("pg_catalog", ReplicaIdentity::Full));
    assert!(relation.columns.is_empty());
}

#[test]
fn relation_with_an_unknown_replica_identity_is_an_error() {
    let bytes = b"R\x00\x00\x00\x01s\0t\0x\x00\x00";
    assert_eq!(error(bytes), DecodeError::Invalid { message: "Relation", field: "replica identity" });
}

#[test]
fn type_has_a_qualified_name() {
    let bytes = type_bytes();
    let Ok(Message::Type { oid, schema, name }) = decode(&bytes) else { panic!("no Type") };
    assert_eq!((oid, schema, name), (0x4002, "pg_catalog", "mood"));
}

#[test]
fn insert_gives_its_columns_and_the_bytes_for_a_span() {
    let bytes = insert_bytes();
    let Ok(Message::Insert { relation, new }) = decode(&bytes) else { panic!("no Insert") };
    assert_eq!(relation, 0x4001);
    assert_eq!(values(new), [Value::Text(b"42"), Value::Null, Value::Unchanged, Value::Binary(b"\xff\x00")]);
    let span = Span::of(&bytes, new.data).unwrap();
    assert_eq!((span.start, span.bytes(&bytes)), (6, NEW));
    let (again, rest) = Tuple::parse(span.bytes(&bytes)).unwrap();
    assert_eq!((again.values().collect::<Vec<_>>(), rest), (values(new), &b""[..]));
}

#[test]
fn insert_with_an_old_tuple_is_an_error() {
    for kind in [&b"K"[..], b"O", b"n"] {
        let bytes = [b"I", OID, kind, NEW].concat();
        assert_eq!(error(&bytes), DecodeError::Invalid { message: "Insert", field: "kind of the new tuple" });
    }
}

#[test]
fn update_gives_the_old_row_in_each_of_its_forms() {
    for (kind, expected) in [(None, None), (Some(b"K"), Some(KEY)), (Some(b"O"), Some(OLD))] {
        let bytes = match (kind, expected) {
            (Some(kind), Some(old)) => update_bytes(&[kind, old]),
            _ => update_bytes(&[]),
        };
        let Ok(Message::Update { relation, old, old_is_key, new }) = decode(&bytes) else { panic!("no Update") };
        assert_eq!((relation, old_is_key, new.data), (0x4001, kind == Some(b"K"), NEW));
        assert_eq!(old.map(|row| row.data), expected);
    }
}

#[test]
fn update_without_a_new_tuple_is_an_error() {
    let bytes = [b"U", OID, b"K", KEY, b"K", KEY].concat();
    assert_eq!(error(&bytes), DecodeError::Invalid { message: "Update", field: "kind of the new tuple" });
    let bytes = [b"U", OID, b"X", NEW].concat();
    assert_eq!(error(&bytes), DecodeError::Invalid { message: "Update", field: "kind of the old tuple" });
}

#[test]
fn delete_tells_a_key_from_a_whole_row() {
    for (kind, old_bytes, expected_is_key) in [(b"K", KEY, true), (b"O", OLD, false)] {
        let bytes = delete_bytes(kind, old_bytes);
        let Ok(Message::Delete { relation, old, old_is_key }) = decode(&bytes) else { panic!("no Delete") };
        assert_eq!((relation, old_is_key, old.data), (0x4001, expected_is_key, old_bytes));
    }
    let bytes = delete_bytes(b"N", NEW);
    assert_eq!(error(&bytes), DecodeError::Invalid { message: "Delete", field: "kind of the old tuple" });
}

#[test]
fn truncate_lists_relations_and_options() {
    for (options, expected) in [(0, (false, false)), (1, (true, false)), (2, (false, true)), (3, (true, true))] {
        let mut bytes = truncate_bytes();
        bytes[5] = options;
        let Ok(Message::Truncate { relations, cascade, restart_identity }) = decode(&bytes) else {
            panic!("no Truncate")
        };
        assert_eq!((relations, (cascade, restart_identity)), (vec![0x4001, u32::MAX], expected));
    }
}

#[test]
fn a_logical_message_has_any_bytes_as_content() {
    let mut bytes = message_bytes();
    for expected in [true, false] {
        bytes[1] = u8::from(expected);
        let Ok(Message::Logical { transactional, lsn, prefix, content }) = decode(&bytes) else { panic!("no Message") };
        assert_eq!((transactional, lsn, prefix, content), (expected, Lsn(256), &b"audit"[..], &b"\xfe\x00\xff"[..]));
    }
    // Whoever writes one in a database without an encoding must not end the stream.
    let at = bytes.windows(5).position(|window| window == b"audit").unwrap();
    bytes[at] = 0xff;
    assert!(matches!(decode(&bytes), Ok(Message::Logical { prefix: b"\xffudit", .. })));
}

#[test]
fn a_stream_abort_is_skipped_and_no_other_message_of_later_protocols() {
    let bytes = stream_abort_bytes();
    assert!(matches!(decode(&bytes), Ok(Message::Ignored(b'A'))));
    let known = b"BCORYIUDTMA";
    for kind in (0..=u8::MAX).filter(|kind| !known.contains(kind)) {
        assert_eq!(error(&[&[kind], &bytes[1..]].concat()), DecodeError::Unknown(kind));
    }
}

#[test]
fn the_stream_abort_of_parallel_streaming_is_an_error() {
    let bytes = [stream_abort_bytes(), vec![0; 16]].concat();
    assert_eq!(error(&bytes), DecodeError::Trailing { message: "Stream Abort", field: "subtransaction xid" });
}

#[test]
fn a_message_cut_anywhere_is_an_error_that_names_it() {
    assert_eq!(error(b""), DecodeError::Empty);
    for (name, bytes) in fixtures() {
        for end in 1..bytes.len() {
            let error = error(&bytes[..end]);
            assert!(
                matches!(error, DecodeError::Truncated { message, .. } if message == name),
                "{name} cut at {end}: {error}"
            );
        }
    }
}

#[test]
fn bytes_after_a_message_are_an_error_that_names_it() {
    for (name, bytes) in fixtures() {
        for extra in [&b"\0"[..], b"N", b"\xff\xff\xff\xff"] {
            let error = error(&[&bytes, extra].concat());
            assert!(matches!(error, DecodeError::Trailing { message, .. } if message == name), "{name}: {error}");
        }
    }
}

#[test]
fn a_count_that_lies_is_an_error() {
    let cases: [(&[u8], &str, &str); 6] = [
        (b"I\x00\x00\x00\x01N\xff\xff", "Insert", "new tuple"),
        (b"I\x00\x00\x00\x01N\xff\xffnnn", "Insert", "new tuple"),
        (b"R\x00\x00\x00\x01s\0t\0d\x7f\xff\x00c\0", "Relation", "columns"),
        (b"R\x00\x00\x00\x01s\0t\0d\xff\xff\x00c\0\x00\x00\x00\x14\x00\x00\x00\x00", "Relation", "columns"),
        (b"T\x7f\xff\xff\xff\x00\x00\x00\x00\x01", "Truncate", "relation oids"),
        (b"M\x00\x00\x00\x00\x00\x00\x00\x00\x00p\0\x7f\xff\xff\xffx", "Message", "content"),
    ];
    for (bytes, message, field) in cases {
        assert_eq!(error(bytes), DecodeError::Truncated { message, field });
    }
}

#[test]
fn a_negative_count_is_an_error() {
    let bytes = b"T\xff\xff\xff\xff\x00\x00\x00\x00\x01";
    assert_eq!(error(bytes), DecodeError::Invalid { message: "Truncate", field: "number of relations" });
    let bytes = b"M\x00\x00\x00\x00\x00\x00\x00\x00\x00p\0\xff\xff\xff\xff";
    assert_eq!(error(bytes), DecodeError::Invalid { message: "Message", field: "content length" });
}

#[test]
fn a_name_that_is_not_utf_8_is_an_error() {
    let cases: [(&[u8], &str, &str); 4] = [
        (b"O\x00\x00\x00\x00\x00\x00\x00\x01\xff\0", "Origin", "origin name"),
        (b"Y\x00\x00\x00\x01\xc3\0t\0", "Type", "schema name"),
        (b"R\x00\x00\x00\x01s\0\xed\xa0\x80\0d\x00\x00", "Relation", "relation name"),
        (b"R\x00\x00\x00\x01s\0t\0d\x00\x01\x00\xe9\0\x00\x00\x00\x14\x00\x00\x00\x00", "Relation", "column name"),
    ];
    for (bytes, message, field) in cases {
        assert_eq!(error(bytes), DecodeError::Invalid { message, field });
    }
}

#[test]
fn an_error_says_where_it_was_and_not_what_was_there() {
    let bytes = [b"U", OID, b"O\x00\x01t\x00\x00\x00\x06secretN\x00\x01S"].concat();
    let error = error(&bytes);
    assert_eq!(error.to_string(), "the pgoutput message Update has an invalid new tuple");
    assert_eq!(error, DecodeError::Invalid { message: "Update", field: "new tuple" });
}

/// What a real server sent.
fn recorded() -> Vec<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).expect("a hexadecimal digit") as u8;
    let line = |line: &str| line.as_bytes().chunks(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect();
    include_str!("postgres15.hex").lines().filter(|line| !line.starts_with('#')).map(line).collect()
}

fn all_messages() -> Vec<Vec<u8>> {
    fixtures().into_iter().map(|(_, bytes)| bytes).chain(recorded()).collect()
}

#[test]
fn what_a_real_server_sent_is_understood() {
    let mut kinds = String::new();
    let mut open = None;
    for bytes in recorded() {
        kinds.push(char::from(bytes[0]));
        match decode(&bytes) {
            Ok(Message::Begin(begun)) => open = Some(begun),
            Ok(Message::Commit { commit, end, time }) => {
                assert_eq!(open.take().map(|begun| (begun.commit, begun.time)), Some((commit, time)));
                assert!(end > commit);
            }
            Ok(Message::Logical { transactional, .. }) => assert_eq!(transactional, open.is_some()),
            Ok(_) => assert!(open.is_some()),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(kinds, "BYRCBUCBUCBDCBRICBUCBDCBMICMBYRRTCBORIC");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn random_bytes_after_a_known_kind_never_panic(
        kind in proptest::sample::select(&b"BCORYIUDTMA"[..]),
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = decode(&[vec![kind], body].concat());
    }

    #[test]
    fn mutated_messages_never_panic(
        mut bytes in proptest::sample::select(all_messages()),
        mutations in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for (index, value) in mutations {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        // Whatever a row is made of then, it lies inside the message and can be read again.
        if let Ok(Message::Insert { new, .. } | Message::Update { new, .. }) = decode(&bytes) {
            let span = Span::of(&bytes, new.data).unwrap();
            let (tuple, rest) = Tuple::parse(span.bytes(&bytes)).unwrap();
            prop_assert_eq!(tuple.values().count(), tuple.len());
            prop_assert!(rest.is_empty());
        }
    }
}
