//! Functions the model may ask for.

use utoipa::ToSchema;

/// A function the model may ask the client to call.
#[derive(ToSchema)]
pub(crate) struct Tool {
    r#type: ToolType,
    function: Function,
}

/// Functions are the only tools.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ToolType {
    Function,
}

/// A function.
#[derive(ToSchema)]
struct Function {
    /// 1 to 64 letters, digits, `_` or `-`.
    name: String,
    /// What it does.
    description: Option<String>,
    /// JSON schema of an object, its arguments.
    #[schema(value_type = Option<Object>)]
    parameters: Option<serde_json::Value>,
    /// Calls that are asked for keep to the schema either way.
    strict: Option<bool>,
}

/// Whether and what the model calls.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(ToolMode),
    /// This one.
    Named(NamedTool),
}

/// Whether the model calls.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum ToolMode {
    None,
    Auto,
    Required,
}

/// One of the tools.
#[derive(ToSchema)]
pub(crate) struct NamedTool {
    r#type: ToolType,
    function: FunctionName,
}

/// Its name.
#[derive(ToSchema)]
struct FunctionName {
    name: String,
}
