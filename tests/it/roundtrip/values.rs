//! The type table, and where the values of each type are likely to break.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

/// A type of PostgreSQL, and literals for it.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) source: &'static str,
    /// Whether it can be part of a key here.
    pub(super) key: bool,
    edges: &'static [&'static str],
    random: fn(&mut StdRng) -> String,
}

impl Kind {
    /// A literal, or NULL where that may be.
    pub(super) fn value(&self, strict: bool, rng: &mut StdRng) -> String {
        if !strict && rng.random_ratio(1, 6) {
            return "NULL".to_owned();
        }
        let array = self.source.strip_suffix("[]").filter(|element| !element.ends_with(']'));
        match (array, self.edges.choose(rng)) {
            (_, Some(edge)) if rng.random_bool(0.6) => (*edge).to_owned(),
            (Some(element), _) => {
                let elements: Vec<_> = (0..rng.random_range(0..5))
                    .map(|_| if rng.random_ratio(1, 4) { "NULL".to_owned() } else { (self.random)(rng) })
                    .collect();
                format!("ARRAY[{}]::{element}[]", elements.join(", "))
            }
            _ => (self.random)(rng),
        }
    }
}

/// Types that the tables need.
pub(super) const PREPARE: &str = "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree;
    CREATE TYPE mood AS ENUM ('sad', 'ok', '', 'so ''so'', \\ \"😀\"', 'NULL');
    CREATE DOMAIN amount AS numeric(12, 4); CREATE DOMAIN feeling AS mood; CREATE DOMAIN numbers AS int4[];
    CREATE TYPE pair AS (a int, b text)";

fn integer<const BITS: u32>(rng: &mut StdRng) -> String {
    let value = rng.random::<i64>() >> (64 - BITS);
    (value >> rng.random_range(0..BITS)).to_string()
}

fn unsigned<const BITS: u32>(rng: &mut StdRng) -> String {
    format!("'{}'", rng.random::<u64>() >> (64 - BITS) >> rng.random_range(0..BITS))
}

fn float4(rng: &mut StdRng) -> String {
    format!("'{:e}'", f32::from_bits(rng.random())).replace("inf", "Infinity")
}

fn float8(rng: &mut StdRng) -> String {
    format!("'{:e}'", f64::from_bits(rng.random())).replace("inf", "Infinity")
}

fn numeric<const WHOLE: usize, const FRACTION: usize>(rng: &mut StdRng) -> String {
    let mut digits = |most: usize| {
        (0..rng.random_range(0..=most)).map(|_| char::from(b'0' + rng.random_range(0..10))).collect::<String>()
    };
    let (whole, fraction) = (digits(WHOLE), digits(FRACTION));
    format!("{}0{whole}.{fraction}0", if rng.random() { "-" } else { "" })
}

fn short(rng: &mut StdRng) -> String {
    #[rustfmt::skip]
    const PIECES: &[&str] = &[
        "a", "''", "\\", "\"", ",", "{", "}", "NULL", "\t", "\n", "\r", "\u{8}", "\u{b}", "é", "😀", " ", "`", "\\N", "\u{1}", "\u{7f}", "%", "$1",
    ];
    let pieces: String = (0..rng.random_range(0..8)).map(|_| *PIECES.choose(rng).expect("pieces")).collect();
    format!("'{pieces}'")
}

/// Now and then long enough to be stored out of line, and hard to compress: too long for a key.
fn text(rng: &mut StdRng) -> String {
    let text = short(rng);
    if !rng.random_ratio(1, 10) {
        return text;
    }
    let last = rng.random_range(1..400);
    format!("({text} || (SELECT string_agg(md5(i::text), '') FROM generate_series(1, {last}) i))")
}

fn bytes(rng: &mut StdRng) -> String {
    let bytes: String = (0..rng.random_range(0..20)).map(|_| format!("{:02x}", rng.random::<u8>())).collect();
    format!("decode('{bytes}', 'hex')")
}

