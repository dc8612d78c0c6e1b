//! GPU devices through CubeCL: CUDA, Vulkan, Metal and WebGPU.
//!
//! [`CubeProvider`] is all there is to name: it lists and opens the devices of the cargo features
//! it was built with. Without a feature it knows none and this package compiles no GPU code.
//! Its kernels compute what `dfastllm_backends::ops` asks for; nobody else calls them.

#[cfg(feature = "cube")]
mod hardware;
#[cfg(feature = "cube")]
mod kernels;
#[cfg(feature = "cube")]
mod monitor;
mod provider;
#[cfg(feature = "cube")]
mod runtime;

pub use provider::CubeProvider;
