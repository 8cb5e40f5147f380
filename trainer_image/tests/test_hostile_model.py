"""A base model that brings code and pickles: neither is ever run, nor does its index lead out of its folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.sampler.start import model_files
from deepcoder_trainer.sampler.translation import engine_arguments
from deepcoder_trainer.tokenizer import load_tokenizer

torch = LazyModule("torch")


class Payload:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.made),)


@pytest.fixture
def hostile(make_coder_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of a supported architecture whose files name classes of its own, in code that makes `owned`."""
    directory = tmp_path / "model"
    shutil.copytree(make_coder_model(), directory)
    (directory / "evil.py").write_text(
        f"import os\nos.makedirs({str(tmp_path / 'owned')!r}, exist_ok=True)\n"
        "from transformers import PreTrainedTokenizerFast as Tokenizer, Qwen2Config as Config\n"
        "from transformers import Qwen2ForCausalLM as Model\n"
    )
    named = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        text = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(text | {"auto_map": named}))
    return directory


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """What the model's code would make."""
    return tmp_path / "owned"


def test_code_that_comes_with_a_model_is_not_run(hostile: Path, owned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepcoder_trainer.learner.model import read_config

    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks, where nobody has said no
    read_config(hostile)
    load_tokenizer(hostile)
    (hostile / "tokenizer.json").unlink()
    with pytest.raises(BadConfig, match="no usable tokenizer"):
        load_tokenizer(hostile)
    assert not owned.exists()


def test_samplers_are_sent_no_code_and_told_to_run_none(hostile: Path) -> None:
    assert not [name for name in model_files(hostile) if name.endswith((".py", ".bin", ".pt"))]
    assert engine_arguments(str(hostile), EngineSettings("float32", 8, 1, 8, 1 << 20))["trust_remote_code"] is False


def test_pickled_weights_are_refused_unread(hostile: Path, owned: Path) -> None:
    from deepcoder_trainer.learner.model import load_policy

    (hostile / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        (hostile / name).write_bytes(pickle.dumps(Payload(owned)))
    with pytest.raises(BadConfig, match="pickled weights are never read"):
        load_policy(hostile, torch.device("cpu"), Precision.FLOAT32)
    assert not owned.exists()


@pytest.mark.parametrize("file", ["../../other/model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_index_that_leads_out_of_the_models_folder_is_refused(hostile: Path, file: str) -> None:
    from deepcoder_trainer.learner.model import load_policy

    (hostile / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    with pytest.raises(BadConfig, match="which is missing: put it there"):
        load_policy(hostile, torch.device("cpu"), Precision.FLOAT32)
