"""Weights from elsewhere: read without running what they bring, mapped, checked, kept with their licence."""

from __future__ import annotations

import ast
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.cli import main
from pipelines.errors import ConfigError, InputError
from pipelines.package.foreign import Imported, Origin, Pixels, import_weights
from pipelines.package.load import load_package
from pipelines.package.weights_file import read_weights_file
from resnet_models.resnet import build
from resnet_models.zoo import named_spec

ORIGIN = Origin("BSD-3-Clause", "https://example.org/weights")
TINY = {"width": 0.125, "depths": [1, 1, 1, 1]}


def torchvision_resnet(num_classes: int = 7) -> torch.nn.Module:
    """Return a small torchvision ResNet with norm statistics unlike a fresh one's."""
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return network.eval()


def small(file: Path, out: Path, **options: Any) -> Imported:
    """Import a network of one block a stage."""
    changes = options.pop("changes", {"depths": [1, 1, 1, 1]})
    return import_weights(file, "resnet18", str(out), ORIGIN, changes=changes, **options)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvisions_weights_answer_as_before(tmp_path: Path, suffix: str) -> None:
    theirs, file = torchvision_resnet(), tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(theirs.state_dict(), file)
    else:
        save_file(theirs.state_dict(), file)
    done = small(file, tmp_path / "out")
    assert (done.names, done.num_classes) == ("torchvision", 7)
    assert done.parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert done.notes == ("7 outputs, as in the file, where the network has 1000",)
    loaded = load_package(str(tmp_path / "out"))
    images = torch.randn(2, 3, 65, 49)
    with torch.no_grad():
        assert torch.equal(loaded.network(images), theirs(images))
    assert loaded.description["origin"] == {
        "licence": "BSD-3-Clause",
        "source": "https://example.org/weights",
        "file": file.name,
        "file_sha256": loaded.description["origin"]["file_sha256"],
        "arch": "resnet18",
        "names": "torchvision",
    }
    assert loaded.classes == tuple(f"output {index}" for index in range(7))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == [
        "model.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("name", ["resnet10t", "seresnext26d_32x4d", "resnetv2_18"])
def test_timms_weights_answer_as_before(tmp_path: Path, name: str) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    done = import_weights(tmp_path / "w.pth", name, str(tmp_path / "out"), ORIGIN)
    assert (done.names, done.num_classes) == ("timm", 5)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs(images), load_package(str(tmp_path / "out")).network(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_our_own_names_are_read_too(tmp_path: Path) -> None:
    network = build(named_spec("resnet20", num_classes=4), seed=3)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    done = import_weights(tmp_path / "w.pt", "resnet20", str(tmp_path / "out"), ORIGIN, pixels=Pixels(32))
    assert done.names == "our"
    evaluation = load_package(str(tmp_path / "out")).description["preprocess"]["evaluation"]
    assert (evaluation["size_px"], evaluation["crop_ratio"]) == (32, 1.0)


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, ("taken from its state_dict",)),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, ("prefix module. taken off",)),
        (lambda state: {"model": {"state_dict": state}}, ("taken from its model", "taken from its state_dict")),
    ],
)
def test_wrappings_are_taken_off_and_told(tmp_path: Path, wrap: Any, notes: tuple[str, ...]) -> None:
    torch.save(wrap(torchvision_resnet(1000).state_dict()), tmp_path / "w.pth")
    assert small(tmp_path / "w.pth", tmp_path / "out").notes == notes


def test_counters_that_old_files_lack_are_filled(tmp_path: Path) -> None:
    state = {name: t for name, t in torchvision_resnet(1000).state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert small(tmp_path / "w.pth", tmp_path / "out").notes == (
        "12 counters of batches seen were missing and start at 0",
    )


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    checkpoint: dict[str, Any] = {}
    checkpoint["model"] = checkpoint
    torch.save(checkpoint, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth holds checkpoints within checkpoints, more than 4 deep"):
        small(tmp_path / "w.pth", tmp_path / "out")


def test_a_compressed_archive_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(InputError, match=r"is compressed: its archive/data\.pkl grows to 16777216 bytes"):
        small(tmp_path / "w.pth", tmp_path / "out")


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_brings_code_is_refused_and_not_run(tmp_path: Path, is_zip: bool) -> None:
    marker, file = tmp_path / "ran", tmp_path / "w.pth"
    torch.save({"conv1.weight": Hostile(marker)}, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InputError) as caught:
        small(file, tmp_path / "out")
    assert not marker.exists()
    assert f"{file} holds more than tensors: it names posix.system" in str(caught.value)
    assert "mend:  do not load it; ask its author for a state dict" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_whole_pickled_network_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torchvision_resnet(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"holds more than tensors: it names torchvision\.models\.resnet\.ResNet"):
        small(tmp_path / "w.pth", tmp_path / "out")


def test_tensors_that_grow_when_copied_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 30)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"conv1.weight in .* claims 1073741824 values and brings 4 bytes"):
        small(tmp_path / "w.pth", tmp_path / "out")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "is neither a safetensors file nor what torch.save"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is a pointer of Git LFS"),
        (lambda path: (torch.save(torchvision_resnet().state_dict(), path), cut(path)), "is no whole file of tensors"),
        (lambda path: (save_file(torchvision_resnet().state_dict(), path), cut(path)), "no readable safetensors file"),
        (lambda path: torch.save([1, 2], path), "holds a list, not tensors by name"),
        (lambda path: torch.save({}, path), "holds a dict, not tensors by name"),
        (lambda path: torch.save({"a": "b"}, path), "holds a str under 'a', where a tensor belongs"),
        (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "a in .* is a torch.sparse_coo tensor"),
        (lambda path: torch.save(torchvision_resnet().half().state_dict(), path), "conv1.weight in .* is float16"),
    ],
)
def test_a_file_that_is_no_weights_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        small(tmp_path / "w.pth", tmp_path / "out")


