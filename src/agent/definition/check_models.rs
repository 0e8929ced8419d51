//! The checks of the models of an agent of kind `llm`.
use super::{
    Definition, ModelChoice,
    problems::{Problems, url_problem},
};
use crate::{
    agent::{Env, Price, kind::llm, thread::thread_template},
    task::check_setting,
};
use std::time::Duration;

/// Most models of `run.models`.
const MODELS_MAX: usize = 8;

pub(super) fn check(definition: &Definition, env: &Env, found: &mut Problems) {
    let run = &definition.run;
    if run.models.is_empty() {
        check_model("run", &run.first_choice(), env, found);
    } else {
        check_list(definition, env, found);
    }
    if run.failover.is_some() && run.models.len() < 2 {
        found.add("run.failover", "there is no other model: it belongs to two or more run.models");
    }
    if let Some(failover) = &run.failover
        && failover.after > Duration::from_secs(3_600)
    {
        found.add("run.failover.after", "it must be 0s to 1h");
    }
    if let Some(prompt) = &run.prompt
        && let Err(e) = llm::prompt_template(prompt)
    {
        found.add("run.prompt", e.reason);
    }
    if let Some(thread) = &run.thread
        && let Err(e) = thread_template(thread)
    {
        found.add("run.thread", e.reason);
    }
    if let Some(schema) = &run.result_schema
        && let Err(e) = check_setting(schema)
    {
        found.add("run.result_schema", format!("it is no JSON schema: {e}"));
    }
    if let Some(tokens) = run.answer_tokens {
        found.bounds("run.answer_tokens", tokens, 1, 1_000_000);
    }
    if let Some(temperature) = run.temperature {
        found.bounds("run.temperature", temperature, 0.0, 2.0);
    }
}

fn check_list(definition: &Definition, env: &Env, found: &mut Problems) {
    let run = &definition.run;
    let of_one = [
        ("model", run.model.is_some()),
        ("base_url", run.base_url.is_some()),
        ("base_url_env", run.base_url_env.is_some()),
        ("api_key_env", run.api_key_env.is_some()),
        ("price", run.price.is_some()),
        ("context_tokens", run.context_tokens.is_some()),
    ];
    for (key, _) in of_one.into_iter().filter(|(_, said)| *said) {
        let message = format!("{key} beside models says nothing: each model has its own");
        found.add_with(format!("run.{key}"), message, format!("move {key} into an entry of run.models"));
    }
    if run.models.len() > MODELS_MAX {
        found.add("run.models", format!("{} models: {MODELS_MAX} are the most", run.models.len()));
    }
    for (at, choice) in run.models.iter().enumerate() {
        let place = format!("run.models.{at}");
        check_model(&place, choice, env, found);
        let is_same = |other: &ModelChoice| {
            let of = |one: &ModelChoice| (one.model.clone(), one.base_url.clone(), one.base_url_env.clone());
            of(other) == of(choice)
        };
        if let Some(first) = run.models.iter().take(at).position(is_same) {
            found.add(place, format!("it is the same model as run.models.{first}"));
        }
    }
}

fn check_model(place: &str, choice: &ModelChoice, env: &Env, found: &mut Problems) {
    if choice.model.is_empty() {
        found.add(format!("{place}.model"), "model is missing: name it as its endpoint knows it");
    }
    match &choice.base_url {
        Some(url) => url_problem(&format!("{place}.base_url"), url, found),
        None if choice.base_url_env.is_none() && choice.api_key_env.is_none() => found.add_with(
            format!("{place}.base_url"),
            "neither base_url nor base_url_env nor api_key_env says where the model is",
            "add base_url of an OpenAI-compatible server, or api_key_env for the OpenAI API",
        ),
        None => {}
    }
    if let Some((name, url)) = choice.base_url_env.as_ref().and_then(|name| Some((name, env.get(name)?))) {
        url_problem_in(&format!("{place}.base_url_env"), name, &url, found);
    }
    for (key, what, remedy) in choice.price.iter().flat_map(Price::check_days) {
        found.add_with(format!("{place}.price.{key}"), what, remedy);
    }
    if choice.context_tokens == Some(0) {
        found.add(format!("{place}.context_tokens"), "it must be 1 or more");
    }
}

/// Checks a URL in a variable of the environment.
fn url_problem_in(key: &str, variable: &str, url: &str, found: &mut Problems) {
    let mut inner = Problems::default();
    url_problem(key, url, &mut inner);
    found.add_all(inner, |message| format!("{variable} in the environment: {message}"));
}

#[cfg(test)]
mod tests {
    use super::super::check::found_in;
    use crate::agent::Env;

    fn problems(run: &str) -> Vec<String> {
        found_in(&format!("id = \"m\"\n[run]\nkind = \"llm\"\n{run}"), &Env::of([("BASE", "nowhere")]))
    }

    #[test]
    fn every_model_of_the_list_has_a_name_and_an_endpoint_of_its_own() {
        let good = "models = [{ model = \"a\", api_key_env = \"A\" }, { model = \"b\", base_url = \"http://b/v1\" }]";
        assert_eq!(problems(good), Vec::<String>::new());
        let bad = "model = \"x\"\nprice = { input = 1, output = 1 }\nmodels = [{ model = \"a\" }, \
                   { model = \"\", base_url_env = \"BASE\", context_tokens = 0 }, \
                   { model = \"b\", base_url = \"http://b/v1\" }, { model = \"b\", base_url = \"http://b/v1\" }]";
        assert_eq!(
            problems(bad),
            [
                "run.model: model beside models says nothing: each model has its own",
                "run.price: price beside models says nothing: each model has its own",
                "run.models.0.base_url: neither base_url nor base_url_env nor api_key_env says where the model is",
                "run.models.1.model: model is missing: name it as its endpoint knows it",
                "run.models.1.base_url_env: BASE in the environment: \"nowhere\" is no URL: relative URL without a base",
                "run.models.1.context_tokens: it must be 1 or more",
                "run.models.3: it is the same model as run.models.2",
            ]
        );
        let numbers = "model = \"a\"\napi_key_env = \"A\"\nanswer_tokens = 0\ncontext_tokens = 0";
        assert_eq!(
            problems(numbers),
            ["run.context_tokens: it must be 1 or more", "run.answer_tokens: 0 is not in 1 to 1000000"]
        );
        let thread = "model = \"a\"\napi_key_env = \"A\"\nthread = \"{{ customer }}\"";
        assert_eq!(problems(thread), ["run.thread: there is no \"customer\": use input, kind"]);
        let alone = "model = \"a\"\napi_key_env = \"A\"\nfailover = { after = \"2h\" }";
        assert_eq!(problems(alone).len(), 2);
    }
}
