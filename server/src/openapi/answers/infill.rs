//! Answers of `/infill`.

use std::collections::BTreeMap;

use utoipa::openapi::schema::AnyOfBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::common::Usage;
use super::errors::ErrorBody;

type Schemas = Vec<(String, RefOr<Schema>)>;

/// Answer of `/infill`: all of it, or the parts that were asked for.
pub(crate) struct InfillAnswer;

/// An event of a streamed `/infill`: more text, the end, or the end of a stream that broke.
pub(crate) struct InfillEvent;

impl PartialSchema for InfillAnswer {
    fn schema() -> RefOr<Schema> {
        let any = AnyOfBuilder::new().item(reference::<InfillText>());
        any.item(reference::<InfillParts>()).into()
    }
}

impl ToSchema for InfillAnswer {
    fn schemas(schemas: &mut Schemas) {
        add::<InfillText>(schemas);
        add::<InfillParts>(schemas);
    }
}

impl PartialSchema for InfillEvent {
    fn schema() -> RefOr<Schema> {
        let any = AnyOfBuilder::new().item(reference::<InfillChunk>());
        any.item(reference::<InfillAnswer>()).item(reference::<ErrorBody>()).into()
    }
}

impl ToSchema for InfillEvent {
    fn schemas(schemas: &mut Schemas) {
        add::<InfillChunk>(schemas);
        add::<InfillAnswer>(schemas);
        add::<ErrorBody>(schemas);
    }
}

fn reference<T: ToSchema>() -> Ref {
    Ref::from_schema_name(T::name())
}

fn add<T: ToSchema>(schemas: &mut Schemas) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

/// With `response_fields`: those that there are, by the names they were asked by.
#[derive(ToSchema)]
struct InfillParts(BTreeMap<String, serde_json::Value>);

/// The text of a gap and what it took; as the end of a stream without text and tokens.
#[derive(ToSchema)]
struct InfillText {
    /// Always 0.
    index: u64,
    /// The text of the gap.
    content: String,
    /// With `return_tokens`: its ids.
    tokens: Vec<u64>,
    /// Always -1: there are no slots.
    id_slot: i64,
    /// True: this is the end.
    stop: bool,
    /// The first name of the model.
    model: String,
    /// Tokens of the gap.
    tokens_predicted: u64,
    /// Tokens of the texts around it.
    tokens_evaluated: u64,
    /// Tokens whose keys and values were known.
    tokens_cached: u64,
    /// The text before the gap.
    prompt: String,
    /// Whether the gap has a line break.
    has_new_line: bool,
    /// Always false: what does not fit is refused.
    truncated: bool,
    stop_type: InfillStop,
    /// The stop text; else empty.
    stopping_word: String,
    timings: InfillTimings,
    usage: Usage,
}

/// Why a gap ended: an end token, a stop text, or length or time.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum InfillStop {
    Eos,
    Word,
    Limit,
}

/// What took how long, from arrival on.
#[derive(ToSchema)]
struct InfillTimings {
    /// Tokens of the texts around the gap.
    prompt_n: u64,
    /// Tokens of the gap.
    predicted_n: u64,
    /// Milliseconds.
    predicted_ms: f64,
    /// Milliseconds a token.
    predicted_per_token_ms: f64,
    /// Tokens a second.
    predicted_per_second: f64,
}

/// More text of a gap.
#[derive(ToSchema)]
struct InfillChunk {
    /// Always 0.
    index: u64,
    /// What is added.
    content: String,
    /// With `return_tokens`: its ids.
    tokens: Vec<u64>,
    /// False: this is not the end.
    stop: bool,
    /// Always -1: there are no slots.
    id_slot: i64,
    /// Tokens so far.
    tokens_predicted: u64,
    /// Tokens of the texts around the gap.
    tokens_evaluated: u64,
}
