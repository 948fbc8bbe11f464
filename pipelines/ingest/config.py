"""The schema of `resnet ingest`: where images come from, how they are stored, how they are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.strict import StrictModel, later_field, runtime_field
from pipelines.ray_runtime import RayConfig

GeometryMode = Literal["none", "fit", "crop", "pad", "squash"]


class ImageConfig(StrictModel):
    """How an image is stored, and what a network sees of it."""

    size_px: int = Field(256, ge=0, le=8192)
    """Side of stored images; smaller ones keep their pixels. 0: every image keeps its pixels."""
    mode: GeometryMode = "crop"
    """`crop`: centre square; `fit`: short side becomes size_px; `pad`: long side does, padded; `squash`; `none`."""
    encoding: Literal["auto", "jpeg", "png", "webp", "webp_lossless"] = "auto"
    """Format of images whose pixels or colours had to change; `auto`: PNG up to 64 x 64 pixels, else JPEG."""
    quality: int = Field(90, ge=1, le=100)
    """Quality of JPEG and of lossy WebP."""
    keep_bytes: bool = True
    """Store a JPEG, PNG or WebP that is upright, opaque and small enough byte for byte, not encoded again."""
    scaled_decoding: bool = later_field(True, legacy=False)
    """Decode JPEGs at 1/2, 1/4 or 1/8 where that leaves at least twice the pixels wanted; scoring does the same."""
    value_range: tuple[float, float] | None = later_field(None, legacy=None)
    """Values of 16-bit, 32-bit and float samples that become black and white, linear between, for example [0, 4095];
    null: 16-bit samples lose their lower 8 bits, others are quarantined as MODE."""
    evaluation_size_px: int = Field(0, ge=0, le=8192)
    """Side that networks see; 0: the largest side stored where that is at most 64, else 224."""
    evaluation_mode: GeometryMode = "crop"
    """How stored images get that side, in evaluation and scoring."""
    evaluation_crop_ratio: float = Field(1.0, gt=0, le=1)
    """Share of the short side that `crop` keeps; 0.875 is the usual 256 to 224."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB behind transparent pixels, and of padding."""
    min_side_px: int = Field(0, ge=0)
    """Images with a shorter side are quarantined as TOO_SMALL."""

    @model_validator(mode="after")
    def _background_is_a_color(self) -> ImageConfig:
        if not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background is {list(self.background)}; each value must be 0 to 255")
        return self

    @model_validator(mode="after")
    def _value_range_is_a_range(self) -> ImageConfig:
        if self.value_range is not None:
            low, high = self.value_range
            if not -1e30 < low < high < 1e30:
                raise ValueError(f"value_range is [{low:g}, {high:g}]; it must be two numbers, the lower one first")
        return self


class PrivacyConfig(StrictModel):
    """What is taken out of images before they are stored; off by default."""

    strip_metadata: bool = False
    """Store no EXIF, GPS, XMP, IPTC, comments, thumbnails, private blocks or trailing bytes. JPEG and PNG lose them
    without being encoded again; whatever else a format might hide them in is encoded anew from pixels."""
    keep_color_profile: bool = False
    """Leave the ICC profile in JPEGs and PNGs that are not encoded anew; it may name the device."""
    region_column: str = ""
    """Column of the source with boxes to make unrecognisable: a JSON list of [x, y, width, height], in pixels of the
    upright source. An image whose boxes cannot be read is quarantined as REGIONS."""
    region_method: Literal["fill", "pixelate", "blur"] = "fill"
    """`fill`: black; `pixelate`: a few even squares; `blur`: the same squares blended."""
    region_strength: float = Field(0.25, ge=0.125, le=1)
    """Size of a square, as a share of the box's longer side: 0.25 leaves 4 x 4 values of a face, whatever its size."""
    keep_region_column: bool = False
    """Let the column of boxes travel into the dataset."""

    @property
    def applies(self) -> bool:
        """Whether any rule is on."""
        return self.strip_metadata or bool(self.region_column)

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> PrivacyConfig:
        given = self.model_fields_set
        if self.keep_color_profile and not self.strip_metadata:
            raise ValueError("keep_color_profile is for privacy.strip_metadata=true, which is off")
        idle = sorted(given & {"region_method", "region_strength", "keep_region_column"})
        if idle and not self.region_column and any(getattr(self, name) != _default(self, name) for name in idle):
            raise ValueError(f"{idle[0]} is for regions; name their column, for example privacy.region_column=boxes")
        return self


