"""GGUF: llama.cpp computes what the source does, quantized within bounds, chats, and is given no tokenizer it lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import export_world
import pytest

from deepcoder_trainer.__main__ import main
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export.formats import Format

if TYPE_CHECKING:
    from deepcoder_trainer.export.run import Done

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not built: run `make gguf` (about ten minutes)")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed Qwen2."""
    root = tmp_path_factory.mktemp("qwen2")
    return export_world.commit(export_world.make_model(root / "model"), root / "run")


def to_gguf(source: Path, target: Path, form: Format, rope: int | None = None) -> Done:
    from deepcoder_trainer.export.run import Order, export

    return export(Order(f"file://{source}", f"file://{target}", form, rope=rope), lambda _text: None)


@pytest.mark.parametrize(
    ("architecture", "overrides", "rope"),
    [
        ("Qwen2", {}, 512),
        ("Qwen3", {}, None),
        ("Llama", {"rope_parameters": LLAMA3_ROPE, "attention_bias": True}, None),
    ],
    ids=["Qwen2-yarn", "Qwen3", "Llama3-rope"],
)
def test_llama_cpp_computes_what_the_source_does(
    architecture: str, overrides: dict[str, Any], rope: int | None, llama_cpp: Any, tmp_path: Path
) -> None:
    from deepcoder_trainer.export.run import Order, export

    source = export_world.commit(
        export_world.make_model(tmp_path / "model", architecture, **overrides), tmp_path / "run"
    )
    plain = tmp_path / "same-positions"
    if rope is not None:  # the source with its positions scaled: so that the rest of the difference is llama.cpp's
        source = Path(export(Order(f"file://{source}", f"file://{plain}", rope=rope), lambda _text: None).ref.uri[7:])
    found = to_gguf(source, tmp_path / "out", Format.GGUF_F16).difference
    assert found.positions > 400
    assert found.mean_kl < 1e-4
    assert found.top1 > 0.97
    assert found.max_abs < 0.05


@pytest.mark.parametrize(("form", "bits", "kl"), [(Format.GGUF_Q8_0, 8.5, 2e-3), (Format.GGUF_Q4_K_M, 6.6, 0.2)])
def test_quantized_it_is_smaller_close_and_answers_a_chat(
    form: Format, bits: float, kl: float, llama_cpp: Any, exported: Path, tmp_path: Path
) -> None:
    import gguf

    done = to_gguf(exported, tmp_path / "out", form)
    [path] = (tmp_path / "out").glob("*.gguf")
    assert path.name == f"coder-long-step-2-{form.quantization}.gguf"
    reader = gguf.GGUFReader(path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_gate.weight"] == {"Q8_0": "Q8_0", "Q4_K_M": "Q4_K"}[form.quantization or ""]
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    assert 8 * sum(t.n_bytes for t in matrices) / sum(int(t.n_elements) for t in matrices) <= bits
    assert 0 < done.difference.mean_kl < kl
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"GGUF, {form.quantization}" in card
    assert f"| Mean KL(source ‖ export), nats | {done.difference.mean_kl:.3g} |" in card
    model = llama_cpp.Llama(str(path), n_ctx=64, verbose=False)
    try:
        messages = [{"role": "user", "content": "print 1"}]
        answer = model.create_chat_completion(messages, max_tokens=4, temperature=0)
    finally:
        model.close()
    assert answer["usage"]["prompt_tokens"] > 8, "the model's own chat template, special tokens recognized"
    assert answer["usage"]["completion_tokens"] == 4
    assert isinstance(answer["choices"][0]["message"]["content"], str)


def test_a_tokenizer_that_llama_cpp_splits_otherwise_is_refused_after_the_fact(
    llama_cpp: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deepcoder_trainer.export.gguf_vocabulary._rule", lambda _tokenizer: "gpt-2")
    arguments = ["--source", str(exported), "--output", str(tmp_path / "x" / "out"), "--format", "gguf-f16"]
    assert main(["export", *arguments]) == 1
    assert "into other tokens than the model's own tokenizer" in capsys.readouterr().err
    assert not list((tmp_path / "x").iterdir())


def test_without_llama_cpp_a_gguf_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    arguments = ["--source", str(tmp_path / "nothing"), "--output", str(tmp_path / "out"), "--format", "gguf-q8_0"]
    assert main(["export", *arguments]) == 64
    assert "pip install 'deepcoder-trainer[gguf]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "is none that llama.cpp knows by name here"),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}},
            "split by \\['x\\+'\\]",
        ),
        ({"added_tokens": [{"id": 999, "content": "<far>", "special": True}]}, "has number 999"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "the tokenizer has no merges"),
    ],
    ids=["whitespace", "rule", "beyond", "merges"],
)
def test_a_tokenizer_that_llama_cpp_has_no_words_for_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    import gguf

    from deepcoder_trainer.export.gguf_vocabulary import add_vocabulary

    export_world.make_tokenizer(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole | change))
    (tmp_path / "merges.txt").unlink(missing_ok=True)
    with pytest.raises(BadConfig, match=message):
        add_vocabulary(gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2"), tmp_path, 432)


def test_a_llama_that_does_not_say_its_key_value_heads_has_as_many_as_of_queries(tmp_path: Path) -> None:
    from deepcoder_trainer.export.gguf_model import write_gguf
    from deepcoder_trainer.export.shards import Folder
    from deepcoder_trainer.export.tensors import PretrainedTensors

    model = export_world.make_model(tmp_path / "model", "Llama", num_key_value_heads=4)
    config = json.loads((model / "config.json").read_text())
    tensors = PretrainedTensors(Folder(model))
    write_gguf(tensors, config, model, tmp_path / "said.gguf", "x")
    del config["num_key_value_heads"]
    write_gguf(tensors, config, model, tmp_path / "unsaid.gguf", "x")
    assert (tmp_path / "unsaid.gguf").read_bytes() == (tmp_path / "said.gguf").read_bytes()


@pytest.mark.parametrize(
    "setting", [{"beta_fast": 64}, {"attention_factor": 1.0}, {"mscale": 0.7}, {"truncate": False}], ids=str
)
def test_a_yarn_with_settings_that_are_not_converted_is_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    import gguf

    from deepcoder_trainer.export.gguf_model import _add_positions

    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "attention_factor": None}
    _add_positions(gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2"), {"rope_parameters": rope | usual})
    [(name, value)] = setting.items()
    with pytest.raises(BadConfig, match=f"YaRN has {name} {value}, which is not converted"):
        _add_positions(gguf.GGUFWriter(tmp_path / "y.gguf", "qwen2"), {"rope_parameters": rope | setting})
