"""A chat template is a stranger's program: whatever it does ends soon, as an error of the tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlc_bridge.artifact.chat_template import Budget, ChatTemplate, TemplateFails, Unrendered
from mlc_bridge.artifact.confined import Confined, Overrun
from mlc_bridge.artifact.conv_template import derive
from mlc_bridge.errors import ConfigError

CHAT = [{"role": "user", "content": "x"}]
DEEP = "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}"
DOUBLED = (
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}"
)
NESTED = "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}"
ENDLESS = {
    "a long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "loops in loops": NESTED,
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a text doubled": DOUBLED,
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a wide format": "{{ '%1000000000d' | format(1) }}",
    "a wide field": "{{ '{:>1000000000}'.format(1) }}",
    "a centred text": "{{ 'a' | center(10 ** 10) }}",
    "much filler": "{{ lipsum(n=10 ** 6, min=10 ** 4, max=10 ** 5) }}",
    "two megabytes": "{{ 'a' * 2000000 }}",
}
FAILING = {
    "division by zero": "{{ 1 / 0 }}",
    "a macro that calls itself": DEEP,
    "its own refusal": "{{ raise_exception('no') }}",
    "no such filter": "{{ 1 | nonesuch }}",
    "not closed": "{% for m in messages %}",
    "another type": "{{ messages + 1 }}",
    "no text to raise": "{{ raise_exception(messages) }}",
    "a way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "a lone surrogate": "\ud800",
}


@pytest.mark.parametrize("name", [*ENDLESS, *FAILING])
def test_every_end_is_soon_and_an_error_of_the_tree(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(Unrendered, match="chat template"):
        ChatTemplate((ENDLESS | FAILING)[name]).render(CHAT, budget=Budget(0.3))
    assert time.monotonic() - start < 15
    assert ChatTemplate("{{ messages[0].content }}").render(CHAT) == "x"


@pytest.mark.parametrize("name", ["loops in loops", "a long text", "division by zero"])
def test_no_conversation_is_derived_from_it(name: str) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        derive(ChatTemplate((ENDLESS | FAILING)[name]))


def test_all_renderings_of_a_derivation_share_their_time() -> None:
    slow = "{% for i in range(300) %}{% for j in range(300) %}{% endfor %}{% endfor %}"
    budget, template = Budget(0.3), ChatTemplate(slow)

    def often() -> None:
        for _ in range(1000):
            template.render(CHAT, budget=budget)

    with pytest.raises(Unrendered, match="takes too long"):
        often()
    assert budget.seconds < 0.3


def test_the_words_of_the_template_are_kept() -> None:
    with pytest.raises(TemplateFails) as caught:
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHAT)
    assert caught.value.what == "roles must alternate"


def test_the_child_ends_with_its_parent() -> None:
    code = (
        "import os, signal\n"
        "from mlc_bridge.artifact import chat_template as c\n"
        "c.ChatTemplate('x').render([])\n"
        "print(c._child()._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert ran.returncode == -signal.SIGKILL
    pid = int(ran.stdout)
    for _ in range(100):
        if not psutil.pid_exists(pid):
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_a_child_that_cannot_start() -> None:
    with pytest.raises(Overrun, match="does not start"):
        Confined("mlc_bridge.no_such_module", 1 << 30).ask({}, 1.0)
