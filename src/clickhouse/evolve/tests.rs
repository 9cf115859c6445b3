use super::*;
use crate::config::TableOptions;
use crate::event::{Heap, KeyKind, RelationColumn, ReplicaIdentity};

const INT4: u32 = 23;
const TEXT: u32 = 25;

fn column(attnum: i16, name: &str, type_oid: u32) -> SourceColumn {
    SourceColumn {
        attnum,
        name: name.to_owned(),
        declared_oid: type_oid,
        declared_modifier: -1,
        type_oid,
        type_modifier: -1,
        is_enum: false,
        not_null: attnum == 1,
        generated: false,
        key_position: (attnum == 1).then_some(0),
        stamp: 100,
        ..SourceColumn::default()
    }
}

fn table(columns: &[SourceColumn]) -> SourceTable {
    SourceTable {
        oid: 7,
        schema: "public".to_owned(),
        name: "t".to_owned(),
        kind: TableKind::Table,
        replica_identity: ReplicaIdentity::Default,
        columns: columns.to_vec(),
        key: Ok(KeyKind::PrimaryKey),
        heaps: vec![Heap { oid: 7, filenode: 70, attachment: 0, born_partition: false }],
        filter: None,
    }
}

fn relation(names: &[&str]) -> Relation {
    let columns = names.iter().map(|name| RelationColumn {
        name: (*name).to_owned(),
        type_oid: if *name == "id" { INT4 } else { TEXT },
        type_modifier: -1,
        key: *name == "id",
    });
    Relation {
        oid: 7,
        schema: "public".to_owned(),
        name: "t".to_owned(),
        identity: ReplicaIdentity::Default,
        columns: columns.collect(),
    }
}

fn evolution(old: &SourceTable, names: Option<&[&str]>, now: &SourceTable) -> Evolution {
    let old_spec = TableSpec::new(old, &TableOptions::default(), false).unwrap();
    let relation = names.map(relation);
    let heaps = old.heaps.iter().map(|heap| (heap.oid, heap.state())).collect();
    Change { old: &old_spec, heaps: &heaps, relation: relation.as_ref(), xid: Some(100), now }.evolution()
}

fn steps(evolution: Evolution) -> Vec<Step> {
    match evolution {
        Evolution::InPlace(_, steps) => steps,
        other => panic!("{other:?}"),
    }
}

fn two() -> Vec<SourceColumn> {
    vec![column(1, "id", INT4), column(2, "a", TEXT)]
}

#[test]
fn a_column_that_is_added_has_the_value_of_older_rows() {
    let mut now = table(&[two(), vec![column(3, "b", TEXT)]].concat());
    let old = table(&two());
    let add = |default| vec![Step::Add { column: 2, default }];
    assert_eq!(steps(evolution(&old, Some(&["id", "a", "b"]), &now)), add(None));
    now.columns[2].missing = Some("it's".to_owned());
    assert_eq!(steps(evolution(&old, Some(&["id", "a", "b"]), &now)), add(Some(r"'it\'s'".to_owned())));
    assert_eq!(steps(evolution(&old, None, &now)).len(), 1);
    // The stream has not come to it yet.
    assert!(matches!(evolution(&old, Some(&["id", "a"]), &now), Evolution::Same(_, false)));
    // A default that is computed for each row comes with a rewrite.
    now.heaps[0].filenode = 71;
    assert!(matches!(evolution(&old, Some(&["id", "a", "b"]), &now), Evolution::Anew(_)));
}

#[test]
fn a_column_is_known_by_its_number_and_not_by_its_name() {
    let old = table(&two());
    let renamed = table(&[column(1, "id", INT4), column(2, "b", TEXT)]);
    let rename = Step::Rename { from: "a".to_owned(), to: "b".to_owned() };
    assert_eq!(steps(evolution(&old, Some(&["id", "b"]), &renamed)), [rename]);
    let again = table(&[column(1, "id", INT4), column(3, "a", TEXT)]);
    assert!(matches!(evolution(&old, Some(&["id", "a"]), &again), Evolution::Anew(_)));
    let three = table(&[two(), vec![column(3, "b", TEXT)]].concat());
    let exchanged = table(&[column(1, "id", INT4), column(2, "b", TEXT), column(3, "a", TEXT)]);
    assert!(matches!(evolution(&three, Some(&["id", "b", "a"]), &exchanged), Evolution::Anew(_)));
    assert!(
        Plan::new(&TableSpec::new(&three, &TableOptions::default(), false).unwrap(), &relation(&["id", "b", "a"]))
            .is_err()
    );
    let key = table(&[column(1, "key", INT4), column(2, "a", TEXT)]);
    assert!(matches!(evolution(&old, Some(&["key", "a"]), &key), Evolution::Anew(_)));
}

