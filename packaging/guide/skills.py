"""Skills: synthetic chats that teach copying: tool calls and results, JSON objects, echoes."""

# ruff: noqa: SIM905 - word lists are read, and diffed, as text

from __future__ import annotations

import json
import random
from typing import Any

VERBS = """
    get find show read open delete create send start stop list check count move copy print
    update load save play book buy call fetch search convert translate lock unlock paint
    measure schedule cancel rename calculate lookup order track query compute
""".split()
NOUNS = """
    weather forecast file email message user price stock song photo event alarm light door
    ticket flight hotel table note task page device city country number sum report invoice
    order recipe train bus map route timer camera printer account balance movie book word text
    news meeting contact package temperature image
""".split()
PARAMETERS = """
    name city id query path title text date user url word location symbol country target value
    language amount count room color size number topic subject to file key unit
""".split()
PLACES = (
    "Paris, London, Berlin, Tokyo, Rome, Madrid, Moscow, Oslo, New York, Lima, San "
    "Francisco, Cairo, Vienna, Prague, Boston, Helsinki, Dublin, Kyoto, Москва, Париж, "
    "Берлин, Казань, Минск, Рим, Самара, Токио"
).split(", ")
NAMES = "Anna, Bob, Maria, Peter, Ivan, Olga, John, Emma, Tom, Lucy, Анна, Пётр".split(", ")
SYLLABLES = """
    ba ko ri ten mal su vo der pin lo gra shi nu tar el fo qua zi mor ha wen cy jo bri lek un
    ost ar
""".split()
# Real tools: name, description, parameters, and questions; a value stands for its parameter.
KNOWN: tuple[tuple[str, str, dict[str, str], tuple[str, ...]], ...] = (
    (
        "get_weather",
        "Get the current weather of a city",
        {"city": "place"},
        (
            "what is the weather in {city}",
            "how is the weather in {city}",
            "weather in {city}",
            "what's the weather like in {city} today",
            "is it raining in {city}",
            "will it rain in {city}",
            "tell me the weather of {city}",
            "какая погода в городе {city}",
            "погода {city}",
            "is it cold in {city}",
            "what is the temperature in {city}",
        ),
    ),
    (
        "get_current_weather",
        "Weather now",
        {"location": "place"},
        (
            "what is the weather in {location}",
            "weather for {location}",
            "how warm is it in {location}",
            "is it sunny in {location}",
            "какая погода в {location}",
        ),
    ),
    (
        "add",
        "Add two numbers",
        {"a": "number", "b": "number"},
        (
            "what is {a} plus {b}",
            "add {a} and {b}",
            "{a} + {b}",
            "sum of {a} and {b}",
            "how much is {a} + {b}",
            "сколько будет {a} плюс {b}",
            "calculate {a} plus {b}",
        ),
    ),
    (
        "multiply",
        "Multiply two numbers",
        {"a": "number", "b": "number"},
        ("what is {a} times {b}", "multiply {a} by {b}", "{a} * {b}", "how much is {a} times {b}"),
    ),
    (
        "add_two_numbers",
        "Add two numbers",
        {"a": "number", "b": "number"},
        ("what is {a} plus {b}", "add {a} and {b}", "what is {a} + {b}"),
    ),
    (
        "get_current_time",
        "Get the current time",
        {},
        (
            "what time is it",
            "what is the time",
            "tell me the time",
            "current time",
            "который час",
            "what time is it now",
        ),
    ),
    (
        "get_time",
        "Time in a place",
        {"timezone": "place"},
        ("what time is it in {timezone}", "time in {timezone}", "tell me the time in {timezone}"),
    ),
    (
        "search",
        "Search the web",
        {"query": "phrase"},
        (
            "search for {query}",
            "search the web for {query}",
            "find {query}",
            "look up {query}",
            "google {query}",
            "найди {query}",
        ),
    ),
    (
        "web_search",
        "Search the internet",
        {"query": "phrase"},
        (
            "search the internet for {query}",
            "find information about {query}",
            "look up {query} on the web",
        ),
    ),
    (
        "send_email",
        "Send an email",
        {"to": "name", "subject": "phrase"},
        (
            "send an email to {to} about {subject}",
            "email {to} with subject {subject}",
            "write to {to} about {subject}",
        ),
    ),
    (
        "read_file",
        "Read a file",
        {"path": "path"},
        ("read the file {path}", "open {path}", "show me the file {path}", "what is in {path}"),
    ),
    (
        "list_files",
        "List files of a folder",
        {"path": "path"},
        ("list the files in {path}", "which files are in {path}", "show the folder {path}"),
    ),
    (
        "set_alarm",
        "Set an alarm",
        {"time": "time"},
        ("wake me at {time}", "set an alarm for {time}", "alarm at {time}"),
    ),
    (
        "get_stock_price",
        "Price of a stock",
        {"symbol": "word"},
        ("stock price of {symbol}", "what is the price of {symbol}", "how much is {symbol} stock"),
    ),
    (
        "translate",
        "Translate text",
        {"text": "word", "language": "language"},
        (
            "translate {text} to {language}",
            "what is {text} in {language}",
            "how do you say {text} in {language}",
        ),
    ),
)
LANGUAGES = "French, German, Spanish, Russian, Italian, Japanese".split(", ")

