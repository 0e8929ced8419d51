//! JSON schemas of results: bounded before they are compiled, run on their own threads, stopped at a deadline.
//!
//! A requester sends the schema, and a few lines of it can cost exponential time: references that double at each level
//! or that form a cycle. So its [shape](check_shape) is measured first (size, references, expansion), which is cheap
//! and pure. Then it is compiled and run on a thread with a stack of its own, [`RUNS_MAX`] at a time, until a deadline:
//! every subschema has a keyword that checks the clock. No reference is ever fetched. A [plain](is_plain) schema and a
//! small value, like the arguments of most tools, cost less than such a thread, and are compared where the caller is.
//!
//! | bound | limit | prevents |
//! |---|---|---|
//! | size | [`SCHEMA_BYTES_MAX`] | work and memory before any other check |
//! | expansion by references | [`EXPANDED_MAX`] | exponential compilation |
//! | subschemas in place on one value | [`CHAIN_MAX`] | deep recursion, with [`STACK_BYTES`] |
//! | regular expressions | [`PATTERNS_MAX`], [`PATTERNS_BYTES_MAX`], [`BACKTRACKS_MAX`] | time without a check of the clock |
//! | processor time | [`WITHIN`]; the caller waits [`WAITED_MAX`] | validation that is exponential in the value |
//! | parallel runs | [`RUNS_MAX`], waiting [`TURN_WITHIN`] | more threads and stacks than cores |
//! | turns | fair among orgs and their requesters | one requester that keeps the results of others waiting |
use crate::{
    id::OrgId,
    scope::{FairQueue, QueueFull, Turn, TurnOwner, lower_priority_of_this_thread},
    task::Error,
};
use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value};
use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// Largest schema, in bytes of JSON.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Most subschemas after every reference is replaced by its target.
const EXPANDED_MAX: u64 = 20_000;
/// Most nested references and combinations that apply to one value.
const CHAIN_MAX: usize = 64;
/// Most regular expressions of one schema: the clock is not checked while one runs.
const PATTERNS_MAX: usize = 100;
/// Most bytes of all compiled regular expressions of a schema, in equal shares. A few characters, such as
/// `\p{L}{500}`, compile to megabytes, and the time to compile grows with the size.
const PATTERNS_BYTES_MAX: usize = 8 << 20;
/// Most processor time for compiling and running one schema. Not time by the clock: the thread has a low priority, and on
/// a busy machine a small schema waits for longer than it runs.
const WITHIN: Duration = Duration::from_secs(2);
/// How long the caller waits for the thread.
const WAITED_MAX: Duration = Duration::from_secs(30);
/// Most schemas that run at the same time.
const RUNS_MAX: usize = 2;
/// How long a schema may wait for a free run.
const TURN_WITHIN: Duration = Duration::from_secs(10);
/// Stack of a run: a hundred levels of values, each through the longest chain, in the frames of a debug build.
const STACK_BYTES: usize = 64 << 20;
/// Most backtracking steps of one regular expression.
const BACKTRACKS_MAX: usize = 100_000;
/// The keyword that checks the clock; no schema has its name by chance.
const CLOCK: &str = "convoke:clock";
/// Steps between two checks of the clock.
const CLOCK_STEPS: u32 = 64;

/// Keywords with one schema, or with a list of them, that apply to the same value.
const IN_PLACE: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];
/// Keywords with one schema, or with a list of them, that apply to parts of the value.
const BELOW: [&str; 9] = [
    "items",
    "prefixItems",
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords with schemas by name.
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Those of [`NAMED`] that apply to the same value.
const NAMED_IN_PLACE: [&str; 2] = ["dependentSchemas", "dependencies"];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// Keywords whose time is at most linear in schema and value, and those that say nothing about the value.
const PLAIN: [&str; 18] = [
    "type",
    "required",
    "enum",
    "const",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "title",
    "description",
    "default",
    "examples",
];
/// Deepest part of a plain schema.
const PLAIN_DEPTH_MAX: usize = 8;
/// Largest plain schema, and largest value for it, in bytes of JSON.
const PLAIN_BYTES_MAX: usize = 4096;

/// Why a value does not match its schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaMismatch {
    /// The value does not match.
    #[error("the result does not fit its schema at {place:?}: {words}")]
    Value {
        /// Where in the value, as a JSON pointer.
        place: String,
        /// Which part of the schema, as a JSON pointer.
        rule: String,
        /// Why, with the value in the text.
        words: String,
    },
    /// The check exceeded its deadline.
    #[error("policy.result_schema: it needs more than {WITHIN:?} of processor time")]
    TooLong,
    /// The schema cannot be used, whatever the value.
    #[error("policy.result_schema: {0}")]
    Schema(String),
}

