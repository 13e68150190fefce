//! Rows packed end to end by a token budget, without padding.

/// Groups row indices into batches of at most `budget_tokens` tokens.
///
/// Rows are taken from short to long (ties in the order given), so a batch holds rows of similar length.
/// A row longer than the budget forms a batch of its own. Every index occurs exactly once.
#[must_use]
pub fn pack(lengths: &[usize], budget_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| lengths[row]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut num_tokens = 0_usize;
    for row in order {
        let grown = num_tokens.saturating_add(lengths[row]);
        match batches.last_mut() {
            Some(batch) if grown <= budget_tokens => {
                batch.push(row);
                num_tokens = grown;
            }
            _ => {
                batches.push(vec![row]);
                num_tokens = lengths[row];
            }
        }
    }
    batches
}
