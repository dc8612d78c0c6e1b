//! How likely a model finds a text that is given.
//!
//! A causal model reads it once. A model that denoises is asked in one of two ways: from left to
//! right, the position in question and all behind it masked, which adds up to the probability of
//! the whole text in that order; or by LLaDA's Monte-Carlo estimate of its bound
//! (`get_log_likelihood` of ML-GSAI/LLaDA): random subsets of the answer are masked, and the loss
//! of the masked tokens is divided by their share.

use dfastllm_models::Attend;
use dfastllm_models::ops::philox::{Counter, Purpose as Draws};
use dfastllm_models::ops::{Draw, RowParams, RowScore};

use crate::decoding::Uniforms;
use crate::plan::{Fault, Generation, Purpose, SpanPlan, StepPlan, Want, Which, check_finite};
use crate::request::{GenerationRequest, Patterns, Task};
use crate::{FinishReason, Likelihood, LikelihoodSample, PromptScores, SettledToken, Usage};

/// What is masked in a pass over the text, and which positions are asked for.
#[derive(Debug)]
enum Mode {
    /// Nothing; all but the first.
    Causal,
    /// Position `i + 1` and all behind it; that one. One sequence for each `i`.
    LeftToRight { mask_id: u32 },
    /// These positions; the same. With `scale` the prompt is hidden in a guiding sequence.
    Masked { mask_id: u32, answer_start: usize, patterns: Vec<Vec<usize>>, scale: f32 },
}

/// A request to score its prompt.
pub(crate) struct Scoring {
    tokens: Vec<u32>,
    mode: Mode,
    top_logprobs: usize,
    /// Sequences scored.
    done: usize,
    forwards: usize,
    scores: Vec<Vec<SettledToken>>,
}

impl Scoring {
    pub(crate) fn new(mut request: GenerationRequest) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        let mode = match (&request.decoding, &request.task) {
            (Some((config, mask_id)), Task::Likelihood { answer_start, patterns }) => {
                let answer = tokens.len() - answer_start;
                let patterns = match patterns {
                    Patterns::Given(patterns) => patterns.clone(),
                    &Patterns::Drawn(samples) => draw(answer, samples, &mut *request.uniforms),
                };
                let (mask_id, answer_start) = (*mask_id, *answer_start);
                Mode::Masked { mask_id, answer_start, patterns, scale: config.cfg_scale as f32 }
            }
            (Some((_, mask_id)), _) => Mode::LeftToRight { mask_id: *mask_id },
            (None, _) => Mode::Causal,
        };
        let top_logprobs = request.top_logprobs;
        Self { tokens, mode, top_logprobs, done: 0, forwards: 0, scores: Vec::new() }
    }

    /// Sequences to score; none if there is nothing to predict.
    fn count(&self) -> usize {
        match &self.mode {
            Mode::Causal => usize::from(self.tokens.len() > 1),
            Mode::LeftToRight { .. } => self.tokens.len() - 1,
            Mode::Masked { patterns, .. } => patterns.len(),
        }
    }

    fn is_guided(&self) -> bool {
        matches!(self.mode, Mode::Masked { scale, .. } if scale > 0.0)
    }

    fn add(&self, plan: &mut StepPlan, index: usize) {
        let span = plan.spans.len();
        let mut tokens = self.tokens.clone();
        let asked: Vec<usize> = match &self.mode {
            Mode::Causal => (1..tokens.len()).collect(),
            Mode::LeftToRight { mask_id } => {
                tokens[index + 1..].fill(*mask_id);
                vec![index + 1]
            }
            Mode::Masked { mask_id, answer_start, patterns, .. } => {
                let asked: Vec<usize> = patterns[index].iter().map(|p| answer_start + p).collect();
                asked.iter().for_each(|&p| tokens[p] = *mask_id);
                asked
            }
        };
        let attend = match self.mode {
            Mode::Causal => Attend::Causal,
            _ => Attend::Bidirectional,
        };
        let mut guidance = None;
        plan.spans.push(SpanPlan::whole(tokens.clone(), attend));
        if let Mode::Masked { mask_id, answer_start, scale, .. } = self.mode
            && scale > 0.0
        {
            tokens[..answer_start].fill(mask_id);
            plan.spans.push(SpanPlan::whole(tokens, attend));
            guidance = Some((span + 1, scale));
        }
        plan.wants.extend(asked.into_iter().map(|position| Want {
            span,
            position,
            params: RowParams {
                draw: Draw::Given(self.tokens[position]),
                top_logprobs: self.top_logprobs,
                ..RowParams::greedy(0)
            },
            guidance,
            purpose: Purpose::Recheck,
        }));
    }
}

