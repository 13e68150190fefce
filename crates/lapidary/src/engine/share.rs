//! How the tokens of a pass are shared out between prompts and texts, so that a flood of one cannot starve the other.

/// What texts have a claim to. A text runs whole, so that it may take more than its share of one pass; what it took too much
/// is paid back in the passes that follow.
#[derive(Debug)]
pub(super) struct Share {
    batch_tokens: usize,
    of_texts: f64,
    /// Tokens that texts may still take; below zero after a long one.
    credit: f64,
    /// This pass is for prompts alone.
    in_debt: bool,
    /// Tokens of the pass that replies leave.
    rest: usize,
}

impl Share {
    pub(super) fn new(batch_tokens: usize, of_texts: f32) -> Self {
        Self { batch_tokens, of_texts: f64::from(of_texts), credit: 0.0, in_debt: false, rest: batch_tokens }
    }

    /// Begins a pass in which so many tokens are taken already; returns what is left for texts and prompts.
    pub(super) fn begin(&mut self, taken: usize, prompts_wait: bool, texts_wait: bool) -> usize {
        let rest = self.batch_tokens.saturating_sub(taken).max(1);
        self.rest = rest;
        self.in_debt = self.credit < 0.0 && prompts_wait;
        self.credit = match (prompts_wait, texts_wait) {
            // A claim that nobody has is not saved up.
            (_, false) => self.credit.min(0.0),
            (false, true) => rest as f64,
            // Saved up for a text that takes a whole pass, but not for ever.
            (true, true) => {
                // While texts pay back, prompts have the whole pass, and what that is worth to texts is more.
                let gain = if self.in_debt { self.of_texts / (1.0 - self.of_texts) } else { self.of_texts };
                (self.credit + rest as f64 * gain).min(2.0 * self.batch_tokens as f64)
            }
        };
        rest
    }

    /// Whether a text of so many tokens runs in this pass, `alone` if nothing else does so far; if so, they are taken.
    pub(super) fn takes(&mut self, tokens: usize, alone: bool) -> bool {
        // One that is longer than what a pass leaves runs once its claim is all of that.
        let needed = tokens.min(self.rest) as f64;
        let takes = !self.in_debt && (self.credit >= needed || (alone && self.credit > 0.0));
        if takes {
            self.credit -= tokens as f64;
        }
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::Share;

    /// Tokens of texts over many passes in which prompts take what is left, for texts of one length.
    fn run(of_texts: f32, length: usize, passes: usize) -> f64 {
        let (mut share, mut texts, mut prompts) = (Share::new(512, of_texts), 0usize, 0usize);
        for _ in 0..passes {
            let rest = share.begin(12, true, true);
            let mut taken = 0;
            while share.takes(length, false) {
                taken += length;
            }
            texts += taken;
            prompts += rest.saturating_sub(taken);
        }
        texts as f64 / (texts + prompts) as f64
    }

    #[test]
    fn both_get_their_share_whatever_the_length_of_a_text() {
        for length in [3, 40, 250, 500, 512, 700, 4000] {
            for of_texts in [0.25, 0.5, 0.75] {
                let found = run(of_texts, length, 4000);
                // What is saved up beyond two passes is lost, and a debt is paid in whole passes.
                assert!((found - f64::from(of_texts)).abs() < 0.1, "{length} {of_texts}: {found}");
            }
        }
    }

    #[test]
    fn a_long_text_runs_beside_replies() {
        for (taken, length) in [(1, 512), (1, 4000), (50, 500), (600, 3)] {
            let mut share = Share::new(512, 0.5);
            share.begin(taken, false, true);
            assert!(share.takes(length, false), "{taken} {length}");
        }
    }

    #[test]
    fn one_alone_gets_all() {
        let mut share = Share::new(512, 0.5);
        assert_eq!(share.begin(0, false, true), 512);
        let mut texts = 0;
        while share.takes(100, texts == 0) {
            texts += 1;
        }
        assert_eq!(texts, 5);
        assert_eq!(share.begin(0, true, false), 512);
        // What was not claimed is not saved up.
        share.begin(0, true, true);
        assert!(share.takes(256, false) && !share.takes(100, false));
    }
}
