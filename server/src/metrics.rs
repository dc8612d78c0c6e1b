//! Prometheus metrics: `vdiff_*` for those who move, `vllm:*` for autoscalers and gateways.

use std::time::Duration;

use dfastllm_engine::{FinishReason, Usage};
use dfastllm_models::PAGE_SIZE;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry,
    TextEncoder,
};

use crate::ServedModel;
use crate::gpu::GpuSeries;

const TTFT_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_BUCKETS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const LATENCY_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// A 1-2-5 series up to the longest context served.
const LENGTH_BUCKETS: [f64; 17] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0, 200_000.0,
];

const PARALLEL_BUCKETS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// How a request ended, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished(FinishReason),
    Failed,
    /// The client went away.
    Aborted,
}

/// The times of one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) total: Duration,
    pub(crate) first_token: Option<Duration>,
}

/// All series of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounter,
    succeeded: [IntCounter; 2],
    failed: IntCounter,
    prompt_tokens: [IntCounter; 2],
    generated_tokens: [IntCounter; 3],
    parallel_tokens: IntCounter,
    finished: IntCounterVec,
    latency: [Histogram; 2],
    first_token: [Histogram; 2],
    per_token: [Histogram; 2],
    parallel: Histogram,
    /// Tokens of prompts and of answers.
    lengths: [Histogram; 2],
    engine: EngineSeries,
    gpu: GpuSeries,
    infos: Infos,
}

/// Series that are 1 and speak through their labels.
#[derive(Debug)]
struct Infos {
    model: GaugeVec,
    cache: GaugeVec,
}

/// Series read from the engine at every scrape.
#[derive(Debug)]
struct EngineSeries {
    running: [Gauge; 3],
    waiting: [Gauge; 2],
    kv_usage: Gauge,
    denoising_steps: IntCounter,
    canvas_positions: IntCounter,
    committed: IntCounter,
    corrupted: IntCounter,
    preemptions: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: [IntCounter; 2],
    prefix_hit_rate: Gauge,
    drafts: IntCounter,
    draft_tokens: IntCounter,
    accepted_tokens: IntCounter,
}

/// Makes and registers series with the label `model_name`.
pub(crate) struct Maker {
    registry: Registry,
    model: String,
}

impl Maker {
    pub(crate) fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_label("model_name", &self.model)
    }

    pub(crate) fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> C {
        #[expect(clippy::expect_used, reason = "names are constants, and a test scrapes them all")]
        let collector = made.expect("a valid metric name");
        if let Err(error) = self.registry.register(Box::new(collector.clone())) {
            tracing::error!(%error, "a metric is registered twice");
        }
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts(name, help)))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(self.opts(name, help)))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, help)
            .const_label("model_name", &self.model)
            .buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    fn histograms(&self, names: [&str; 2], help: &str, buckets: &[f64]) -> [Histogram; 2] {
        names.map(|name| self.histogram(name, help, buckets))
    }
}

impl Metrics {
    pub(crate) fn new(model_name: &str) -> Self {
        let make = Maker { registry: Registry::new(), model: model_name.to_owned() };
        Self {
            requests: make.counter("vdiff_requests_total", "Requests received"),
            succeeded: [
                make.counter("vdiff_requests_success_total", "Requests answered"),
                make.counter("vdiff_request_success_total", "Requests answered"),
            ],
            failed: make.counter("vdiff_request_failure_total", "Requests not answered"),
            prompt_tokens: [
                make.counter("vdiff_prompt_tokens_total", "Prompt tokens"),
                make.counter("vllm:prompt_tokens_total", "Prompt tokens"),
            ],
            generated_tokens: [
                make.counter("vdiff_tokens_generated_total", "Generated tokens"),
                make.counter("vdiff_generation_tokens_total", "Generated tokens"),
                make.counter("vllm:generation_tokens_total", "Generated tokens"),
            ],
            parallel_tokens: make.counter(
                "vdiff_parallel_tokens_decoded_total",
                "Generated tokens beyond one a forward pass",
            ),
            finished: make.register(IntCounterVec::new(
                make.opts("vllm:request_success_total", "Requests by the reason they ended"),
                &["finished_reason"],
            )),
            latency: make.histograms(
                ["vdiff_request_latency_seconds", "vllm:e2e_request_latency_seconds"],
                "Time from arrival to the end of the answer",
                &LATENCY_BUCKETS,
            ),
            first_token: make.histograms(
                ["vdiff_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"],
                "Time from arrival to the first settled token",
                &TTFT_BUCKETS,
            ),
            per_token: make.histograms(
                [
                    "vdiff_time_per_output_token_seconds",
                    "vllm:request_time_per_output_token_seconds",
                ],
                "Time from the first token to the end, per further token",
                &TOKEN_BUCKETS,
            ),
            parallel: make.histogram(
                "vdiff_parallel_batch_size",
                "Generated tokens a forward pass, by request",
                &PARALLEL_BUCKETS,
            ),
            lengths: make.histograms(
                ["vllm:request_prompt_tokens", "vllm:request_generation_tokens"],
                "Tokens of a request",
                &LENGTH_BUCKETS,
            ),
            engine: EngineSeries::new(&make),
            gpu: GpuSeries::new(&make),
            infos: Infos::new(&make),
            registry: make.registry,
        }
    }

    pub(crate) fn model_loaded(&self, model: &ServedModel) {
        self.infos.set(model);
    }

    /// A request arrived, with this many tokens.
    pub(crate) fn received(&self, prompt_tokens: usize) {
        self.requests.inc();
        self.prompt_tokens.iter().for_each(|c| c.inc_by(prompt_tokens as u64));
    }

    /// A request was refused before it reached the engine.
    pub(crate) fn refused(&self) {
        self.requests.inc();
        self.failed.inc();
    }

