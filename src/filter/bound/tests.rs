use super::*;
use std::collections::HashMap;

const COLUMNS: [(&str, &str); 8] = [
    ("id", "int8"),
    ("priority", "int4"),
    ("title", "text"),
    ("done", "bool"),
    ("body", "json"),
    ("feeling", "mood"),
    ("at", "timestamptz"),
    ("code", "bpchar"),
];
const ROW: [&str; 8] = ["12", "3", "Printer on fire", "f", "{}", "sad", "2026-01-01 10:00:00+00", "ab   "];

fn kinds() -> HashMap<&'static str, (usize, Kind)> {
    let kind = |name: &str| match name {
        "mood" => {
            let labels = ["sad", "ok", "glad"].map(Box::from).into();
            Kind { class: Class::Enum(labels), ordered: true, ..Kind::builtin("mood", true) }
        }
        name => Kind::builtin(name, false),
    };
    COLUMNS.iter().enumerate().map(|(at, (name, of))| (*name, (at, kind(of)))).collect()
}

fn bind(text: &str) -> Result<Bound, Unbindable> {
    let kinds = kinds();
    Bound::new(&Filter::parse(text).unwrap(), |name| kinds.get(name).map(|(at, kind)| (*at, kind)))
}

/// Answers with prepared answers, and [`Truth::Unknown`] for everything else.
#[derive(Default)]
struct Told(HashMap<String, bool>, Vec<String>);

impl Oracle for Told {
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth {
        let question = probe.expression.replace("p.v", value).replace("p.l", &probe.literal);
        let known = self.0.get(&question).copied();
        self.1.push(question);
        known.map_or(Truth::Unknown, Truth::from)
    }
}