/// Measures a schema without compiling it.
///
/// # Errors
/// Which bound it breaks.
pub fn check_shape(schema: &Value) -> Result<(), String> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err("it is neither an object nor a boolean".into());
    }
    if serde_json::to_vec(schema).map_or(0, |text| text.len()) > SCHEMA_BYTES_MAX {
        return Err(format!("it is larger than {SCHEMA_BYTES_MAX} bytes"));
    }
    Shape::of(schema)?.measure(schema)
}

/// Checks the schema of a setting: its shape, then its compilation on this thread. For the start of the daemon, when
/// blocking is harmless.
///
/// # Errors
/// Why it cannot.
pub fn check_setting(schema: &Value) -> Result<(), String> {
    check_shape(schema)?;
    compile_and_run(schema, None, &Clock::new()).map_err(|misfit| match misfit {
        SchemaMismatch::Schema(why) => why,
        other => other.to_string(),
    })
}

/// The subschemas of a schema, and the targets of its references.
#[derive(Default)]
struct Shape<'a> {
    schemas: HashSet<*const Value>,
    targets: HashMap<*const Value, &'a Value>,
    anchors: HashMap<&'a str, &'a Value>,
    references: Vec<(&'a Value, &'a str)>,
    patterns: usize,
}

impl<'a> Shape<'a> {
    fn of(root: &'a Value) -> Result<Self, String> {
        let mut shape = Self::default();
        shape.collect(root, true)?;
        if shape.patterns > PATTERNS_MAX {
            return Err(format!("it has {} regular expressions; use at most {PATTERNS_MAX}", shape.patterns));
        }
        for (from, reference) in std::mem::take(&mut shape.references) {
            let place = reference.strip_prefix('#').unwrap_or_default();
            let target = if place.is_empty() || place.starts_with('/') {
                root.pointer(&percent_decoded(place))
            } else {
                shape.anchors.get(place).copied()
            };
            match target.filter(|target| shape.schemas.contains(&std::ptr::from_ref(*target))) {
                Some(target) => shape.targets.insert(from, target),
                None => return Err(format!("reference {reference:?} leads to no schema in it")),
            };
        }
        Ok(shape)
    }

    /// Collects all subschemas. Data in a schema (`enum`, `const`, `default`) is not a subschema.
    fn collect(&mut self, schema: &'a Value, is_root: bool) -> Result<(), String> {
        self.schemas.insert(schema);
        let Value::Object(members) = schema else { return Ok(()) };
        let word = |name: &str| members.get(name).and_then(Value::as_str);
        for id in ["$id", "id"].into_iter().filter_map(word).filter(|_| !is_root) {
            let Some(anchor) = id.strip_prefix('#') else {
                return Err(format!("only the whole schema may have an $id, and a part has {id:?}"));
            };
            self.anchors.insert(anchor, schema);
        }
        for anchor in ["$anchor", "$dynamicAnchor"].into_iter().filter_map(word) {
            self.anchors.insert(anchor, schema);
        }
        for reference in REFERENCES.into_iter().filter_map(word) {
            if !reference.starts_with('#') {
                return Err(format!(
                    "reference {reference:?} leads out of it; only those that begin with # are followed"
                ));
            }
            self.references.push((schema, reference));
        }
        self.patterns += usize::from(word("pattern").is_some());
        self.patterns += members.get("patternProperties").and_then(Value::as_object).map_or(0, Map::len);
        parts(schema).into_iter().try_for_each(|(part, _)| self.collect(part, false))
    }

    fn measure(&self, root: &'a Value) -> Result<(), String> {
        let mut expanded = HashMap::new();
        if self.expanded(root, &mut expanded, 0)? > EXPANDED_MAX {
            return Err(format!("its references expand it to more than {EXPANDED_MAX} schemas"));
        }
        let mut chains = HashMap::new();
        self.each(root, &mut |schema| self.chain(schema, &mut chains, 0).map(drop))
    }