fn uuid(rng: &mut StdRng) -> String {
    let hex = format!("{:032x}", rng.random::<u128>());
    format!("'{hex}'")
}

fn date(rng: &mut StdRng) -> String {
    format!("('1900-01-01'::date + {})", rng.random_range(0..146_097))
}

fn timestamp(rng: &mut StdRng) -> String {
    format!("('1900-01-01'::timestamp + interval '{} us')", rng.random_range(0..12_622_780_800_000_000_i64))
}

fn timestamptz(rng: &mut StdRng) -> String {
    format!("('1900-01-01 00:00:00Z'::timestamptz + interval '{} us')", rng.random_range(0..12_622_780_800_000_000_i64))
}

fn time(rng: &mut StdRng) -> String {
    format!("('00:00'::time + interval '{} us')", rng.random_range(0..86_400_000_000_i64))
}

fn interval(rng: &mut StdRng) -> String {
    let mut part = || rng.random_range(-100_000..100_000);
    format!("'{} months {} days {} seconds {} microseconds'", part(), part(), part(), part())
}

fn json(rng: &mut StdRng) -> String {
    format!("'{{\"b\": {}, \"a\":[1, null, \"\\u00e9\"],  \"b\": 9007199254740993}}'", rng.random::<i64>())
}

fn address(rng: &mut StdRng) -> String {
    let b: [u8; 4] = rng.random();
    format!("'{}.{}.{}.{}'", b[0], b[1], b[2], b[3])
}

fn one_of(values: &[&str], rng: &mut StdRng) -> String {
    (*values.choose(rng).expect("values")).to_owned()
}

fn mood(rng: &mut StdRng) -> String {
    one_of(&["'sad'", "'ok'", "''", "'so ''so'', \\ \"😀\"'", "'NULL'"], rng)
}

fn boolean(rng: &mut StdRng) -> String {
    one_of(&["true", "false"], rng)
}

const NINES_76: &str = "9999999999999999999999999999999999999999999999999999999999999999999999999999";

