//! Rows that are refused together, apart: so that one that ClickHouse does not take holds up no other.
//!
//! Halves are written, and halves of those that are refused. What an error means for a row shows there too: one that is refused
//! alone while others go in is at fault itself. If several in a row are refused alone, it is not the rows, and the rest is
//! left for later; where the search begins is chance, so that a few bad rows that stand together do not end it each time.

use crate::queue::consumer::HandleError;
use std::{future::Future, ops::Range};

/// So many rows that are refused one after the other, each alone, are the server's state.
const ALIKE: u32 = 3;

/// Why rows were not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// For what is in one of them.
    Rows(String),
    /// Perhaps for what is in one of them.
    Perhaps(String),
    /// ClickHouse is away, or can write nothing now.
    Away(String),
}

impl From<Refused> for HandleError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Rows(why) => Self::Definite(why),
            Refused::Perhaps(why) | Refused::Away(why) => Self::Unavailable(why),
        }
    }
}

/// Writes rows with `write`, together if they let themselves be, and says of each what became of it.
pub(super) async fn write<F, Fut>(rows: usize, write: F) -> Vec<Result<(), HandleError>>
where
    F: Fn(Range<usize>) -> Fut,
    Fut: Future<Output = Result<(), Refused>>,
{
    let mut outcomes = vec![Ok(()); rows];
    let mut waiting: Vec<Range<usize>> = std::iter::once(0..rows).collect();
    let mut alike = 0;
    while let Some(range) = waiting.pop() {
        let refused = match write(range.clone()).await {
            Ok(()) => {
                alike = 0;
                continue;
            }
            Err(refused) => refused,
        };
        if range.len() > 1 && !matches!(refused, Refused::Away(_)) {
            let middle = range.start + range.len() / 2;
            let (one, other) = (range.start..middle, middle..range.end);
            waiting.extend(if rand::random() { [one, other] } else { [other, one] });
            continue;
        }
        alike = if matches!(refused, Refused::Perhaps(_)) { alike + 1 } else { 0 };
        let is_hopeless = alike == ALIKE || matches!(refused, Refused::Away(_));
        let error = HandleError::from(refused);
        outcomes[range].fill(Err(error.clone()));
        if is_hopeless {
            for rest in waiting.drain(..) {
                outcomes[rest].fill(Err(error.clone()));
            }
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn why() -> String {
        "no".to_owned()
    }

    /// Writes a hundred rows of which some are refused, and tells of each, and how many writes that took.
    async fn written(bad: &[usize], refused: &Refused) -> (Vec<Result<(), HandleError>>, usize) {
        let writes = Cell::new(0);
        let outcomes = super::write(100, |range| {
            writes.set(writes.get() + 1);
            let result = if bad.iter().any(|row| range.contains(row)) { Err(refused.clone()) } else { Ok(()) };
            async { result }
        });
        (outcomes.await, writes.get())
    }

    fn failed(outcomes: &[Result<(), HandleError>]) -> Vec<usize> {
        (0..outcomes.len()).filter(|row| outcomes[*row].is_err()).collect()
    }

    #[tokio::test]
    async fn a_row_that_is_refused_leaves_the_others_alone() {
        for (refused, error) in [
            (Refused::Rows(why()), HandleError::Definite(why())),
            (Refused::Perhaps(why()), HandleError::Unavailable(why())),
        ] {
            for row in [0, 42, 99] {
                let (outcomes, writes) = written(&[row], &refused).await;
                assert_eq!((failed(&outcomes), &outcomes[row]), (vec![row], &Err(error.clone())));
                assert!(writes <= 15, "{writes}");
            }
        }
        let every: Vec<usize> = (0..100).collect();
        let (outcomes, _) = written(&every, &Refused::Rows(why())).await;
        assert_eq!(outcomes, vec![Err(HandleError::Definite(why())); 100]);
    }

    #[tokio::test]
    async fn a_server_that_refuses_everything_is_not_asked_for_every_row() {
        let every: Vec<usize> = (0..100).collect();
        let (outcomes, writes) = written(&every, &Refused::Perhaps(why())).await;
        assert_eq!(outcomes, vec![Err(HandleError::Unavailable(why())); 100]);
        assert!(writes < 20, "{writes}");
        let (outcomes, writes) = written(&every, &Refused::Away(why())).await;
        assert_eq!((outcomes, writes), (vec![Err(HandleError::Unavailable(why())); 100], 1));
    }

    #[tokio::test]
    async fn bad_rows_that_stand_together_do_not_keep_the_same_others_each_time() {
        let bad: Vec<usize> = (40..48).collect();
        let mut left: Vec<usize> = (0..100).collect();
        for _ in 0..200 {
            let outcomes = written(&bad, &Refused::Perhaps(why())).await.0;
            left.retain(|row| outcomes[*row].is_err());
        }
        assert_eq!(left, bad);
    }
}
