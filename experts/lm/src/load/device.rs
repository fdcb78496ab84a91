//! From the `device` setting to a device of candle.
//!
//! The features `cuda` and `metal` only pass on to candle, so what a build can open is known when it is
//! compiled; asking for more is answered with the feature to build with instead of candle's own error.

use super::DeviceSpec;
use crate::{LmError, Result};
use candle_core::Device;
use std::fmt;
use std::str::FromStr;

const ALLOWED: &str = "use auto, cpu, cuda:N (N is the device's index) or metal";

impl FromStr for DeviceSpec {
    type Err = LmError;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || LmError::Invalid {
            field: "device",
            value: format!("{text:?}"),
            fix: ALLOWED.to_owned(),
        };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(invalid)?;
                index.parse().map(Self::Cuda).map_err(|_| invalid())
            }
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceSpec {
    /// Opens the device. `auto` takes the first of CUDA, Metal and CPU that this build and machine have.
    ///
    /// # Errors
    /// [`LmError::Invalid`] if the build lacks the feature or the machine the device.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) if cfg!(feature = "cuda") => {
                Device::new_cuda(index).map_err(|e| self.refused(&format!("it cannot be opened ({e})")))
            }
            Self::Metal if cfg!(feature = "metal") => {
                Device::new_metal(0).map_err(|e| self.refused(&format!("it cannot be opened ({e})")))
            }
            Self::Cuda(_) => Err(self.refused("this build has no CUDA; build with --features cuda")),
            Self::Metal => Err(self.refused("this build has no Metal; build with --features metal")),
            Self::Auto => Ok([Self::Cuda(0), Self::Metal]
                .into_iter()
                .find_map(|spec| spec.open().ok())
                .unwrap_or(Device::Cpu)),
        }
    }

    fn refused(self, why: &str) -> LmError {
        LmError::Invalid {
            field: "device",
            value: self.to_string(),
            fix: format!("{why}, or use cpu"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_reads_back_as_written() {
        for spec in [
            DeviceSpec::Auto,
            DeviceSpec::Cpu,
            DeviceSpec::Cuda(3),
            DeviceSpec::Metal,
        ] {
            assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
        }
    }

    #[test]
    fn unknown_devices_are_named_with_the_fix() {
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let message = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(
                message.contains(&format!("{text:?}")) && message.contains("cuda:N"),
                "{message}"
            );
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_compiled_in_names_the_feature() {
        let message = DeviceSpec::Cuda(0).open().unwrap_err().to_string();
        assert!(message.contains("--features cuda"), "{message}");
        assert!(DeviceSpec::Auto.open().is_ok());
    }
}
