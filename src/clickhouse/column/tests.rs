use super::*;
use proptest::prelude::*;

fn array(element: ColumnType) -> ColumnType {
    ColumnType::Array { element: Box::new(element), nullable: true }
}

fn types() -> Vec<ColumnType> {
    vec![
        ColumnType::Bool,
        ColumnType::Int16,
        ColumnType::Int32,
        ColumnType::Int64,
        ColumnType::UInt32,
        ColumnType::UInt64,
        ColumnType::Float32,
        ColumnType::Float64,
        ColumnType::Decimal { precision: 9, scale: 2 },
        ColumnType::Decimal { precision: 18, scale: 2 },
        ColumnType::Decimal { precision: 38, scale: 2 },
        ColumnType::Decimal { precision: 76, scale: 2 },
        ColumnType::String,
        ColumnType::Bytes,
        ColumnType::Uuid,
        ColumnType::Date32,
        ColumnType::DateTime64 { precision: 6 },
        ColumnType::LowCardinality,
        ColumnType::DateTime64 { precision: 3 },
        ColumnType::Time64,
        ColumnType::Ipv4,
        ColumnType::Ipv6,
        ColumnType::Json,
        array(ColumnType::Int32),
        array(ColumnType::LowCardinality),
        ColumnType::Array { element: Box::new(array(ColumnType::Bytes)), nullable: false },
        ColumnType::Vector,
    ]
}

