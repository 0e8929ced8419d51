//! Names of the semantic conventions for generative AI of OpenTelemetry, v0.1.0 of their own repository. All of them are
//! marked *development* there: a later version may rename them.

/// The version of the conventions.
pub(crate) const SCHEMA: &str = "https://opentelemetry.io/schemas/gen-ai/0.1.0";

pub(crate) const AGENT_NAME: &str = "gen_ai.agent.name";
pub(crate) const CONVERSATION_ID: &str = "gen_ai.conversation.id";
pub(crate) const ERROR_TYPE: &str = "error.type";
pub(crate) const OPERATION_NAME: &str = "gen_ai.operation.name";
pub(crate) const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
pub(crate) const PROVIDER_NAME: &str = "gen_ai.provider.name";
pub(crate) const REQUEST_MODEL: &str = "gen_ai.request.model";
pub(crate) const RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
pub(crate) const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(crate) const TOKEN_MODALITY: &str = "gen_ai.token.modality";
pub(crate) const TOOL_CALL_ARGUMENTS: &str = "gen_ai.tool.call.arguments";
pub(crate) const TOOL_CALL_ID: &str = "gen_ai.tool.call.id";
pub(crate) const TOOL_CALL_RESULT: &str = "gen_ai.tool.call.result";
pub(crate) const TOOL_NAME: &str = "gen_ai.tool.name";
pub(crate) const TOOL_TYPE: &str = "gen_ai.tool.type";
pub(crate) const USAGE_CACHE_READ: &str = "gen_ai.usage.cache_read.input_tokens";
pub(crate) const USAGE_CACHE_WRITE: &str = "gen_ai.usage.cache_write.input_tokens";
pub(crate) const USAGE_INPUT: &str = "gen_ai.usage.input_tokens";
pub(crate) const USAGE_OUTPUT: &str = "gen_ai.usage.output_tokens";
pub(crate) const USAGE_REASONING: &str = "gen_ai.usage.reasoning.output_tokens";

/// Values of [`OPERATION_NAME`].
pub(crate) const CHAT: &str = "chat";
pub(crate) const EXECUTE_TOOL: &str = "execute_tool";
pub(crate) const INVOKE_AGENT: &str = "invoke_agent";

/// Durations in seconds.
pub(crate) const EXECUTE_TOOL_DURATION: &str = "gen_ai.execute_tool.duration";
pub(crate) const INFERENCE_DURATION: &str = "gen_ai.client.inference.duration";
pub(crate) const INVOKE_AGENT_DURATION: &str = "gen_ai.invoke_agent.duration";
/// Counters of tokens. The last three are parts of the first two.
pub(crate) const INFERENCE_USAGE: [&str; 5] = [
    "gen_ai.client.inference.usage.input_tokens",
    "gen_ai.client.inference.usage.output_tokens",
    "gen_ai.client.inference.usage.cache_read.input_tokens",
    "gen_ai.client.inference.usage.cache_write.input_tokens",
    "gen_ai.client.inference.usage.reasoning.output_tokens",
];
/// Bounds of the first two durations, and of the third.
pub(crate) const DURATION_BOUNDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
pub(crate) const INVOKE_AGENT_BOUNDS: [f64; 13] =
    [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6];