impl Generation for Scoring {
    /// As many sequences as fit; alone, one.
    fn plan(&mut self, budget: usize) -> Option<StepPlan> {
        let each = self.tokens.len() * if self.is_guided() { 2 } else { 1 };
        let fitting = if budget == usize::MAX { 1 } else { budget / each };
        let end = (self.done + fitting).min(self.count());
        let mut plan = StepPlan {
            model: Which::Main,
            spans: Vec::new(),
            wants: Vec::new(),
            every_head_row: false,
        };
        (self.done..end).for_each(|index| self.add(&mut plan, index));
        (!plan.spans.is_empty()).then_some(plan)
    }

    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) -> Result<(), Fault> {
        check_finite(scores)?;
        let scored = |score: &RowScore| SettledToken {
            id: score.id,
            logprob: score.logprob,
            top: score.top.clone(),
            is_end: false,
            gap: 0,
        };
        let wants: Vec<(&Want, &RowScore)> = plan.wants.iter().zip(scores).collect();
        for of_sequence in wants.chunk_by(|(a, _), (b, _)| a.span == b.span) {
            self.scores.push(of_sequence.iter().map(|(_, score)| scored(score)).collect());
            self.done += 1;
        }
        self.forwards += 1;
        Ok(())
    }

    fn take_settled(&mut self) -> Vec<SettledToken> {
        Vec::new()
    }

    fn finish(&self) -> Option<FinishReason> {
        (self.done == self.count()).then_some(FinishReason::Length)
    }

    fn count(&self, usage: &mut Usage) {
        usage.forwards = self.forwards;
    }

    fn take_scores(&mut self) -> Option<PromptScores> {
        let scores = std::mem::take(&mut self.scores);
        Some(match &self.mode {
            Mode::Masked { answer_start, patterns, .. } => {
                let length = self.tokens.len() - answer_start;
                PromptScores::Likelihood(estimate(length, patterns, &scores))
            }
            _ => PromptScores::Tokens(scores.into_iter().flatten().collect()),
        })
    }
}

/// The mean over samples of minus their loss, with its standard error.
fn estimate(length: usize, patterns: &[Vec<usize>], scores: &[Vec<SettledToken>]) -> Likelihood {
    let sample = |(masked, tokens): (&Vec<usize>, &Vec<SettledToken>)| {
        let token_nll: Vec<f64> = tokens.iter().map(|t| -t.logprob).collect();
        let share = masked.len() as f64 / length as f64;
        let loss = token_nll.iter().sum::<f64>() / share;
        LikelihoodSample { masked: masked.clone(), token_nll, loss }
    };
    let samples: Vec<LikelihoodSample> = patterns.iter().zip(scores).map(sample).collect();
    let n = samples.len() as f64;
    let mean = samples.iter().map(|s| s.loss).sum::<f64>() / n;
    let squares = samples.iter().map(|s| (s.loss - mean).powi(2)).sum::<f64>();
    let standard_error =
        if samples.len() > 1 { (squares / (n - 1.0) / n).sqrt() } else { f64::NAN };
    Likelihood { total: -mean, standard_error, samples }
}

/// Subsets of an answer: their sizes spread evenly over all sizes from a random first one, as the
/// original's `forward_process` does, the positions drawn without replacement.
fn draw(length: usize, samples: usize, uniforms: &mut dyn Uniforms) -> Vec<Vec<usize>> {
    let mut uniform = |sample: usize, draw: usize| {
        let (position, step) = (sample as u32, 0);
        uniforms.draw(Counter { position, step, purpose: Draws::Mask, draw: draw as u32 })
    };
    let first = 1.0 + (uniform(samples, 0) * length as f64).floor();
    let size = |sample: usize| {
        let spread = first + (sample as f64) * length as f64 / samples as f64;
        (spread.round_ties_even() as usize - 1) % length + 1
    };
    let mut pattern = |sample: usize| {
        let mut positions: Vec<usize> = (0..length).collect();
        let size = size(sample);
        for i in 0..size {
            let rest = (length - i) as f64;
            positions.swap(i, i + ((uniform(sample, i) * rest) as usize).min(length - i - 1));
        }
        positions.truncate(size);
        positions.sort_unstable();
        positions
    };
    (0..samples).map(&mut pattern).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoding::Seeded;

    /// As `torch.round` does: from a first size of 1, 3 and 2 positions a sample apart.
    #[test]
    fn sizes_between_two_numbers_become_the_even_one() {
        #[derive(Debug)]
        struct First;
        impl Uniforms for First {
            fn draw(&mut self, _: Counter) -> f64 {
                0.0
            }
        }
        let sizes = |length, samples| -> Vec<usize> {
            draw(length, samples, &mut First).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(6, 4), [1, 2, 4, 6], "1, 2.5, 4, 5.5");
        assert_eq!(sizes(6, 3), [1, 3, 5]);
    }

    #[test]
    fn subsets_have_all_sizes_alike_and_all_positions_alike() {
        let patterns = draw(5, 5000, &mut Seeded(3));
        let (mut sizes, mut positions) = ([0u32; 6], [0u32; 5]);
        for pattern in &patterns {
            sizes[pattern.len()] += 1;
            pattern.iter().for_each(|&p| positions[p] += 1);
            assert!(pattern.windows(2).all(|w| w[0] < w[1]));
        }
        assert!(sizes[0] == 0 && sizes[1..].iter().all(|s| s.abs_diff(1000) <= 1), "{sizes:?}");
        // Each is in three fifths of them; the standard deviation is below 36.
        assert!(positions.iter().all(|n| n.abs_diff(3000) < 150), "{positions:?}");
        assert_ne!(patterns, draw(5, 5000, &mut Seeded(4)));
    }
}
