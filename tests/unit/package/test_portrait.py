"""What `resnet describe` says and draws of a network, whatever it is named by."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines.cli import main
from pipelines.errors import ConfigError, InputError
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from pipelines.package.describe import PackageDescription, write_package
from pipelines.package.network_drawing import count_words, make_drawing
from pipelines.package.portrait import Portrait, find_spec, portray
from pipelines.plots.network_diagram import draw_network
from pipelines.storage import Storage
from resnet_models.complexity import count
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec

SVG = "{http://www.w3.org/2000/svg}"


def portrait_of(name: str, size: int = 0, **changes: object) -> Portrait:
    spec, size = find_spec(name, changes, image_size_px=size)
    return portray(name, spec, image_size_px=size, batch_size=2)


@pytest.mark.parametrize(("name", "size"), [("resnet50", 224), ("resnet110", 32), ("wrn28_10", 32)])
def test_names_bring_their_image_size(name: str, size: int) -> None:
    portrait = portrait_of(name)
    assert portrait.image_size_px == size
    whole = count(portrait.spec, image_size_px=size)
    assert (portrait.parameters, portrait.macs) == (whole.parameters, whole.macs)
    assert sum(row["parameters"] for row in portrait.parts()) == whole.parameters
    assert sum(row["blocks"] for row in portrait.parts()) == sum(portrait.spec.stage_depths)


def test_a_description_alone_is_settled_by_the_image() -> None:
    spec, size = find_spec("", {"depths": [1, 1], "channels": [8, 16]}, image_size_px=32)
    assert (spec.stem, spec.num_classes, size) == ("cifar", 1000, 32)
    assert find_spec("", {"depth": 18})[0].stem == "imagenet"


def test_a_package_is_described_at_the_size_it_sees(tmp_path: Path) -> None:
    spec = ModelSpec(stem="cifar", depth=8, num_classes=2)
    preprocess = Preprocess(evaluation=Geometry(24, "crop")).to_json()
    description = PackageDescription(spec, ("a", "b"), preprocess, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    write_package(Storage.open(tmp_path / "model"), "", build(spec).state_dict(), description)
    assert find_spec(str(tmp_path / "model"), {}) == (spec, 24)
    wider, _ = find_spec(str(tmp_path / "model"), {"depths": [1, 2, 1]})
    assert wider.stage_depths == (1, 2, 1)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name is 'resnet51': no network has that name") as caught:
        find_spec("resnet51", {})
    assert "did you mean resnet" in str(caught.value)
    with pytest.raises(ConfigError, match=r"widht is 2\.0: ModelSpec has no such field"):
        find_spec("resnet50", {"widht": 2.0})
    with pytest.raises(ConfigError, match="image_size_px is 8: the network strides over 32 pixels"):
        find_spec("resnet50", {}, image_size_px=8)
    with pytest.raises(InputError, match="resnet models import"):
        find_spec(str(tmp_path / "w.pth"), {})


def test_equal_blocks_are_folded() -> None:
    portrait = portrait_of("resnet101", 64)
    folded = {(run.part, run.first): run.times for run in portrait.runs if run.first >= 0}
    assert folded == {
        ("stage1", 0): 1, ("stage1", 1): 2, ("stage2", 0): 1, ("stage2", 1): 3, ("stage3", 0): 1, ("stage3", 1): 22,
        ("stage4", 0): 1, ("stage4", 1): 2,
    }  # fmt: skip


def drawn(portrait: Portrait) -> ElementTree.Element:
    return ElementTree.fromstring(draw_network(make_drawing(portrait)))


def texts(svg: ElementTree.Element, kind: str) -> list[str]:
    return [node.text or "" for node in svg.iter(f"{SVG}text") if node.get("class") == kind]


def test_the_drawing_shows_stem_stages_blocks_and_shortcuts() -> None:
    svg = drawn(portrait_of("resnet101"))
    assert texts(svg, "heading") == ["resnet101"]
    assert texts(svg, "title") == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "head"]
    assert texts(svg, "times") == ["3\u00d7", "22\u00d7"]
    assert texts(svg, "beside-label") == [
        "1\u00d71 conv, 256", "1\u00d71 conv, 512, /2", "1\u00d71 conv, 1024, /2", "1\u00d71 conv, 2048, /2"
    ]  # fmt: skip
    paths = [node.get("class") or "" for node in svg.iter(f"{SVG}path")]
    # Four projections; identities: two drawn apart in stages 1 and 4 each, one folded in stages 2 and 3; the legend.
    assert paths.count("beside other arrow") == 4
    assert paths.count("beside arrow") == 2 + 1 + 1 + 2
    assert "sees 11 px" in " ".join(texts(svg, "note"))
    assert len(texts(svg, "label")) == 2 + 3 * 10 + 2


def test_pre_activation_projects_from_the_activated_input() -> None:
    drawing = make_drawing(portrait_of("preact_resnet164"))
    first, rest = drawing.columns[1].blocks
    assert [box.text for box in first.entry] == ["BN, ReLU"]
    assert (first.boxes[0].before, first.boxes[1].before, first.after) == ("", "BN, ReLU", "")
    assert (rest.entry, rest.boxes[0].before, rest.shortcut, rest.times) == ((), "BN, ReLU", "", 17)
    assert [box.text for box in drawing.columns[-1].boxes] == ["BN, ReLU", "average pool", "fc 10"]


@pytest.mark.parametrize(
    ("ordering", "last", "after"),
    [
        ("original", "BN", "ReLU"),
        ("norm_after_addition", "", "BN, ReLU"),
        ("relu_before_addition", "BN, ReLU", ""),
    ],
)
def test_orderings_say_what_surrounds_the_sum(ordering: str, last: str, after: str) -> None:
    block = make_drawing(portrait_of("resnet20", ordering=ordering)).columns[1].blocks[0]
    assert (block.boxes[0].after, block.boxes[-1].after, block.after) == ("BN, ReLU", last, after)


def test_pools_gates_groups_and_zero_padding_have_their_boxes() -> None:
    rich = portrait_of("resnext50_32x4d", attention="se", downsample="blur", stem="deep", head_dropout=0.2)
    drawing = make_drawing(rich)
    assert [box.text for box in drawing.columns[0].boxes][-1] == "3x3 max pool, /2"
    boxes = drawing.columns[2].blocks[0].boxes
    assert [box.text for box in boxes] == ["1x1 conv, 256", "3x3 conv, 256", "3x3 blur, /2", "1x1 conv, 512", "SE gate"]
    assert boxes[1].after == "32 groups, BN, ReLU"
    assert drawing.columns[-1].boxes[-1].before == "dropout 0.2"
    plain = make_drawing(portrait_of("resnet20"))
    assert plain.columns[2].blocks[0].shortcut == "zero pad, 32, /2"


def test_a_drawing_is_one_file_without_script_or_address() -> None:
    text = draw_network(make_drawing(portrait_of("resnet20")))
    assert "prefers-color-scheme:dark" in text
    assert "<script" not in text
    assert not re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?(?!#)", text)
    hostile = portray("<b>&", named_spec("resnet20"), image_size_px=32, batch_size=2)
    assert "<title>&lt;b&gt;&amp;</title>" in draw_network(make_drawing(hostile))


@pytest.mark.parametrize(
    ("number", "words"), [(640, "640"), (2049, "2.05 k"), (25557032, "25.6 M"), (4089e6, "4.09 G"), (1.89e12, "1.89 T")]
)
def test_counts_are_printed_as_in_papers(number: int, words: str) -> None:
    assert count_words(number) == words


def test_the_command_prints_the_parts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    svg = tmp_path / "net.svg"
    assert main.run_command(["describe", "resnet18", "num_classes=10", "--svg", str(svg), "--layers"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "network: resnet18 num_classes=10, images 3 x 224 x 224"
    assert lines[1] == "  parameters     11,181,642"
    assert "stage4  512 x 7 x 7    2       8,393,728" in shown.out
    assert "32      435 px" in shown.out
    row = next(line for line in lines if line.startswith("stages.1.0.shortcut.conv"))
    assert row.split("  ")[-1].strip() == "6.42 M"
    assert re.search(r"1x1 conv, 128, /2 +128 x 28 x 28 +8,192", row)
    assert shown.err.endswith(f"drawn: {svg}\n")
    assert ElementTree.parse(svg).getroot().tag == f"{SVG}svg"


def test_the_command_takes_fields_alone_and_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["describe", "depths=[1, 4, 1]", "channels=[8,8,16]", "stem=cifar", "num_classes=3", "--json"]
    assert main.run_command([*words, "--batch-size", "4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["spec"]["depths"] == [1, 4, 1]
    assert told["training"]["batch_size"] == 4
    assert [part["part"] for part in told["parts"]] == ["stem", "stage1", "stage2", "stage3", "head"]
    assert [run["times"] for run in told["runs"]] == [1, 1, 1, 3, 1, 1]
    assert told["levels"][-1]["stride"] == 4
    assert main.run_command(["describe", "list", "--json"]) == 0
    assert "resnet50" in json.loads(capsys.readouterr().out)


def test_an_unwritable_drawing_is_the_users_to_mend(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.run_command(["describe", "resnet20", "--svg", str(tmp_path / "no" / "net.svg")]) == 2
    assert "cannot be written: there is no folder" in capsys.readouterr().err
