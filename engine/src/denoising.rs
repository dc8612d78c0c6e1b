//! Masked diffusion: a canvas of open positions, filled in an order that the rules decide.

use std::ops::Range;

use dfastllm_models::Attend;
use dfastllm_models::ops::{Draw, FilterOrder, Filters, RowParams, RowScore};

use crate::decoding::{
    BlockState, Candidate, DecodingConfig, IdleSteps, QuotaRule, Region, Stop, TokenNoise,
    quota_rule, rank,
};
use crate::plan::{Generation, NotFinite, SpanPlan, StepPlan, Want};
use crate::{FinishReason, GenerationRequest, SettledToken, TraceStep};

/// A request to a model that denoises. Positions count from the first generated one.
pub(crate) struct Denoising {
    config: DecodingConfig,
    quota: Box<dyn QuotaRule>,
    request: GenerationRequest,
    mask_id: u32,
    prompt_len: usize,
    /// Prompt and canvas; open positions hold the mask id.
    tokens: Vec<u32>,
    /// What was committed where; `None` is open. Openness is never read off the mask id: a prompt
    /// may spell it.
    committed: Vec<Option<SettledToken>>,
    block: Block,
    /// Step of the published loop, idle ones included.
    step: usize,
    forwards: usize,
    /// Positions handed out.
    emitted: usize,
    trace: Vec<TraceStep>,
    finish: Option<FinishReason>,
}

/// The block being decoded.
#[derive(Debug, Clone)]
struct Block {
    positions: Range<usize>,
    state: BlockState,
}

impl Denoising {
    pub(crate) fn new(
        mut request: GenerationRequest,
        config: DecodingConfig,
        mask_id: u32,
    ) -> Self {
        let mut tokens = std::mem::take(&mut request.prompt);
        let (prompt_len, length) = (tokens.len(), request.max_tokens);
        tokens.resize(prompt_len + length, mask_id);
        let end = match config.region {
            Region::Canvas => length,
            Region::Blocks(size) => size.min(length),
        };
        let mut this = Self {
            quota: quota_rule(config.quota),
            block: Block::new(0..end, &config, length),
            config,
            request,
            mask_id,
            prompt_len,
            tokens,
            committed: vec![None; length],
            step: 0,
            forwards: 0,
            emitted: 0,
            trace: Vec::new(),
            finish: None,
        };
        this.advance();
        this
    }

    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        self.block.positions.clone().filter(|&p| self.committed[p].is_none())
    }

    fn want(&self, position: usize) -> Want {
        let (seed, step) = (self.request.seed, self.step as u32);
        let absolute = (self.prompt_len + position) as u32;
        let draw = match self.config.noise {
            _ if self.request.filters.temperature == 0.0 => Draw::Greedy,
            TokenNoise::Gumbel => Draw::Gumbel { seed, position: absolute, step },
            TokenNoise::Categorical => Draw::Categorical { seed, position: absolute, step },
        };
        let order = match self.config.noise {
            TokenNoise::Gumbel => FilterOrder::TopKFirst,
            TokenNoise::Categorical => FilterOrder::TopPFirst,
        };
        let params = RowParams {
            bias: self.request.bias_at(position),
            filters: Filters { order, ..self.request.filters },
            draw,
            confidence_of: self.config.confidence_of,
            top_logprobs: self.request.top_logprobs,
            ..RowParams::greedy(0)
        };
        let scale = self.config.cfg_scale as f32;
        let guidance_scale = (scale > 0.0).then_some(scale);
        Want { position: self.prompt_len + position, params, guidance_scale }
    }

    fn span(&self, tokens: Vec<u32>) -> SpanPlan {
        let attend = Attend::Bidirectional;
        SpanPlan { tokens, first_position: 0, attend, write: false, cached: 0 }
    }

    /// Counts a step and moves on: to the next step that needs a pass, the next block, or the end.
    fn advance(&mut self) {
        loop {
            if self.quota.is_finished(&self.block.state) || self.is_settled() {
                if self.block.positions.end == self.committed.len() || self.is_settled() {
                    self.finish = Some(self.reason());
                    return;
                }
                let start = self.block.positions.end;
                let end = (start + self.block.positions.len()).min(self.committed.len());
                self.block = Block::new(start..end, &self.config, self.committed.len());
                continue;
            }
            let idle = self.quota.planned(&self.block.state) == Some(0);
            if !(idle && self.config.idle == IdleSteps::Skip) {
                return;
            }
            self.count_step();
        }
    }

    fn count_step(&mut self) {
        self.step += 1;
        self.block.state.step += 1;
        self.block.state.open = self.open().count();
    }

    /// End of the contiguous committed prefix.
    fn settled_end(&self) -> usize {
        self.committed.iter().position(Option::is_none).unwrap_or(self.committed.len())
    }

    /// The first end token of the settled prefix.
    fn settled_stop(&self) -> Option<usize> {
        let settled = &self.committed[..self.settled_end()];
        settled.iter().position(|token| token.as_ref().is_some_and(|t| t.is_end))
    }

    fn is_settled(&self) -> bool {
        self.config.stop == Stop::EndInSettledPrefix && self.settled_stop().is_some()
    }

    fn reason(&self) -> FinishReason {
        if self.settled_stop().is_some() { FinishReason::Stop } else { FinishReason::Length }
    }

    fn commit(&mut self, candidate: &Candidate, score: &RowScore) {
        self.tokens[self.prompt_len + candidate.position] = candidate.id;
        self.committed[candidate.position] = Some(SettledToken {
            id: candidate.id,
            logprob: score.logprob,
            top: score.top.clone(),
            is_end: self.request.end_ids.contains(&candidate.id),
        });
    }
}

