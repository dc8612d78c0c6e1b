//! Every operation of `dfastllm_backends::ops` on the device named by `DFASTLLM_TEST_DEVICE`
//! (`vulkan:0`, `cuda:0`, …) against flex on the CPU, in every float type the device computes in.
//!
//! Without the variable each test passes and says that it was not run. `scripts/vulkan-parity`
//! runs the suite on a software Vulkan device, `scripts/gpu-check` on an NVIDIA card.

#![expect(clippy::unwrap_used, reason = "what fails in a test's preparation fails the test")]

mod attention;
mod lane;
mod linear;
mod long_spans;
mod rows;
mod score;
