//! What was asked for, once it is known that it can be.
//!
//! Nothing of an event becomes a part of a statement. Its report is looked up by name; its parameters are those that the
//! report declares, each a value of its type, bound by ClickHouse; and the merchant is the event's own, whatever its parameters say.

use crate::{
    config::{CsvFormulas, MERCHANT, ReportConfig},
    event::schema,
    queue::{
        claim::FOLDER,
        consumer::{Event, HandleError},
    },
};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The longest name of a report or a format that is told again.
const LONGEST: usize = 64;

/// Who asks, and for what, as far as every request says it.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The event's.
    pub(super) id: Uuid,
    pub(super) operation_type: String,
    pub(super) user_id: String,
    pub(super) merchant: String,
    /// As they were given, if they were; for people.
    pub(super) report: String,
    pub(super) format: String,
    /// What ClickHouse keeps beside its query in `system.query_log`: whose it is, as the log has it; JSON.
    pub(super) comment: String,
    parameters: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    operation_type: String,
    user_id: String,
    merchant_account_id: String,
    parameters: Map<String, Value>,
}

/// What is run for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) sql: String,
    pub(super) format: Format,
    /// The placeholders' values, the merchant's among them.
    pub(super) values: Vec<(String, String)>,
    /// The object's key.
    pub(super) key: String,
    /// As the report has it, if it does.
    pub(super) csv_formulas: Option<CsvFormulas>,
}

/// The form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Csv,
    Parquet,
    JsonLines,
}

impl Format {
    fn of(name: &str) -> Option<Self> {
        match name {
            "csv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            "jsonl" => Some(Self::JsonLines),
            _ => None,
        }
    }

    /// ClickHouse's name for it.
    pub(super) fn of_clickhouse(self) -> &'static str {
        match self {
            Self::Csv => "CSVWithNames",
            Self::Parquet => "Parquet",
            Self::JsonLines => "JSONEachRow",
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8",
            Self::Parquet => "application/vnd.apache.parquet",
            Self::JsonLines => "application/x-ndjson",
        }
    }
}

impl Request {
    /// What an event asks for.
    pub(super) fn read(event: &Event) -> Result<Self, HandleError> {
        // What a schema lets through has this shape.
        let payload: Payload = serde_json::from_str(event.envelope.payload.get())
            .map_err(|error| HandleError::Definite(schema::Misfit::Json(error.to_string()).to_string()))?;
        let id = Uuid::try_parse(&event.envelope.metadata.event_id)
            .map_err(|_| HandleError::Definite("/metadata/eventId: it is no UUID".to_owned()))?;
        let told = |name: &str, default: &str| {
            let given = payload.parameters.get(name).map_or(default, |value| value.as_str().unwrap_or_default());
            given.chars().filter(|one| !one.is_control()).take(LONGEST).collect()
        };
        Ok(Self {
            id,
            report: told("report", ""),
            format: told("format", "csv"),
            operation_type: payload.operation_type,
            user_id: payload.user_id,
            merchant: payload.merchant_account_id,
            comment: comment(event),
            parameters: payload.parameters,
        })
    }

    /// Whether it takes data out of the house.
    pub(super) fn is_export(&self) -> bool {
        self.operation_type == "dataExport"
    }

    /// How it is to be answered.
    ///
    /// # Errors
    /// What is wrong with it, without any value.
    pub(super) fn plan(&self, reports: &BTreeMap<String, ReportConfig>) -> Result<Plan, String> {
        let name = match self.parameters.get("report") {
            Some(Value::String(name)) => name,
            Some(_) => return Err("parameters.report: it takes the name of a report".to_owned()),
            None => return Err("parameters.report is missing: which one?".to_owned()),
        };
        let Some(report) = reports.get(name) else {
            let known: Vec<&str> = reports.keys().map(String::as_str).collect();
            return Err(format!("there is no report {:?}: there are {}", self.report, known.join(", ")));
        };
        if report.export != self.is_export() {
            let by = if report.export { "dataExport" } else { "reportGeneration" };
            return Err(format!("{name} is asked for by an event whose operationType is {by}"));
        }
        let format = match self.parameters.get("format") {
            None => Some(Format::Csv),
            Some(given) => given.as_str().and_then(Format::of),
        };
        let format = format.ok_or("parameters.format: it takes csv, parquet or jsonl")?;
        Ok(Plan {
            sql: report.sql.clone(),
            format,
            values: self.values(name, report)?,
            key: self.key(format),
            csv_formulas: report.csv_formulas,
        })
    }

    fn values(&self, name: &str, report: &ReportConfig) -> Result<Vec<(String, String)>, String> {
        let mut values = vec![(MERCHANT.to_owned(), self.merchant.clone())];
        let mut given: BTreeMap<&str, &Value> =
            self.parameters.iter().map(|(name, value)| (name.as_str(), value)).collect();
        given.retain(|name, _| !["report", "format"].contains(name));
        for (parameter, config) in &report.parameters {
            let default = config.default.as_ref().map(|default| default.json());
            let value = given.remove(parameter.as_str()).or(default.as_ref());
            let value = value
                .ok_or_else(|| format!("parameters.{parameter} is missing, which {name} asks for ({})", config.of))?;
            let text = config.of.text(value).map_err(|why| format!("parameters.{parameter}: {why}"))?;
            values.push((parameter.clone(), text));
        }
        match given.keys().next() {
            None => Ok(values),
            Some(unknown) => {
                let unknown: String = unknown.chars().filter(|one| !one.is_control()).take(LONGEST).collect();
                let known: Vec<&str> = report.parameters.keys().map(String::as_str).collect();
                Err(format!("{name} takes no parameter {unknown:?}: it takes {}", known.join(", ")))
            }
        }
    }