def _default(config: StrictModel, name: str) -> object:
    return type(config).model_fields[name].default


class SplitConfig(StrictModel):
    """How images are divided into train, val and test; a pure function of image ids, labels and seed."""

    train: float = Field(0.8, gt=0, le=1)
    """Share of training images; when it is not given, what val and test leave."""
    val: float = Field(0.1, ge=0, le=1)
    """Share of images on which models are chosen."""
    test: float = Field(0.1, ge=0, le=1)
    """Share of images on which the chosen model is reported."""
    seed: int = Field(0, ge=0)
    """Seed of the hash that orders images."""
    by: Literal["auto", "given", "stratified", "hash", "group", "time"] = "auto"
    """`given`: the source's own train/val/test folders; `stratified`: the shares hold in each class; `hash`: by
    image alone; `group`: images of one group stay together; `time`: the newest are test, the oldest train; `auto`:
    group or time where a column is named, given where every image has a split, else stratified where images have
    labels, else hash."""
    group: str = later_field("", legacy="")
    """Column (of the table of labels, or of Parquet) whose equal values stay together, for example patient."""
    time: str = later_field("", legacy="")
    """Column of times by which images are divided: all numbers, or all ISO 8601 dates. Equal times stay together."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> SplitConfig:
        if "train" not in self.model_fields_set:
            if self.val + self.test >= 1:
                raise ValueError(f"split.val + split.test is {self.val + self.test:g}; nothing is left to train on")
            self.__dict__["train"] = round(1 - self.val - self.test, 12)  # frozen holds for others, not for validation
        for name in ("group", "time"):
            column = getattr(self, name)
            if bool(column) != (self.by == name) and (self.by != "auto" or (self.group and self.time)):
                raise ValueError(
                    f"split.by is {self.by} and split.{name} is {column!r}; name a column for split.by={name}, and only"
                    " then"
                )
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(
                f"split.train + split.val + split.test is {self.train + self.val + self.test:g}; it must be 1,"
                " for example split.train=0.8 split.val=0.1 split.test=0.1"
            )
        return self

    def shares(self) -> dict[str, float]:
        """Return the share of each split; they add up to 1."""
        return {"test": self.test, "val": self.val, "train": self.train}


class DuplicatesConfig(StrictModel):
    """What becomes of pictures that stand more than once."""

    exact: Literal["keep", "drop", "one_side"] = "one_side"
    """Copies with the same bytes. `one_side`: copies in a less held-out split than another go (test stays, then val);
    `drop`: copies within a split go too, one stays; `keep`: all stay, and held-out figures count them."""
    near: Literal["report", "drop", "one_side"] = "report"
    """Pictures that look alike by perceptual hash, whatever their labels; `report`: they are counted and stay."""
    max_distance: int = Field(4, ge=0, le=4)
    """Bits of the 64 of a perceptual hash in which pictures that look alike may differ."""
    conflicts: Literal["report", "quarantine"] = "report"
    """Copies with the same bytes under different labels; `quarantine`: all of them are refused as LABEL_CONFLICT."""


class CheckConfig(StrictModel):
    """A rule that a dataset must keep, for example {rule: min_images_per_class, bound: 10}."""

    rule: Literal[
        "min_images_per_class",
        "min_images_per_split",
        "max_class_imbalance",
        "max_exact_leak_fraction",
        "max_near_leak_fraction",
        "max_unlabelled_fraction",
        "max_quarantined_fraction",
        "max_predictive_property",
    ]
    """What is measured. Imbalance: largest class by smallest; leaks: share of val and test images that train has too,
    by bytes or by looks; predictive property: how well something besides the picture tells a class from all others."""
    bound: float = Field(ge=0, allow_inf_nan=False)
    """The least or the most that is allowed; images, a ratio, or a share of 0 to 1."""
    level: Literal["error", "warn"] = "error"
    """`error`: a dataset that fails is not published; `warn`: it is, and says so."""
    property: str = ""
    """Of max_predictive_property: brightness, contrast, sharpness, source_width, source_height, aspect, source_bytes,
    format or a carried column; empty: each of them."""

    @model_validator(mode="after")
    def _is_a_rule(self) -> CheckConfig:
        if self.property and self.rule != "max_predictive_property":
            raise ValueError(f"property is {self.property!r}, and {self.rule} has none")
        if self.rule.endswith(("_fraction", "_property")) and self.bound > 1:
            raise ValueError(f"bound is {self.bound:g}; {self.rule} is a share of 0 to 1")
        return self


class IngestConfig(StrictModel):
    """Settings of one ingest."""

    source: str = Field(min_length=1)
    """The images: a folder of class folders, a .zip or .tar (.gz, .bz2, .xz, .zst), a folder of these, Parquet, IDX; a
    path or s3://..., a pattern over either (photos/2024-*), or torchvision:NAME."""
    labels: str = later_field("", legacy="")
    """A table of labels for images whose folders do not say them (.csv, .tsv, .jsonl, .parquet): columns key (the path
    in the source), label, if wanted split, and any others, which travel into the dataset as text."""
    image_column: str = later_field("", legacy="")
    """Column of the images where the source is Parquet; empty: found by its name and type."""
    label_column: str = later_field("", legacy="")
    """Column of the labels in the table of labels, or where the source is Parquet; empty: label, class or the like."""
    label_separator: str = later_field("", legacy="")
    """What stands between the labels of one image in a column of text, for example |; lists need none."""
    task: Literal["auto", "single", "multi", "unlabelled"] = later_field("auto", legacy="auto")
    """`single`: one label an image; `multi`: any number of them; `unlabelled`: none is taken, `resnet data relabel`
    can give them later; `auto`: multi where a table or Parquet holds lists of labels, else single."""
    source_name: str = ""
    """Name of the source within the dataset, part of every image_id; empty: the last part of its path."""
    out: str = runtime_field("")
    """The dataset to write; empty: runs/ingest/KEY."""
    append: bool = runtime_field(False)
    """Add what is new or changed to the dataset at `out`, as its next version; its settings hold."""
    retry_failed: bool = runtime_field(False)
    """Read what `out` holds as refused of this source again, and nothing else; what passes now is its next version."""
    moved: bool = runtime_field(False)
    """The source that `out` knows by this name has moved here."""
    image: ImageConfig = Field(default_factory=ImageConfig)
    """How images are stored."""
    privacy: PrivacyConfig = later_field(PrivacyConfig(), legacy=PrivacyConfig().model_dump(mode="json"))
    """What is taken out of images before they are stored."""
    split: SplitConfig = Field(default_factory=SplitConfig)
    """How images are divided."""
    duplicates: DuplicatesConfig = later_field(DuplicatesConfig(), legacy=DuplicatesConfig().model_dump(mode="json"))
    """What becomes of pictures that stand more than once."""
    max_quarantined_fraction: float = runtime_field(0.1, ge=0, le=1)
    """Share of images that may be unreadable before the ingest fails."""
    max_quarantined_fraction_per_class: float = runtime_field(1.0, ge=0, le=1)
    """Share of the images of any one class that may be unreadable before the ingest fails."""
    checks: tuple[CheckConfig, ...] = runtime_field(())
    """Rules that are checked before publishing; `resnet data check` runs them on a dataset that stands."""
    allow_broken_archive: bool = runtime_field(False)
    """Take what can be read of an archive that is cut or damaged, instead of refusing it."""
    ray: RayConfig = runtime_field(default_factory=RayConfig)
    """Where it runs."""