#[test]
fn a_column_that_is_dropped_stays_and_takes_null() {
    let mut old = table(&two());
    old.columns[1].not_null = true;
    let now = table(&two()[..1]);
    let loosen = Step::Loosen { name: "a".to_owned(), ty: ColumnType::String };
    assert_eq!(steps(evolution(&old, Some(&["id"]), &now)), [loosen]);
    old.columns[1].not_null = false;
    assert_eq!(steps(evolution(&old, Some(&["id"]), &now)), []);
}

#[test]
fn what_takes_null_once_takes_it_for_good() {
    let mut strict = table(&two());
    strict.columns[1].not_null = true;
    let loose = table(&two());
    let loosen = Step::Loosen { name: "a".to_owned(), ty: ColumnType::String };
    assert_eq!(steps(evolution(&strict, None, &loose)), [loosen]);
    match evolution(&loose, None, &strict) {
        Evolution::Same(spec, _) => assert!(spec.columns[1].nullable),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rewrite_that_computes_values_is_told_from_one_that_moves_rows() {
    let old = table(&two());
    let mut now = table(&two());
    now.heaps[0].filenode = 71;
    assert!(matches!(evolution(&old, None, &now), Evolution::Same(..)));
    now.columns[1].stamp = 101;
    assert!(matches!(evolution(&old, None, &now), Evolution::Anew(_)));
    now.heaps[0].filenode = 70;
    assert!(matches!(evolution(&old, None, &now), Evolution::Same(_, true)));
}

#[test]
fn rows_that_come_or_go_with_a_partition_call_for_a_copy() {
    let heap = |oid, filenode, born_partition| Heap { oid, filenode, attachment: 1, born_partition };
    let with = |heaps: &[Heap]| SourceTable { kind: TableKind::PartitionRoot, heaps: heaps.to_vec(), ..table(&two()) };
    let old = with(&[heap(8, 80, true), heap(9, 90, false)]);
    assert!(matches!(
        evolution(&old, None, &with(&[heap(9, 90, false), heap(8, 80, true)])),
        Evolution::Same(_, false)
    ));
    let born = with(&[heap(8, 80, true), heap(9, 90, false), heap(10, 100, true)]);
    assert!(matches!(evolution(&old, None, &born), Evolution::Same(_, false)));
    for heaps in [
        &[heap(8, 80, true)][..],
        &[heap(8, 81, true), heap(9, 90, false)],
        &[heap(8, 80, true), heap(9, 90, false), heap(10, 100, false)],
    ] {
        assert!(matches!(evolution(&old, None, &with(heaps)), Evolution::Anew(_)), "{heaps:?}");
    }
}

#[test]
fn a_key_that_is_another_stops_the_table() {
    let old = table(&[two(), vec![column(3, "b", INT4)]].concat());
    let mut now = old.clone();
    (now.columns[0].key_position, now.columns[2].key_position) = (None, Some(0));
    assert!(matches!(evolution(&old, None, &now), Evolution::Stop(_)));
    now.columns[0].key_position = Some(1);
    assert!(matches!(evolution(&old, None, &now), Evolution::Stop(_)));
    now.key = Err("it has no primary key".to_owned());
    assert!(matches!(evolution(&old, None, &now), Evolution::Stop(_)));
}

#[test]
fn an_enum_may_gain_labels_and_not_change_one() {
    let labels = |labels: &str| {
        let mut table = table(&two());
        table.columns[1].is_enum = true;
        table.columns[1].parts = labels.to_owned();
        table
    };
    let old = labels("aaaaaaaabbbbbbbb");
    assert!(matches!(evolution(&old, None, &labels("aaaaaaaabbbbbbbbcccccccc")), Evolution::Same(_, true)));
    assert!(matches!(evolution(&old, None, &labels("ccccccccaaaaaaaabbbbbbbb")), Evolution::Same(_, true)));
    assert!(matches!(evolution(&old, None, &labels("aaaaaaaacccccccc")), Evolution::Anew(_)));
}

#[test]
fn a_default_is_the_value_exactly_or_none() {
    let decimal = ColumnType::Decimal { precision: 5, scale: 2 };
    for (ty, text, expected) in [
        (ColumnType::Bool, "t", Some("true")),
        (ColumnType::Int32, "-5", Some("CAST('-5', 'Int32')")),
        (ColumnType::Int32, "x", None),
        (decimal.clone(), "1.50", Some("CAST('1.50', 'Decimal(5, 2)')")),
        (decimal, "NaN", None),
        (ColumnType::Bytes, r"\x00ff", Some("unhex('00ff')")),
        (
            ColumnType::DateTime64 { precision: 6 },
            "1970-01-01 00:00:01+00",
            Some("fromUnixTimestamp64Micro(toInt64(1000000), 'UTC')"),
        ),
        (ColumnType::DateTime64 { precision: 6 }, "infinity", None),
    ] {
        assert_eq!(literal(&ty, text).as_deref(), expected, "{ty}");
    }
}
