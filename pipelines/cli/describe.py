"""`resnet describe`: a network's layers, costs, levels and picture, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipelines.cli import options, render

if TYPE_CHECKING:
    from pipelines.package.portrait import Portrait, Run

EXAMPLES = (
    "resnet describe resnet50",
    "resnet describe resnet50 width=0.5 num_classes=10 --image-size 160 --svg resnet50.svg",
    "resnet describe depths=[2,2,2] channels=[16,32,64] stem=cifar",
    "resnet describe models:/photos@champion --json",
)
_MIB = 1 << 20


@click.command("describe", epilog=options.examples(*EXAMPLES))
@click.argument("model", metavar="MODEL")
@options.overrides
@click.option("--image-size", default=0, metavar="PX", help="Side of the images; else the package's, 32 or 224.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(2), help="Images of a training step.")
@click.option("--layers", "with_layers", is_flag=True, help="Also every layer.")
@click.option("--svg", default="", callback=options.writable, metavar="FILE", help="Draw the network into FILE.")
@click.option("--tracking", default="", metavar="URI", help="The MLflow store of a models:/ address.")
@options.as_json
def command(
    model: str,
    overrides: tuple[str, ...],
    image_size: int,
    batch_size: int,
    with_layers: bool,
    svg: str,
    tracking: str,
    as_json: bool,
) -> None:
    """Show a network: parts, layers, parameters, multiply-adds, training memory, receptive fields.

    MODEL is a named network, a package, a train or tune folder, models:/NAME@ALIAS, or the first of the key=value
    that describe one; `list` lists the names.
    """
    if model == "list" and not overrides:
        from resnet_models.zoo import spec_names

        names = spec_names()
        if as_json:
            render.as_json(names)
            return
        click.echo("\n".join(names))
        return
    from pipelines.config.load import parse_override
    from pipelines.package.portrait import find_spec, portray
    from pipelines.tracking import TrackingConfig

    if "=" in model and not model.startswith("models:/"):
        model, overrides = "", (model, *overrides)
    changes = dict(parse_override(text) for text in overrides)
    spec, size = find_spec(model, changes, image_size_px=image_size, tracking=TrackingConfig(uri=tracking))
    portrait = portray(" ".join([model, *overrides]).strip(), spec, image_size_px=size, batch_size=batch_size)
    if svg:
        _draw(portrait, svg)
    if as_json:
        render.as_json(portrait.to_json())
        return
    _show(portrait, with_layers=with_layers)
    if svg:
        render.note(f"drawn: {svg}")


def _draw(portrait: Portrait, file: str) -> None:
    from pathlib import Path

    from pipelines.package.network_drawing import make_drawing
    from pipelines.plots.network_diagram import draw_network

    Path(file).write_text(draw_network(make_drawing(portrait)), encoding="utf-8")


def _show(portrait: Portrait, *, with_layers: bool) -> None:
    from pipelines.package.network_drawing import count_words

    size = portrait.image_size_px
    click.echo(f"network: {render.clean(portrait.name)}, images {portrait.spec.in_channels} x {size} x {size}")
    memory = portrait.memory
    render.pairs(
        {
            "parameters": portrait.parameters,
            "multiply-adds": f"{count_words(portrait.macs)} an image",
            "training": f"{_mib(memory.total_bytes())} at batch {memory.batch_size} in float32: activations "
            f"{_mib(memory.activation_bytes)}, weights, gradients and momentum "
            f"{_mib(memory.total_bytes() - memory.activation_bytes)}",
        }
    )
    rows = [
        (
            row["part"],
            " x ".join(map(str, row["shape"])),
            row["blocks"] or "",
            f"{row['parameters']:,}",
            count_words(row["macs"]),
            _mib(row["activation_bytes"]),
            row["stride"] or "",
            f"{row['receptive_field_px']} px" if row["stride"] else "",
        )
        for row in portrait.parts()
    ]
    click.echo()
    render.table(("part", "output", "blocks", "parameters", "MACs", "activations", "stride", "sees"), rows)
    if with_layers:
        click.echo()
        render.table(
            ("layer", "what", "output", "parameters", "MACs"), [row for run in portrait.runs for row in _rows(run)]
        )


def _rows(run: Run) -> list[tuple[object, ...]]:
    from pipelines.package.network_drawing import count_words

    rows: list[tuple[object, ...]] = []
    if run.times > 1:
        rows.append(
            (f"{run.part} blocks {run.first} to {run.first + run.times - 1}: {run.times} times", "", "", "", "")
        )
    for layer in run.layers:
        shape = " x ".join(map(str, layer.shape))
        macs = count_words(layer.macs) if layer.macs else ""
        rows.append((layer.name, layer.kind, shape, f"{layer.parameters:,}" if layer.parameters else "", macs))
    return rows


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB" if size < 1024 * _MIB else f"{size / 1024 / _MIB:,.2f} GiB"
