//! `sql:read`: one select of the model, under a login role of its own.
use super::{Outcome, ToolCall};
use crate::{
    agent::{Definition, Env, SqlRead},
    db::{self, ReadError, ReadRows, Reader, Reading},
    id::AgentId,
};
use serde_json::{Value, json};
use std::{collections::HashMap, time::Duration};

/// Most rows of a result.
const ROWS_MAX: usize = 200;
/// Most bytes of the values of a result.
const BYTES_MAX: usize = 64 << 10;
/// Time limit of the check of a role.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn call(call: ToolCall<'_>, sql: &SqlRead) -> Outcome {
    let Some(reader) = &call.parts.reader else {
        return Outcome::Failed("failed", "there is no database to read from".into(), false);
    };
    let name = format!("convoke:{}", call.agent);
    let reading = reading(sql, &call.parts.env, &name, call.tool.timeout());
    let query = call.args.get("query").and_then(Value::as_str).unwrap_or_default();
    let read = tokio::select! {
        read = reader.read(&reading, query) => read,
        () = call.stop.cancelled() => return Outcome::Stopped,
    };
    match read {
        Ok(ReadRows { columns, rows, more }) => {
            Outcome::Done(json!({ "columns": columns, "rows": rows, "more": more }).to_string())
        }
        Err(error) => refused(&error, sql.messages),
    }
}

fn reading<'a>(sql: &'a SqlRead, env: &Env, application_name: &'a str, timeout: Duration) -> Reading<'a> {
    let password = sql.password_env.as_ref().and_then(|name| env.get(name)).map(Into::into);
    Reading { role: &sql.role, password, application_name, timeout, rows_max: ROWS_MAX, bytes_max: BYTES_MAX }
}

fn refused(error: &ReadError, messages: bool) -> Outcome {
    let (code, message, again) = match error {
        ReadError::Refused { sqlstate, position, message } => {
            let place = position.map(|at| format!(" at character {at}")).unwrap_or_default();
            let words = if messages { format!(": {message}") } else { String::new() };
            ("failed", format!("the database refused the query (SQLSTATE {sqlstate}{place}){words}"), false)
        }
        ReadError::TooLarge => ("too_large", "a value of the result is too large: select less".into(), false),
        ReadError::Late(limit) => {
            ("timeout", format!("no end within {}", humantime::format_duration(*limit)), false)
        }
        ReadError::Unfit(why) => ("denied", format!("the role of this tool may not read: {why}"), false),
        ReadError::Connect(_) => {
            ("failed", "the database cannot be reached with the role of this tool".into(), true)
        }
    };
    Outcome::Failed(code, message, again)
}

/// The agents whose `sql:read` must not be used, each with the reason: the role has more rights than a reader may
/// have, or cannot log in. A database that does not answer is no reason.
pub(crate) async fn unfit_readers(
    definitions: &[Definition],
    env: &Env,
    reader: &Reader,
) -> HashMap<AgentId, String> {
    let mut unfit = HashMap::new();
    for definition in definitions {
        let Some(sql) = definition.run.sql.as_ref().filter(|_| definition.unavailable(env).is_none()) else {
            continue;
        };
        let name = format!("convoke:{}", definition.id);
        let why = match reader.check(&reading(sql, env, &name, CHECK_TIMEOUT)).await {
            Err(ReadError::Unfit(why)) => why,
            Err(ReadError::Connect(
                db::Error::WrongPassword { .. } | db::Error::Refused { .. } | db::Error::NoRight { .. },
            )) => "it cannot log in".to_owned(),
            _ => continue,
        };
        unfit.insert(definition.id.clone(), format!("role {} of sql:read is unfit: {why}", sql.role));
    }
    unfit
}
