"""How models write function calls, one form a file; the model's own template says which.

A form gives three things: the parser that turns streamed text into calls, the grammar that a forced
call must follow, and the text of a call for templates that know nothing of tools.
"""

from __future__ import annotations

from mlc_bridge.engine.tools.form import Form
from mlc_bridge.engine.tools.hermes import Hermes
from mlc_bridge.engine.tools.llama3_json import Llama3Json
from mlc_bridge.engine.tools.mistral import Mistral
from mlc_bridge.engine.tools.pythonic import Pythonic
from mlc_bridge.registry import Table, table

FORMS: Table[Form] = table("tools", Mistral(), Pythonic(), Llama3Json(), Hermes())


def form_of(template: str | None) -> Form:
    """The form that the template's own words show; hermes where they show none."""
    return next((form for form in FORMS.values() if form.matches(template or "")), FORMS["hermes"])