#[rustfmt::skip] // A table.
pub(super) const KINDS: &[Kind] = &[
    Kind { source: "bool", key: true, edges: &[], random: boolean },
    Kind { source: "int2", key: true, edges: &["-32768", "32767", "0"], random: integer::<16> },
    Kind { source: "int4", key: true, edges: &["-2147483648", "2147483647", "0"], random: integer::<32> },
    Kind { source: "int8", key: true, edges: &["-9223372036854775808", "9223372036854775807"], random: integer::<64> },
    Kind { source: "oid", key: true, edges: &["'4294967295'", "'0'"], random: unsigned::<32> },
    Kind { source: "xid8", key: false, edges: &["'18446744073709551615'", "'0'"], random: unsigned::<64> },
    Kind { source: "float4", key: false, edges: &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "0", "'1e-45'", "'3.4028235e38'", "'1.17549435e-38'"], random: float4 },
    Kind { source: "float8", key: false, edges: &["'NaN'", "'-Infinity'", "'-0'", "'5e-324'", "'1.7976931348623157e308'", "0.1"], random: float8 },
    Kind { source: "numeric(9,2)", key: true, edges: &["9999999.99", "-9999999.99", "-0.01", "0"], random: numeric::<6, 1> },
    Kind { source: "numeric(18,0)", key: true, edges: &["999999999999999999", "-999999999999999999"], random: numeric::<17, 0> },
    Kind { source: "numeric(38,20)", key: true, edges: &["-0.00000000000000000001", "999999999999999999.99999999999999999999"], random: numeric::<17, 19> },
    Kind { source: "numeric(76,0)", key: true, edges: &[NINES_76, "-1"], random: numeric::<75, 0> },
    Kind { source: "numeric(76,76)", key: false, edges: &["0.5", "-0.0000000000000000000000000000000000000000000000000000000000000000000000000001"], random: numeric::<0, 75> },
    Kind { source: "numeric", key: true, edges: &["'NaN'", "'Infinity'", "'-Infinity'", "1e100", "1e-100", "0.000", "-0.0"], random: numeric::<90, 40> },
    Kind { source: "text", key: true, edges: &["''", "'NULL'", "E'\\\\N'", "'é😀'"], random: short },
    Kind { source: "text", key: false, edges: &[], random: text },
    Kind { source: "citext", key: false, edges: &["'aB'"], random: text },
    Kind { source: "varchar(400)", key: true, edges: &["''", "'x '"], random: |_| "'v'".to_owned() },
    Kind { source: "char(7)", key: false, edges: &["''", "'a'", "'äöüß😀'"], random: |_| "'c'".to_owned() },
    Kind { source: "name", key: true, edges: &["''", "'pg_class'"], random: |_| "'n'".to_owned() },
    Kind { source: "\"char\"", key: false, edges: &["'x'", "''", "''''", "' '"], random: |_| "'y'".to_owned() },
    Kind { source: "xml", key: false, edges: &["'<a b=\"1\">&amp;</a>'"], random: |_| "'<a/>'".to_owned() },
    Kind { source: "bytea", key: true, edges: &["''", "'\\x00'", "'\\x5c3030'", "'\\xff'"], random: bytes },
    Kind { source: "uuid", key: true, edges: &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"], random: uuid },
    Kind { source: "date", key: true, edges: &["'1900-01-01'", "'2299-12-31'", "'1970-01-01'", "'1969-12-31'", "'2000-02-29'"], random: date },
    Kind { source: "timestamp", key: true, edges: &["'1900-01-01'", "'2299-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.999999'", "'1970-01-01'"], random: timestamp },
    Kind { source: "timestamptz", key: true, edges: &["'1900-01-01Z'", "'2299-12-31 23:59:59.999999Z'", "'2024-10-27 02:30:00+02'"], random: timestamptz },
    Kind { source: "time", key: true, edges: &["'24:00:00'", "'00:00:00'", "'23:59:59.999999'"], random: time },
    Kind { source: "timetz", key: false, edges: &["'24:00:00-15:59'", "'00:00:00+15:59'", "'01:02:03.4+05:30'"], random: |_| "'12:00+00'".to_owned() },
    Kind { source: "interval", key: false, edges: &["'-1 year 1 day -00:00:00.000001'", "'0'", "'178000000 years'"], random: interval },
    Kind { source: "json", key: false, edges: &["'null'", "'{}'", "'[]'", "'\"\"'", "'1e400'"], random: json },
    Kind { source: "jsonb", key: false, edges: &["'null'", "'{}'", "'123456789012345678901234567890.10'"], random: json },
    Kind { source: "mood", key: true, edges: &[], random: mood },
    Kind { source: "feeling", key: true, edges: &[], random: mood },
    Kind { source: "amount", key: true, edges: &["99999999.9999", "-0.0001"], random: numeric::<8, 3> },
    Kind { source: "inet", key: true, edges: &["'::1/64'", "'10.0.0.0/8'", "'::ffff:1.2.3.4'"], random: address },
    Kind { source: "cidr", key: false, edges: &["'10.0.0.0/8'", "'::/0'"], random: address },
    Kind { source: "macaddr", key: true, edges: &["'08:00:2b:01:02:03'"], random: |_| "'00:00:00:00:00:00'".to_owned() },
    Kind { source: "varbit", key: false, edges: &["B''", "B'1'", "B'010101010'"], random: |_| "B'0'".to_owned() },
    Kind { source: "money", key: false, edges: &["'-92233720368547758.08'", "'92233720368547758.07'"], random: |_| "'1.5'".to_owned() },
    Kind { source: "point", key: false, edges: &["'(NaN,Infinity)'", "'(-0,1e-300)'"], random: |_| "'(1,2)'".to_owned() },
    Kind { source: "polygon", key: false, edges: &["'((0,0),(1,1),(1,0))'"], random: |_| "'((0,0))'".to_owned() },
    Kind { source: "tsvector", key: false, edges: &["''", "'fat:2A cat:3'", "$$'a '''$$"], random: |_| "'a'".to_owned() },
    Kind { source: "hstore", key: false, edges: &["''", "'a=>NULL, \"b c\"=>\"\\\"\"'"], random: |_| "'a=>1'".to_owned() },
    Kind { source: "ltree", key: false, edges: &["''", "'a.b.c'"], random: |_| "'a'".to_owned() },
    Kind { source: "tstzrange", key: false, edges: &["'empty'", "'(,)'", "'[2024-01-01 01:00+01,infinity)'"], random: |_| "'[,2024-01-01Z]'".to_owned() },
    Kind { source: "int4multirange", key: false, edges: &["'{}'", "'{[1,3),[5,)}'"], random: |_| "'{[1,2)}'".to_owned() },
    Kind { source: "pair", key: false, edges: &["ROW(NULL, NULL)::pair", "ROW(1, '\",)')::pair"], random: |_| "ROW(1, 'x')::pair".to_owned() },
    Kind { source: "pg_lsn", key: true, edges: &["'0/0'", "'FFFFFFFF/FFFFFFFF'"], random: |_| "'1/AB'".to_owned() },
    Kind { source: "box[]", key: false, edges: &["'{(1,1),(0,0);(2,2),(1,1)}'", "'{}'"], random: |_| "'(1,1),(0,0)'".to_owned() },
    Kind { source: "bool[]", key: false, edges: &["'{}'"], random: boolean },
    Kind { source: "int4[]", key: true, edges: &["'{}'", "'{-2147483648,2147483647,NULL}'", "'[1:2]={1,2}'"], random: integer::<32> },
    Kind { source: "float8[]", key: false, edges: &["'{NaN,Infinity,-0,5e-324}'"], random: float8 },
    Kind { source: "numeric(9,2)[]", key: false, edges: &["'{9999999.99,-0.01}'"], random: numeric::<6, 1> },
    Kind { source: "numeric[]", key: false, edges: &["'{NaN,1.500}'"], random: numeric::<30, 30> },
    Kind { source: "text[]", key: false, edges: &["'{}'", "'{\"\"}'", "'{NULL,\"NULL\",null}'"], random: text },
    Kind { source: "char(3)[]", key: false, edges: &["'{a,\"\"}'"], random: |_| "'b'".to_owned() },
    Kind { source: "bytea[]", key: false, edges: &["ARRAY['\\x00'::bytea, '']"], random: bytes },
    Kind { source: "uuid[]", key: false, edges: &[], random: uuid },
    Kind { source: "date[]", key: false, edges: &["'{1900-01-01,2299-12-31}'"], random: date },
    Kind { source: "timestamptz[]", key: false, edges: &["'{}'"], random: timestamptz },
    Kind { source: "time[]", key: false, edges: &["'{24:00:00}'"], random: time },
    Kind { source: "mood[]", key: false, edges: &["'{}'", "'{\"\",\"NULL\",NULL,sad}'"], random: mood },
    Kind { source: "feeling[]", key: false, edges: &[], random: mood },
    Kind { source: "amount[]", key: false, edges: &[], random: numeric::<8, 3> },
    Kind { source: "interval[]", key: false, edges: &[], random: interval },
    Kind { source: "jsonb[]", key: false, edges: &["ARRAY['null'::jsonb, NULL]"], random: json },
    Kind { source: "pair[]", key: false, edges: &["ARRAY[ROW(NULL, NULL)::pair, NULL]"], random: |_| "ROW(1, '\",{}')::pair".to_owned() },
    Kind { source: "numbers", key: false, edges: &["'{1,NULL}'", "'{}'"], random: |_| "'{7}'".to_owned() },
    Kind { source: "numbers[]", key: false, edges: &["'{\"{1,2}\",NULL}'"], random: |_| "'{1}'::numbers".to_owned() },
    Kind { source: "int4[][]", key: false, edges: &["'{{1,2},{3,NULL}}'", "'{1}'", "'{}'", "'[0:1]={5,6}'", "'{{{1}}}'"], random: |_| "'{1}'::int4[]".to_owned() },
];
