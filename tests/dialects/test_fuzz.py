"""Whatever JSON arrives, `parse` answers with a Call or a refusal, and the answer can be sent."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from mlxd.core.errors import InvalidRequest, ModelNotFound
from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.base import Call, Codec, to_json
from tests.support.examples import examples

CODECS: tuple[Codec, ...] = (
    anthropic.MessagesCodec(),
    anthropic.CountCodec(),
    ollama.GenerateCodec(),
    ollama.ChatCodec(),
    openai.ChatCodec(),
    openai.CompletionCodec(),
    ollama.EmbedCodec(),
    ollama.EmbeddingsCodec(),
    openai.EmbeddingsCodec(),
    openai.ResponsesCodec(),
)
WORDS = """
functions parallel_tool_calls mode best_of echo min_tokens ignore_eos service_tier guided_json
guided_regex guided_choice structured_outputs regex choice json_object include_obfuscation
model prompt messages role content user assistant tool system type text function name tools
arguments tool_calls tool_choice allowed_tools options temperature top_p top_k min_p seed stop
num_predict keep_alive format json response_format json_schema schema json_object think low
stream stream_options include_usage logprobs top_logprobs logit_bias max_tokens n raw suffix
images context template category reasoning_effort reasoning effort chat_template_kwargs 5m 7
max_completion_tokens repeat_penalty repetition_penalty presence_penalty tool_call_id required
_debug_render_only
none auto parameters description enable_thinking typical_p num_ctx function_call refusal {}
input dimensions encoding_format base64 truncate
input input_text output_text message function_call_output call_id output summary id include store
previous_response_id instructions metadata max_output_tokens custom namespace item_reference
stop_sequences thinking budget_tokens enabled adaptive disabled output_config output_format any
input_schema custom tool_use tool_result tool_use_id is_error id input document search_result image
priority flex user user_id safety_identifier
source data title disable_parallel_tool_use mcp_servers redacted_thinking web_search_tool_result
""".split()  # noqa: SIM905 - as a list it would take eighty lines
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-2, 22)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
)
NAMES = st.sampled_from(WORDS) | st.text(max_size=5)


def objects(values: SearchStrategy[object]) -> SearchStrategy[dict[str, object]]:
    return st.dictionaries(NAMES, values, max_size=6)


VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | objects(inner), max_leaves=12
)
BODIES = st.builds(
    lambda base, more: base | more,
    st.sampled_from(
        [
            {},
            {"model": "m"},
            {"model": "m", "prompt": "x"},
            {"model": "m", "input": ["x"]},
            {"model": "m", "messages": [{"role": "user", "content": "x"}]},
            {"model": "m", "input": "x"},
            {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]},
        ]
    ),
    objects(VALUES),
)
CARRIED = msgspec.msgpack.Decoder(Call)


@settings(max_examples=examples(60, 300), deadline=None, database=None)
@given(body=BODIES)
def test_any_object_is_parsed_or_refused(body: dict[str, object]) -> None:
    for codec in CODECS:
        try:
            call = codec.parse(body, id="abc", now=0.0)
        except (InvalidRequest, ModelNotFound) as error:
            to_json(codec.render_error(error))
        else:
            assert CARRIED.decode(msgspec.msgpack.encode(call)) == call
            to_json(codec.render_action(call, 0.0))
