//! Replies to prompts, all at once, as they come.

use super::api_error::ApiError;
use super::choices::Choices;
use super::speaker::{Gate, Prompt, Said, Speaker, Usage};
use super::state::{Server, Ticket};
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Pieces that wait for a slow reader.
const PIECES: usize = 32;

/// A piece of the reply of this index.
type Piece = (usize, Result<Said, ApiError>);

/// Replies in progress; dropped, they end.
pub(crate) struct Replies {
    pieces: Receiver<Piece>,
    /// Those that are not over.
    left: usize,
    usage: Usage,
}

impl Replies {
    /// Asks for `n` replies to each prompt: reply `i` to prompt `p` has the index `p * n + i`.
    ///
    /// # Errors
    /// 400 when the first of them cannot run.
    pub(crate) async fn start(
        server: &Arc<Server>,
        ticket: Arc<Ticket>,
        prompts: Vec<Prompt>,
        choices: Choices,
    ) -> Result<Self, ApiError> {
        let (n, choices) = (choices.num_replies()?, Arc::new(choices));
        let (sender, mut pieces) = channel(PIECES);
        let left = prompts.len() * n;
        for (at, prompt) in prompts.into_iter().enumerate() {
            let gate = Arc::new(Gate::new());
            for number in 0..n {
                let (server, ticket, prompt) = (Arc::clone(server), Arc::clone(&ticket), prompt.clone());
                let (choices, gate, sender) = (Arc::clone(&choices), Arc::clone(&gate), sender.clone());
                tokio::spawn(async move {
                    let index = at * n + number;
                    let speaker = Speaker::start(&server, ticket, prompt, &choices, (number, &gate)).await;
                    match speaker {
                        Ok(speaker) => speak(speaker, index, &sender).await,
                        // Who has gone away need not know.
                        Err(error) => drop(sender.send((index, Err(error))).await),
                    }
                });
            }
        }
        match pieces.recv().await {
            Some((_, Err(error))) => Err(error),
            Some((_, Ok(_))) => Ok(Self { pieces, left, usage: Usage::default() }),
            None => Err(ApiError::gone()),
        }
    }

    /// What comes next, and of which reply; none when all are over.
    ///
    /// # Errors
    /// 500 when the engine fails, 400 when one of them cannot run.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Said)>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some((index, said)) = self.pieces.recv().await else { return Err(ApiError::gone()) };
        let said = said?;
        if let Said::End(end) = &said {
            self.left -= 1;
            self.usage.add_reply(end);
        }
        Ok(Some((index, said)))
    }

    /// Tokens of all that is over, a prompt counted once for all its replies.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }
}

/// Passes on what one reply says, as long as somebody listens.
async fn speak(mut speaker: Speaker<'_>, index: usize, sender: &Sender<Piece>) {
    if sender.send((index, Ok(Said::Start))).await.is_err() {
        return;
    }
    loop {
        let said = tokio::select! {
            said = speaker.next() => said,
            () = sender.closed() => return,
        };
        let piece = match said {
            Ok(None) => return,
            Ok(Some(said)) => Ok(said),
            Err(error) => Err(error),
        };
        let is_over = piece.is_err();
        if sender.send((index, piece)).await.is_err() || is_over {
            return;
        }
    }
}
