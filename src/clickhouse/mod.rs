//! ClickHouse: from PostgreSQL's text forms to blocks that a server takes as they are.
//!
//! [`types`] says which ClickHouse type holds a PostgreSQL type, [`text`] reads the text forms,
//! [`column`] builds one column of them and [`block`] the columns of one table.

pub mod block;
pub mod column;
pub mod text;
pub mod types;
