//! A model with prepared answers, for tests and rehearsals.
use super::{Answer, ChatAnswer, ChatRequest, CompletionRequest, Error, Model, UsageDetails};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// The reaction to one request.
#[derive(Clone, Debug)]
pub enum Step {
    /// Answers with this text; each word counts as a token.
    Say(String),
    /// Answers with this text and these counts.
    Answer(Answer),
    /// Fails with this error.
    Fail(Error),
    /// Gives no answer until the timeout of the request.
    Hang,
}

/// Prepared answers in order; the last one is repeated. Records the requests.
#[derive(Debug)]
pub struct Scripted {
    steps: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<CompletionRequest>>,
}

impl Scripted {
    /// Creates a model with these steps.
    #[must_use]
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: Mutex::new(steps.into_iter().collect()), asked: Mutex::default() }
    }

    /// The requests so far.
    #[must_use]
    pub fn asked(&self) -> Vec<CompletionRequest> {
        self.asked.lock().clone()
    }
}

#[async_trait::async_trait]
impl Model for Scripted {
    async fn ask(&self, question: &CompletionRequest) -> Result<Answer, Error> {
        self.asked.lock().push(question.clone());
        let step = {
            let mut steps = self.steps.lock();
            if steps.len() > 1 { steps.pop_front() } else { steps.front().cloned() }
        };
        let words = |text: &str| text.split_whitespace().count() as u64;
        match step {
            None => Err(Error::InvalidAnswer("the script is empty")),
            Some(Step::Fail(error)) => Err(error),
            Some(Step::Answer(answer)) => Ok(answer),
            Some(Step::Say(text)) => Ok(Answer {
                input_tokens: Some(words(&question.system) + words(&question.user)),
                output_tokens: Some(words(&text)),
                details: UsageDetails::default(),
                model: None,
                text,
                cut_off: false,
            }),
            Some(Step::Hang) => {
                tokio::time::sleep(question.timeout).await;
                Err(Error::Timeout(question.timeout))
            }
        }
    }

    /// The same steps: each text is an assistant message without calls.
    async fn chat(&self, question: &ChatRequest) -> Result<ChatAnswer, Error> {
        let content = |message: Option<&Value>| {
            let text = message.and_then(|message| message.get("content")?.as_str());
            text.unwrap_or_default().to_owned()
        };
        let asked = CompletionRequest {
            model: question.model.clone(),
            system: content(question.messages.first()),
            user: content(question.messages.last()),
            format: question.format.clone(),
            max_tokens: Some(question.max_tokens),
            limit_member: question.limit_member,
            temperature: question.temperature,
            timeout: question.timeout,
        };
        let Answer { text, input_tokens, output_tokens, details, model, cut_off } = self.ask(&asked).await?;
        Ok(ChatAnswer {
            message: json!({ "role": "assistant", "content": text }),
            finish: Some(if cut_off { "length" } else { "stop" }.to_owned()),
            model,
            input_tokens,
            output_tokens,
            details,
            request_id: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{Caller, Format, Models};
    use std::{sync::Arc, time::Duration};
    use tokio::time::Instant;

    fn question() -> CompletionRequest {
        CompletionRequest {
            model: "m".into(),
            system: "you are".into(),
            user: "a question".into(),
            format: Format::Text,
            max_tokens: None,
            limit_member: None,
            temperature: None,
            timeout: Duration::from_secs(30),
        }
    }

    async fn ask(
        steps: impl IntoIterator<Item = Step>,
        within: Duration,
    ) -> (Result<Answer, Error>, usize, Duration) {
        let model = Arc::new(Scripted::new(steps));
        let provider = Models::scripted(model.clone()).at("http://x", None).unwrap();
        let began = Instant::now();
        let answer = provider.ask(&question(), &Caller::new("acme/a"), began + within).await;
        (answer, model.asked().len(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn rate_limit_is_waited_for_as_long_as_retry_after() {
        let limited = Step::Fail(Error::RateLimited { retry_after: Some(Duration::from_secs(7)) });
        let (answer, asked, took) = ask([limited, Step::Say("yes".into())], Duration::from_secs(60)).await;
        assert_eq!(answer.unwrap().text, "yes");
        assert_eq!((asked, took.as_secs()), (2, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn request_ends_at_its_deadline() {
        let limited = Error::RateLimited { retry_after: Some(Duration::from_secs(70)) };
        let (answer, asked, took) = ask([Step::Fail(limited.clone())], Duration::from_secs(60)).await;
        assert_eq!((answer, asked, took), (Err(limited), 1, Duration::ZERO));
        let (answer, _, took) = ask([Step::Hang], Duration::from_secs(5)).await;
        assert_eq!((answer.unwrap_err(), took.as_secs()), (Error::Timeout(Duration::from_secs(30)), 5));
    }

    #[tokio::test(start_paused = true)]
    async fn refused_key_is_not_retried_and_failure_is_tried_five_times() {
        let refused = Error::Refused { status: 401 };
        let (answer, asked, _) = ask([Step::Fail(refused.clone())], Duration::from_secs(60)).await;
        assert_eq!((answer, asked), (Err(refused), 1));
        let failed = Error::Failed { status: 500, retry_after: None };
        let (answer, asked, took) = ask([Step::Fail(failed.clone())], Duration::from_secs(60)).await;
        assert_eq!((answer, asked), (Err(failed), 5));
        assert!(took > Duration::from_secs(3) && took < Duration::from_secs(5), "{took:?}");
    }
}
