"""Files that a configuration names have to be there, and templates have to be templates, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import LOCAL


def with_frontend(options: str) -> str:
    return LOCAL + f"    frontend: {{{options}}}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is not the configuration's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("path", ["./chat.jinja", "chat.jinja", "../{}/chat.jinja"])
def test_a_template_is_taken_from_the_configurations_folder(load, tmp_path, elsewhere, path):
    for folder in (tmp_path, elsewhere):
        (folder / "chat.jinja").write_text("{{ messages }}")
    model = load(with_frontend(f"chat_template: {path.format(tmp_path.name)}")).model("smollm2")
    assert model.frontend["chat_template"] == str(tmp_path / "chat.jinja")


def test_a_template_may_be_in_the_current_folder_instead(load, elsewhere):
    (elsewhere / "chat.jinja").write_text("{{ messages }}")
    model = load(with_frontend("chat_template: chat.jinja")).model("smollm2")
    assert model.frontend["chat_template"] == str(elsewhere / "chat.jinja")


def test_a_template_that_vllm_ships_goes_by_its_name(load):
    model = load(with_frontend("chat_template: template_chatml.jinja")).model("smollm2")
    assert model.frontend["chat_template"] == "template_chatml.jinja"


def test_a_template_that_is_nowhere_is_refused_with_where_it_was_looked_for(refusal, tmp_path, elsewhere):
    message = refusal(with_frontend("chat_template: chat.jinja"))
    assert message == (
        'cluster.yaml:11: models[0].frontend.chat_template: found "chat.jinja", allowed: a template file that is '
        f"there, or a template's text (no file {tmp_path}/chat.jinja nor {elsewhere}/chat.jinja)"
    )


@pytest.mark.parametrize("path", ["''", ".", "/", "x" * 5000])
def test_what_is_no_file_is_no_template(refusal, path):
    assert "allowed: a template file that is there, or a template's text" in refusal(
        with_frontend(f"chat_template: {path}")
    )


def test_a_template_file_that_is_no_text_is_refused(refusal, tmp_path):
    (tmp_path / "chat.jinja").write_bytes(b"\xff\xfe")
    message = refusal(with_frontend("chat_template: chat.jinja"))
    assert 'found "chat.jinja", allowed: a template file that can be read as UTF-8 text' in message


def test_an_inline_template_stays_as_it_is(load):
    text = with_frontend("chat_template: '{{ messages }}\n\n      /end'")
    assert load(text).model("smollm2").frontend["chat_template"] == "{{ messages }}\n/end"


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}",
        "{{ raise_exception('roles') }}{{ strftime_now('%Y') }}",
    ],
)
def test_what_chat_templates_may_use_beyond_plain_jinja_is_taken(load, template):
    load(with_frontend(f'chat_template: "{template}"'))


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}", "found line 1: Unexpected end of template."),
        ("{{ messages", "found line 1: unexpected end of template"),
        ("a\\n{{ x | no_such_filter }}", "found line 2: No filter named 'no_such_filter'."),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "found blocks are nested too deeply"),
    ],
)
def test_a_text_that_is_no_template_is_refused(refusal, template, told):
    message = refusal(with_frontend(f'chat_template: "{template}"'))
    assert message.startswith(f"cluster.yaml:11: models[0].frontend.chat_template: {told}")
    assert message.partition(" (")[0].endswith(", allowed: a Jinja template")


def test_a_file_that_is_no_template_is_refused(refusal, tmp_path):
    (tmp_path / "chat.jinja").write_text("{{ a }}\n{% endfor %}")
    message = refusal(with_frontend("chat_template: chat.jinja"))
    assert "frontend.chat_template: found line 2: Encountered unknown tag 'endfor'." in message
    assert message.endswith(f" in {tmp_path}/chat.jinja, allowed: a Jinja template")


PLUGINS = {
    "tools": ("frontend.tool_parser_plugin", LOCAL + "    frontend: {tool_parser_plugin: mine.py}\n"),
    "reasoning": (
        "engine.reasoning_parser_plugin",
        LOCAL.replace("float32}", "float32, reasoning_parser_plugin: mine.py}"),
    ),
}


@pytest.mark.parametrize(("place", "text"), PLUGINS.values(), ids=PLUGINS)
def test_a_plugin_that_nothing_would_load_is_refused(refusal, place, text):
    message = refusal(text)
    assert f"models[0].{place}" in message
    assert "parser plugins are not loaded yet" in message