    fn each(
        &self,
        schema: &'a Value,
        work: &mut impl FnMut(&'a Value) -> Result<(), String>,
    ) -> Result<(), String> {
        work(schema)?;
        parts(schema).into_iter().try_for_each(|(part, _)| self.each(part, work))
    }

    /// The number of subschemas with every reference replaced; one in a cycle counts once.
    fn expanded(
        &self,
        schema: &'a Value,
        known: &mut HashMap<*const Value, u64>,
        depth: usize,
    ) -> Result<u64, String> {
        if let Some(count) = known.get(&std::ptr::from_ref(schema)) {
            return Ok(*count);
        }
        if depth > CHAIN_MAX * 8 {
            return Err("its references lead through too many schemas".into());
        }
        // While it is being counted, a reference back to it adds one.
        known.insert(schema, 1);
        let mut count: u64 = 1;
        let below = parts(schema).into_iter().map(|(part, _)| part);
        for part in below.chain(self.targets.get(&std::ptr::from_ref(schema)).copied()) {
            count = count.saturating_add(self.expanded(part, known, depth + 1)?);
        }
        known.insert(schema, count);
        Ok(count)
    }

    /// The largest number of nested schemas that apply to the same value.
    fn chain(
        &self,
        schema: &'a Value,
        known: &mut HashMap<*const Value, Option<usize>>,
        depth: usize,
    ) -> Result<usize, String> {
        match known.get(&std::ptr::from_ref(schema)) {
            Some(Some(length)) => return Ok(*length),
            Some(None) => return Err("a reference leads back to its own place".into()),
            None => {}
        }
        if depth > CHAIN_MAX {
            return Err(format!("more than {CHAIN_MAX} schemas one within the other look at one value"));
        }
        known.insert(schema, None);
        let mut length = 0;
        let in_place = parts(schema).into_iter().filter(|(_, in_place)| *in_place).map(|(part, _)| part);
        for part in in_place.chain(self.targets.get(&std::ptr::from_ref(schema)).copied()) {
            length = length.max(self.chain(part, known, depth + 1)?);
        }
        if length >= CHAIN_MAX {
            return Err(format!("more than {CHAIN_MAX} schemas one within the other look at one value"));
        }
        known.insert(schema, Some(length + 1));
        Ok(length + 1)
    }
}

/// The direct subschemas, and whether each applies to the same value as the schema.
fn parts(schema: &Value) -> Vec<(&Value, bool)> {
    let Value::Object(members) = schema else { return Vec::new() };
    let mut parts = Vec::new();
    for (name, value) in members {
        let name = name.as_str();
        let in_place = IN_PLACE.contains(&name) || NAMED_IN_PLACE.contains(&name);
        if IN_PLACE.contains(&name) || BELOW.contains(&name) {
            match value {
                Value::Array(list) => parts.extend(list.iter().map(|part| (part, in_place))),
                one => parts.push((one, in_place)),
            }
        } else if NAMED.contains(&name) {
            let named = value.as_object().into_iter().flat_map(Map::values);
            parts.extend(named.filter(|part| !part.is_array()).map(|part| (part, in_place)));
        }
    }
    parts
}

/// Whether a schema has [`PLAIN`] keywords only, in a few levels.
fn is_plain(schema: &Value, depth: usize) -> bool {
    let Value::Object(members) = schema else { return schema.is_boolean() };
    depth <= PLAIN_DEPTH_MAX
        && members.iter().all(|(name, part)| match name.as_str() {
            "items" | "additionalProperties" => is_plain(part, depth + 1),
            "properties" => part
                .as_object()
                .is_some_and(|properties| properties.values().all(|part| is_plain(part, depth + 1))),
            name => PLAIN.contains(&name),
        })
}

fn is_small(value: &Value) -> bool {
    serde_json::to_vec(value).is_ok_and(|text| text.len() <= PLAIN_BYTES_MAX)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = more.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Compiles and runs schemas, a few at a time. Clones share the limit.
#[derive(Clone, Debug)]
pub struct Schemas {
    queue: FairQueue,
    owner: TurnOwner,
}

impl Default for Schemas {
    fn default() -> Self {
        Self { queue: FairQueue::new(RUNS_MAX), owner: TurnOwner::daemon("schema") }
    }
}

impl Schemas {
    /// The same, in the turns of this requester, or of this agent, of an org.
    #[must_use]
    pub fn of(&self, org: &OrgId, requester: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        requester.hash(&mut hasher);
        // A name that no requester of another org shares: slow schemas of one delay nobody else's.
        let policy = format!("{org} {requester}").into();
        let owner = TurnOwner { org: org.as_str().into(), connection: hasher.finish(), policy };
        Self { queue: self.queue.clone(), owner }
    }

    /// Compiles the schema.
    ///
    /// # Errors
    /// `BadRequest` with the reason; `Busy` if no run becomes free in time.
    pub async fn compile(&self, schema: &Value) -> Result<(), Error> {
        self.run(schema.clone(), None).await?.map_err(|misfit| Error::BadRequest(misfit.to_string()))
    }

    /// Whether a value fits a schema; the inner error says why not.
    ///
    /// # Errors
    /// `Busy` if no run becomes free in time.
    pub async fn fits(&self, schema: &Value, value: &Value) -> Result<Result<(), SchemaMismatch>, Error> {
        if is_plain(schema, 0) && is_small(schema) && is_small(value) {
            return Ok(compiled_and_run(schema, Some(value)));
        }
        self.run(schema.clone(), Some(value.clone())).await
    }

    async fn run(&self, schema: Value, value: Option<Value>) -> Result<Result<(), SchemaMismatch>, Error> {
        if let Err(why) = check_shape(&schema) {
            return Ok(Err(SchemaMismatch::Schema(why)));
        }
        let busy = || Error::Busy("too many results are being checked now; try again".into());
        let turn = tokio::time::timeout(TURN_WITHIN, self.queue.turn(self.owner.clone())).await;
        let turn = turn.map_err(|_| busy())?.map_err(|QueueFull| busy())?;
        let (reply, answer) = oneshot::channel();
        // A thread and not the blocking pool: it needs a larger stack, and the stop of the daemon must not wait for it.
        let begun = std::thread::Builder::new()
            .name("schema".into())
            .stack_size(STACK_BYTES)
            .spawn(move || reply.send(on_thread(&schema, value.as_ref(), turn)));
        begun.map_err(|_| busy())?;
        match tokio::time::timeout(WAITED_MAX, answer).await {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(_)) => Ok(Err(SchemaMismatch::TooLong)),
            // The machine is busy, or the thread does not check the clock. Its turn stays taken until it ends.
            Err(_) => Err(busy()),
        }
    }
}

/// Unwinds out of a validation after its deadline.
struct TimeOver;

fn on_thread(schema: &Value, value: Option<&Value>, turn: Turn) -> Result<(), SchemaMismatch> {
    // A requester decides how long it runs.
    lower_priority_of_this_thread();
    let verdict = compiled_and_run(schema, value);
    drop(turn);
    verdict
}

/// [`compile_and_run`] until the deadline; a panic is a schema that cannot be used.
fn compiled_and_run(schema: &Value, value: Option<&Value>) -> Result<(), SchemaMismatch> {
    let clock = Clock::new();
    let verdict = catch_unwind(AssertUnwindSafe(|| compile_and_run(schema, value, &clock)));
    verdict.unwrap_or_else(|panic| {
        if panic.is::<TimeOver>() {
            return Err(SchemaMismatch::TooLong);
        }
        tracing::error!("panic in a JSON schema");
        Err(SchemaMismatch::Schema("it cannot be used".into()))
    })
}

fn compile_and_run(schema: &Value, value: Option<&Value>, clock: &Arc<Clock>) -> Result<(), SchemaMismatch> {
    let patterns = Shape::of(schema).map_err(SchemaMismatch::Schema)?.patterns;
    let share = PATTERNS_BYTES_MAX / patterns.max(1);
    let mut clocked = schema.clone();
    put_clock(&mut clocked);
    let made = clock.clone();
    let options = jsonschema::PatternOptions::fancy_regex().backtrack_limit(BACKTRACKS_MAX);
    let validator = jsonschema::options()
        .offline()
        .with_pattern_options(options.size_limit(share).dfa_size_limit(share))
        .with_keyword(CLOCK, move |_, _, _| {
            if made.is_over() {
                return Err(ValidationError::custom("it takes too long to compile"));
            }
            Ok(Box::new(ClockKeyword(made.clone())))
        })
        .build(&clocked)
        .map_err(|e| SchemaMismatch::Schema(e.to_string()))?;
    let Some(value) = value else { return Ok(()) };
    validator.validate(value).map_err(|e| {
        let (place, rule) = (e.instance_path().to_string(), e.schema_path().to_string());
        SchemaMismatch::Value { place, rule, words: e.to_string() }
    })
}

/// Adds the keyword that checks the clock to every subschema.
fn put_clock(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    for (name, value) in members.iter_mut() {
        let name = name.as_str();
        if IN_PLACE.contains(&name) || BELOW.contains(&name) {
            match value {
                Value::Array(list) => list.iter_mut().for_each(put_clock),
                one => put_clock(one),
            }
        } else if NAMED.contains(&name) {
            value.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(put_clock);
        }
    }
    members.insert(CLOCK.into(), Value::Bool(true));
}

/// The processor time of the thread that compiles and runs a schema.
struct Clock {
    begun: Duration,
    steps: AtomicU32,
}

impl Clock {
    fn new() -> Arc<Self> {
        Arc::new(Self { begun: thread_time(), steps: AtomicU32::new(0) })
    }

    fn is_over(&self) -> bool {
        let steps = self.steps.fetch_add(1, Ordering::Relaxed);
        steps.is_multiple_of(CLOCK_STEPS) && thread_time().saturating_sub(self.begun) > WITHIN
    }
}

/// The processor time of the calling thread so far.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

struct ClockKeyword(Arc<Clock>);

impl ClockKeyword {
    fn step(&self) {
        if self.0.is_over() {
            // Not a panic: nothing is printed, and the frame of the thread catches it.
            resume_unwind(Box::new(TimeOver));
        }
    }
}

impl<'i> Keyword<'i> for ClockKeyword {
    fn validate(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        self.step();
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        self.step();
        true
    }
}

#[cfg(test)]
mod tests;