impl Block {
    fn new(positions: Range<usize>, config: &DecodingConfig, length: usize) -> Self {
        let steps = config.quota.steps().map_or(0, |steps| steps.div_ceil(config.blocks(length)));
        let open = positions.len();
        Self { positions, state: BlockState { step: 0, steps, open, open_at_start: open } }
    }
}

impl Generation for Denoising {
    /// Every position sees every other: nothing it computes outlives a change of the canvas.
    fn causal_tokens(&self) -> Option<&[u32]> {
        None
    }

    fn start(&mut self, _: usize) {}

    fn cached(&self) -> usize {
        0
    }

    fn writes(&mut self) -> Range<usize> {
        0..0
    }

    /// The whole canvas, and again with the prompt masked where guidance is asked for. The head
    /// runs only on open positions of the block.
    fn plan(&mut self, budget: usize) -> Option<StepPlan> {
        let mut spans = vec![self.span(self.tokens.clone())];
        if self.config.cfg_scale > 0.0 {
            let mut unconditional = self.tokens.clone();
            unconditional[..self.prompt_len].fill(self.mask_id);
            spans.push(self.span(unconditional));
        }
        let wants = self.open().map(|position| self.want(position)).collect();
        let plan = StepPlan { spans, wants };
        (plan.rows() <= budget).then_some(plan)
    }

    fn is_decoding(&self) -> bool {
        true
    }

    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) -> Result<(), NotFinite> {
        if scores.iter().any(|s| !s.finite) {
            return Err(NotFinite);
        }
        self.forwards += 1;
        let mut ranked: Vec<Candidate> = plan
            .wants
            .iter()
            .zip(scores)
            .map(|(want, score)| Candidate {
                position: want.position - self.prompt_len,
                id: score.id,
                confidence: score.confidence,
                entropy: score.entropy,
                margin: score.margin,
                score: 0.0,
            })
            .collect();
        let by_position: Vec<usize> = ranked.iter().map(|c| c.position).collect();
        let uniforms = &mut *self.request.uniforms;
        let (step, temperature) = (self.step as u32, self.config.order_temperature);
        rank(&mut ranked, self.config.score, temperature, step, uniforms);
        let taken = self.quota.take(&ranked, &self.block.state).min(ranked.len());
        ranked.truncate(taken);
        ranked.sort_by_key(|c| c.position);
        for candidate in &ranked {
            if let Ok(index) = by_position.binary_search(&candidate.position) {
                self.commit(candidate, &scores[index]);
            }
        }
        if self.request.trace && !ranked.is_empty() {
            let committed = ranked.iter().map(|c| (c.position, c.id)).collect();
            self.trace.push(TraceStep { step: self.forwards, committed, remasked: Vec::new() });
        }
        self.count_step();
        self.advance();
        Ok(())
    }

    /// The settled prefix up to its first end token.
    fn take_settled(&mut self) -> Vec<SettledToken> {
        let end = self.settled_stop().map_or(self.settled_end(), |stop| stop + 1);
        let from = std::mem::replace(&mut self.emitted, end);
        self.committed[from..end].iter().flatten().cloned().collect()
    }

    fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    fn forwards(&self) -> usize {
        self.forwards
    }

    fn take_trace(&mut self) -> Vec<TraceStep> {
        std::mem::take(&mut self.trace)
    }
}
