//! The null DynamoDB: keeps polls, tallies and shard rows, accepts every vote, and treats every condition as met.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use anyhow::Context;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

type Item = Map<String, Value>;

/// Most bytes that one write unit writes.
const UNIT_BYTES: usize = 1 << 10;

#[derive(Default)]
pub(super) struct Dynamo {
    pub(super) calls: AtomicU64,
    pub(super) inserts: AtomicU64,
    pub(super) updates: AtomicU64,
    pub(super) tallied: AtomicI64,
    pub(super) vote_units: AtomicU64,
    pub(super) tally_units: AtomicU64,
    pub(super) other_units: AtomicU64,
    items: Mutex<HashMap<Key, Item>>,
}

/// Table, partition key, sort key.
type Key = (String, String, String);

#[derive(Deserialize)]
struct Statements<'a> {
    #[serde(borrow, rename = "Statements")]
    statements: Vec<Statement<'a>>,
}

#[derive(Deserialize)]
struct Statement<'a> {
    #[serde(borrow, rename = "Statement")]
    statement: std::borrow::Cow<'a, str>,
}

/// Names of a table's key attributes.
fn keys_of(table: &str) -> (&'static str, &'static str) {
    match table.rsplit('-').next() {
        Some("votes") => ("poll_bucket", "user_id"),
        Some("tallies") => ("poll_id", "group_shard"),
        Some("shards") => ("shard_group", "shard_id"),
        _ => ("poll_id", ""),
    }
}

fn text<'a>(item: &'a Value, name: &str) -> &'a str {
    item.get(name).and_then(|value| value.get("S")).and_then(Value::as_str).unwrap_or_default()
}

fn key(table: &str, item: &Value) -> Key {
    let (partition, sort) = keys_of(table);
    (table.to_owned(), text(item, partition).to_owned(), text(item, sort).to_owned())
}

impl Dynamo {
    /// The answer, and whether the call was on the table of votes.
    pub(super) fn answer(&self, operation: &str, body: &[u8]) -> anyhow::Result<(Bytes, bool)> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match operation {
            "BatchExecuteStatement" => return Ok((self.execute(body)?, true)),
            "BatchGetItem" => return Ok((Self::read_votes(body)?, true)),
            _ => {}
        }
        let request: Value = serde_json::from_slice(body)?;
        let table = request["TableName"].as_str().context("no table")?;
        let answer = match operation {
            "DescribeTable" => describe(table),
            "PutItem" => {
                let item = request["Item"].as_object().context("no item")?;
                let units = self.wrote(table, item);
                self.items.lock().insert(key(table, &request["Item"]), item.clone());
                json!({ "ConsumedCapacity": consumed(table, units) })
            }
            "GetItem" => match self.items.lock().get(&key(table, &request["Key"])) {
                Some(item) => json!({ "Item": item }),
                None => json!({}),
            },
            "Query" | "Scan" => {
                let wanted = request["ExpressionAttributeValues"][":key"]["S"].as_str();
                let items = self.items.lock();
                let found: Vec<_> = items
                    .iter()
                    .filter(|(key, _)| key.0 == table && wanted.is_none_or(|wanted| key.1 == wanted))
                    .map(|(_, item)| item)
                    .collect();
                json!({ "Items": found, "Count": found.len(), "ScannedCount": found.len() })
            }
            "UpdateItem" => {
                let mut items = self.items.lock();
                let item = items.entry(key(table, &request["Key"])).or_default();
                let added = update(item, &request)?;
                if table.ends_with("tallies") {
                    self.tallied.fetch_add(added, Ordering::Relaxed);
                }
                let units = self.wrote(table, item);
                json!({ "Attributes": item, "ConsumedCapacity": consumed(table, units) })
            }
            _ => anyhow::bail!("DynamoDB has no {operation} here"),
        };
        Ok((answer.to_string().into(), false))
    }

    fn execute(&self, body: &[u8]) -> anyhow::Result<Bytes> {
        let request: Statements<'_> = serde_json::from_slice(body)?;
        let inserts = request.statements.iter().filter(|each| each.statement.starts_with("INSERT")).count();
        let all = request.statements.len();
        self.inserts.fetch_add(inserts as u64, Ordering::Relaxed);
        self.updates.fetch_add((all - inserts) as u64, Ordering::Relaxed);
        let answers = vec!["{\"TableName\":\"votestream-votes\"}"; all].join(",");
        // A vote is far smaller than one KiB, so each takes one unit.
        self.vote_units.fetch_add(all as u64, Ordering::Relaxed);
        let capacity = format!("{{\"TableName\":\"votestream-votes\",\"CapacityUnits\":{all}.0}}");
        Ok(format!("{{\"Responses\":[{answers}],\"ConsumedCapacity\":[{capacity}]}}").into())
    }

    /// Counts the write units of writing this item.
    fn wrote(&self, table: &str, item: &Item) -> u64 {
        let bytes: usize = item.iter().map(|(name, value)| name.len() + size_of_value(value)).sum();
        let units = bytes.div_ceil(UNIT_BYTES).max(1) as u64;
        let counter = if table.ends_with("tallies") { &self.tally_units } else { &self.other_units };
        counter.fetch_add(units, Ordering::Relaxed);
        units
    }

    /// Answers as if everybody has voted for the first option, before every position.
    fn read_votes(body: &[u8]) -> anyhow::Result<Bytes> {
        let request: Value = serde_json::from_slice(body)?;
        let tables = request["RequestItems"].as_object().context("no tables")?;
        let position = aws_smithy_types::base64::encode([0; 28]);
        let stored = |key: &Value| {
            let mut item = key.clone();
            item["option"] = json!({ "S": crate::votes::OPTIONS[0] });
            item["position"] = json!({ "B": position });
            item
        };
        let mut responses = Map::new();
        for (table, wanted) in tables {
            let keys = wanted["Keys"].as_array().context("no keys")?;
            responses.insert(table.clone(), keys.iter().map(stored).collect());
        }
        Ok(json!({ "Responses": responses, "UnprocessedKeys": {} }).to_string().into())
    }
}

