//! The star schema, if it is asked for: views over the tables of the demo's shop (`migrations/warehouse`).
//!
//! They are views over the views of current rows, so an update, a deletion and a changed key are right in them at once, and so is a
//! table that was copied anew. They are made once all of those are there; in a database that has none of them nothing ever is.

use super::retrying;
use clickhouse::{Client, error::Error};

/// In their order, by the name that each makes.
const VIEWS: [(&str, &str); 5] = [
    ("dim_dates", include_str!("../../migrations/warehouse/0001_dim_dates.sql")),
    ("dim_users", include_str!("../../migrations/warehouse/0002_dim_users.sql")),
    ("dim_products", include_str!("../../migrations/warehouse/0003_dim_products.sql")),
    ("fact_orders", include_str!("../../migrations/warehouse/0004_fact_orders.sql")),
    ("fact_order_items", include_str!("../../migrations/warehouse/0005_fact_order_items.sql")),
];
/// What they stand on.
const NEEDED: [&str; 4] = ["customer_current", "product_current", "sales_order_current", "order_item_current"];

/// What became of the star schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is there.
    Yes,
    /// What it stands on is not, as yet: these.
    Missing(Vec<String>),
    /// Something else has one of its names.
    Taken(String),
}

/// Makes the star schema, in place of an earlier form of it. `client` has its database chosen.
///
/// # Errors
/// What is definite, such as a table with other columns.
pub async fn apply(client: &Client) -> Result<Applied, Error> {
    match look(client).await? {
        Applied::Missing(missing) if !missing.is_empty() => return Ok(Applied::Missing(missing)),
        Applied::Taken(name) => return Ok(Applied::Taken(name)),
        Applied::Missing(_) | Applied::Yes => {}
    }
    for (_, sql) in VIEWS {
        retrying("create the star schema", || client.query_raw(sql).execute()).await?;
    }
    Ok(Applied::Yes)
}

/// Whether the star schema is there, in whatever form. If it could be made and only is not, nothing is missing for it.
///
/// # Errors
/// What is definite.
pub async fn look(client: &Client) -> Result<Applied, Error> {
    let names: Vec<&str> = VIEWS.iter().map(|(name, _)| *name).chain(NEEDED).collect();
    let sql =
        "SELECT name, engine FROM system.tables WHERE database = currentDatabase() AND name IN {names: Array(String)}";
    let present = || client.query_raw(sql).param("names", &names).fetch_all::<(String, String)>();
    let present = retrying("look for the star schema", present).await?;
    // A view may be replaced. A table would be gone.
    if let Some((name, _)) = present.iter().find(|(_, engine)| engine != "View") {
        return Ok(Applied::Taken(name.clone()));
    }
    let is_missing = |name: &&str| !present.iter().any(|(there, _)| there == name);
    let missing: Vec<String> = NEEDED.into_iter().filter(is_missing).map(str::to_owned).collect();
    let complete = missing.is_empty() && VIEWS.iter().all(|(name, _)| !is_missing(name));
    Ok(if complete { Applied::Yes } else { Applied::Missing(missing) })
}
