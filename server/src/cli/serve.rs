//! `dfastllm serve`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dfastllm_backends::DeviceProvider;
use dfastllm_engine::Engine;
use tokio::net::TcpListener;

use super::Failure;
use super::access::AccessArgs;
use super::flags::{ModelArgs, Seats};
use crate::{
    AppState, Connections, ServeOptions, ServedModel, app, bind, serve_connections, shutdown,
};

/// Flags of the server.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Name clients use; repeat for more, the first is the name in answers [default: --model]
    #[arg(long, env = "DFASTLLM_SERVED_MODEL_NAME", value_delimiter = ',')]
    served_model_name: Vec<String>,

    /// Address to listen on
    #[arg(long, env = "DFASTLLM_HOST", default_value = "127.0.0.1")]
    host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "DFASTLLM_PORT", default_value_t = 8000)]
    port: u16,

    /// Requests decoded at the same time
    #[arg(long, env = "DFASTLLM_MAX_NUM_SEQS", default_value_t = 16)]
    max_num_seqs: usize,

    /// Requests that may wait; more are answered 429
    #[arg(long, env = "DFASTLLM_MAX_QUEUE", default_value_t = 256)]
    max_queue: usize,

    /// Seconds a request has from its arrival
    #[arg(long, env = "DFASTLLM_REQUEST_TIMEOUT", default_value_t = 300)]
    request_timeout: u64,

    /// Seconds without a sign of life of a working engine after which it is unhealthy
    #[arg(long, env = "DFASTLLM_STALL_TIMEOUT", default_value_t = 60)]
    stall_timeout: u64,

    /// A key clients must send; repeat for more
    #[arg(long, env = "DFASTLLM_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,

    /// File with one key a line; lines with # are comments
    #[arg(long, env = "DFASTLLM_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,

    #[command(flatten)]
    access: AccessArgs,
}

pub(crate) fn run(args: ServeArgs, providers: &[Box<dyn DeviceProvider>]) -> Result<(), Failure> {
    for (flag, found) in
        [("--request-timeout", args.request_timeout), ("--stall-timeout", args.stall_timeout)]
    {
        if !(1..=86_400).contains(&found) {
            return Err(Failure::usage(format!("{flag} is {found}, expected 1 to 86400")));
        }
    }
    let names = match args.served_model_name.is_empty() {
        true => vec![args.model.model.clone()],
        false => args.served_model_name.clone(),
    };
    // Before anything is fetched or loaded.
    let connections = args.access.connections()?;
    let access = args.access.access(api_keys(&args)?);
    let options = args.model.options(Seats {
        names,
        max_num_seqs: args.max_num_seqs,
        max_queue: args.max_queue,
        request_timeout: Duration::from_secs(args.request_timeout),
        stall_timeout: Duration::from_secs(args.stall_timeout),
        warm_up: true,
    })?;
    let template = args.model.template(&options.files)?;
    print_configuration(&args, &options, access.api_keys.len());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the async runtime: {e}")))?;
    runtime.block_on(async {
        // Before loading, so that a port in use is found out at once.
        let listener = bind(&args.host, args.port).await.map_err(|e| {
            Failure::failed(format!("cannot listen on {}:{}: {e}", args.host, args.port))
        })?;
        // Told here: a task of its own might get to it after all that follows.
        let scheme = if connections.tls.is_some() { "https" } else { "http" };
        let address = listener.local_addr().map_err(|e| Failure::failed(e.to_string()))?;
        tracing::info!("listening on {scheme}://{address}");
        let name = options.names.first().map_or("", String::as_str);
        let state = AppState::with_access(name, access);
        let server = tokio::spawn(listen(listener, state.clone(), connections));
        let (served, engine) =
            tokio::task::block_in_place(|| ServedModel::start(&options, providers))
                .map_err(Failure::failed)?;
        state.set_model(served.with_chat_template(template));
        log_ready(&state);
        let outcome = server.await;
        finish(state, engine).await;
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Failure::failed(format!("the server stopped: {e}"))),
            Err(e) => Err(Failure::failed(format!("the server stopped: {e}"))),
        }
    })
}

fn log_ready(state: &AppState) {
    let Some(served) = state.model() else { return };
    tracing::info!(
        model = served.name(),
        family = served.family,
        device = %served.device.spec,
        hardware = served.device.info.name,
        dtype = served.dtype,
        max_model_len = served.limits.max_model_len,
        "ready"
    );
}

/// Serves until a signal, then lets running requests finish.
async fn listen(
    listener: TcpListener,
    state: AppState,
    connections: Connections,
) -> std::io::Result<()> {
    let (draining, drained) = tokio::sync::oneshot::channel();
    let router = app(state.clone());
    let server = serve_connections(listener, router, connections, async move {
        shutdown::requested().await;
        let limit = state.model().map(|model| {
            model.engine.drain();
            model.request_timeout
        });
        // Nobody listens if the server has ended meanwhile.
        let _ = draining.send(limit.unwrap_or_default());
    });
    // A connection that neither speaks nor closes must not keep the process: every request is over
    // within its time.
    let overdue = async {
        match drained.await {
            Ok(limit) => tokio::time::sleep(limit).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = server => Ok(()),
        () = overdue => Ok(()),
    }
}

/// Stops the engine thread; waiting for it must not block the runtime's own threads.
async fn finish(state: AppState, engine: Engine) {
    drop(state);
    if tokio::task::spawn_blocking(|| engine.shut_down()).await.is_err() {
        tracing::error!("the engine did not stop cleanly");
    }
    tracing::info!("stopped");
}

fn api_keys(args: &ServeArgs) -> Result<Vec<String>, Failure> {
    let mut keys = args.api_key.clone();
    keys.extend(std::env::var("VDIFF_API_KEY"));
    if let Some(path) = &args.api_key_file {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    keys.retain(|key| !key.is_empty());
    Ok(keys)
}

/// The resolved configuration, without keys.
fn print_configuration(args: &ServeArgs, options: &ServeOptions, keys: usize) {
    tracing::info!(
        model = args.model.model,
        names = ?options.names,
        host = args.host,
        port = args.port,
        device = %options.device,
        dtype = %options.weights.dtype,
        quantize = %options.weights.quantize,
        kernels = %args.model.kernels,
        kernel_cache = ?args.model.kernel_cache,
        graphs = %args.model.graphs,
        flash = %args.model.flash,
        preset = %options.preset,
        max_num_seqs = options.max_num_seqs,
        max_num_batched_tokens = options.max_num_batched_tokens,
        max_queue = options.max_queue,
        speculative_tokens = options.speculative_tokens,
        request_timeout_seconds = args.request_timeout,
        stall_timeout_seconds = args.stall_timeout,
        api_keys = keys,
        "configuration"
    );
    args.access.print();
}
