//! What a device says of itself while it works reaches `/health` and `/metrics`.
#![allow(clippy::unwrap_used, reason = "a suite that meets something unforeseen has failed")]

use std::sync::Arc;

use dfastllm_backends::{
    CpuProvider, DeviceError, DeviceInfo, DeviceLoad, DeviceMonitor, DeviceProvider, DeviceSpec,
    OpenDevice,
};
use dfastllm_server::{AppState, ServedModel};
use dfastllm_tests::http::{listen, options};
use serde_json::{Value, json};

/// What a test says.
#[derive(Debug)]
struct Told(DeviceLoad);

impl DeviceMonitor for Told {
    fn load(&self) -> DeviceLoad {
        self.0
    }
}

/// The CPU, watched.
struct Watched(DeviceLoad);

impl DeviceProvider for Watched {
    fn features(&self) -> Vec<&'static str> {
        CpuProvider.features()
    }

    fn list(&self) -> Vec<DeviceInfo> {
        CpuProvider.list()
    }

    fn open(&self, spec: DeviceSpec) -> Option<Result<OpenDevice, DeviceError>> {
        let monitor: Arc<dyn DeviceMonitor> = Arc::new(Told(self.0));
        let open = CpuProvider.open(spec)?;
        Some(open.map(|device| OpenDevice { monitor: Some(monitor), ..device }))
    }
}

/// `/health`, and the lines of `/metrics` about the GPU.
async fn seen(load: DeviceLoad) -> (Value, Vec<String>) {
    let providers: Vec<Box<dyn DeviceProvider>> = vec![Box::new(Watched(load))];
    let (served, _engine) = ServedModel::start(&options("tiny-phi"), &providers).unwrap();
    let state = AppState::new("tiny-phi", vec![]);
    state.set_model(served);
    let (url, task) = listen(state).await;
    let get = async |path: &str| {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client.get(format!("{url}{path}")).send().await.unwrap().text().await.unwrap()
    };
    let health: Value = serde_json::from_str(&get("/health").await).unwrap();
    let metrics = get("/metrics").await;
    task.abort();
    let of_gpu = metrics.lines().filter(|line| line.starts_with("vdiff_gpu"));
    (health, of_gpu.map(str::to_owned).collect())
}

#[tokio::test]
async fn memory_and_time_of_a_device_are_told() {
    let load = DeviceLoad { memory: Some((2 << 30, 8 << 30)), busy: Some(0.5) };
    let (health, metrics) = seen(load).await;
    let memory = json!({"used_mb": 2048.0, "total_mb": 8192.0, "utilization": 0.25});
    assert_eq!(health["gpu_memory"], memory);
    assert_eq!(
        metrics,
        [
            r#"vdiff_gpu_memory_total_bytes{model_name="tiny-phi"} 8589934592"#,
            r#"vdiff_gpu_memory_used_bytes{model_name="tiny-phi"} 2147483648"#,
            r#"vdiff_gpu_utilization{model_name="tiny-phi"} 0.5"#,
        ]
    );
}

#[tokio::test]
async fn what_a_device_does_not_tell_is_left_out() {
    let (health, metrics) = seen(DeviceLoad::default()).await;
    assert_eq!((health.get("gpu_memory"), metrics), (None, vec![]));
}
