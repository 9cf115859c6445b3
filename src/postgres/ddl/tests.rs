use super::*;
use crate::event::KeyKind;
use serde_json::{Value, json};

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

fn sealed(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(body).finalize().into_bytes();
    let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    [hex.as_bytes(), b" ", body].concat()
}

/// A body that is well formed in every field.
fn body() -> Value {
    let column = |attnum: i16, name: &str, type_oid: u32| {
        json!({ "attnum": attnum, "name": name, "declared_oid": type_oid, "declared_modifier": -1, "type_oid": type_oid,
                "type_modifier": -1, "type_name": "a type", "stamp": 700 })
    };
    json!({
        "v": 1, "xid": "4294968000",
        "table": {
            "oid": 7, "schema": "public", "name": "t", "root": false, "unlogged": false, "identity": "d",
            "columns": [column(1, "id", 23), column(3, "v", 25)],
            "keys": [{ "primary": true, "immediate": true, "columns": ["id"] }],
            "publications": [{ "name": "other" }, { "name": "walhouse", "columns": [1, 3], "filter": "(id > 0)" }],
            "partitions": [], "heaps": [[7, 70, 0, false]],
        },
    })
}

fn read(body: &Value) -> Result<Option<Told>, String> {
    told(body.to_string().as_bytes(), 704, "walhouse")
}

fn table(body: &Value) -> SourceTable {
    match read(body) {
        Ok(Some(Told::Table(table))) => *table,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_key_that_wrote_a_message_opens_it() {
    let content = sealed(KEY, b"{}");
    assert_eq!(authentic(KEY, &content), Some(&b"{}"[..]));
    assert_eq!(authentic(b"another key", &content), None);
    for at in 0..content.len() {
        let mut changed = content.clone();
        changed[at] ^= 1;
        assert_eq!(authentic(KEY, &changed), None, "changed at {at}");
        assert_eq!(authentic(KEY, &content[..at]), None, "cut at {at}");
    }
}

#[test]
fn a_description_is_the_table_that_the_catalog_reader_would_find() {
    let table = table(&body());
    assert_eq!((table.oid, table.full_name().as_str(), table.kind), (7, "public.t", TableKind::Table));
    assert_eq!(table.key, Ok(KeyKind::PrimaryKey));
    assert_eq!(
        table.columns.iter().map(|column| (column.attnum, column.key_position)).collect::<Vec<_>>(),
        [(1, Some(0)), (3, None)]
    );
    assert_eq!(table.filter.as_deref(), Some("(id > 0)"));
    assert_eq!(table.heaps, [Heap { oid: 7, filenode: 70, attachment: 0, born_partition: false }]);
}

#[test]
fn what_the_publication_leaves_out_is_left_out() {
    let mut listed = body();
    listed["table"]["publications"][1]["columns"] = json!([1]);
    assert_eq!(table(&listed).columns.len(), 1);
    listed["table"]["publications"][1]["columns"] = json!([3]);
    assert!(table(&listed).key.unwrap_err().contains("does not carry id"));
    let mut generated = body();
    generated["table"]["columns"][1]["generated"] = json!(true);
    generated["table"]["publications"][1] = json!({ "name": "walhouse" });
    assert_eq!(table(&generated).columns.len(), 1);
    let mut foreign = body();
    foreign["table"]["publications"] = json!([{ "name": "other" }]);
    assert!(matches!(read(&foreign), Ok(None)));
}

#[test]
fn a_partition_that_differs_takes_the_key() {
    let mut odd = body();
    odd["table"]["partitions"] =
        json!([{ "oid": 8, "schema": "public", "name": "leaf", "identity": "f", "keys": odd["table"]["keys"] }]);
    assert!(table(&odd).key.unwrap_err().contains("\"public\".\"leaf\""));
}

#[test]
fn what_is_not_meant_or_not_whole_is_refused() {
    assert!(matches!(told(b"{\"v\":1,\"xid\":\"704\",\"dropped\":[5]}", 704, "walhouse"), Ok(Some(Told::Dropped(_)))));
    let changes: [(&str, Value); 12] = [
        ("/v", json!(2)),
        ("/xid", json!("703")),
        ("/xid", json!("-1")),
        ("/table", Value::Null),
        ("/dropped", json!([5])),
        ("/table/oid", json!(0)),
        ("/table/oid", json!("7")),
        ("/table/columns/0/attnum", json!(0)),
        ("/table/columns/0/attnum", json!(3)),
        ("/table/columns/0/name", json!("v")),
        ("/table/columns/0/type_oid", json!(null)),
        ("/table/heaps/0", json!([7, 70])),
    ];
    for (path, value) in changes {
        let mut changed = body();
        if path == "/dropped" {
            changed["dropped"] = value;
        } else {
            *changed.pointer_mut(path).unwrap() = value;
        }
        assert!(read(&changed).is_err(), "{path}");
    }
    let text = body().to_string();
    for end in 0..text.len() {
        assert!(told(&text.as_bytes()[..end], 704, "walhouse").is_err(), "cut at {end}");
    }
}