    /// The same for every attempt, so that a later one takes the place of an earlier one.
    fn key(&self, format: Format) -> String {
        let extension = match format {
            Format::Csv => "csv",
            Format::Parquet => "parquet",
            Format::JsonLines => "jsonl",
        };
        format!("{}/{}.{extension}", folder(&self.merchant), self.id)
    }
}

fn comment(event: &Event) -> String {
    let metadata = &event.envelope.metadata;
    let ids = serde_json::json!({
        "correlation_id": metadata.correlation_id, "event_id": metadata.event_id, "traceparent": event.traceparent
    });
    ids.to_string()
}

/// A folder for each merchant, whose id may be any text: one that is no plain word is hashed, and marked so that no word is like it.
/// So is the one word that is the folder of what expires.
fn folder(merchant: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if merchant != FOLDER && merchant.len() <= LONGEST && merchant.bytes().all(plain) {
        return merchant.to_owned();
    }
    let digest = Sha256::digest(merchant.as_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("_.{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::reports,
        event::envelope::{Envelope, EventType},
    };
    use serde_json::json;

    fn request(payload: Value) -> Request {
        let envelope: Envelope = serde_json::from_value(json!({
            "metadata": {
                "eventId": "018F3B5E-7c1a-8000-8000-0123456789ab", "eventTimestamp": "2026-01-01T00:00:00Z",
                "eventType": "AsynchronousOperationRequested", "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
            },
            "payload": payload
        }))
        .unwrap();
        let of = EventType::AsynchronousOperationRequested;
        Request::read(&Event { of, envelope, traceparent: None, is_last: false }).unwrap()
    }

    fn asked(operation_type: &str, parameters: Value) -> Result<Plan, String> {
        let payload = json!({
            "operationType": operation_type, "userId": "u", "merchantAccountId": "m 7", "parameters": parameters
        });
        let strict = r#"sql = "SELECT {merchant:String}, {to:Date}"
            parameters = { to = "Date" }"#;
        request(payload).plan(&reports(&BTreeMap::from([("strict".to_owned(), toml::from_str(strict).unwrap())])))
    }

    #[test]
    fn a_request_has_its_own_merchant_and_the_defaults_of_its_report() {
        let plan =
            asked("reportGeneration", json!({"report": "best_customers", "format": "jsonl", "limit": 5})).unwrap();
        let values: Vec<_> = plan.values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(values, [("merchant", "m 7"), ("from", "1970-01-01"), ("limit", "5"), ("to", "2148-12-31")]);
        assert_eq!(plan.format, Format::JsonLines);
        assert_eq!(plan.key, format!("{}/018f3b5e-7c1a-8000-8000-0123456789ab.jsonl", folder("m 7")));
        assert_eq!(asked("dataExport", json!({"report": "merchant_orders"})).unwrap().format, Format::Csv);
    }

    #[test]
    fn what_no_report_asks_for_is_refused_without_its_value() {
        let report = "reportGeneration";
        for (operation, parameters, part) in [
            (report, json!({}), "parameters.report is missing"),
            (report, json!({"report": 7}), "parameters.report: it takes"),
            (report, json!({"report": "no_such"}), "there is no report \"no_such\": there are best_customers, "),
            (report, json!({"report": "merchant_orders"}), "operationType is dataExport"),
            ("dataExport", json!({"report": "best_customers"}), "operationType is reportGeneration"),
            (report, json!({"report": "best_customers", "format": "canary"}), "it takes csv, parquet or jsonl"),
            (report, json!({"report": "best_customers", "format": null}), "it takes csv, parquet or jsonl"),
            (report, json!({"report": "strict"}), "parameters.to is missing"),
            (report, json!({"report": "best_customers", "limit": "canary"}), "parameters.limit: it takes"),
            (report, json!({"report": "best_customers", "merchant": "canary"}), "takes no parameter \"merchant\""),
            (report, json!({"report": "best_customers", "merchantAccountId": "canary"}), "takes no parameter"),
            (report, json!({"report": "best_customers", "readonly": 0}), "takes no parameter \"readonly\""),
            (report, json!({"report": "best_customers", "param_merchant": "canary"}), "takes no parameter"),
            (report, json!({"report": "best_customers", "limit&merchant=m": 1}), "takes no parameter"),
        ] {
            let why = asked(operation, parameters.clone()).expect_err(&parameters.to_string());
            assert!(why.contains(part), "{parameters}: {why}");
            assert!(!why.contains("canary"), "{why}");
        }
    }

    #[test]
    fn a_merchants_objects_are_in_a_folder_that_no_other_has() {
        assert_eq!(folder("acct-7_B"), "acct-7_B");
        assert!(folder(FOLDER).starts_with("_."), "what is there expires");
        let odd = ["../7", "/", ".", "..", "a b", "é", "_.7", "", &"x".repeat(65)];
        let folders: Vec<String> = odd.iter().map(|merchant| folder(merchant)).collect();
        for (one, folder) in folders.iter().enumerate().filter(|(one, _)| !odd[*one].is_empty()) {
            assert!(folder.starts_with("_.") && folder.len() == 34, "{folder}");
            assert!(!folders[..one].contains(folder));
        }
    }
}
