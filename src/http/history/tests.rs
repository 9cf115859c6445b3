use super::*;
use serde_json::Value;

async fn asked(history: &History, query: Option<&str>) -> (u16, Value) {
    let answer = history.answer(query, &Account::default(), None);
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn numbers(answer: &Value) -> Vec<u64> {
    answer["points"].as_array().unwrap().iter().map(|point| point["number"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn an_hour_is_kept_and_no_more_and_only_what_is_new_is_sent_again() {
    let history = History::default();
    let capacity = history.lock().points.capacity();
    for _ in 0..POINTS + 3 {
        history.add(Point::default(), Now::default(), &Account { phase: "streaming".to_owned(), ..Account::default() });
    }
    assert_eq!(history.lock().points.capacity(), capacity, "its memory does not grow");
    let (_, all) = asked(&history, None).await;
    assert_eq!((numbers(&all).len(), numbers(&all)[0], numbers(&all)[POINTS - 1]), (POINTS, 4, 723));
    assert_eq!((&all["now"]["phase"], &all["interval_seconds"]), (&"streaming".into(), &5.into()));
    assert_eq!(numbers(&asked(&history, Some("since=721")).await.1), [722, 723]);
    assert!(numbers(&asked(&history, Some("since=723")).await.1).is_empty());
    // The number is of an earlier process.
    assert_eq!(numbers(&asked(&history, Some("since=9000")).await.1).len(), POINTS);
    for wrong in ["since=", "since=-1", "since=yesterday"] {
        assert_eq!(asked(&history, Some(wrong)).await.0, 400, "{wrong}");
    }
}

#[test]
fn a_point_is_what_has_happened_since_the_last_one() {
    let page = |received: u32, fast: u32, slow: u32| {
        format!(
            "walhouse_rows_received_total{{table=\"public.a\"}} {received}\n\
             walhouse_rows_written_total{{table=\"public.a\"}} 10\nwalhouse_copy_rows_total{{table=\"public.b\"}} 40\n\
             walhouse_paused{{what=\"audit\"}} 1\nwalhouse_memory_in_flight_bytes 4096\n\
             walhouse_reader{{reader=\"streaming\"}} 1\nwalhouse_reader{{reader=\"catch_up\"}} 0\n\
             walhouse_commit_to_durable_seconds_bucket{{le=\"0.1\"}} {fast}\n\
             walhouse_commit_to_durable_seconds_bucket{{le=\"0.3\"}} {slow}\n\
             walhouse_commit_to_durable_seconds_bucket{{le=\"+Inf\"}} {slow}\n"
        )
    };
    let (before, after) = (look(&page(100, 50, 50)), look(&page(150, 50, 60)));
    let account = Account { lag_seconds: 1.5, lag_bytes: 7, streaming: true, ..Account::default() };
    let taken = point(&before.counters, &after, 5.0, &account);
    assert_eq!((taken.received_per_second, taken.written_per_second), (10.0, 0.0));
    // All ten of this interval took between 0.1 and 0.3 s; the fifty before it do not count.
    assert!((taken.latency_p50_seconds.unwrap() - 0.2).abs() < 1e-9, "{taken:?}");
    assert!((taken.latency_p95_seconds.unwrap() - 0.29).abs() < 1e-9, "{taken:?}");
    assert_eq!((taken.lag_seconds, taken.lag_bytes, taken.memory_bytes), (1.5, 7, 4096));
    assert!(taken.streaming && !taken.paused, "a worker's pause is not the pipeline's");
    assert_eq!(after.now.reader, "streaming");
    assert_eq!(after.now.tables["public.a"], TableNow { received: 150, written: 10, copied: 0 });
    assert_eq!(after.now.tables["public.b"].copied, 40);
    let idle = point(&after.counters, &after, 5.0, &account);
    assert_eq!((idle.latency_p50_seconds, idle.received_per_second), (None, 0.0));
}

#[test]
fn what_took_longer_than_the_last_bound_counts_as_that() {
    assert_eq!(quantile(&[(0.1, 0.0), (900.0, 1.0), (f64::INFINITY, 100.0)], 0.95), Some(900.0));
    assert_eq!(quantile(&[], 0.5), None);
}

#[tokio::test]
async fn where_it_stands_is_said_of_this_moment() {
    let absence = Absence { since: SystemTime::UNIX_EPOCH + Duration::from_secs(7), error: "refused".to_owned() };
    let account = Account { step: crate::status::Step::Streams, phase: "streaming".to_owned(), ..Account::default() };
    for (absence, expected) in [
        (
            None,
            serde_json::json!({"state": "streaming", "text": "streaming", "copying": 0, "clickhouse_away_since": null}),
        ),
        (
            Some(&absence),
            serde_json::json!({"state": "waiting for ClickHouse", "text": "refused", "copying": 0, "clickhouse_away_since": 7.0}),
        ),
    ] {
        let answer = History::default().answer(None, &account, absence);
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["state"], expected);
    }
}
