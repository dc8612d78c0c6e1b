//! Loads a model and prints the most probable next tokens of a prompt: models without the engine.
//!
//! `cargo run --release -p dfastllm-examples --example next_token`
#![expect(clippy::print_stdout, reason = "it prints")]

use std::error::Error;

use dfastllm_backends::{CpuProvider, DTypeChoice, DeviceProvider, DeviceSpec, open_device};
use dfastllm_models::ops::{RowParams, score_rows, select_rows};
use dfastllm_models::{
    KvPool, PAGE_SIZE, RaggedRows, SpecialTokens, builtin_files, load, unobserved,
};

fn main() -> Result<(), Box<dyn Error>> {
    let providers: Vec<Box<dyn DeviceProvider>> = vec![Box::new(CpuProvider)];
    let device = open_device(DeviceSpec::Auto, &providers)?;
    let files = builtin_files("tiny-phi").ok_or("a built-in model")?;
    let loaded = load(&files, &device, DTypeChoice::Auto)?;

    let prompt = "<|user|>\nWhat is the capital of France?<|end|>\n<|assistant|>\nThe capital of";
    let tokens = loaded.tokenizer.encode(prompt, SpecialTokens::Include)?;
    let rows = RaggedRows::single(&tokens, loaded.model.attend())?;
    // Nothing is kept between passes, so the cache has no pages.
    let shape = loaded.model.shape().kv_shape(0, PAGE_SIZE);
    let mut cache = KvPool::new(shape, loaded.precision.kv, &device.device);
    let hidden = loaded.model.forward(&rows, &mut cache, &mut unobserved);
    let logits = loaded.model.logits(select_rows(hidden, &[tokens.len() - 1]));

    let params = RowParams { top_logprobs: 5, ..RowParams::greedy(0) };
    for (id, logprob) in &score_rows(logits, &[params])[0].top {
        let text = loaded.tokenizer.decode(&[*id], SpecialTokens::Include);
        println!("{:>6.2} %  {text:?}", 100.0 * logprob.exp());
    }
    Ok(())
}
