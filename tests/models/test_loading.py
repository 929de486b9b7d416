"""References, safe loading, checksums and the torchvision shim."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.models import loading
from glass_fast.models.weights import check_safetensors, folder_checksum, weight_files
from tests.training import tiny


def write_blip(folder):
    """A BLIP of width 32 with its processor, in the layout that transformers writes."""
    loading.ensure_torchvision()
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "car", "photo", "of", "[DEC]"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **tower, "vocab_size": len(words), "encoder_hidden_size": 32, "projection_dim": 16, "bos_token_id": 9,
        "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(processor, BertTokenizer.from_pretrained(str(folder))).save_pretrained(folder)
    return folder


def test_the_shim_makes_the_hub_libraries_importable():
    """In a fresh process: the shim first, then every library that looks at torchvision."""
    code = (
        "from glass_fast.models.loading import ensure_torchvision as e\n"
        "import sys\nassert 'torch' not in sys.modules\n"
        "state = e()\nimport torchvision, timm\nfrom transformers import CLIPTextModel\n"
        "from diffusers import UNet2DConditionModel\nassert e() == state\nprint(state)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("native", "shimmed")


@pytest.mark.parametrize(
    ("ref", "code", "message", "hint"),
    [
        ("/no/such/folder", "GF-MODEL-003", "no such file or folder", "partworld:NAME"),
        ("nothing", "GF-MODEL-003", "no such file or folder", "owner/name"),
        ("a/b/c", "GF-MODEL-003", "no such file or folder", "owner/name"),
        ("partworld:none", "GF-MODEL-003", "not among the shipped ones", "partworld build"),
        ("someone/some-model", "GF-MODEL-004", "hub is switched off", "local folder"),
        ("stabilityai/stable-diffusion-2-1", "GF-MODEL-004", "hub is switched off", "withdrawn"),
        ("stabilityai/stable-diffusion-2-1-base", "GF-MODEL-004", "hub is switched off", "withdrawn"),
    ],
)
def test_missing_models_say_what_to_do(ref, code, message, hint):
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        loading.resolve_model(ref)
    assert caught.value.code == code and hint in caught.value.hint


def test_path_beats_hub_id(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert loading.resolve_model("owner/name").path == tmp_path / "owner" / "name"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    source = loading.resolve_model("other/name")
    assert source.path is None and source.hub_id == "other/name"
    with pytest.raises(ConfigError, match="partworld:NAME"):
        loading.resolve_model("partworld:../../etc")


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224", "model_type": "blip"}')
    for load in (loading.load_encoder, loading.load_captioner):
        with pytest.raises(DataError, match="as pickle") as caught:
            load(tmp_path, "cpu")
        assert caught.value.code == "GF-MODEL-007" and "safetensors" in caught.value.hint


def test_no_weights_at_all(tmp_path):
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors is missing"):
        weight_files(tmp_path)


def test_sharded_weights_stay_in_their_folder(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    with pytest.raises(EnvironmentProblem, match=r"two\.safetensors is missing"):
        weight_files(tmp_path)
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    assert [f.name for f in weight_files(tmp_path)] == ["one.safetensors", "two.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(DataError, match="outside its folder"):
        weight_files(tmp_path)


def test_safetensors_are_checked_before_they_are_read(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(5, dtype=torch.float16)}, file)
    assert check_safetensors(file) == {"a": ("F32", (3, 2)), "b": ("F16", (5,))}
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    gap = json.dumps(header | {"a": header["a"] | {"data_offsets": [2, 26]}}).encode()
    for damaged in (
        b"", whole[:7], whole[:20], whole[:-1], whole + b"\0", (2**40).to_bytes(8, "little") + whole[8:],
        whole[:8] + b"x" * length + whole[8 + length :],
        len(gap).to_bytes(8, "little") + gap + whole[8 + length :],
    ):  # fmt: skip
        file.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            check_safetensors(file)
        assert caught.value.code == "GF-MODEL-006"


def test_checksum_counts_what_decides_the_model(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    first = folder_checksum(tmp_path)
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "v1-5-pruned.safetensors").write_bytes(b"another form of the same")
    (tmp_path / "unet" / "run.json").write_text("{}")
    assert folder_checksum(tmp_path) == first
    (tmp_path / "unet" / "config.json").write_text("{ }")
    second = folder_checksum(tmp_path)
    assert second != first
    (tmp_path / "vae" / "config.json").rename(tmp_path / "vae" / "other.json")
    assert folder_checksum(tmp_path) not in (first, second)


def test_incomplete_generators_are_named(tmp_path):
    for part in ("unet", "vae", "scheduler"):
        (tmp_path / part).mkdir()
    with pytest.raises(EnvironmentProblem, match="lacks tokenizer/, text_encoder/"):
        loading.load_generator(tmp_path, "cpu")


def test_blip_captioner(tmp_path):
    model, processor = loading.load_captioner(write_blip(tmp_path / "blip"), "cpu")
    assert type(model).__name__ == "BlipForConditionalGeneration" and not model.training
    assert "Pil" in type(processor.image_processor).__name__
    inputs = processor(images=[np.zeros((20, 30, 3), np.uint8)], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=3)
    assert isinstance(processor.batch_decode(tokens, skip_special_tokens=True)[0], str)


def test_other_captioners_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "git"}')
    with pytest.raises(DataError, match="model_type 'git'"):
        loading.load_captioner(tmp_path, "cpu")


def test_weights_that_do_not_fit_the_configuration(tmp_path):
    folder = tiny.write_encoder(tmp_path / "encoder")
    save_file({"cls_token": torch.zeros(1, 1, 24)}, folder / "model.safetensors")
    with pytest.raises(DataError, match="cannot be loaded by timm"):
        loading.load_encoder(folder, "cpu")


def test_device_and_dtype_names():
    assert loading.resolve_device("cpu") == torch.device("cpu")
    assert loading.resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError, match="float8"):
        loading.resolve_dtype("float8")
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="no CUDA device"):
            loading.resolve_device("cuda")
