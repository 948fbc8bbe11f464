"""`resnet models import`: weights made elsewhere become a package, once."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from pipelines.cli import options, render


@click.command("import")
@click.argument("file", metavar="FILE")
@options.overrides
@click.option(
    "--arch", required=True, metavar="NAME", help="The network, e.g. resnet50 (`resnet describe list` shows them)."
)
@click.option("--licence", required=True, metavar="TEXT", help="Licence of the weights; kept with all that follows.")
@click.option("--source", required=True, metavar="URL", help="Where the weights come from.")
@click.option("--out", required=True, metavar="URI", help="Folder of the package.")
@click.option("--classes", default="", metavar="FILE.txt", help="Class names, one a line, in the order of the outputs.")
@click.option(
    "--image-size", default=224, show_default=True, metavar="PX", help="Side of the images it was trained on."
)
@click.option("--mean", nargs=3, type=float, default=None, metavar="R G B", help="Mean of pixel / 255; ImageNet's.")
@click.option("--std", nargs=3, type=float, default=None, metavar="R G B", help="Deviation of pixel / 255; ImageNet's.")
@click.option("--as-float32", is_flag=True, help="Convert half-precision weights.")
@options.as_json
def import_command(
    file: str,
    overrides: tuple[str, ...],
    arch: str,
    licence: str,
    source: str,
    out: str,
    classes: str,
    image_size: int,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    as_float32: bool,
    as_json: bool,
) -> None:
    """Turn FILE (a .pth of torchvision or timm, or safetensors) into a package: safetensors and a description.

    A pickle is read here and nowhere else, as tensors alone: one that holds code is refused. key=value changes the
    network, e.g. `num_classes=10`. The package serves as `init.from` of `resnet train`, and as a model of `evaluate`
    and `score`.
    """
    from pipelines.config.load import parse_override
    from pipelines.package.foreign import IMAGENET_MEAN, IMAGENET_STD, Origin, Pixels, import_weights

    done = import_weights(
        Path(file).expanduser(),
        arch,
        out,
        Origin(licence, source),
        changes=dict(parse_override(text) for text in overrides),
        classes=_lines(classes),
        pixels=Pixels(image_size, mean or IMAGENET_MEAN, std or IMAGENET_STD),
        as_float32=as_float32,
    )
    if as_json:
        render.as_json(asdict(done))
        return
    click.echo(f"imported: {render.clean(done.out)}")
    render.pairs(
        {
            "network": f"{arch}, read with {done.names} names",
            "parameters": done.parameters,
            "outputs": done.num_classes,
            "weights": done.weights_sha256[:12],
            "licence": licence,
        }
    )
    for note in done.notes:
        render.note(f"note: {note}")
    quoted = shlex.quote(out)
    render.next_steps(
        [
            f"resnet train default --dataset DATASET init.from={quoted} init.freeze_until=head",
            f"resnet describe {quoted}",
        ]
    )


def _lines(file: str) -> tuple[str, ...]:
    """Return the lines of a text file, empty ones left out; nothing for no file."""
    if not file:
        return ()
    from pipelines.errors import InputError

    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class names cannot be read from {file}: {error}", mend="give a UTF-8 text file") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())
