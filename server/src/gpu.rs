//! What a GPU says of itself, for `/health` and `/metrics`.

use dfastllm_backends::DeviceLoad;
use prometheus::GaugeVec;
use serde::Serialize;
use utoipa::ToSchema;

use crate::ServedModel;
use crate::metrics::Maker;

/// Memory of the device, whoever uses it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub(crate) struct GpuMemory {
    /// MiB in use.
    used_mb: f64,
    /// MiB in all.
    total_mb: f64,
    /// Used share, 0 to 1.
    utilization: f64,
}

impl GpuMemory {
    pub(crate) fn of(model: &ServedModel) -> Option<Self> {
        let (used, total) = load(model).memory?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let utilization = used as f64 / total.max(1) as f64;
        Some(Self { used_mb: mib(used), total_mb: mib(total), utilization })
    }
}

fn load(model: &ServedModel) -> DeviceLoad {
    model.device.monitor.as_ref().map(|monitor| monitor.load()).unwrap_or_default()
}

/// Series of a device that tells: none of them is there without one.
#[derive(Debug)]
pub(crate) struct GpuSeries {
    used: GaugeVec,
    total: GaugeVec,
    busy: GaugeVec,
}

impl GpuSeries {
    pub(crate) fn new(make: &Maker) -> Self {
        let gauge = |name, help| make.register(GaugeVec::new(make.opts(name, help), &[]));
        Self {
            used: gauge("vdiff_gpu_memory_used_bytes", "Memory of the GPU in use by any program"),
            total: gauge("vdiff_gpu_memory_total_bytes", "Memory of the GPU"),
            busy: gauge("vdiff_gpu_utilization", "Share of the time the GPU was busy, 0 to 1"),
        }
    }

    pub(crate) fn update(&self, model: &ServedModel) {
        let load = load(model);
        let memory = load.memory.map(|(used, total)| (used as f64, total as f64));
        for (series, value) in [
            (&self.used, memory.map(|(used, _)| used)),
            (&self.total, memory.map(|(_, total)| total)),
            (&self.busy, load.busy),
        ] {
            if let Some(value) = value {
                series.with_label_values::<&str>(&[]).set(value);
            }
        }
    }
}
