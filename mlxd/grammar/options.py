"""What every grammar says of itself."""

from __future__ import annotations

from mlxd.core.request import Json

JSON: Json = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As models have read most of it; without free blanks, which a model may go on with for ever."""
LENIENT: Json = {**JSON, "lenient": True}
"""What is not understood of a tool's parameters is left to the tool."""
OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Where one text alone may follow, llguidance would have it in the tokens that the tokenizer gives
it; among those are markers, such as `<tool_call>`, that it then takes for no text.
"""
