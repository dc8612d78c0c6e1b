//! `dfastllm devices`

use clap::Args;
use dfastllm_backends::{DeviceInfo, DeviceProvider, list_devices};
use serde_json::json;

use super::{Failure, print};

/// Flags of the list.
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// One JSON object a line
    #[arg(long, env = "DFASTLLM_JSON")]
    json: bool,
}

pub(crate) fn run(
    args: &DevicesArgs,
    providers: &[Box<dyn DeviceProvider>],
) -> Result<(), Failure> {
    let devices = list_devices(providers);
    let lines: Vec<String> = match args.json {
        true => devices.iter().map(json_line).collect(),
        false => {
            let built: Vec<_> = providers.iter().flat_map(|p| p.features()).collect();
            let head = format!("{:<12} {:>10}  {:<16} name", "device", "memory", "dtypes");
            let mut lines = vec![head];
            lines.extend(devices.iter().map(table_line));
            lines.push(format!("built with: {}", built.join(", ")));
            lines
        }
    };
    print(&(lines.join("\n") + "\n"))
}

fn table_line(info: &DeviceInfo) -> String {
    let memory = match info.total_memory_bytes {
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        None => "?".to_owned(),
    };
    let spec = info.spec.to_string();
    format!("{spec:<12} {memory:>10}  {:<16} {}", info.dtype_names(), info.name)
}

fn json_line(info: &DeviceInfo) -> String {
    let dtypes: Vec<String> = info.dtypes.iter().map(|d| format!("{d:?}").to_lowercase()).collect();
    json!({
        "device": info.spec.to_string(),
        "name": info.name,
        "total_memory_bytes": info.total_memory_bytes,
        "free_memory_bytes": info.free_memory_bytes,
        "dtypes": dtypes,
    })
    .to_string()
}
