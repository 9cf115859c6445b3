//! Types, as far as the text of values depends on them.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;

use crate::{event::ElementType, postgres::sql::SqlError};

/// What comes with PostgreSQL has an oid below this one, and never changes.
const FIRST_OF_USERS: u32 = 16384;

/// The types of some columns, and all that they are made of.
pub(super) struct Types(HashMap<u32, Type>);

/// A row of `pg_type`.
pub(super) struct Type {
    pub(super) oid: u32,
    pub(super) is_enum: bool,
    pub(super) is_vector: bool,
    /// Whether values have no fixed length, so that they may be stored out of line.
    pub(super) has_length: bool,
    is_comma_separated: bool,
    /// Of a domain: what it is over, with the modifier that it gives to that.
    base: Option<(u32, i32)>,
    dimensions: i32,
    /// Of an array.
    element: Option<u32>,
    made_of: Vec<u32>,
    /// What can change of it that the text of a value shows: an enum's labels or a composite type's
    /// attributes, each as an oid and a digest of eight letters.
    parts: Vec<(u32, String)>,
}

/// What a declared type comes to.
pub(super) struct Resolved<'t> {
    /// The type; no domain.
    pub(super) ty: &'t Type,
    pub(super) modifier: i32,
    pub(super) dimensions: i32,
}

impl Types {
    /// Reads these types.
    pub(super) async fn read(client: &Client, oids: &BTreeSet<u32>) -> Result<Self, SqlError> {
        // `array_in` tells arrays from what is only like one.
        let statement = "WITH RECURSIVE used AS ( \
                             SELECT unnest($1::oid[]) AS oid \
                           UNION \
                             SELECT below.oid FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL ( \
                                 SELECT unnest(ARRAY[t.typbasetype, t.typelem]) \
                                 UNION ALL SELECT atttypid FROM pg_attribute \
                                     WHERE attrelid = nullif(t.typrelid, 0) AND attnum > 0 AND NOT attisdropped \
                                 UNION ALL SELECT rngsubtype FROM pg_range WHERE t.oid IN (rngtypid, rngmultitypid)) below(oid) \
                             WHERE below.oid <> 0) \
                         SELECT t.oid, t.typtype::text, t.typname = 'vector' AND t.typtype = 'b', t.typlen = -1, t.typdelim = ',', \
                                t.typbasetype, t.typtypmod, t.typndims, \
                                CASE WHEN t.typinput = 'pg_catalog.array_in'::regproc THEN t.typelem ELSE 0 END, \
                                ARRAY[t.typbasetype, t.typelem] || attribute.types || ARRAY( \
                                    SELECT rngsubtype FROM pg_range WHERE t.oid IN (rngtypid, rngmultitypid)), \
                                label.oids, label.digests, left(md5(t.oid || ':' || attribute.list::text), 8) \
                         FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL ( \
                             SELECT coalesce(array_agg(oid ORDER BY oid), '{}') AS oids, \
                                    coalesce(array_agg(left(md5(oid || ':' || enumlabel), 8) ORDER BY oid), '{}') AS digests \
                             FROM pg_enum WHERE enumtypid = t.oid) label CROSS JOIN LATERAL ( \
                             SELECT coalesce(array_agg(atttypid), '{}') AS types, \
                                    coalesce(array_agg(attnum || ' ' || atttypid ORDER BY attnum), '{}') AS list \
                             FROM pg_attribute WHERE attrelid = nullif(t.typrelid, 0) AND attnum > 0 AND NOT attisdropped) attribute";
        let oids: Vec<u32> = oids.iter().copied().collect();
        let mut types = HashMap::new();
        for row in client.query(statement, &[&oids]).await? {
            let oid = row.try_get(0)?;
            let kind: &str = row.try_get(1)?;
            let (labels, digests): (Vec<u32>, Vec<String>) = (row.try_get(10)?, row.try_get(11)?);
            let mut parts: Vec<_> = labels.into_iter().zip(digests).collect();
            if kind == "c" {
                parts.push((oid, row.try_get(12)?));
            }
            let ty = Type {
                oid,
                is_enum: kind == "e",
                is_vector: row.try_get(2)?,
                has_length: row.try_get(3)?,
                is_comma_separated: row.try_get(4)?,
                base: (kind == "d").then_some((row.try_get(5)?, row.try_get(6)?)),
                dimensions: row.try_get(7)?,
                element: Some(row.try_get(8)?).filter(|&element: &u32| element != 0 && kind != "d"),
                made_of: row.try_get(9)?,
                parts,
            };
            types.insert(oid, ty);
        }
        Ok(Self(types))
    }

    fn get(&self, oid: u32) -> Result<&Type, SqlError> {
        self.0.get(&oid).ok_or_else(|| SqlError::definite(format!("the type {oid} of a column is not in pg_type")))
    }

    /// Follows domains to the type that values have. The modifier is where the chain ends.
    pub(super) fn resolved(&self, oid: u32, modifier: i32, dimensions: i32) -> Result<Resolved<'_>, SqlError> {
        let mut found = Resolved { ty: self.get(oid)?, modifier, dimensions };
        while let Some((base, modifier)) = found.ty.base {
            let dimensions = found.dimensions.max(found.ty.dimensions);
            found = Resolved { ty: self.get(base)?, modifier, dimensions };
        }
        Ok(found)
    }

    /// What an array holds, unless something else than a comma separates it. Its modifier is that of
    /// its elements, unless these are of a domain.
    pub(super) fn element(&self, array: &Resolved<'_>) -> Result<Option<ElementType>, SqlError> {
        let Some(element) = array.ty.element else { return Ok(None) };
        let Resolved { ty, modifier, .. } = self.resolved(element, array.modifier, 0)?;
        let element = ElementType { type_oid: ty.oid, type_modifier: modifier, is_enum: ty.is_enum };
        Ok(ty.is_comma_separated.then_some(element))
    }

    /// The digests of all that a type is made of, in order of oids.
    pub(super) fn parts(&self, ty: &Type) -> String {
        let (mut seen, mut next) = (BTreeSet::new(), vec![ty.oid]);
        let mut parts = Vec::new();
        while let Some(oid) = next.pop() {
            if oid >= FIRST_OF_USERS
                && seen.insert(oid)
                && let Some(ty) = self.0.get(&oid)
            {
                next.extend(&ty.made_of);
                parts.extend(&ty.parts);
            }
        }
        parts.sort_unstable();
        parts.into_iter().map(|(_, digest)| digest.as_str()).collect()
    }
}
