use super::*;
use crate::event::ElementType;

fn of(ty: Type) -> ColumnType {
    ColumnType::of_postgres(ty.oid(), -1, false, true)
}

fn modifier(precision: i32, scale: i32) -> i32 {
    ((precision << 16) | (scale & 0x7ff)) + 4
}

fn numeric(precision: i32, scale: i32) -> ColumnType {
    ColumnType::of_postgres(1700, modifier(precision, scale), false, true)
}

fn column(ty: Type) -> SourceColumn {
    SourceColumn { type_oid: ty.oid(), type_modifier: -1, type_name: ty.name().to_owned(), ..SourceColumn::default() }
}

fn array(element: Type, dimensions: u16) -> SourceColumn {
    let element = ElementType { type_oid: element.oid(), type_modifier: -1, is_enum: false };
    SourceColumn { element: Some(element), dimensions, ..column(Type::INT4_ARRAY) }
}

fn array_of(element: ColumnType) -> ColumnType {
    ColumnType::Array { element: Box::new(element), nullable: true }
}

#[test]
fn every_ordinary_type_has_its_own() {
    assert_eq!(of(Type::BOOL), ColumnType::Bool);
    assert_eq!(of(Type::INT2), ColumnType::Int16);
    assert_eq!(of(Type::INT4), ColumnType::Int32);
    assert_eq!(of(Type::INT8), ColumnType::Int64);
    assert_eq!(of(Type::OID), ColumnType::UInt32);
    assert_eq!(of(Type::XID), ColumnType::UInt32);
    assert_eq!(of(Type::XID8), ColumnType::UInt64);
    assert_eq!(of(Type::FLOAT4), ColumnType::Float32);
    assert_eq!(of(Type::FLOAT8), ColumnType::Float64);
    assert_eq!(of(Type::BYTEA), ColumnType::Bytes);
    assert_eq!(of(Type::UUID), ColumnType::Uuid);
    assert_eq!(of(Type::DATE), ColumnType::Date32);
    assert_eq!(of(Type::TIMESTAMP), ColumnType::DateTime64 { precision: 6 });
    assert_eq!(of(Type::TIMESTAMPTZ), ColumnType::DateTime64 { precision: 6 });
    assert_eq!(of(Type::TIME), ColumnType::Time64);
    assert_eq!(ColumnType::of_postgres(Type::TIME.oid(), -1, false, false), ColumnType::String);
}

#[test]
fn what_has_no_type_of_its_own_is_a_string() {
    for ty in [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME, Type::CHAR, Type::JSON, Type::JSONB] {
        assert_eq!(of(ty), ColumnType::String);
    }
    for ty in [Type::TIMETZ, Type::INTERVAL, Type::INET, Type::INT4_ARRAY, Type::MONEY, Type::PG_LSN, Type::XML] {
        assert_eq!(of(ty), ColumnType::String);
    }
    assert_eq!(ColumnType::of_postgres(16_384, -1, false, true), ColumnType::String);
    assert_eq!(ColumnType::of_postgres(16_384, -1, true, true), ColumnType::LowCardinality);
}

#[test]
fn a_numeric_is_a_decimal_where_one_can_hold_it() {
    assert_eq!(numeric(12, 2), ColumnType::Decimal { precision: 12, scale: 2 });
    assert_eq!(numeric(1, 0), ColumnType::Decimal { precision: 1, scale: 0 });
    assert_eq!(numeric(76, 76), ColumnType::Decimal { precision: 76, scale: 76 });
    for (precision, scale) in [(77, 0), (1000, 10), (5, 6), (5, -2), (3, -1000), (5, 1000)] {
        assert_eq!(numeric(precision, scale), ColumnType::String, "numeric({precision}, {scale})");
    }
    for modifier in [-1, 0, 3, 4, i32::MIN] {
        assert_eq!(ColumnType::of_postgres(1700, modifier, false, true), ColumnType::String, "modifier {modifier}");
    }
}

