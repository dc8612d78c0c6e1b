//! What a user chooses about kernels that are compiled and measured at run time.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::DeviceError;

/// How a GPU's kernels are chosen and kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// Where there is a choice.
    pub choice: KernelChoice,
    /// The file that compiled kernels and measurements are read from and kept in.
    pub cache: Option<PathBuf>,
    /// Which devices replay recorded passes.
    pub graphs: GraphChoice,
    /// Which devices compute the attention of long spans as matrix products.
    pub flash: FlashChoice,
}

/// Which of several kernels for one product runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The fastest of those measured on this device, in a build that measures.
    #[default]
    Tuned,
    /// Always the same, so that two runs round alike.
    Pinned,
}

/// Where passes that stay alike are recorded once and replayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GraphChoice {
    /// Where the device takes a recording as one launch.
    #[default]
    Auto,
    /// Wherever launches can be recorded.
    On,
    /// Nowhere.
    Off,
}

/// Where the attention of long spans of f16 and bf16 is computed as matrix products of f16: keys and
/// values beyond its range, ±65504, are held at its ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FlashChoice {
    /// Where the device has tensor cores for them.
    #[default]
    Auto,
    /// Wherever they can be computed, which is slow without tensor cores.
    On,
    /// Nowhere.
    Off,
}

impl fmt::Display for FlashChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl FromStr for FlashChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(DeviceError::UnknownFlash { found: text.chars().take(64).collect() }),
        }
    }
}

impl fmt::Display for GraphChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl FromStr for GraphChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(DeviceError::UnknownGraphs { found: text.chars().take(64).collect() }),
        }
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tuned => "tuned",
            Self::Pinned => "pinned",
        })
    }
}

impl FromStr for KernelChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "tuned" => Ok(Self::Tuned),
            "pinned" => Ok(Self::Pinned),
            _ => Err(DeviceError::UnknownKernels { found: text.chars().take(64).collect() }),
        }
    }
}

static OPTIONS: OnceLock<KernelOptions> = OnceLock::new();

/// Sets the options of this process. To be called before a device opens; the first call counts.
pub fn configure_kernels(options: KernelOptions) {
    let _ = OPTIONS.set(options);
}

/// The options of this process.
#[must_use]
pub fn kernel_options() -> &'static KernelOptions {
    OPTIONS.get_or_init(KernelOptions::default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [KernelChoice::Tuned, KernelChoice::Pinned] {
            assert_eq!(choice.to_string().parse::<KernelChoice>().unwrap(), choice);
        }
        let error = "fast".parse::<KernelChoice>().unwrap_err().to_string();
        assert_eq!(error, "unknown choice of kernels 'fast': expected tuned or pinned");
    }

    #[test]
    fn graphs_are_read_as_they_are_written() {
        for choice in [GraphChoice::Auto, GraphChoice::On, GraphChoice::Off] {
            assert_eq!(choice.to_string().parse::<GraphChoice>().unwrap(), choice);
        }
        let error = "yes".parse::<GraphChoice>().unwrap_err().to_string();
        assert_eq!(error, "unknown choice of graphs 'yes': expected auto, on or off");
    }

    #[test]
    fn flash_is_read_as_it_is_written() {
        for choice in [FlashChoice::Auto, FlashChoice::On, FlashChoice::Off] {
            assert_eq!(choice.to_string().parse::<FlashChoice>().unwrap(), choice);
        }
        let error = "yes".parse::<FlashChoice>().unwrap_err().to_string();
        assert_eq!(error, "unknown choice of flash attention 'yes': expected auto, on or off");
    }
}
