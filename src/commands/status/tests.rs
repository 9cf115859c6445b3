use super::*;
use crate::{clickhouse::pauses::Subject, event::Lsn, postgres::retention::Retention};

fn healthy() -> Report {
    let slot = Retention {
        active: true,
        active_pid: Some(7),
        confirmed: Lsn(0x100),
        position: Lsn(0x100),
        wal_status: "reserved".to_owned(),
        ..Retention::default()
    };
    let source = Source { slot: Some(slot), held_by: Some("process 7".to_owned()), ..Source::default() };
    let checkpoint = Standing { position: Lsn(0x100), age_seconds: 0.5, ..Standing::default() };
    let table = TableReport { table: "public.t".to_owned(), state: "streaming", ..TableReport::default() };
    let stored = Stored { checkpoint: Some(checkpoint), tables: vec![table], ..Stored::default() };
    Report {
        slot: "walhouse".to_owned(),
        state: State::Streaming,
        findings: Vec::new(),
        source: Part::Known(source),
        stored: Part::Known(stored),
        queues: Vec::new(),
        workers: None,
    }
}

/// What is found once something is changed.
fn found(change: impl FnOnce(&mut Source, &mut Stored)) -> Vec<Finding> {
    let mut report = healthy();
    if let (Part::Known(source), Part::Known(stored)) = (&mut report.source, &mut report.stored) {
        change(source, stored);
    }
    findings::of(&report)
}

fn slot(source: &mut Source) -> &mut Retention {
    source.slot.as_mut().expect("there is one")
}

#[test]
fn where_all_is_well_nobody_has_to_do_anything() {
    let mut report = healthy();
    report.findings = findings::of(&report);
    assert_eq!((report.findings.as_slice(), report.exit_code()), (&[][..], 0));
    assert!(report.to_string().ends_with("tables       1 known, 1 streaming\n\nAll is well."), "{report}");
    assert_eq!(report.json()["healthy"], true);
    assert_eq!(report.json()["stored"]["checkpoint"]["position"], "0/100");
}

#[test]
fn what_keeps_everything_else_waiting_is_the_state() {
    let mut report = healthy();
    let state = |report: &Report| report.state().to_string();
    assert_eq!(state(&report), "streaming");
    let change = |report: &mut Report, change: fn(&mut Source, &mut Stored)| {
        let (Part::Known(source), Part::Known(stored)) = (&mut report.source, &mut report.stored) else { panic!() };
        change(source, stored);
    };
    change(&mut report, |source, _| slot(source).active = false);
    assert_eq!(state(&report), "starting");
    change(&mut report, |source, _| slot(source).lag_bytes = 1 << 30);
    assert_eq!(state(&report), "catching up");
    change(&mut report, |_, stored| stored.tables[0].copying = Some(Copying::default()));
    assert_eq!(state(&report), "copying");
    report.stored = Part::Unknown { unreachable: "refused".to_owned() };
    assert_eq!(state(&report), "waiting for ClickHouse");
    if let Part::Known(source) = &mut report.source {
        source.held_by = None;
    }
    assert_eq!(state(&report), "down");
    report.source = Part::Unknown { unreachable: "refused".to_owned() };
    assert_eq!(state(&report), "waiting for PostgreSQL");
}

#[test]
fn each_trouble_is_found_by_itself_with_what_to_do() {
    type Change = fn(&mut Source, &mut Stored);
    let cases: [(Change, &str, &str); 8] = [
        (|source, _| source.held_by = None, "none is up", "start it"),
        (|source, _| source.slot = None, "is gone", "--new-epoch"),
        (|source, _| slot(source).wal_status = "lost".to_owned(), "it is lost", "--new-epoch"),
        (
            |source, _| (slot(source).safe_bytes, slot(source).limit_bytes) = (Some(9), Some(100)),
            "after 9 B more",
            "raise max_slot_wal_keep_size",
        ),
        (|source, _| slot(source).confirmed = Lsn(0x101), "beyond the checkpoint 0/100", "who has advanced it"),
        (|_, stored| stored.checkpoint = None, "has not run yet", "walhouse run"),
        (
            |_, stored| (stored.tables[0].state, stored.tables[0].reason) = ("stopped", "its key".to_owned()),
            "stopped: its key",
            "walhouse resync public.t",
        ),
        (
            |_, stored| stored.dead_letters.push(Letters { table: "public.t".to_owned(), letters: 2 }),
            "2 rows that it can not hold",
            "walhouse dlq list --rows",
        ),
    ];
    let mut named = 0;
    for (change, what, remedy) in &cases {
        let found = found(change);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains(what) && found[0].remedy.contains(remedy), "{found:?}");
        if let Some(section) = found[0].runbook {
            assert!(include_str!("../../../docs/runbooks.md").contains(&format!("\n## {section}\n")), "{found:?}");
            named += 1;
        }
    }
    assert_eq!(named, cases.len() - 1, "only what has not run yet is told by no alert");
}

#[test]
fn a_checkpoint_that_stands_still_counts_only_while_there_is_something_to_do() {
    let idle = found(|_, stored| stored.checkpoint.as_mut().unwrap().age_seconds = 3600.0);
    assert_eq!(idle, []);
    let stuck = found(|source, stored| {
        stored.checkpoint.as_mut().unwrap().age_seconds = 3600.0;
        slot(source).position = Lsn(64 << 20);
    });
    assert!(stuck.len() == 1 && stuck[0].what.contains("has not moved for 3600 s"), "{stuck:?}");
}

#[test]
fn what_can_not_be_reached_is_named_and_hides_nothing() {
    let mut report = healthy();
    report.source = Part::Unknown { unreachable: "refused".to_owned() };
    report.queues.push(Depth {
        queue: "audit-log",
        name: "audit-log-queue".to_owned(),
        messages: Part::Known(3),
        dead_letters: Part::Known(1),
    });
    report.findings = findings::of(&report);
    let text = report.to_string();
    for part in
        ["PostgreSQL   can not be reached: refused", "checkpoint   0/100", "audit-log-queue: 3 messages, 1 dead"]
    {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert_eq!((report.findings.len(), report.exit_code()), (2, 1));
    assert_eq!(report.json()["source"]["unreachable"], "refused");
    assert_eq!(Subject::ALL.map(Subject::label).join(" "), "pipeline audit operation data-sync");
}

#[test]
fn a_copy_on_its_way_is_told_with_its_share() {
    let mut report = healthy();
    if let (Part::Known(source), Part::Known(stored)) = (&mut report.source, &mut report.stored) {
        source.blocks.insert(7, 200);
        let copying = Copying { beside: true, rows: 10, done: None, blocks: 50 };
        (stored.tables[0].oid, stored.tables[0].copying) = (7, Some(copying));
    }
    report.join();
    let text = report.to_string();
    assert!(text.contains("  public.t: streaming, 10 rows copied (25 %) beside the live one\n"), "{text}");
}
