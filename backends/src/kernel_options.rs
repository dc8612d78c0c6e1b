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
    /// Passes that stay alike are recorded once and replayed: devices that take a recording as one
    /// launch gain by it.
    pub graphs: Switch,
    /// The attention of long spans of f16 and bf16 is computed as matrix products of f16: devices with
    /// tensor cores gain by it. Queries, keys and values are rounded to f16 and held at the ends of its
    /// range, ±65504; keys whose scaled scores are below -60000 count as hidden.
    pub flash: Switch,
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

/// Where something is done that not every device gains by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Switch {
    /// Where the device gains by it.
    #[default]
    Auto,
    /// Wherever it is possible.
    On,
    /// Nowhere.
    Off,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl FromStr for Switch {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(DeviceError::UnknownSwitch { found: text.chars().take(64).collect() }),
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
    fn switches_are_read_as_they_are_written() {
        for switch in [Switch::Auto, Switch::On, Switch::Off] {
            assert_eq!(switch.to_string().parse::<Switch>().unwrap(), switch);
        }
        let error = "yes".parse::<Switch>().unwrap_err().to_string();
        assert_eq!(error, "unknown choice 'yes': expected auto, on or off");
    }
}
