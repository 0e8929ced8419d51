//! Types of columns, and values of them that are close to each other.

/// A type with some of its values, and more texts to compare with: other spellings of them, and invalid ones.
pub struct Kind {
    /// As a table declares it.
    pub declared: &'static str,
    /// Without its modifier: what values of filters are cast to.
    pub compared: &'static str,
    pub values: &'static [&'static str],
    pub others: &'static [&'static str],
}

const fn kind(
    declared: &'static str,
    compared: &'static str,
    values: &'static [&'static str],
    others: &'static [&'static str],
) -> Kind {
    Kind { declared, compared, values, others }
}

const WORDS: &[&str] = &["", "a", "B", "b", "ab", "ä", "a,b", "(x)", "\"q\" \\", "a_c", "null", " a ", "Zz"];
const PATTERNS: &[&str] = &["%", "a%", "_", "%b", "a\\_c", "^a", "[A-Z]", "(", "a|b", "%\\\\"];

pub const KINDS: &[Kind] = &[
    kind("int2", "int2", &["-1", "0", "7", "32767"], &["07", "+7", " 7 ", "40000", "x", "1.5"]),
    kind("int4", "int4", &["-2147483648", "0", "5", "6"], &["5.0", "", "9999999999"]),
    kind("int8", "int8", &["9007199254740993", "9007199254740992", "-1", "0"], &["-0", "1e3"]),
    kind(
        "numeric",
        "numeric",
        &["0", "-0.10", "1.5", "1.50", "NaN", "Infinity", "-Infinity", "123456789012345678901234567890.5"],
        &["1.500", "1e2", "15e-1", "nan", "x", ".5"],
    ),
    kind("amount", "numeric", &["0.10", "1.5", "99999999.99"], &["1.505", "0.1"]),
    kind("float4", "float4", &["0", "-0", "1.1", "NaN", "Infinity", "3.4e38"], &["1.10000002", "1e39", "x"]),
    kind(
        "float8",
        "float8",
        &["0", "-0", "1.1", "0.1", "NaN", "-Infinity", "1e300"],
        &["0.10000000000000001", "inf", "1e400"],
    ),
    kind("bool", "bool", &["t", "f"], &["true", "yes", "0", "off", "maybe", "TR"]),
    kind("text", "text", WORDS, PATTERNS),
    kind("word", "text", WORDS, PATTERNS),
    kind("varchar(12)", "varchar", WORDS, PATTERNS),
    kind(
        "char(4)",
        "pg_catalog.bpchar",
        &["", "a", "ab", " b", "ä", "B"],
        &["a   ", "ab ", "abcdef", "a%", "_b%"],
    ),
    kind("name", "name", &["a", "B", "b", "ä", ""], PATTERNS),
    kind("text collate \"C\"", "text", WORDS, PATTERNS),
    kind(
        "uuid",
        "uuid",
        &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"],
        &["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}", "1"],
    ),
    kind(
        "date",
        "date",
        &["2024-02-29", "0044-03-15 BC", "infinity", "-infinity", "10000-01-01"],
        &["29 Feb 2024", "2024-02-30", "20240229"],
    ),
    kind(
        "timestamp",
        "timestamp",
        &["2024-02-29 12:34:56.5", "2024-02-29 12:34:56", "infinity", "0001-01-01 00:00:00 BC"],
        &["2024-02-29T12:34:56.500", "2024-02-29", "2024-02-29 12:34:56+05", "soon"],
    ),
    kind(
        "timestamptz",
        "timestamptz",
        &["2024-02-29 12:34:56+02", "1999-12-31 23:59:59.999999+00", "-infinity"],
        &["2024-02-29T10:34:56Z", "2024-02-29 10:34:56", "2024-02-29 05:04:56-05:30", "25:00"],
    ),
    kind("time", "time", &["00:00", "12:34:56.789", "24:00:00"], &["12:34:56.7890", "12:34 PM", "25:00"]),
    kind("timetz", "timetz", &["12:00+00", "12:00+02", "14:00+02"], &["12:00"]),
    kind("interval", "interval", &["1 day", "24:00:00", "1 mon", "-1 day", "30 days"], &["1d", "PT24H", "x"]),
    kind("bytea", "bytea", &["\\x", "\\xdead", "\\xDE00", "\\x64656164"], &["dead", "\\xDEAD", "\\xd"]),
    kind("mood", "mood", &["sad", "ok", "a glad one"], &["Sad", ""]),
    kind(
        "jsonb",
        "jsonb",
        &["{\"a\": 1}", "[1, 2]", "1.0", "\"x\"", "null", "{}"],
        &["{\"a\":1.0}", "1", "{"],
    ),
    kind("json", "json", &["{\"a\": 1}", "[1, null]", "\"x\""], &["1"]),
    kind("int4range", "int4range", &["[1,5)", "empty", "(,3]"], &["[1,4]", "x"]),
    kind("inet", "inet", &["10.0.0.1", "10.0.0.0/8", "::1"], &["10.0.0.1/32", "10.0.0", "::0001"]),
    kind("macaddr", "macaddr", &["08:00:2b:01:02:03", "00:00:00:00:00:00"], &["0800.2b01.0203", "x"]),
    kind("bit(3)", "pg_catalog.\"bit\"", &["101", "000"], &["x5", "10", "2"]),
    kind("varbit", "varbit", &["101", "", "0"], &["B101"]),
    kind("int4[]", "int4[]", &["{}", "{1,2}", "{1,NULL}", "{{1},{2}}"], &["{1, 2}", "x"]),
    kind("text[]", "text[]", &["{}", "{a,\"b,c\"}", "{NULL,\"NULL\"}"], &["{\"a\",\"b,c\"}"]),
    kind("oid", "oid", &["0", "4294967295"], &["-1", "x"]),
    kind("money", "money", &["1.50", "-2"], &["$1.50"]),
    kind("point", "point", &["(1,2)"], &["(1,2)"]),
    kind("xml", "xml", &["<a/>"], &["<a/>"]),
];
