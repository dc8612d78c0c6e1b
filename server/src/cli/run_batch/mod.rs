//! `dfastllm run-batch`

mod files;
mod line;

use std::io::{self, Write};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use clap::Args;
use dfastllm_backends::DeviceProvider;
use futures_util::{Stream, StreamExt, stream};
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tower::ServiceExt;

use self::files::{InputLine, InputLines};
use self::line::{BadLine, Request};
use super::Failure;
use super::flags::{LONG, ModelArgs, Seats};
use super::synth::bar;
use crate::app::REQUEST_ID;
use crate::{ApiError, AppState, ServedModel, app};

/// Answers that the engine may hold for us; a request waits until its own fit.
const PLACES: u32 = 1024;
/// Largest answer that is kept.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Flags of a batch.
#[derive(Debug, Args)]
pub(crate) struct RunBatchArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// File of requests, one JSON object a line; - is stdin
    #[arg(long, short, env = "DFASTLLM_INPUT")]
    input: String,

    /// File of answers, in the order of the requests; - is stdout
    #[arg(long, short, env = "DFASTLLM_OUTPUT")]
    output: String,

    /// Name that requests use; repeat for more [default: --model]
    #[arg(long, env = "DFASTLLM_SERVED_MODEL_NAME", value_delimiter = ',')]
    served_model_name: Vec<String>,

    /// Requests decoded at the same time
    #[arg(long, env = "DFASTLLM_MAX_NUM_SEQS", default_value_t = 16)]
    max_num_seqs: usize,
}

pub(crate) fn run(
    args: RunBatchArgs,
    providers: &[Box<dyn DeviceProvider>],
) -> Result<(), Failure> {
    // Before loading, so that a wrong name is found out at once.
    let (input, bytes) = files::open(&args.input)?;
    let names = match args.served_model_name.is_empty() {
        true => vec![args.model.model.clone()],
        false => args.served_model_name.clone(),
    };
    let options = args.model.options(Seats {
        names,
        max_num_seqs: args.max_num_seqs,
        max_queue: PLACES as usize,
        request_timeout: LONG,
        stall_timeout: LONG,
        warm_up: true,
    })?;
    let template = args.model.template(&options.files)?;
    files::check(&args.output, &args.input)?;
    let (served, engine) = ServedModel::start(&options, providers).map_err(Failure::failed)?;
    let mut output = files::create(&args.output)?;
    let state = AppState::new(served.name(), Vec::new());
    state.set_model(served.with_chat_template(template));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the async runtime: {e}")))?;
    let bar = bytes.map_or_else(ProgressBar::hidden, bar);
    let batch = Batch { app: app(state), places: Semaphore::new(PLACES as usize) };
    // Enough in flight that a seat never waits for the file.
    let in_flight = args.max_num_seqs.saturating_mul(2);
    let counts = runtime.block_on(async {
        let answers =
            read(InputLines::new(input))?.map(|line| batch.answer(line)).buffered(in_flight);
        write(answers, &mut output, (&args.output, &bar)).await
    })?;
    bar.finish_and_clear();
    drop(batch);
    engine.shut_down();
    let Counts { answered, refused, bad } = counts;
    let all = answered + refused + bad;
    tracing::info!("{all} lines: {answered} answered, {refused} refused, {bad} bad");
    Ok(())
}

/// Lines from a thread: reading waits, and answering must not wait with it.
fn read<R: io::BufRead + Send + 'static>(
    lines: InputLines<R>,
) -> Result<impl Stream<Item = io::Result<InputLine>>, Failure> {
    let (send, receive) = mpsc::channel(1);
    let read = move || {
        for line in lines {
            let failed = line.is_err();
            if send.blocking_send(line).is_err() || failed {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .spawn(read)
        .map_err(|e| Failure::failed(format!("cannot start a thread: {e}")))?;
    Ok(stream::unfold(receive, |mut lines| async { Some((lines.recv().await?, lines)) }))
}

/// What became of the lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    answered: u64,
    refused: u64,
    bad: u64,
}

/// A line's answer, and where in the input it ends.
struct Answered {
    line: Value,
    end: u64,
}

/// Writes answers as they come, each at once: what is there stays there when the program is ended.
async fn write(
    answers: impl Stream<Item = io::Result<Answered>>,
    output: &mut (dyn Write + Send),
    (name, bar): (&str, &ProgressBar),
) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let mut answers = std::pin::pin!(answers);
    while let Some(answered) = answers.next().await {
        let Answered { line, end } =
            answered.map_err(|e| Failure::failed(format!("cannot read the requests: {e}")))?;
        match line["response"]["status_code"].as_u64() {
            Some(200) => counts.answered += 1,
            Some(_) => counts.refused += 1,
            None => counts.bad += 1,
        }
        let written = writeln!(output, "{line}").and_then(|()| output.flush());
        match written {
            // Nobody reads any more, which is the reader's choice.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
            other => other.map_err(|e| Failure::failed(format!("{name}: {e}")))?,
        }
        bar.set_position(end);
    }
    Ok(counts)
}

/// The server, without a network.
struct Batch {
    app: Router,
    places: Semaphore,
}

impl Batch {
    async fn answer(&self, line: io::Result<InputLine>) -> io::Result<Answered> {
        let InputLine { number, bytes, end } = line?;
        let bytes = bytes.map_err(|long| BadLine::new("line_too_long", long.message()));
        let line = match bytes.and_then(|bytes| Request::parse(&bytes)) {
            Ok(request) => self.send(request).await,
            Err(bad) => line::refused(number, &bad),
        };
        Ok(Answered { line, end })
    }

    /// Asks the handlers that HTTP asks, once there is a place for every choice.
    async fn send(&self, request: Request) -> Value {
        let places = u32::try_from(request.choices()).unwrap_or(PLACES).min(PLACES);
        let _places = self.places.acquire_many(places).await;
        let Request { custom_id, url, body } = request;
        let sent = axum::http::Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(Value::Object(body).to_string()));
        let (status, id, body) = match sent {
            Ok(sent) => self.ask(sent).await,
            Err(e) => internal(&e.to_string()),
        };
        line::answered(&custom_id, status, &id, &body)
    }

    async fn ask(&self, sent: axum::http::Request<Body>) -> (StatusCode, String, Value) {
        let response = match self.app.clone().oneshot(sent).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (parts, body) = response.into_parts();
        let id = parts.headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
        let body = match axum::body::to_bytes(body, MAX_ANSWER_BYTES).await {
            Ok(body) => serde_json::from_slice(&body).map_err(|e| e.to_string()),
            Err(_) => Err(format!("the answer is longer than {MAX_ANSWER_BYTES} bytes")),
        };
        match body {
            Ok(body) => (parts.status, id.to_owned(), body),
            Err(message) => internal(&message),
        }
    }
}

/// An answer of ours instead of one that could not be had.
fn internal(message: &str) -> (StatusCode, String, Value) {
    let message = message.to_owned();
    let error = ApiError::Internal { code: "internal_error", message };
    (StatusCode::INTERNAL_SERVER_ERROR, String::new(), error.body())
}
