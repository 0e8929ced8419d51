//! Definitions that have been checked, with their filters, templates and times parsed.
use super::{
    definition::{Definition, Problem, check_in},
    env::Env,
    schedule::CronSchedule,
    wake::CompiledWake,
};
use std::sync::Arc;

/// A definition without a problem. Its wakes and schedules are parsed, so using them cannot fail.
#[derive(Debug)]
pub struct CompiledAgent {
    pub(super) definition: Arc<Definition>,
    /// In the order of `definition.wake`.
    pub(super) wakes: Vec<CompiledWake>,
    pub(super) schedules: Vec<CronSchedule>,
}

impl Definition {
    /// Checks a definition as a file's is checked, whether it comes from a file or from code.
    ///
    /// # Errors
    /// All problems, each with its key, like `wake.0.filter`.
    pub fn compile(self, env: &Env) -> Result<CompiledAgent, Vec<Problem>> {
        let mut problems = check_in(&self, env);
        let (mut wakes, mut schedules) = (Vec::new(), Vec::new());
        // `check_in` has reported what cannot be parsed, with the same key.
        let mut report = |key: String, message: String| {
            if !problems.iter().any(|problem| problem.key == key) {
                problems.push(Problem { key, message, remedy: None });
            }
        };
        for (at, wake) in self.wake.iter().enumerate() {
            match CompiledWake::parse(wake) {
                Ok(wake) => wakes.push(wake),
                Err((key, message)) => report(format!("wake.{at}.{key}"), message),
            }
        }
        for (at, schedule) in self.schedule.iter().enumerate() {
            match CronSchedule::read(&self, at, schedule) {
                Ok(schedule) => schedules.push(schedule),
                Err((key, message)) => report(format!("schedule.{at}.{key}"), message),
            }
        }
        if problems.is_empty() {
            Ok(CompiledAgent { definition: Arc::new(self), wakes, schedules })
        } else {
            Err(problems)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_with_typos_is_refused_with_the_key_of_each() {
        let text = r#"
            id = "a"
            [run]
            kind = "remote"
            [[wake]]
            table = "tickets"
            filter = "priority>3"
            request = { kind = "k" }
            [[wake]]
            table = "tickets"
            request = { kind = "k", input = "{{ nwe }}" }
            [[schedule]]
            cron = "61 * * * *"
            request = { kind = "k" }
            [[schedule]]
            cron = "* * * * *"
            request = { kind = "k", input = "{{ new }}" }
        "#;
        let definition: Definition = toml::from_str(text).unwrap();
        let problems = definition.compile(&Env::of([("PATH", "/bin")])).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        let expected =
            ["wake.0.filter", "wake.1.request.input", "schedule.0.cron", "schedule.1.request.input"];
        assert_eq!(keys, expected);
    }

    #[test]
    fn compiled_definition_has_all_of_its_wakes_and_schedules() {
        let text = "id = \"a\"\n[run]\nkind = \"remote\"\n[[wake]]\ntable = \"t\"\nrequest = { kind = \"k\" }\n\
                    [[schedule]]\ncron = \"* * * * *\"\nrequest = { kind = \"k\" }";
        let definition: Definition = toml::from_str(text).unwrap();
        let compiled = definition.compile(&Env::of([("PATH", "/bin")])).unwrap();
        assert_eq!((compiled.wakes.len(), compiled.schedules.len()), (1, 1));
    }
}