    /// A request ended.
    pub(crate) fn ended(&self, outcome: Outcome, usage: Usage, times: Times) {
        let tokens = usage.completion_tokens as u64;
        self.lengths[0].observe(usage.prompt_tokens as f64);
        self.lengths[1].observe(tokens as f64);
        self.generated_tokens.iter().for_each(|c| c.inc_by(tokens));
        if usage.forwards > 0 {
            self.parallel.observe(tokens as f64 / usage.forwards as f64);
        }
        self.parallel_tokens.inc_by(tokens.saturating_sub(usage.forwards as u64));
        let reason = match outcome {
            Outcome::Finished(FinishReason::Stop) => "stop",
            Outcome::Finished(FinishReason::Length) => "length",
            Outcome::Failed => "error",
            Outcome::Aborted => "abort",
        };
        self.finished.with_label_values(&[reason]).inc();
        match outcome {
            Outcome::Finished(_) => self.succeeded.iter().for_each(IntCounter::inc),
            Outcome::Failed | Outcome::Aborted => self.failed.inc(),
        }
        self.latency.iter().for_each(|h| h.observe(times.total.as_secs_f64()));
        if let Some(first) = times.first_token {
            self.first_token.iter().for_each(|h| h.observe(first.as_secs_f64()));
            if tokens > 1 {
                let each = (times.total - first).as_secs_f64() / (tokens - 1) as f64;
                self.per_token.iter().for_each(|h| h.observe(each));
            }
        }
    }

    /// The text format of all series.
    pub(crate) fn render(&self, model: Option<&ServedModel>) -> String {
        if let Some(model) = model {
            self.engine.update(model);
            self.gpu.update(model);
        }
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl Infos {
    fn new(make: &Maker) -> Self {
        Self {
            model: make.register(GaugeVec::new(
                make.opts("vdiff_model_info", "The model in service; always 1"),
                &["model_type", "device", "dtype"],
            )),
            cache: make.register(GaugeVec::new(
                make.opts("vllm:cache_config_info", "Pages of the key/value cache; always 1"),
                &["block_size", "num_gpu_blocks"],
            )),
        }
    }

    fn set(&self, model: &ServedModel) {
        let labels = [model.family, model.device.spec.kind(), model.dtype.as_str()];
        self.model.with_label_values(&labels).set(1.0);
        let pages = model.engine.config().kv_cache_tokens.div_ceil(PAGE_SIZE);
        let labels = [PAGE_SIZE.to_string(), pages.to_string()];
        self.cache.with_label_values(&labels).set(1.0);
    }
}

impl EngineSeries {
    fn new(make: &Maker) -> Self {
        let running = "Requests being decoded";
        let waiting = "Requests waiting for a seat";
        Self {
            running: [
                make.gauge("vdiff_active_requests", running),
                make.gauge("vdiff_num_requests_running", running),
                make.gauge("vllm:num_requests_running", running),
            ],
            waiting: [
                make.gauge("vdiff_num_requests_waiting", waiting),
                make.gauge("vllm:num_requests_waiting", waiting),
            ],
            kv_usage: make.gauge(
                "vllm:kv_cache_usage_perc",
                "Share of the key/value pages in use, 0 to 1; 0 for models that keep none",
            ),
            denoising_steps: make.counter(
                "vllm:diffusion_num_denoising_steps_total",
                "Forward passes of denoising requests, counted per request",
            ),
            canvas_positions: make.counter(
                "vllm:diffusion_num_canvas_positions_total",
                "Positions those passes read",
            ),
            committed: make.counter(
                "vllm:diffusion_num_committed_tokens_total",
                "Tokens those passes settled",
            ),
            corrupted: make
                .counter("vllm:corrupted_requests_total", "Requests that met NaN or infinity"),
            preemptions: make.counter(
                "vllm:num_preemptions_total",
                "Requests that gave their pages back and started again",
            ),
            prefix_queries: make
                .counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the cache"),
            prefix_hits: [
                make.counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the cache"),
                make.counter("vllm:prompt_tokens_cached_total", "Prompt tokens found in the cache"),
            ],
            prefix_hit_rate: make.gauge(
                "vdiff_kv_cache_hit_rate",
                "Share of prompt tokens found in the cache, 0 to 1",
            ),
            drafts: make
                .counter("vllm:spec_decode_num_drafts_total", "Passes that verified a draft"),
            draft_tokens: make.counter("vllm:spec_decode_num_draft_tokens_total", "Drafted tokens"),
            accepted_tokens: make.counter(
                "vllm:spec_decode_num_accepted_tokens_total",
                "Drafted tokens that were right",
            ),
        }
    }

    fn update(&self, model: &ServedModel) {
        let stats = model.engine.stats().snapshot();
        self.running.iter().for_each(|g| g.set(stats.running as f64));
        self.waiting.iter().for_each(|g| g.set(stats.queued as f64));
        self.kv_usage.set(stats.kv_usage);
        let totals = stats.totals;
        let queries = totals.prefix_queries.max(1);
        self.prefix_hit_rate.set(totals.prefix_hits as f64 / queries as f64);
        for (counter, value) in [
            (&self.denoising_steps, totals.denoising_passes),
            (&self.canvas_positions, totals.canvas_positions),
            (&self.committed, totals.committed_tokens),
            (&self.corrupted, totals.numerical_errors),
            (&self.preemptions, totals.preemptions),
            (&self.prefix_queries, totals.prefix_queries),
            (&self.prefix_hits[0], totals.prefix_hits),
            (&self.prefix_hits[1], totals.prefix_hits),
            (&self.drafts, totals.drafts),
            (&self.draft_tokens, totals.draft_tokens),
            (&self.accepted_tokens, totals.accepted_tokens),
        ] {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
    }
}
