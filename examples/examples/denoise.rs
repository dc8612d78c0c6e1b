//! Shows how a diffusion model fills its canvas, pass by pass: the engine without a server.
//!
//! `cargo run --release -p dfastllm-examples --example denoise`
#![expect(clippy::print_stdout, reason = "it prints")]

use std::error::Error;

use dfastllm_backends::{CpuProvider, DTypeChoice, DeviceProvider, DeviceSpec, open_device};
use dfastllm_engine::decoding::{DecodingConfig, Preset, Quota, preset};
use dfastllm_engine::{Engine, EngineConfig, Event, GenerationRequest, ModelLimits, RequestParams};
use dfastllm_models::{ReferenceLoop, SpecialTokens, builtin_files, load};

const LENGTH: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let providers: Vec<Box<dyn DeviceProvider>> = vec![Box::new(CpuProvider)];
    let device = open_device(DeviceSpec::Auto, &providers)?;
    let files = builtin_files("tiny-llada").ok_or("a built-in model")?;
    let loaded = load(&files, &device, DTypeChoice::Auto)?;
    let tokenizer = loaded.tokenizer.clone();
    let limits = ModelLimits::new(&loaded, loaded.model.shape().max_positions);
    let config = EngineConfig {
        warm_up: false,
        max_num_seqs: 1,
        max_num_batched_tokens: 2048,
        max_queue: 1,
        kv_cache_tokens: 0,
    };
    let engine = Engine::start(loaded.model, loaded.precision.kv, &device.device, config)?;

    let prompt = "<|user|>\nWhat is the opposite of hot?<|end|>\n<|assistant|>\n";
    // The published loop, two positions a pass.
    let reference = preset(Preset::Reference, ReferenceLoop::EvenSplit, LENGTH);
    let decoding = DecodingConfig { quota: Quota::EvenSplit { steps: LENGTH / 2 }, ..reference };
    let params = RequestParams {
        ignore_eos: true,
        decoding: Some(decoding),
        trace: true,
        ..RequestParams::new(tokenizer.encode(prompt, SpecialTokens::Include)?, LENGTH)
    };
    let running = engine.handle().submit(GenerationRequest::new(params, &limits)?)?;
    let mut canvas = vec!["▢".to_owned(); LENGTH];
    for event in &running.events {
        let (Event::Settled { trace, .. } | Event::Finished { trace, .. }) = event else {
            return Err("the request failed".into());
        };
        for step in trace {
            for (position, id) in step.committed {
                canvas[position] = tokenizer.decode(&[id], SpecialTokens::Include);
            }
            println!("{:>2}  {}", step.step, canvas.concat());
        }
    }
    engine.shut_down();
    Ok(())
}