Chat = tuple[list[dict[str, Any]], list[dict[str, Any]] | None, str]


def tool_call(rng: random.Random) -> Chat:
    """A question which one of the offered tools answers, and the call."""
    tool, question, arguments = _known_use(rng) if rng.random() < 0.5 else _invented_use(rng)
    tools = [tool, *(_distractor(rng, tool) for _ in range(rng.choice((0, 0, 0, 1, 1, 2))))]
    rng.shuffle(tools)
    messages = [*_system(rng), {"role": "user", "content": _dressed(question, rng)}]
    return messages, tools, call_text(tool["function"]["name"], arguments)


def tool_result(rng: random.Random) -> Chat:
    """The same, one turn later: the tool has answered, and the assistant says what."""
    messages, tools, call = tool_call(rng)
    name = json.loads(call.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))["name"]
    content, said = _result(rng)
    content_of_call = rng.choice(("", None))
    asked = {"role": "assistant", "content": content_of_call, "tool_calls": [_structured(call)]}
    return [*messages, asked, {"role": "tool", "name": name, "content": content}], tools, said


def json_object(rng: random.Random) -> Chat:
    """A JSON object of keys and values that the user names."""
    keys = rng.sample(PARAMETERS, rng.choice((1, 2, 2, 3)))
    values = {key: _value(rng.choice(("number", "word", "name", "place")), rng) for key in keys}
    listed = ", ".join(f"{key} {value}" for key, value in values.items())
    listed = " and ".join(listed.rsplit(", ", 1)) if rng.random() < 0.6 else listed
    question = rng.choice(
        (
            "make a JSON object with {0}",
            "give me JSON with {0}",
            "return a JSON object with {0}",
            "write {0} as JSON",
            "JSON with {0}",
            "create a json object: {0}",
            "сделай JSON: {0}",
            "output JSON with {0}",
            "convert to JSON: {0}",
        )
    ).format(listed)
    return [{"role": "user", "content": _dressed(question, rng)}], None, _json(values)


def echo(rng: random.Random) -> Chat:
    """Words to say again: the shortest exercise in copying, which the other skills build on."""
    kinds = ("number", "word", "word", "name", "place", "path", "time")
    said = " ".join(str(_value(rng.choice(kinds), rng)) for _ in range(rng.choice((1, 2, 3, 4, 6))))
    request = rng.choice(
        (
            "repeat: {0}",
            "say {0}",
            "repeat after me: {0}",
            "echo {0}",
            "Repeat {0}",
            "Say: {0}",
            "повтори: {0}",
            "скажи: {0}",
        )
    )
    return [{"role": "user", "content": request.format(said)}], None, said


