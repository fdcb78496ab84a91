//! Whole answers out of streams, for callers that do not stream.

use crate::expert::{Answer, AnswerStream, Chunk, ExpertError, ExpertErrorKind, ExpertId};
use futures::StreamExt;

/// Reads a stream to its end.
///
/// # Errors
/// The stream's own error; [`ExpertErrorKind::Interrupted`] if it ends without [`Chunk::End`].
pub async fn collect(expert: &ExpertId, mut stream: AnswerStream) -> Result<Answer, ExpertError> {
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        match chunk? {
            Chunk::Text(piece) => text.push_str(&piece),
            Chunk::End {
                finish,
                usage,
                mean_log_probability,
            } => {
                return Ok(Answer {
                    text,
                    finish,
                    usage,
                    mean_log_probability,
                });
            }
        }
    }
    Err(ExpertError {
        expert: expert.clone(),
        kind: ExpertErrorKind::Interrupted,
        detail: format!("the answer was cut off after {} bytes", text.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expert::{Finish, TokenUsage};
    use futures::stream;

    fn end() -> Chunk {
        Chunk::End {
            finish: Finish::Length,
            usage: TokenUsage {
                prompt: 3,
                completion: 2,
            },
            mean_log_probability: None,
        }
    }

    async fn collected(items: Vec<Result<Chunk, ExpertError>>) -> Result<Answer, ExpertError> {
        collect(&ExpertId::try_from("toy").unwrap(), stream::iter(items).boxed()).await
    }

    #[tokio::test]
    async fn text_is_joined_and_the_end_kept() {
        let items = vec![
            Ok(Chunk::Text("two ".into())),
            Ok(Chunk::Text("words".into())),
            Ok(end()),
        ];
        let answer = collected(items).await.unwrap();
        assert_eq!(
            (answer.text.as_str(), answer.finish, answer.usage.prompt),
            ("two words", Finish::Length, 3)
        );
    }

    #[tokio::test]
    async fn a_missing_end_is_an_interruption() {
        let error = collected(vec![Ok(Chunk::Text("half".into()))]).await.unwrap_err();
        assert_eq!(error.kind, ExpertErrorKind::Interrupted);
        assert_eq!(
            collected(vec![]).await.unwrap_err().kind,
            ExpertErrorKind::Interrupted
        );
    }

    #[tokio::test]
    async fn an_error_wins_over_text_before_it() {
        let error = ExpertError {
            expert: ExpertId::try_from("toy").unwrap(),
            kind: ExpertErrorKind::Timeout,
            detail: "late".into(),
        };
        let items = vec![Ok(Chunk::Text("half".into())), Err(error)];
        assert_eq!(collected(items).await.unwrap_err().kind, ExpertErrorKind::Timeout);
    }
}
