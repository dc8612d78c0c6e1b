//! What CubeCL's runtime has to be told before it does anything.

use cubecl_environment::stream::{StreamPolicy, set_policy};
use dfastllm_backends::kernel_options;

/// To be called before the first look at a device; more often does no harm.
pub(crate) fn configure() {
    // Weights are loaded on one thread and used on another: with a stream each they would wait for each
    // other's events.
    set_policy(StreamPolicy::Single);
    #[cfg(feature = "autotune")]
    if kernel_options().cache.is_some() {
        use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = true;
        // Set already, by an earlier call or by whoever embeds this.
        let _ = CubeClRuntimeConfig::try_set(config);
    }
}

/// Has compiled kernels and measurements read from and kept in the file of the options, if they name
/// one.
///
/// # Errors
/// Why they cannot be kept there.
pub(crate) fn keep_kernels() -> Result<(), String> {
    let Some(file) = &kernel_options().cache else { return Ok(()) };
    if !cfg!(feature = "autotune") {
        let file = file.display();
        return Err(format!("no kernels are kept in {file}: this build is without `autotune`"));
    }
    // What CubeCL cannot write it keeps in memory without a word.
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .map_err(|e| format!("no kernels can be kept in {}: {e}", file.display()))?;
    // The runtime selects the file of its own configuration when that is set: before, not after.
    configure();
    cubecl_environment::environment::load(file);
    Ok(())
}
