from mlxd.core.events import (
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    collect,
)


async def test_a_completion_is_the_fold_of_its_events():
    async def bursts():
        yield [Started(3)]
        yield [ReasoningDelta("hm"), TextDelta("Привет")]
        yield [TextDelta(", 世界"), ToolCall("f", {"x": 1}), Finished("stop", 3, 5)]

    whole = await collect(bursts())
    assert (whole.text, whole.reasoning) == ("Привет, 世界", "hm")
    assert whole.tool_calls == [ToolCall("f", {"x": 1})]
    assert whole.started == Started(3)
    assert whole.finished == Finished("stop", 3, 5)


async def test_its_pieces_are_in_order_and_joined():
    def scored(text: str) -> TextDelta:
        return TextDelta(text, (TokenLogprob(text, text.encode(), -1.0),))

    async def bursts():
        yield [Started(3), ReasoningDelta("h"), ReasoningDelta("m"), scored("a")]
        yield [scored("b"), ToolCall("f", {}), ToolCall("g", {}), TextDelta("c")]
        yield [Finished("stop", 3, 5)]

    whole = await collect(bursts())
    assert whole.pieces == [
        ReasoningDelta("hm"),
        TextDelta("ab", (*scored("a").logprobs, *scored("b").logprobs)),
        ToolCall("f", {}),
        ToolCall("g", {}),
        TextDelta("c"),
    ]
