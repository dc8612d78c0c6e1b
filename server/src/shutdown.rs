//! Stopping on a signal.

use tokio::signal;

/// Resolves at the first SIGTERM or Ctrl-C. A second one ends the process at once.
pub(crate) async fn requested() {
    signal_received().await;
    tracing::info!("draining: running requests finish, new ones are refused");
    tokio::spawn(async {
        signal_received().await;
        tracing::warn!("second signal: stopping at once");
        std::process::exit(130);
    });
}

async fn signal_received() {
    let interrupt = async {
        if let Err(error) = signal::ctrl_c().await {
            tracing::error!(%error, "cannot listen for Ctrl-C");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match signal::unix::signal(signal::unix::SignalKind::terminate()) {
            Ok(mut stream) => {
                stream.recv().await;
            }
            Err(error) => {
                tracing::error!(%error, "cannot listen for SIGTERM");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