def offered_tools(rng: random.Random) -> list[dict[str, Any]]:
    """Tools that have nothing to do with the question."""
    return [_distractor(rng, None) for _ in range(rng.choice((1, 1, 2, 3)))]


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as the chat template writes it."""
    return f"<tool_call>\n{_json({'name': name, 'arguments': arguments})}\n</tool_call>"


def _known_use(rng: random.Random) -> tuple[dict[str, Any], str, dict[str, Any]]:
    name, description, slots, questions = rng.choice(KNOWN)
    arguments = {slot: _value(kind, rng) for slot, kind in slots.items()}
    question = rng.choice(questions).format(**arguments)
    return _tool(name, description, slots, rng), question, arguments


def _invented_use(rng: random.Random) -> tuple[dict[str, Any], str, dict[str, Any]]:
    verb = rng.choice(VERBS) if rng.random() < 0.8 else _made_up(rng)
    noun = rng.choice(NOUNS) if rng.random() < 0.8 else _made_up(rng)
    snake = f"{verb}_{noun}"
    name = rng.choice((snake, snake, f"{verb}{noun.title()}", noun, f"{noun}_{verb}"))
    kinds = ("place", "number", "word", "phrase", "name", "path")
    keys = rng.sample(PARAMETERS, rng.choice((0, 1, 1, 1, 2, 2, 3)))
    slots = {key: rng.choice(kinds) for key in keys}
    arguments = {slot: _value(kind, rng) for slot, kind in slots.items()}
    listed = rng.choice((" and ", ", ", " with ")).join(
        rng.choice(("{0} {1}", "{0} {1}", "{0} = {1}", "the {0} {1}")).format(slot, value)
        for slot, value in arguments.items()
    )
    if len(arguments) == 1 and rng.random() < 0.5:
        listed = str(next(iter(arguments.values())))
    question = rng.choice(
        (
            "{0} the {1}",
            "please {0} the {1}",
            "{0} {1}",
            "can you {0} the {1}",
            "I want to {0} a {1}",
            "{0} a {1}",
            "call {2}",
            "use {2}",
            "what is the {1}",
        )
    ).format(verb, noun, name)
    if listed:
        question += rng.choice((" ", " for ", " with ", " of ", " in ", ": ")) + listed
    return _tool(name, f"{verb.title()} a {noun}", slots, rng), question, arguments


def _distractor(rng: random.Random, other: dict[str, Any] | None) -> dict[str, Any]:
    taken = other["function"]["name"] if other else ""
    while True:
        tool = (_known_use if rng.random() < 0.5 else _invented_use)(rng)[0]
        if not _similar(tool["function"]["name"], taken):
            return tool


def _similar(name: str, other: str) -> bool:
    words, others = set(name.lower().split("_")), set(other.lower().split("_"))
    return bool((words & others) - {"get"})


def _tool(name: str, description: str, slots: dict[str, str], rng: random.Random) -> dict[str, Any]:
    types = {"number": rng.choice(("number", "integer"))}
    properties = {slot: {"type": types.get(kind, "string")} for slot, kind in slots.items()}
    parameters = {"type": "object", "properties": properties, "required": list(slots)}
    function = {"name": name, "parameters": parameters}
    if rng.random() < 0.8:
        function["description"] = description + rng.choice(("", "", "."))
    return {"type": "function", "function": function}


def _value(kind: str, rng: random.Random) -> str | int:
    match kind:
        case "number":
            return rng.randrange(10 ** rng.choice((1, 2, 2, 3, 4)))
        case "place":
            return rng.choice(PLACES) if rng.random() < 0.35 else _made_up(rng).title()
        case "name":
            return rng.choice(NAMES) if rng.random() < 0.6 else _made_up(rng).title()
        case "path":
            folders = "/".join(_made_up(rng) for _ in range(rng.choice((1, 2))))
            return "/" * rng.randrange(2) + folders + rng.choice((".txt", ".md", ".json", ""))
        case "time":
            return f"{rng.randrange(24)}:{rng.choice(('00', '15', '30', '45'))}"
        case "language":
            return rng.choice(LANGUAGES)
        case "phrase":
            return " ".join(_word(rng) for _ in range(rng.choice((1, 2, 2, 3))))
        case _:
            return _word(rng)


def _word(rng: random.Random) -> str:
    return rng.choice((rng.choice(NOUNS), rng.choice(VERBS), _made_up(rng), _made_up(rng)))


def _made_up(rng: random.Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


def _result(rng: random.Random) -> tuple[str, str]:
    keys = rng.sample(PARAMETERS + NOUNS, rng.choice((1, 1, 2, 3)))
    values = {key: _value(rng.choice(("number", "word", "place", "phrase")), rng) for key in keys}
    if rng.random() < 0.5:
        said = ", ".join(f"{key} {value}" for key, value in values.items())
        return _json(values), f"The result is {said}."
    text = rng.choice(("{0}", "{0}", "{0} degrees", "it is {0}", "{0} and {1}", "{0} {1}")).format(
        _value(rng.choice(("number", "phrase", "place")), rng), _word(rng)
    )
    return text, f"The result is {text}."


def _structured(call: str) -> dict[str, Any]:
    inner = call.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    return {"type": "function", "function": json.loads(inner)}


def _system(rng: random.Random) -> list[dict[str, Any]]:
    if rng.random() < 0.7:
        return []
    text = rng.choice(("You are a helpful assistant.", "Use the tools.", "You can call tools."))
    return [{"role": "system", "content": text}]


def _dressed(question: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        question = question[:1].upper() + question[1:]
    return question + rng.choice(("", "", "?", "."))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
