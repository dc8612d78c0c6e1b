//! The parity checkpoints and the devices suites run on.

use std::path::PathBuf;
use std::sync::OnceLock;

use dfastllm_backends::{
    CpuProvider, DTypeChoice, DeviceProvider, DeviceSpec, KernelChoice, KernelOptions, OpenDevice,
    WeightChoice, configure_kernels, open_device,
};
use dfastllm_models::{LoadedModel, ModelFiles, builtin_files, load};
use serde_json::Value;

/// A path below `tests/fixtures`, or below `DFASTLLM_TEST_FIXTURES` for suites that were carried to
/// another machine.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    std::env::var_os("DFASTLLM_TEST_FIXTURES").map_or_else(here, PathBuf::from).join(name)
}

/// The built-in models' tasks, in order of their files.
#[must_use]
pub fn tasks() -> Vec<Value> {
    let mut files: Vec<_> =
        std::fs::read_dir(path("eval")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let lines = files.iter().flat_map(|file| {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    lines.collect()
}

/// The CPU device.
#[must_use]
pub fn cpu() -> OpenDevice {
    CpuProvider.open(DeviceSpec::Cpu).unwrap().unwrap()
}

/// The kernels that `DFASTLLM_TEST_KERNELS` chooses: where they can be measured, that takes minutes for the
/// suites' many shapes.
#[must_use]
pub fn kernels() -> KernelOptions {
    let choice =
        std::env::var("DFASTLLM_TEST_KERNELS").map_or(Ok(KernelChoice::Tuned), |text| text.parse());
    KernelOptions { choice: choice.unwrap_or_else(|e| panic!("{e}")), ..KernelOptions::default() }
}

/// The device that golden records are compared on: what `DFASTLLM_TEST_DEVICE` names, or the CPU.
#[must_use]
pub fn device() -> OpenDevice {
    static OPEN: OnceLock<OpenDevice> = OnceLock::new();
    let open = OPEN.get_or_init(|| {
        let Ok(name) = std::env::var("DFASTLLM_TEST_DEVICE") else { return cpu() };
        let providers: Vec<Box<dyn DeviceProvider>> = vec![
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            Box::new(dfastllm_cube::CubeProvider),
            Box::new(CpuProvider),
        ];
        configure_kernels(kernels());
        let open = name.parse().and_then(|spec| open_device(spec, &providers));
        open.unwrap_or_else(|e| panic!("{e}"))
    });
    open.clone()
}

/// A checkpoint the golden records belong to (`phi`, `llada`, `dream`), in f32.
#[must_use]
pub fn parity(family: &str) -> LoadedModel {
    let files = ModelFiles::Folder(path(&format!("parity-{family}")));
    load(&files, &device(), DTypeChoice::F32).unwrap_or_else(|e| panic!("{e}"))
}

/// A built-in model (`tiny-phi`, …), in f32.
#[must_use]
pub fn builtin(name: &str) -> LoadedModel {
    builtin_as(name, DTypeChoice::F32.into())
}

/// A built-in model with its weights as chosen.
#[must_use]
pub fn builtin_as(name: &str, weights: WeightChoice) -> LoadedModel {
    let files = builtin_files(name).unwrap();
    load(&files, &device(), weights).unwrap_or_else(|e| panic!("{e}"))
}

/// As the models' makers score: the whole text, or all needed words in a finished sentence.
#[must_use]
pub fn is_right(task: &Value, answer: &str) -> bool {
    let answer = answer.trim();
    match task["match"].as_str().unwrap() {
        "exact" => answer == task["expected"].as_str().unwrap().trim(),
        "contains" => {
            let needs = task["needs"].as_array().unwrap();
            needs.iter().all(|n| answer.contains(n.as_str().unwrap()))
                && answer.ends_with(['.', '"'])
        }
        other => panic!("{other}"),
    }
}