fn found(text: &'static str) -> ColumnValue<'static> {
    match text {
        "NULL" => ColumnValue::Null,
        "ABSENT" => ColumnValue::Absent,
        text => ColumnValue::Text(text),
    }
}

fn test(filter: &str, row: [&'static str; 8]) -> Truth {
    bind(filter).unwrap().test(&|at| found(row[at]), &mut Told::default())
}

#[test]
fn rows_are_tested_by_the_kinds_of_their_columns() {
    for yes in [
        "",
        "priority=gte.3",
        "priority=eq.3.0",
        "id=gt.9",
        "priority=not.lt.2,title=like.Printer%",
        "title=like.P_inter%\\f%",
        "title=neq.x",
        "code=eq.ab",
        "code=like.\"ab   \"",
        "done=is.false",
        "done=eq.false",
        "priority=in.(1,2,3)",
        "priority=not.in.(4,5)",
        "priority=in.(3,null)",
        "feeling=eq.sad",
        "feeling=lt.glad",
        "body=not.is.null",
        "at=lt.2026-01-01T12:00:00+01:00",
        "priority=isdistinct.4",
        "or=(priority.eq.4,done.is.false)",
        "or=(and(priority.eq.3,id.eq.12),id.eq.0)",
        "not.or=(priority.eq.4,id.eq.1)",
        "not.and=(priority.eq.3,id.eq.1)",
    ] {
        assert_eq!(test(yes, ROW), Truth::True, "{yes}");
    }
    for no in [
        "priority=gt.3",
        "id=lt.9",
        "title=eq.printer on fire",
        "title=like.fire",
        "code=like.ab",
        "done=is.true",
        "done=is.null",
        "priority=in.()",
        "priority=eq.3,done=eq.true",
        "feeling=gt.ok",
        "or=(priority.eq.4,id.eq.1)",
        "not.or=(priority.eq.3,id.eq.1)",
    ] {
        assert_eq!(test(no, ROW), Truth::False, "{no}");
    }
    assert_eq!(test("priority=not.in.(4,null)", ROW), Truth::Null);
}

#[test]
fn null_and_absent_values_match_only_null_tests() {
    let nulls = ["NULL"; 8];
    for yes in ["priority=is.null", "done=is.unknown", "priority=isdistinct.3", "priority=not.in.()"] {
        assert_eq!(test(yes, nulls), Truth::True, "{yes}");
    }
    for no in
        ["priority=eq.3", "priority=not.eq.3", "priority=neq.3", "priority=not.in.(1)", "title=not.like.x"]
    {
        assert_eq!(test(no, nulls), Truth::Null, "{no}");
        assert_eq!(test(no, ["ABSENT"; 8]), Truth::Null, "{no}");
    }
    assert_eq!(test("priority=is.null", ["ABSENT"; 8]), Truth::Null);
    assert_eq!(test("not.or=(priority.eq.3,id.eq.1)", nulls), Truth::Null, "as SQL's not of null");
}

#[test]
fn oracle_is_asked_only_when_the_answer_matters() {
    let bound = bind("title=gt.a,priority=eq.4").unwrap();
    let mut oracle = Told::default();
    assert_eq!(bound.test(&|at| found(ROW[at]), &mut oracle), Truth::False);
    assert!(oracle.1.is_empty(), "the number decides it");
    let bound = bind("title=gt.a,priority=eq.3").unwrap();
    assert!(bound.needs_oracle() && !bind("title=eq.a").unwrap().needs_oracle());
    assert_eq!(bound.test(&|at| found(ROW[at]), &mut oracle), Truth::Unknown);
    let question = "((Printer on fire::pg_catalog.\"text\") operator(pg_catalog.>) (a::pg_catalog.\"text\"))";
    assert_eq!(oracle.1, [question]);
    oracle.0.insert(question.into(), true);
    assert_eq!(bound.test(&|at| found(ROW[at]), &mut oracle), Truth::True);
    for asked in ["title=ilike.x", "title=match.x", "title=not.imatch.x", "title=like.x\\"] {
        assert_eq!(test(asked, ROW), Truth::Unknown, "{asked}");
    }
}

#[test]
fn keys_are_the_values_that_a_matching_row_must_have() {
    let (at, keys) = bind("id=gt.1,priority=in.(3,4)").unwrap().keys().unwrap();
    let kind = Kind::builtin("int4", false);
    assert_eq!((at, keys[0].clone()), (1, Key::read(&kind, "3.0").unwrap()));
    for none in ["id=not.eq.1", "id=gt.1", "or=(id.eq.1,id.eq.2)", ""] {
        assert!(bind(none).unwrap().keys().is_none(), "{none}");
    }
}

#[test]
fn unbindable_filters_name_column_and_type() {
    let why = |text| bind(text).unwrap_err().to_string();
    assert_eq!(why("urgency=eq.3"), "invalid column for filter urgency");
    assert_eq!(why("priority=gte.high"), "\"high\" is not a value for column priority of type int4");
    assert_eq!(why("body=eq.{}"), "operator eq cannot compare values of type json");
    assert_eq!(why("priority=like.3"), "operator like requires a text-compatible column type, got int4");
    assert_eq!(why("title=is.true"), "is true filter requires a boolean column, got text");
    assert_eq!(why("or=(id.eq.1,nope.eq.1)"), "invalid column for filter nope");
}

#[test]
fn like_backtracks_only_to_the_last_percent() {
    let like = |pattern: &str, text: &str| {
        super::like(&pattern.chars().collect::<Vec<_>>(), text, LIKE_STEPS_MAX).0.unwrap()
    };
    let long = "a".repeat(2_000);
    assert!(!like("%a%a%a%a%b", &long));
    assert!(like("%a%a", &long));
    assert!(like("100\\%", "100%"));
    assert!(!like("100\\%", "1000"));
    assert!(like("%", ""));
    assert!(!like("_", ""));
}

/// An oracle with few steps that counts what is asked and spent.
#[derive(Default)]
struct Frugal {
    left: usize,
    asked: usize,
}

impl Oracle for Frugal {
    fn ask(&mut self, _: &Arc<Probe>, _: &str) -> Truth {
        self.asked += 1;
        Truth::Unknown
    }

    fn steps_left(&self) -> usize {
        self.left
    }

    fn spend(&mut self, steps: usize) {
        self.left = self.left.saturating_sub(steps);
    }
}

#[test]
fn like_stops_where_the_steps_end_and_spends_them_although_it_has_no_outcome() {
    let (long, bound) = ("a".repeat(2_000), bind("title=like.%b").unwrap());
    let mut oracle = Frugal { left: 50, asked: 0 };
    for asked in 1..4 {
        let truth = bound.test(&|_| ColumnValue::Text(&long), &mut oracle);
        assert_eq!((truth, oracle.asked, oracle.left), (Truth::Unknown, asked, 0));
    }
    // Enough steps for both.
    let mut oracle = Frugal { left: 50, asked: 0 };
    for left in [46, 42] {
        let truth = bound.test(&|_| ColumnValue::Text("ab"), &mut oracle);
        assert_eq!((truth, oracle.asked), (Truth::True, 0));
        assert!(oracle.left >= left, "{}", oracle.left);
    }
}

#[test]
fn long_like_is_evaluated_by_postgres() {
    let long = "a".repeat(2_000);
    let bound = bind(&format!("title=like.%{}b", "a".repeat(1_000))).unwrap();
    let mut told = Told::default();
    let truth = bound.test(&|_| ColumnValue::Text(&long), &mut told);
    assert_eq!((truth, told.1.len()), (Truth::Unknown, 1));
}

#[test]
fn comparison_of_long_values_is_charged_and_beyond_the_steps_evaluated_by_postgres() {
    let long = "a".repeat(800);
    for (filter, steps, asked) in [
        ("title=eq.b", 101, 1),
        ("title=not.neq.b", 101, 1),
        ("id=gt.7", 101, 1),
        ("title=in.(b,c,d)", 103, 3),
        ("title=not.in.(b,c,d)", 103, 3),
    ] {
        let bound = bind(filter).unwrap();
        let mut oracle = Frugal { left: 2 * steps, asked: 0 };
        for left in [steps, 0] {
            let truth = bound.test(&|_| ColumnValue::Text(&long), &mut oracle);
            assert_ne!(truth, Truth::Unknown, "{filter}");
            assert_eq!((oracle.left, oracle.asked), (left, 0), "{filter}");
        }
        let truth = bound.test(&|_| ColumnValue::Text(&long), &mut oracle);
        assert_eq!((truth, oracle.left, oracle.asked), (Truth::Unknown, 0, asked), "{filter}");
    }
    // A list answers as soon as Postgres finds one value, and NULL leaves it open.
    let mut told = Told::default();
    told.0.insert("((x::pg_catalog.\"text\") operator(pg_catalog.=) (c::pg_catalog.\"text\"))".into(), true);
    let is_in = |filter: &str, told: &mut Told| {
        let Bound(nodes) = bind(filter).unwrap();
        let [Node::Test(test)] = &*nodes else { panic!("one test") };
        let ProbeKind::In(values, null) = &test.predicate else { panic!("a list") };
        ask_any(values.iter().map(|(_, probe)| probe), *null, "x", told)
    };
    assert_eq!(is_in("title=in.(b,c,d)", &mut told), Truth::True);
    assert_eq!(is_in("title=in.(b,null)", &mut told), Truth::Unknown);
}