def test_half_precision_is_converted_when_asked(tmp_path: Path) -> None:
    torch.save(torchvision_resnet(1000).half().state_dict(), tmp_path / "w.pth")
    done = small(tmp_path / "w.pth", tmp_path / "out", as_float32=True)
    assert done.notes[0].endswith("tensors converted from float16")
    assert load_package(str(tmp_path / "out")).network.head.weight.dtype == torch.float32


def test_another_networks_weights_name_the_first_tensor(tmp_path: Path) -> None:
    torch.save(torchvision_resnet(1000).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        small(tmp_path / "w.pth", tmp_path / "out", changes={})
    assert "(read with torchvision names): the weights lack stages.0.1.conv1.weight" in str(caught.value)
    with pytest.raises(ConfigError, match="name is 'resnet19': no network has that name"):
        import_weights(tmp_path / "w.pth", "resnet19", str(tmp_path / "out"), ORIGIN)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = torchvision_resnet(1000).state_dict()
    state["fc.bias"][3] = torch.inf
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"head\.bias holds 1 values that are infinite or not a number, of 1000"):
        small(tmp_path / "w.pth", tmp_path / "out")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (torch.zeros(()), r"head\.weight has shape \[\]; the network's has \[1000, 512\]"),
        (torch.zeros(0, 512), r"head\.weight has shape \[0, 512\]; the network's has \[1000, 512\]"),
        (torch.zeros(1_000_001, 1), r"head\.weight has shape \[1000001, 1\]; the network's has \[1000, 512\]"),
    ],
)
def test_a_head_that_is_none_is_named(tmp_path: Path, head: torch.Tensor, message: str) -> None:
    torch.save(torchvision_resnet(1000).state_dict() | {"fc.weight": head}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        small(tmp_path / "w.pth", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixels": Pixels(0)}, "image_size_px is 0: the network strides over 32 pixels"),
        ({"pixels": Pixels(16)}, "image_size_px is 16: the network strides over 32 pixels"),
        ({"pixels": Pixels(std=(0.2, 0.0, 0.2))}, r"std is \[0\.2, 0\.0, 0\.2\]; .* numbers of more than 0 to 1"),
        ({"pixels": Pixels(mean=(124.0, 116.0, 104.0))}, r"mean is \[124\.0, 116\.0, 104\.0\]; it is of pixel / 255"),
        ({"changes": {"in_channels": 1}}, "in_channels is 1; packages are shown RGB images, grey ones included"),
        ({"origin": Origin(" ", "me")}, "the licence is empty"),
        ({"origin": Origin("MIT", "")}, "the source is empty"),
        ({"classes": ["a", "b", "a"]}, "the class 'a' is named 2 times"),
    ],
)  # fmt: skip
def test_what_no_package_can_say_is_refused_before_the_file_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    options = {"origin": ORIGIN, **options}
    with pytest.raises((ConfigError, InputError), match=message):
        import_weights(tmp_path / "none.pth", "resnet18", str(tmp_path / "out"), **options)


def test_an_import_that_was_killed_half_way_is_done_again(tmp_path: Path) -> None:
    torch.save(torchvision_resnet(7).state_dict(), tmp_path / "w.pth")
    done = small(tmp_path / "w.pth", tmp_path / "out")
    (tmp_path / "out" / "model.json").unlink()
    assert small(tmp_path / "w.pth", tmp_path / "out") == done
    (tmp_path / "out" / "model.json").unlink()
    (tmp_path / "out" / "weights.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds something else \(for example weights.safetensors\)"):
        small(tmp_path / "w.pth", tmp_path / "out")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    torch.save(torchvision_resnet(7).state_dict(), tmp_path / "w.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(for example notes.txt\)"):
        small(tmp_path / "w.pth", tmp_path / "out")
    first = small(tmp_path / "w.pth", tmp_path / "package")
    assert small(tmp_path / "w.pth", tmp_path / "package") == first
    torch.save(torchvision_resnet(8).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds another package"):
        small(tmp_path / "w.pth", tmp_path / "package")


def test_only_the_import_reads_pickles() -> None:
    root, readers = Path(__file__).parents[3], []
    for path in sorted((root / "pipelines").rglob("*.py")) + sorted((root / "resnet_models").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                readers.append(path.name)
                assert "weights_only=True" in ast.unparse(node)
    assert readers == ["weights_file.py"]


def test_a_list_of_names_is_read_as_it_stands(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3), "bias": torch.zeros(3)}, tmp_path / "w.pth")
    state, notes = read_weights_file(tmp_path / "w.pth")
    assert sorted(state) == ["bias", "weight"]
    assert notes == ()


def test_the_command_imports_and_names_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torchvision_resnet(3).state_dict(), tmp_path / "w.pth")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n\nowl\n")
    words = ["models", "import", str(tmp_path / "w.pth"), "depths=[1, 1, 1, 1]", "--arch", "resnet18"]
    words += ["--licence", "MIT", "--source", "me", "--out", str(tmp_path / "out"), "--classes", str(names)]
    assert main.run_command(words) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"imported: {tmp_path / 'out'}\n  network     resnet18, read with torchvision names\n")
    assert f"init.from={tmp_path / 'out'} init.freeze_until=head" in shown.out
    assert "note: 3 outputs, as in the file" in shown.err
    assert json.loads((tmp_path / "out" / "model.json").read_text())["classes"] == ["cat", "dog", "owl"]
    assert main.run_command([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 3
    names.write_text("cat\ndog\n")
    assert main.run_command(words) == 2
    assert "2 class names are given; the network has 3 outputs" in capsys.readouterr().err
