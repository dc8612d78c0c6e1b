//! Requests to measure with: the same for the same seed.

use std::str::FromStr;

use clap::ValueEnum;
use dfastllm_engine::{GenerationRequest, RequestParams, Sampling};
use dfastllm_models::ops::philox::{Counter, Purpose, uniform};
use serde_json::{Map, Value};

use super::BenchArgs;
use crate::ServedModel;
use crate::cli::Failure;
use crate::diffusion::DiffusionFields;

/// Tokens of a phrase that is repeated.
const PHRASE: usize = 24;

/// A range of lengths, each equally likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lengths {
    from: usize,
    to: usize,
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (from, to) = s.split_once(':').unwrap_or((s, s));
        match (from.parse(), to.parse()) {
            (Ok(from), Ok(to)) if 0 < from && from <= to => Ok(Self { from, to }),
            _ => Err(format!("'{s}', expected a length or FROM:TO, both at least 1")),
        }
    }
}

impl Lengths {
    pub(super) fn longest(self) -> usize {
        self.to
    }
}

/// What prompts say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Text {
    /// Tokens drawn one by one
    Random,
    /// A few tokens over and over
    Repetitive,
}

/// Makes requests one after the other.
pub(super) struct Workload<'a> {
    args: &'a BenchArgs,
    served: &'a ServedModel,
    diffusion: DiffusionFields,
    seed: u64,
    made: u32,
}

impl<'a> Workload<'a> {
    pub(super) fn new(args: &'a BenchArgs, served: &'a ServedModel) -> Result<Self, Failure> {
        let given: Map<String, Value> = serde_json::from_str(&args.diffusion)
            .map_err(|e| Failure::usage(format!("--diffusion: {e}")))?;
        if served.limits.reference.is_none() && !given.is_empty() {
            return Err(Failure::usage("--diffusion: this model is autoregressive"));
        }
        let diffusion = DiffusionFields::new(given).map_err(|e| Failure::usage(e.message()))?;
        diffusion
            .refuse(&["infill", "likelihood", "progress", "trace", "max_tokens"])
            .map_err(|e| Failure::usage(e.message()))?;
        Ok(Self { args, served, diffusion, seed: args.model.seed.unwrap_or(0), made: 0 })
    }

    /// The next request, with lengths as the flags say.
    pub(super) fn next(&mut self) -> Result<GenerationRequest, Failure> {
        let params = self.next_params()?;
        self.checked(params)
    }

    /// The same, not checked yet.
    pub(super) fn next_params(&mut self) -> Result<RequestParams, Failure> {
        let (input, output) = (self.args.input_len, self.args.output_len);
        let (prompt, max_tokens) = (self.length(input, 0), self.length(output, 1));
        let prompt = self.tokens(prompt);
        self.params(prompt, max_tokens)
    }

    /// The first of `count` requests, one after the other.
    pub(super) fn take(&mut self, count: usize) -> Result<Vec<GenerationRequest>, Failure> {
        (0..count).map(|_| self.next()).collect()
    }

    /// A request with a given prompt and length.
    pub(super) fn request(
        &mut self,
        prompt: Vec<u32>,
        max_tokens: usize,
    ) -> Result<GenerationRequest, Failure> {
        let params = self.params(prompt, max_tokens)?;
        self.checked(params)
    }

    pub(super) fn checked(&self, params: RequestParams) -> Result<GenerationRequest, Failure> {
        GenerationRequest::new(params, &self.served.limits)
            .map_err(|e| Failure::usage(e.to_string()))
    }

    /// Other diffusion settings from now on.
    pub(super) fn set_diffusion(&mut self, given: Map<String, Value>) -> Result<(), Failure> {
        self.diffusion = DiffusionFields::new(given).map_err(|e| Failure::usage(e.message()))?;
        Ok(())
    }

    /// The longest prompt and answer that the flags allow, not checked yet.
    pub(super) fn sized(&mut self) -> Result<RequestParams, Failure> {
        let prompt = self.tokens(self.args.input_len.longest());
        self.params(prompt, self.args.output_len.longest())
    }

    pub(super) fn params(
        &mut self,
        prompt: Vec<u32>,
        max_tokens: usize,
    ) -> Result<RequestParams, Failure> {
        self.made += 1;
        let served = self.served;
        let decoding = match served.limits.reference {
            Some(published) => Some(
                self.diffusion
                    .config(served.preset, published, max_tokens)
                    .map_err(|e| Failure::usage(e.message()))?,
            ),
            None => None,
        };
        Ok(RequestParams {
            ignore_eos: true,
            sampling: Sampling { temperature: self.args.temperature, ..Sampling::default() },
            decoding,
            seed: self.seed.wrapping_add(u64::from(self.made)),
            timeout: served.request_timeout,
            max_draft: served.speculative_tokens,
            ..RequestParams::new(prompt, max_tokens)
        })
    }

    /// Prompt tokens never used before.
    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        let vocab = self.served.limits.vocab as f64;
        let (seed, made) = (self.seed, self.made);
        self.made += 1;
        let repeats = self.args.text == Text::Repetitive;
        let token = |i: usize| {
            let draw = if repeats { i % PHRASE } else { i } as u32;
            (draw_of(seed, made, draw) * vocab) as u32
        };
        (0..count).map(token).collect()
    }

    fn length(&self, lengths: Lengths, draw: u32) -> usize {
        let span = (lengths.to - lengths.from + 1) as f64;
        lengths.from + (draw_of(!self.seed, self.made, draw) * span) as usize
    }
}

fn draw_of(seed: u64, position: u32, draw: u32) -> f64 {
    uniform(seed, Counter { position, step: 0, purpose: Purpose::Token, draw })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_a_number_or_a_range() {
        assert_eq!("5".parse(), Ok(Lengths { from: 5, to: 5 }));
        assert_eq!("5:9".parse(), Ok(Lengths { from: 5, to: 9 }));
        for wrong in ["", "0", "9:5", "a", "1:", ":"] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }
}