/// Two values of a type, and a text that is none of its (a String has none).
fn texts(ty: &ColumnType) -> ([&'static str; 2], Option<&'static str>) {
    match ty {
        ColumnType::Bool => (["t", "f"], Some("x")),
        ColumnType::Uuid => {
            (["00112233-4455-6677-8899-aabbccddeeff", "ffffffff-ffff-ffff-ffff-ffffffffffff"], Some("x"))
        }
        ColumnType::Date32 => (["2024-01-02", "1969-12-31"], Some("infinity")),
        ColumnType::DateTime64 { precision: 6 } => {
            (["2024-01-02 03:04:05.123456+00", "1969-12-31 23:59:59"], Some("infinity"))
        }
        ColumnType::DateTime64 { .. } => {
            (["2024-01-02 03:04:05.123", "1969-12-31 23:59:59"], Some("2024-01-02 03:04:05.1234"))
        }
        ColumnType::Time64 => (["01:02:03.000004", "24:00:00"], Some("24:00:01")),
        ColumnType::Ipv4 => (["10.0.0.1", "255.255.255.255"], Some("::1")),
        ColumnType::Ipv6 => (["2001:db8::1", "::ffff:10.0.0.1"], Some("10.0.0.1")),
        ColumnType::Json => ([r#"{"a":1}"#, r#"{"b":{"c":[1]}}"#], Some("[1]")),
        ColumnType::Array { element, .. } => match **element {
            ColumnType::Int32 => (["{1,NULL,-3}", "{}"], Some("{1,x}")),
            ColumnType::LowCardinality => ([r#"{a,NULL,"b c",a}"#, "{}"], Some("{a,{b}}")),
            _ => ([r#"{{"\\x00ff",NULL},{"\\x","\\x01"}}"#, "{}"], Some(r#"{"\\x00ff"}"#)),
        },
        ColumnType::Vector => (["[1,-2.5,0.1]", "[0]"], Some("{1}")),
        ColumnType::Bytes => ([r"\x00ff10", r"\x"], Some(r"\x00fg")),
        ColumnType::String | ColumnType::LowCardinality => (["one", ""], None),
        _ => (["1", "0"], Some("-")),
    }
}

fn native(column: &Column) -> Vec<u8> {
    let mut out = Vec::new();
    column.write_native(&mut out);
    out
}

fn filled(ty: &ColumnType, nullable: bool, texts: &[&str]) -> Column {
    let mut column = Column::new(ty.clone(), nullable);
    for text in texts {
        column.push_text(text.as_bytes()).unwrap();
    }
    column
}

fn key(column: &Column, row: usize) -> Vec<u8> {
    let mut out = Vec::new();
    column.key_bytes(row, &mut out);
    out
}

#[test]
fn fixed_values_are_little_endian_after_a_null_map() {
    let mut column = filled(&ColumnType::Int32, true, &["1", "-2"]);
    column.push_null().unwrap();
    assert_eq!(native(&column), [0, 0, 1, 1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(native(&filled(&ColumnType::Bool, false, &["t", "f"])), [1, 0]);
    let decimal = ColumnType::Decimal { precision: 9, scale: 2 };
    assert_eq!(native(&filled(&decimal, false, &["-0.01"])), [0xff; 4]);
    let decimal = ColumnType::Decimal { precision: 76, scale: 0 };
    assert_eq!(native(&filled(&decimal, false, &["-1"])), [0xff; 32]);
}

#[test]
fn strings_have_their_length_before_them() {
    let long = "x".repeat(300);
    let mut column = filled(&ColumnType::String, true, &["ab", "", &long]);
    column.push_null().unwrap();
    let expected = [b"\0\0\0\x01\x02ab\0\xac\x02".as_slice(), long.as_bytes(), b"\0"].concat();
    assert_eq!(native(&column), expected);
    assert_eq!(native(&filled(&ColumnType::Bytes, false, &[r"\x00ff", r"\x"])), [2, 0, 0xff, 0]);
}

#[test]
fn a_dictionary_has_each_value_once() {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let column = filled(&ColumnType::LowCardinality, false, &["b", "a", "b", ""]);
    let expected = [&words(&[1, 0x200, 3])[..], b"\x01b\x01a\0", &words(&[4]), &[0, 1, 0, 2]].concat();
    assert_eq!(native(&column), expected);

    let mut column = filled(&ColumnType::LowCardinality, true, &["b"]);
    column.push_null().unwrap();
    column.push_text(b"").unwrap();
    let expected = [&words(&[1, 0x200, 3])[..], b"\0\x01b\0", &words(&[3]), &[1, 0, 2]].concat();
    assert_eq!(native(&column), expected);
}

#[test]
fn the_indexes_of_a_dictionary_are_as_wide_as_they_must_be() {
    for (distinct, flags, width) in [(256, 0x200, 1), (257, 0x201, 2), (65_536, 0x201, 2), (65_537, 0x202, 4)] {
        let mut column = Column::new(ColumnType::LowCardinality, false);
        for value in 0..distinct {
            column.push_text(format!("{value:05}").as_bytes()).unwrap();
        }
        let bytes = native(&column);
        assert_eq!(bytes[8..16], u64::to_le_bytes(flags), "{distinct} values");
        assert_eq!(bytes.len(), 4 * 8 + distinct * (6 + width), "{distinct} values");
    }
}

#[test]
fn a_column_without_rows_writes_nothing() {
    for ty in &types() {
        for nullable in [false, true] {
            assert!(native(&Column::new(ty.clone(), nullable)).is_empty(), "{ty}");
        }
    }
}

#[test]
fn a_failed_push_leaves_the_column_unchanged() {
    for ty in &types() {
        let ([first, second], bad) = texts(ty);
        let Some(bad) = bad else { continue };
        let mut column = filled(ty, false, &[first, second]);
        let before = native(&column);
        assert!(column.push_text(bad.as_bytes()).is_err(), "{ty}");
        assert!(column.push_null().is_err(), "{ty}");
        assert!(column.push_row_binary(&mut [].as_slice()).is_err(), "{ty}");
        assert_eq!(column.len(), 2, "{ty}");
        assert_eq!(native(&column), before, "{ty}");
        column.push_copy(0);
        column.truncate(2);
        assert_eq!(native(&column), before, "{ty}");
    }
}

#[test]
fn copies_truncation_and_defaults_hold_for_every_type() {
    for ty in &types() {
        for nullable in [false, true] {
            let ([first, second], _) = texts(ty);
            let mut column = filled(ty, nullable, &[first, second]);
            column.push_default();
            let three = native(&column);
            column.push_copy(1);
            column.push_copy(2);
            column.push_copy(0);
            assert_eq!(column.len(), 6, "{ty}");
            assert_eq!(key(&column, 3), key(&column, 1), "{ty}");
            assert_eq!(key(&column, 4), key(&column, 2), "{ty}");
            assert_eq!(key(&column, 5), key(&column, 0), "{ty}");
            assert_ne!(key(&column, 0), key(&column, 1), "{ty}");
            assert_eq!(key(&column, 1) == key(&column, 2), texts_default(ty, second) && !nullable, "{ty}");

            let mut other = Column::new(ty.clone(), true);
            (0..6).for_each(|row| other.push_from(&column, row));
            other.truncate(9);
            assert_eq!(other.len(), 6);
            other.truncate(0);
            assert!(other.is_empty() && native(&other).is_empty());

            column.truncate(3);
            assert_eq!(native(&column), three, "{ty}");
        }
    }
}

/// Whether this text is that of the value that a column without NULL has by default.
fn texts_default(ty: &ColumnType, text: &str) -> bool {
    match ty {
        ColumnType::Uuid | ColumnType::Date32 | ColumnType::DateTime64 { .. } => false,
        ColumnType::Array { .. } => text == "{}",
        _ => matches!(text, "0" | "f" | "" | r"\x"),
    }
}

#[test]
#[should_panic(expected = "a NULL would become a value")]
fn a_null_never_moves_to_a_column_without_nulls() {
    let mut nullable = Column::new(ColumnType::Int32, true);
    nullable.push_null().unwrap();
    Column::new(ColumnType::Int32, false).push_from(&nullable, 0);
}

#[test]
fn row_binary_reads_what_the_column_would_write() {
    let mut column = Column::new(ColumnType::Int32, true);
    let mut input = b"\0\x05\0\0\0\x01\0\x06\0\0\0rest".as_slice();
    (0..3).for_each(|_| column.push_row_binary(&mut input).unwrap());
    assert_eq!(input, b"rest");
    let mut expected = filled(&ColumnType::Int32, true, &["5"]);
    expected.push_null().unwrap();
    expected.push_text(b"6").unwrap();
    assert_eq!(native(&column), native(&expected));

    let mut column = Column::new(ColumnType::LowCardinality, false);
    let long = [b"\xac\x02".as_slice(), &[b'x'; 300]].concat();
    column.push_row_binary(&mut long.as_slice()).unwrap();
    assert_eq!(native(&column), native(&filled(&ColumnType::LowCardinality, false, &["x".repeat(300).as_str()])));
}

#[test]
fn a_malformed_row_binary_value_is_an_error() {
    let cases: [(ColumnType, bool, &[u8]); 7] = [
        (ColumnType::Int32, false, b"\0\0\0"),
        (ColumnType::Int32, true, b""),
        (ColumnType::Int32, true, b"\x02\0\0\0\0"),
        (ColumnType::String, false, b""),
        (ColumnType::String, false, b"\x03ab"),
        (ColumnType::String, false, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        (ColumnType::String, true, b"\0\x80"),
    ];
    for (ty, nullable, bytes) in cases {
        let mut column = Column::new(ty.clone(), nullable);
        let mut input = bytes;
        assert!(matches!(column.push_row_binary(&mut input), Err(ValueError::Malformed(_))), "{ty} {bytes:?}");
        assert_eq!(input, bytes);
        assert!(column.is_empty() && column.data.is_empty());
    }
}

#[test]
fn zeros_of_either_sign_are_one_key_and_so_are_all_nans() {
    for ty in [ColumnType::Float32, ColumnType::Float64] {
        let column = filled(&ty, false, &["0", "-0", "NaN", "1", "-1"]);
        assert_eq!(key(&column, 0), key(&column, 1));
        for (left, right) in [(0, 2), (0, 3), (3, 4)] {
            assert_ne!(key(&column, left), key(&column, right));
        }
    }
    let mut column = Column::new(ColumnType::Float64, false);
    column.push_row_binary(&mut (-f64::NAN).to_le_bytes().as_slice()).unwrap();
    column.push_text(b"NaN").unwrap();
    assert_eq!(key(&column, 0), key(&column, 1));
}

#[test]
fn a_null_is_another_key_than_the_empty_string() {
    let mut column = filled(&ColumnType::String, true, &[""]);
    column.push_null().unwrap();
    assert_ne!(key(&column, 0), key(&column, 1));
}

#[test]
fn timestamps_beyond_the_narrow_range_need_a_server_that_holds_them() {
    let text = b"9999-12-31 23:59:59.999999+00";
    let mut column = Column::new(ColumnType::DateTime64 { precision: 6 }, false);
    assert!(matches!(column.push_text(text), Err(ValueError::Unrepresentable(_))));
    let mut column = column.with_datetime_range(DateTimeRange::Wide);
    assert_eq!(column.push_text(text), Ok(()));
}

#[test]
fn arrays_are_offsets_and_then_their_elements() {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut column = filled(&array(ColumnType::Int16), true, &["{1,NULL}", "{}", "{3}"]);
    column.push_null().unwrap();
    let expected = [&words(&[2, 2, 3, 3])[..], b"\0\x01\0\x01\0\0\0\x03\0"].concat();
    assert_eq!(native(&column), expected);
    let mut marks = Vec::new();
    column.write_null_marks(&mut marks);
    assert_eq!(marks, [0, 0, 0, 1]);

    let nested = ColumnType::Array { element: Box::new(array(ColumnType::Int16)), nullable: false };
    let column = filled(&nested, false, &["{{1,2},{3,NULL}}", "{}"]);
    let expected = [&words(&[2, 2, 2, 4])[..], b"\0\0\0\x01\x01\0\x02\0\x03\0\0\0"].concat();
    assert_eq!(native(&column), expected);

    // The version of a dictionary comes before the offsets, and is there when nothing else is.
    let empty = filled(&array(ColumnType::LowCardinality), false, &["{}"]);
    assert_eq!(native(&empty), words(&[1, 0]));
    let column = filled(&array(ColumnType::LowCardinality), false, &["{b,NULL}"]);
    let expected = [&words(&[1, 2, 0x200, 2])[..], b"\0\x01b", &words(&[2]), &[1, 0]].concat();
    assert_eq!(native(&column), expected);
}

#[test]
fn an_array_comes_from_row_binary_with_its_null_mark() {
    let mut column = Column::new(array(ColumnType::Int16), true);
    let mut input = b"\x02\0\x01\0\x01\0\0\x01rest".as_slice();
    (0..2).for_each(|_| column.push_row_binary(&mut input).unwrap());
    assert_eq!(input, b"rest");
    let mut expected = filled(&array(ColumnType::Int16), true, &["{1,NULL}"]);
    expected.push_null().unwrap();
    assert_eq!((native(&column), &column.nulls), (native(&expected), &expected.nulls));
    for cut in [&b"\x02\0\x01\0"[..], b"\x01\x01", b"\x01\x01\x02", b"\xff\xff\xff\xff\x0f"] {
        let mut input = cut;
        assert!(column.push_row_binary(&mut input).is_err(), "{cut:?}");
        assert_eq!((input, native(&column)), (cut, native(&expected)));
    }
}

#[test]
fn a_value_that_can_not_be_held_is_replaced_as_its_policy_says() {
    let policies = [Unrepresentable::DeadLetter, Unrepresentable::Null, Unrepresentable::Clamp, Unrepresentable::Fail];
    let day = |text: Option<&str>| match text {
        Some(text) => filled(&ColumnType::Date32, true, &[text]),
        None => {
            let mut column = Column::new(ColumnType::Date32, true);
            column.push_null().unwrap();
            column
        }
    };
    for policy in policies {
        let mut column = Column::new(ColumnType::Date32, true).with_policy(policy);
        let pushed = column.push_text(b"infinity");
        let (expected, count) = match policy {
            Unrepresentable::Null => (day(None), 1),
            Unrepresentable::Clamp => (day(Some("2299-12-31")), 1),
            _ => (Column::new(ColumnType::Date32, true), 0),
        };
        assert_eq!(pushed.is_ok(), count == 1, "{policy}");
        assert_eq!((native(&column), column.replaced()), (native(&expected), count), "{policy}");
        // A malformed value says that something is wrong with walhouse, which no policy hides.
        assert!(matches!(column.push_text(b"x"), Err(ValueError::Malformed(_))), "{policy}");
        column.push_text(b"2024-01-01").unwrap();
        assert_eq!(column.replaced(), count);
        column.truncate(0);
        assert_eq!(column.replaced(), 0);
    }
}

#[test]
fn what_has_no_replacement_is_refused() {
    let numeric = ColumnType::Decimal { precision: 4, scale: 2 };
    let cases: [(ColumnType, bool, Unrepresentable, &[u8]); 5] = [
        (numeric.clone(), true, Unrepresentable::Clamp, b"NaN"),
        (numeric, true, Unrepresentable::Clamp, b"0.001"),
        (ColumnType::Date32, false, Unrepresentable::Null, b"infinity"),
        (array(ColumnType::Int32), true, Unrepresentable::Clamp, b"{{1}}"),
        (ColumnType::Ipv4, true, Unrepresentable::Clamp, b"::1"),
    ];
    for (ty, nullable, policy, text) in cases {
        let mut column = Column::new(ty.clone(), nullable).with_policy(policy);
        assert!(matches!(column.push_text(text), Err(ValueError::Unrepresentable(_))), "{ty}");
        assert!(column.is_empty() && native(&column).is_empty() && column.replaced() == 0, "{ty}");
    }
}

#[test]
fn an_element_is_replaced_alone_and_an_array_of_another_rank_as_a_whole() {
    let dates = array(ColumnType::Date32);
    let mut column = Column::new(dates.clone(), true).with_policy(Unrepresentable::Null);
    for text in ["{2024-01-01,infinity}", "{{2024-01-01}}"] {
        column.push_text(text.as_bytes()).unwrap();
    }
    let mut expected = filled(&dates, true, &["{2024-01-01,NULL}"]);
    expected.push_null().unwrap();
    assert_eq!((native(&column), &column.nulls), (native(&expected), &expected.nulls));
    assert_eq!(column.replaced(), 2);
    column.truncate(1);
    assert_eq!(column.replaced(), 1);

    let mut column = Column::new(dates.clone(), false).with_policy(Unrepresentable::Clamp);
    column.push_text(b"{-infinity}").unwrap();
    assert_eq!(native(&column), native(&filled(&dates, false, &["{1900-01-01}"])));
    // Of a row that is refused, no element counts.
    assert!(column.push_text(b"{-infinity,{2024-01-01}}").is_err());
    assert_eq!((column.len(), column.replaced()), (1, 1));
}

#[test]
fn the_bytes_held_cover_what_was_pushed() {
    let mut column = Column::new(ColumnType::String, true);
    assert_eq!(column.bytes(), 0);
    column.push_text(&[b'x'; 1000]).unwrap();
    assert_eq!(column.bytes(), 1000 + 2 + 1);
}

proptest! {
    #[test]
    fn any_varint_comes_back(value in 0usize..1 << 62) {
        let mut bytes = Vec::new();
        push_varint(&mut bytes, value);
        let mut input = bytes.as_slice();
        prop_assert_eq!(take_varint(&mut input), Some(value));
        prop_assert!(input.is_empty());
    }

    #[test]
    fn no_bytes_make_a_column_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), ty in 0..types().len(), nullable: bool) {
        let mut column = Column::new(types()[ty].clone(), nullable);
        let _ = column.push_text(&bytes);
        let before = column.len();
        let mut input = bytes.as_slice();
        while !input.is_empty() && column.push_row_binary(&mut input).is_ok() {}
        column.truncate(before);
        prop_assert_eq!(column.len(), before);
        native(&column);
    }

    #[test]
    fn compound_keys_of_strings_are_equal_only_where_the_strings_are(
        left in ("[ab\0]{0,4}", "[ab\0]{0,4}"), right in ("[ab\0]{0,4}", "[ab\0]{0,4}"),
    ) {
        let one = filled(&ColumnType::String, false, &[&left.0, &right.0]);
        let two = filled(&ColumnType::String, false, &[&left.1, &right.1]);
        let compound = |row| [key(&one, row), key(&two, row)].concat();
        prop_assert_eq!(compound(0) == compound(1), left == right);
    }
}
