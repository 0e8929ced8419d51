//! A tool that is a program: the arguments as JSON on standard input, the output as the result.
use super::{
    Outcome, ToolCall,
    run_program::{Ended, Program, Stop},
};
use crate::agent::{OnDaemonDeath, Tool, kind::program};

pub(super) async fn call(call: ToolCall<'_>, tool: &Tool) -> Outcome {
    let program = match prepared(call, tool) {
        Ok(program) => program,
        Err(message) => return Outcome::Failed("failed", message, false),
    };
    let variables = variables(call, tool);
    let ended = match &call.parts.keeper {
        Some(keeper) => {
            let finish = tool.on_daemon_death() == OnDaemonDeath::Finish;
            keeper.run(call.key, program, variables, finish, call.stop).await
        }
        None => {
            let mut command = program.command();
            command.env_clear().envs(variables);
            let stop = async {
                call.stop.cancelled().await;
                Stop::Ask
            };
            program.run(command, stop).await
        }
    };
    match ended {
        Ended::Stopped => Outcome::Stopped,
        Ended::Unknown(_) if call.stop.is_cancelled() => Outcome::Stopped,
        ended => outcome(ended),
    }
}

/// The outcome of a program that ended in this way.
pub(super) fn outcome(ended: Ended) -> Outcome {
    match ended {
        Ended::NotStarted(message, again) => Outcome::Failed("failed", message, again),
        Ended::Exited { code: 0, output, .. } => Outcome::Done(output),
        Ended::Exited { code, line, .. } => {
            let line = line.map(|line| format!(": {line}")).unwrap_or_default();
            Outcome::Failed("failed", format!("exit code {code}{line}"), false)
        }
        Ended::Unknown(why) => Outcome::Uncertain(why),
        Ended::Stopped => Outcome::Uncertain("it was stopped".into()),
    }
}

fn prepared(call: ToolCall<'_>, tool: &Tool) -> Result<Program, String> {
    let argv = tool.argv.as_deref().unwrap_or_default();
    let (name, arguments) = argv.split_first().ok_or("argv is missing")?;
    Ok(Program {
        path: program(name, call.folder, &call.parts.env)?,
        arguments: arguments.to_vec(),
        folder: call.folder.filter(|folder| !folder.as_os_str().is_empty()).map(ToOwned::to_owned),
        input: call.args.to_string(),
        timeout: tool.timeout(),
    })
}

/// The whole environment of the program.
fn variables(call: ToolCall<'_>, tool: &Tool) -> Vec<(String, String)> {
    let declared = tool.env.iter().filter_map(|name| Some((name.clone(), call.parts.env.get(name)?)));
    // The span of the step takes the place of that of the job.
    let ids = call.ids.iter().filter(|(name, _)| *name != "TRACEPARENT");
    let ids = ids.map(|(name, value)| ((*name).to_owned(), value.clone()));
    let trace = call.trace.map(|trace| ("TRACEPARENT".to_owned(), trace.to_string()));
    let key = ("CONVOKE_IDEMPOTENCY_KEY".to_owned(), call.key.to_owned());
    declared.chain(ids).chain(trace).chain([key]).collect()
}