fn consumed(table: &str, units: u64) -> Value {
    json!({ "TableName": table, "CapacityUnits": units as f64 })
}

/// Bytes of an attribute's value, as DynamoDB counts them, or slightly more.
fn size_of_value(value: &Value) -> usize {
    let Some((kind, value)) = value.as_object().and_then(|value| value.iter().next()) else { return 1 };
    match (kind.as_str(), value) {
        ("S", Value::String(text)) => text.len(),
        ("B", Value::String(base64)) => base64.len() / 4 * 3,
        ("N", Value::String(digits)) => digits.len() / 2 + 2,
        ("L", Value::Array(list)) => 3 + list.iter().map(|value| 1 + size_of_value(value)).sum::<usize>(),
        ("M", Value::Object(map)) => {
            3 + map.iter().map(|(name, value)| name.len() + 1 + size_of_value(value)).sum::<usize>()
        }
        _ => 1,
    }
}

fn describe(table: &str) -> Value {
    let (partition, sort) = keys_of(table);
    let keys: Vec<_> =
        [(partition, "HASH"), (sort, "RANGE")].into_iter().filter(|(name, _)| !name.is_empty()).collect();
    let schema: Vec<_> = keys.iter().map(|(name, kind)| json!({ "AttributeName": name, "KeyType": kind })).collect();
    let definitions: Vec<_> =
        keys.iter().map(|(name, _)| json!({ "AttributeName": name, "AttributeType": "S" })).collect();
    json!({ "Table": {
        "TableName": table, "TableStatus": "ACTIVE", "KeySchema": schema, "AttributeDefinitions": definitions,
    } })
}

/// Carries out an update expression. Returns the sum of what it adds to the counts of options.
fn update(item: &mut Item, request: &Value) -> anyhow::Result<i64> {
    let expression = request["UpdateExpression"].as_str().context("no update expression")?;
    let (names, values) = (&request["ExpressionAttributeNames"], &request["ExpressionAttributeValues"]);
    if let Some(key) = request["Key"].as_object() {
        key.iter().for_each(|(name, value)| drop(item.insert(name.clone(), value.clone())));
    }
    let (mut clause, mut name, mut added) = ("", "", 0);
    for token in expression.split([' ', ',']).filter(|token| !token.is_empty() && *token != "=") {
        if matches!(token, "SET" | "ADD" | "REMOVE") {
            clause = token;
        } else if token.starts_with('#') {
            name = names[token].as_str().with_context(|| format!("no name {token}"))?;
            if clause == "REMOVE" {
                item.remove(name);
            }
        } else {
            let value = &values[token];
            anyhow::ensure!(!value.is_null(), "no value {token}");
            let sum = |value: &Value| value["N"].as_str().and_then(|number| number.parse::<i64>().ok()).unwrap_or(0);
            if clause == "ADD" {
                let before = item.get(name).map_or(0, sum);
                added += sum(value);
                item.insert(name.to_owned(), json!({ "N": (before + sum(value)).to_string() }));
            } else {
                item.insert(name.to_owned(), value.clone());
            }
        }
    }
    Ok(added)
}