#[test]
fn an_array_of_one_declared_dimension_is_an_array_of_what_its_elements_are() {
    assert_eq!(ColumnType::of_column(&array(Type::INT4, 1), true), array_of(ColumnType::Int32));
    // CREATE TABLE AS declares none.
    assert_eq!(ColumnType::of_column(&array(Type::BYTEA, 0), true), array_of(ColumnType::Bytes));
    assert_eq!(ColumnType::of_column(&array(Type::INTERVAL, 1), true), array_of(ColumnType::String));
    assert_eq!(ColumnType::of_column(&array(Type::INT4, 2), true), ColumnType::String);
    let mut key = array(Type::INT4, 1);
    key.key_position = Some(0);
    assert_eq!(ColumnType::of_column(&key, true), ColumnType::String);
    let vector = SourceColumn { type_oid: 16_384, is_vector: true, ..SourceColumn::default() };
    assert_eq!(ColumnType::of_column(&vector, true), ColumnType::Vector);
    assert_eq!(ColumnType::of_column(&SourceColumn { key_position: Some(0), ..vector }, true), ColumnType::String);
}

#[test]
fn another_type_may_be_asked_for_where_it_changes_no_value() {
    let mut decimals = array(Type::NUMERIC, 2);
    decimals.element = Some(ElementType { type_oid: 1700, type_modifier: modifier(9, 2), is_enum: false });
    for (column, wanted) in [
        (column(Type::NUMERIC), "Decimal(38, 10)"),
        (column(Type::NUMERIC), "String"),
        (column(Type::INT2), "Int64"),
        (column(Type::INT4), "Decimal(12, 2)"),
        (column(Type::INT4), "String"),
        (column(Type::XID8), "Decimal(20, 0)"),
        (column(Type::OID), "Int64"),
        (column(Type::TEXT), "LowCardinality(String)"),
        (column(Type::INET), "IPv4"),
        (column(Type::INET), "IPv6"),
        (column(Type::JSONB), "JSON"),
        (column(Type::TIMESTAMPTZ), "DateTime64(3, 'UTC')"),
        (column(Type::TIME), "Time64(6)"),
        (column(Type::TIME), "String"),
        (array(Type::INT4, 1), "String"),
        (array(Type::INT4, 2), "Array(Array(Nullable(Int32)))"),
        (array(Type::INT4, 1), "Array(Int64)"),
        (array(Type::INET, 1), "Array(Nullable(IPv6))"),
        (decimals, "Array(Array(Nullable(Decimal(20, 4))))"),
    ] {
        let ty = ColumnType::for_column(&column, wanted).expect(wanted);
        assert_eq!(ty.to_string(), wanted);
    }
    assert_eq!(ColumnType::for_column(&column(Type::BYTEA), "String"), Ok(ColumnType::Bytes));
    let bytes = ColumnType::for_column(&array(Type::BYTEA, 1), "Array(Nullable(String))");
    assert_eq!(bytes, Ok(array_of(ColumnType::Bytes)));
    let vector = SourceColumn { type_oid: 16_384, is_vector: true, ..SourceColumn::default() };
    assert_eq!(ColumnType::for_column(&vector, "Array(Float32)"), Ok(ColumnType::Vector));
    assert_eq!(ColumnType::for_column(&vector, "String"), Ok(ColumnType::String));
}

#[test]
fn a_type_that_would_change_a_value_is_refused_with_what_is_right() {
    for (column, wanted) in [
        (column(Type::INT4), "Int16"),
        (column(Type::INT8), "Int32"),
        (column(Type::INT4), "UInt32"),
        (column(Type::INT8), "Float64"),
        (column(Type::INT8), "Decimal(18, 0)"),
        (column(Type::INT4), "Decimal(10, 1)"),
        (column(Type::NUMERIC), "Float64"),
        (column(Type::NUMERIC), "Int64"),
        (column(Type::FLOAT4), "Float64"),
        (column(Type::TEXT), "Int32"),
        (column(Type::TEXT), "JSON"),
        (column(Type::TEXT), "IPv4"),
        (column(Type::CIDR), "IPv4"),
        (column(Type::DATE), "DateTime64(6)"),
        (column(Type::TIMETZ), "Time64(6)"),
        (column(Type::BYTEA), "LowCardinality(String)"),
        (column(Type::INT4), "Array(Int32)"),
        (array(Type::INT8, 1), "Array(Nullable(Int32))"),
        (array(Type::INT4, 1), "Int32"),
    ] {
        let error = ColumnType::for_column(&column, wanted).expect_err(wanted);
        assert!(error.contains("without changing it; String can"), "{error}");
    }
    let mut key = column(Type::JSONB);
    key.key_position = Some(0);
    assert!(ColumnType::for_column(&key, "JSON").expect_err("a key").contains("sorting key"));
    assert!(
        ColumnType::for_column(&column(Type::INT4), "Nullable(Int64)")
            .expect_err("NULL")
            .contains("leave Nullable out")
    );
}
