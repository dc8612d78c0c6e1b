//! Forms that answers have to have.

use utoipa::ToSchema;

/// The form of an answer, as OpenAI asks for it.
#[derive(ToSchema)]
pub(crate) struct ResponseFormat {
    r#type: FormatType,
    /// The schema, for `json_schema`.
    json_schema: Option<NamedSchema>,
}

/// Text, any JSON object, or JSON of a schema.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum FormatType {
    Text,
    JsonObject,
    JsonSchema,
}

/// A schema and what it is called.
#[derive(ToSchema)]
struct NamedSchema {
    /// 1 to 64 letters, digits, `_` or `-`.
    name: Option<String>,
    /// What it is for.
    description: Option<String>,
    /// A JSON schema (2020-12) without references to other documents.
    #[schema(value_type = Object)]
    schema: serde_json::Value,
    /// The schema is kept to the letter either way.
    strict: Option<bool>,
}

/// The form of an answer, as vLLM asks for it: exactly one of these.
#[derive(ToSchema)]
pub(crate) struct StructuredOutputs {
    /// A JSON schema, or its text.
    #[schema(value_type = Option<Object>)]
    json: Option<serde_json::Value>,
    /// A regular expression that matches the whole answer.
    regex: Option<String>,
    /// Texts, one of which is the answer.
    choice: Option<Vec<String>>,
    /// A grammar in Lark's notation, from its rule `start`.
    grammar: Option<String>,
    /// True: any JSON object.
    json_object: Option<bool>,
}
