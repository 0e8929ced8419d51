//! A model that gives prepared answers, for tests and rehearsals.
use super::{Answer, Error, Model, Question};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// What a scripted model does with one question.
#[derive(Clone, Debug)]
pub enum Step {
    /// Answers this; a word counts as a token.
    Say(String),
    /// Answers this, counted so.
    Answer(Answer),
    /// Fails.
    Fail(Error),
    /// Never answers.
    Hang,
}

/// Prepared answers in order; the last one is repeated. Remembers what it was asked.
#[derive(Debug)]
pub struct Scripted {
    steps: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<Question>>,
}

impl Scripted {
    /// A model that does this.
    #[must_use]
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: Mutex::new(steps.into_iter().collect()), asked: Mutex::default() }
    }

    /// The questions so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().clone()
    }
}

#[async_trait::async_trait]
impl Model for Scripted {
    async fn ask(&self, question: &Question) -> Result<Answer, Error> {
        self.asked.lock().push(question.clone());
        let step = {
            let mut steps = self.steps.lock();
            if steps.len() > 1 { steps.pop_front() } else { steps.front().cloned() }
        };
        let words = |text: &str| text.split_whitespace().count() as u64;
        match step {
            None => Err(Error::Rubbish("the script is empty")),
            Some(Step::Fail(error)) => Err(error),
            Some(Step::Answer(answer)) => Ok(answer),
            Some(Step::Say(text)) => Ok(Answer {
                input_tokens: words(&question.system) + words(&question.user),
                output_tokens: words(&text),
                text,
                cut_off: false,
            }),
            Some(Step::Hang) => {
                tokio::time::sleep(question.timeout).await;
                Err(Error::Timeout(question.timeout))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{Format, Models};
    use std::{sync::Arc, time::Duration};
    use tokio::time::Instant;

    fn question() -> Question {
        Question {
            model: "m".into(),
            system: "you are".into(),
            user: "a question".into(),
            format: Format::Text,
            max_tokens: None,
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
        let answer = provider.ask(&question(), began + within).await;
        (answer, model.asked().len(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_limit_is_waited_for_as_long_as_the_endpoint_says() {
        let limited = Step::Fail(Error::RateLimited { retry_after: Some(Duration::from_secs(7)) });
        let (answer, asked, took) = ask([limited, Step::Say("yes".into())], Duration::from_secs(60)).await;
        assert_eq!(answer.unwrap().text, "yes");
        assert_eq!((asked, took.as_secs()), (2, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline() {
        let limited = Error::RateLimited { retry_after: Some(Duration::from_secs(70)) };
        let (answer, asked, took) = ask([Step::Fail(limited.clone())], Duration::from_secs(60)).await;
        assert_eq!((answer, asked, took), (Err(limited), 1, Duration::ZERO));
        let (answer, _, took) = ask([Step::Hang], Duration::from_secs(5)).await;
        assert_eq!((answer.unwrap_err(), took.as_secs()), (Error::Timeout(Duration::from_secs(30)), 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_key_is_not_tried_again_and_trouble_five_times() {
        let refused = Error::Refused { status: 401 };
        let (answer, asked, _) = ask([Step::Fail(refused.clone())], Duration::from_secs(60)).await;
        assert_eq!((answer, asked), (Err(refused), 1));
        let failed = Error::Failed { status: 500, retry_after: None };
        let (answer, asked, took) = ask([Step::Fail(failed.clone())], Duration::from_secs(60)).await;
        assert_eq!((answer, asked), (Err(failed), 5));
        assert!(took > Duration::from_secs(3) && took < Duration::from_secs(5), "{took:?}");
    }
}
