//! How long the parts of the hot path take: decoding pgoutput, reading a text of each type, building a
//! block; and of what is beside it, a page of metrics. For comparing two versions of the code on one quiet machine; `guard` is what can fail.

mod stream;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
};
use stream::{Kind, Shape, groups};
use walhouse::{
    clickhouse::{column::Column, types::ColumnType},
    telemetry::names,
};

const ROWS: u64 = 10_000;
const GULP: usize = 256 * 1024;
/// Values in one column.
const VALUES: u64 = 1_000;

/// From the bytes of the stream to events.
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(ROWS));
    let cases = [
        ("narrow/insert", Kind::Insert, Shape::narrow()),
        ("narrow/update", Kind::Update, Shape::narrow()),
        ("narrow/delete", Kind::Delete, Shape::narrow()),
        ("wide/insert", Kind::Insert, Shape::wide()),
    ];
    for (name, kind, shape) in cases {
        let stream = shape.stream(ROWS, kind);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || stream.clone(),
                |stream| groups(stream, GULP, |group| drop(black_box(group))),
                BatchSize::LargeInput,
            );
        });
    }
}

/// From events to columns, and from those to what is sent.
fn block(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block");
    group.throughput(Throughput::Elements(ROWS));
    for (name, shape) in [("narrow", Shape::narrow()), ("wide", Shape::wide())] {
        let target = shape.target();
        let mut taken = Vec::new();
        groups(shape.stream(ROWS, Kind::Insert), GULP, |group| taken.push(group));
        let fill = || {
            let mut batch = target.batch();
            taken.iter().for_each(|group| target.fill(&mut batch, group));
            batch
        };
        group.bench_function(format!("{name}/build"), |bencher| bencher.iter_with_large_drop(fill));
        let batch = fill();
        group.bench_function(format!("{name}/write"), |bencher| {
            bencher.iter_with_large_drop(|| black_box(&batch).block.write_native());
        });
    }
}

/// One text form after another into a column.
fn text(criterion: &mut Criterion) {
    let array = ColumnType::Array { element: Box::new(ColumnType::Int32), nullable: true };
    let types: Vec<(ColumnType, &[u8])> = vec![
        (ColumnType::Bool, b"t"),
        (ColumnType::Int16, b"-12345"),
        (ColumnType::Int64, b"1234567890123"),
        (ColumnType::Float64, b"1234.56789"),
        (ColumnType::Decimal { precision: 12, scale: 2 }, b"98765.43"),
        (ColumnType::Decimal { precision: 38, scale: 10 }, b"1234567890123456789.0123456789"),
        (ColumnType::String, b"to the neighbours, on the left"),
        (ColumnType::Bytes, br"\x00112233445566778899aabbccddeeff"),
        (ColumnType::Uuid, b"00112233-4455-6677-8899-aabbccddeeff"),
        (ColumnType::Date32, b"2026-11-22"),
        (ColumnType::DateTime64 { precision: 6 }, b"2026-11-22 06:48:24.123456+00"),
        (ColumnType::Time64, b"06:48:24.123456"),
        (ColumnType::LowCardinality, b"shipped"),
        (ColumnType::Ipv4, b"192.168.100.200"),
        (ColumnType::Json, br#"{"items": 3, "source": "web", "list": [1, 2.5, null]}"#),
        (array, b"{1,22,NULL,4444,55555}"),
        (ColumnType::Vector, b"[0.1,-0.25,3.75]"),
    ];
    let mut group = criterion.benchmark_group("text");
    group.throughput(Throughput::Elements(VALUES));
    for (ty, value) in types {
        group.bench_function(format!("{ty:?}"), |bencher| {
            bencher.iter_with_large_drop(|| {
                let mut column = Column::new(ty.clone(), false);
                for _ in 0..VALUES {
                    column.push_text(black_box(value)).expect("the column holds the value");
                }
                column
            });
        });
    }
}

/// A page of metrics of 2,000 tables, as Prometheus asks for it: with what every table has, and with all that one can have,
/// while two threads count.
fn metrics_page(criterion: &mut Criterion) {
    const TABLES: usize = 2_000;
    let mut group = criterion.benchmark_group("metrics");
    let usual = [names::ROWS_RECEIVED, names::ROWS_WRITTEN, names::COPY_ROWS, names::COPY_PROGRESS];
    for (name, all) in [("usual", false), ("all", true)] {
        let recorder = PrometheusBuilder::new().build_recorder();
        let mut counters = Vec::new();
        metrics::with_local_recorder(&recorder, || {
            let of_tables = |metric: &&names::Metric| metric.labels.contains(&"table");
            for metric in names::ALL.iter().filter(of_tables).filter(|metric| all || usual.contains(&metric.name)) {
                for table in 0..TABLES {
                    let label = |label: &&'static str| (*label, format!("public.sales_order_{table}_{label}"));
                    let labels: Vec<_> = metric.labels.iter().map(label).collect();
                    match metric.kind {
                        names::Kind::Counter => counters.push(metrics::counter!(metric.name, &labels)),
                        _ => metrics::gauge!(metric.name, &labels).set(1.0),
                    }
                }
            }
        });
        let handle = recorder.handle();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        counters.iter().for_each(|counter| counter.increment(1));
                    }
                });
            }
            group.bench_function(name, |bencher| bencher.iter(|| handle.render()));
            done.store(true, Ordering::Relaxed);
        });
    }
}

criterion_group!(benches, decode, block, text, metrics_page);
criterion_main!(benches);
