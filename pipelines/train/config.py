"""The schema of `resnet train`: what is trained, on what, by which recipe, and how the run is spread out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, create_model, model_validator

from pipelines.config.strict import StrictModel, later_field, runtime_field
from pipelines.ray_runtime import RayConfig
from pipelines.tracking import TrackingConfig
from resnet_models.spec import ModelSpec


class OptimizerConfig(StrictModel):
    """How a gradient becomes a step; weight decay leaves norms and biases alone, but for `norm_bias_factor`."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: SGD with Nesterov momentum; adamw: Adam with decoupled weight decay (arXiv:1711.05101)."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate, for the global batch as it is (nothing is scaled by worker count)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD, first beta of AdamW."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """Second beta of AdamW; SGD has none."""
    weight_decay: float = Field(5e-4, ge=0)
    """Decay of convolution and linear weights: added to the gradient by SGD, decoupled by AdamW."""
    norm_bias_factor: float = later_field(1.0, legacy=1.0, gt=0)
    """Learning rate of the norms' biases as a multiple of all others'; 64 makes short runs learn faster
    (arXiv:2404.00498, sec. 3.4). Other than 1 they are decayed too, by as much a step as the weights."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest 2-norm of the whole gradient; 0: gradients are not clipped."""


class ScheduleConfig(StrictModel):
    """The learning rate over the run, as a fraction of the peak."""

    name: Literal["cosine", "one_cycle", "constant", "multi_step", "polynomial"] = "cosine"
    """Shape after the warm-up: half a cosine (arXiv:1608.03983), a straight line (one cycle), flat, steps down at
    `milestones`, or a falling power."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs of straight rise to the peak; at most the whole run. One cycle usually takes a fifth to a third."""
    start_fraction: float = Field(0.1, ge=0, le=1)
    """Rate at the first step, as a fraction of the peak; no effect without warm-up."""
    final_fraction: float = Field(0.0, ge=0, le=1)
    """Rate at the last step, as a fraction of the peak; no effect on `constant` and `multi_step`."""
    milestones: tuple[float, ...] = later_field((), legacy=[])
    """multi_step: epochs done at which the rate is multiplied by `gamma`, for example [30, 60, 80]."""
    gamma: float = later_field(0.1, legacy=0.1, gt=0, lt=1)
    """multi_step: factor of each step down."""
    power: float = later_field(2.0, legacy=2.0, gt=0)
    """polynomial: exponent of the share of the run that is left."""

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        if (self.name == "multi_step") != bool(self.milestones):
            raise ValueError(
                f"name is {self.name} and milestones are {list(self.milestones)}; mend: multi_step needs milestones,"
                " for example milestones=[30,60,80], and the others take none"
            )
        if any(after <= before for before, after in zip((0.0, *self.milestones), self.milestones, strict=False)):
            raise ValueError(f"milestones are {list(self.milestones)}; they must be above 0 and rise")
        for field, shape in (("gamma", "multi_step"), ("power", "polynomial")):
            if self.name != shape and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is given and name is {self.name}; mend: only {shape} has it")
        return self


class AugmentConfig(StrictModel):
    """Random changes of training images; each draw depends on (seed, epoch, image) alone."""

    flip: bool = True
    """Mirror half of the images left to right, each in every other epoch; false for digits and letters."""
    shift_px: int = Field(2, ge=0, le=64)
    """Shift by up to this many pixels each way, the border mirrored; 0: none."""
    cutout_px: int = Field(0, ge=0)
    """Side of a square set to the mean colour (arXiv:1708.04552); 0: none."""
    mixup_alpha: float = Field(0.0, ge=0)
    """Mix pairs of images and labels, the share drawn from Beta(alpha, alpha) (arXiv:1710.09412); 0: none."""
    cutmix_alpha: float = later_field(0.0, legacy=0.0, ge=0)
    """Paste a box of another image, its area drawn from Beta(alpha, alpha), and share the label by area
    (arXiv:1905.04899); 0: none. With mixup as well, each image has one or the other."""
    crop_min_area: float = later_field(0.0, legacy=0.0, ge=0, lt=1)
    """Random resized crops of the stored image: at least this share of it, of aspect 3/4 to 4/3 (arXiv:1409.4842); 0:
    the whole image in the evaluation's geometry. 0.08 to 0.35 are usual; take shift_px=0 with it."""
    policy: Literal["none", "trivial", "rand"] = later_field("none", legacy="none")
    """trivial: one change of 14 per image at any strength (arXiv:2103.10158); rand: `rand_operations` of them at
    `rand_strength` (arXiv:1909.13719)."""
    rand_operations: int = later_field(2, legacy=2, ge=1, le=8)
    """Changes per image; policy rand only."""
    rand_strength: float = later_field(0.3, legacy=0.3, gt=0, le=1)
    """Share of the strongest change (magnitude 9 of 30 is 0.3); policy rand only."""
    erase_probability: float = later_field(0.0, legacy=0.0, ge=0, le=1)
    """Share of images of which a rectangle of 2% to 33% is set to the mean colour (arXiv:1708.04896)."""

    @property
    def is_mixed(self) -> bool:
        """Whether images are mixed with partners."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


class ProgressiveConfig(StrictModel):
    """Smaller images first (arXiv:2104.00298, sec. 4): early epochs cost less, and little is lost."""

    start_fraction: float = Field(1.0, gt=0, le=1)
    """Side of the images in the first epoch, as a fraction of the full side; 1: full size from the start."""
    full_at: float = Field(0.75, gt=0, le=1)
    """Share of the run after which images have their full side; it grows straight until then, an epoch at a time."""
    multiple_px: int = Field(4, ge=1, le=64)
    """Sides are rounded to multiples of this; 32 suits networks that shrink 32 times."""


class DivergenceConfig(StrictModel):
    """What happens when the loss stops being a number, or jumps."""

    rollbacks: int = Field(0, ge=0, le=20)
    """How often the run may go back to its last good checkpoint, with a lower rate, before it ends; 0: it ends."""
    rate_factor: float = Field(0.5, gt=0, lt=1)
    """What the learning rate is multiplied by each time, for the rest of the run."""
    spike_factor: float = Field(0.0, ge=0)
    """An epoch whose training loss is over so many times the one before counts as diverged; 0: only what is no number
    does."""

    @model_validator(mode="after")
    def _check(self) -> DivergenceConfig:
        if 0 < self.spike_factor <= 1:
            raise ValueError(f"spike_factor is {self.spike_factor:g}; mend: above 1, for example 3, or 0 for none")
        if self.spike_factor and not self.rollbacks:
            raise ValueError("spike_factor is given and rollbacks is 0; mend: rollbacks=3, or leave spike_factor out")
        return self


class LossConfig(StrictModel):
    """What is minimised."""

    name: Literal["cross_entropy", "bce", "focal"] = "cross_entropy"
    """cross_entropy; bce: every class a yes or no of its own, added up (arXiv:2110.00476, sec. 2.3); focal: cross
    entropy that counts rows less the surer the network is of them (arXiv:1708.02002)."""
    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of (1 - probability of the right class); focal only. 0 is cross entropy."""
    class_weights: Literal["none", "balanced", "effective"] = "none"
    """Weight of a row by its class: balanced: as the inverse of the class's rows; effective: less steeply
    (arXiv:1901.05555)."""
    effective_beta: float = Field(0.999, gt=0, lt=1)
    """How soon another row of a class brings nothing new; effective only."""


# `from` is a word of Python: a class body cannot name a field so, and no other name reads as well in a config.
_InitFrom = create_model(
    "_InitFrom",
    __base__=StrictModel,
    **{
        "from": (
            str,
            runtime_field(
                "",
                description="Model whose weights are the start: a package, train, tune or imported folder, or "
                "models:/NAME@ALIAS; empty: random weights. The key holds the weights' hash, not the address.",
            ),
        )
    },  # type: ignore[call-overload]
)


class InitConfig(_InitFrom):
    """What the network starts from, and how much of it is left as it is (transfer learning)."""

    grow: bool = later_field(False, legacy=False)
    """Grow the package's network to `model`, which may have more blocks and channels: the larger network starts as the
    same function (Net2Net, arXiv:1511.05641), so that a search can go deeper from what is trained already."""
    freeze_until: str = Field("", pattern=r"^(stage[1-8]|head)?$")
    """What lies before this part (stage1 ... or head) is kept: weights and norm statistics; empty: all is trained."""
    lr_decay_by_depth: float = Field(1.0, gt=0, le=1)
    """Rate of a part (stem, each stage) as a fraction of the rate of the part after it; the head has the full one
    (discriminative rates, arXiv:1801.06146 sec. 3.2); 1: one rate for all."""

    @property
    def source(self) -> str:
        """The field `from`."""
        return str(getattr(self, "from"))

    @model_validator(mode="after")
    def _check(self) -> InitConfig:
        if self.freeze_until and not self.source:
            raise ValueError(
                f"freeze_until is {self.freeze_until} and there is no from, so random weights would be kept; mend: "
                "name a model with init.from=..., or leave freeze_until out"
            )
        if self.grow and not self.source:
            raise ValueError("grow is true and there is no from, so nothing would be grown; mend: name a model with "
                             "init.from=..., or leave grow out")  # fmt: skip
        return self


class TrainConfig(StrictModel):
    """One training run."""

    dataset: str = runtime_field("")
    """Dataset folder or address, `@vN` for a version, else the newest. The key holds its fingerprint, not its path."""
    out: str = runtime_field("")
    """Folder or address of the run; empty: runs/train/<key>."""
    model: ModelSpec = ModelSpec()
    """The network. Classes are those of the dataset."""
    init: InitConfig = later_field(InitConfig(), legacy=InitConfig().model_dump(mode="json"))
    """What the network starts from. With `init.from` and no `model`, the network is that model's."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How a gradient becomes a step."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of training images."""
    progressive: ProgressiveConfig = later_field(
        ProgressiveConfig(), legacy=ProgressiveConfig().model_dump(mode="json")
    )
    """Smaller images first. Validation sees the full size throughout."""
    epochs: int = Field(30, ge=1)
    """Passes over the training rows."""
    patience_epochs: int = later_field(0, legacy=0, ge=0)
    """Epochs in a row without a better one on val after which the run is over; 0: all epochs are done."""
    global_batch_size: int = Field(128, ge=1)
    """Images a step, over all workers together; the last batch of an epoch may be shorter."""
    find_batch_size: bool = later_field(False, legacy=False)
    """Begin with `global_batch_size` and double it while memory holds it and that makes training faster; `optimizer.lr`
    is that of the first size and grows with it (SGD) or its root (AdamW). What is found is kept for the run's life."""
    sampling: Literal["all", "balanced"] = later_field("all", legacy="all")
    """all: every row once an epoch; balanced: as many rows of each class as there are on average, rows of rare classes
    several times, each time changed anew, and those of common classes in turn."""
    accumulate: int = later_field(1, legacy=1, ge=1)
    """Pieces in which a batch is computed, one after the other, to need less memory; a worker's share of each is the
    same rows whatever the number of workers. Batch norm sees a piece at a time; group, frozen and ghost norms, while
    there are at least as many ghosts as pieces, do not notice. Where memory is short in training, pieces are halved,
    and log and records say so."""
    loss: LossConfig = later_field(LossConfig(), legacy=LossConfig().model_dump(mode="json"))
    """What is minimised. Validation and evaluation report cross entropy and accuracy in any case."""
    divergence: DivergenceConfig = later_field(DivergenceConfig(), legacy=DivergenceConfig().model_dump(mode="json"))
    """What happens when the loss stops being a number, or jumps."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes (arXiv:1512.00567, sec. 7)."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per step of the averaged weights that are evaluated and kept (warmed up over the first steps); 0: none."""
    precision: Literal["auto", "float64", "float32", "bf16", "fp16"] = "auto"
    """Type of the matrix products. auto: bf16 or fp16 on a GPU, bf16 on a CPU that has it in hardware, else float32.
    float64 is for comparing runs: rounding no longer hides or makes differences."""
    compile: bool = runtime_field(False)
    """Compile the network (torch.compile): minutes at the start, then faster on GPUs, results equal up to rounding."""
    channels_last: bool = True
    """Keep images channels-last in memory; faster for convolutions in most places, results equal up to rounding."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of initial weights, order and augmentation."""

    local: bool = runtime_field(False)
    """Train in the command's own process, without Ray: one worker, and the shortest way to the first step."""
    num_workers: int = runtime_field(1, ge=1)
    """Training processes. The steps they compute do not depend on how many they are, up to rounding."""
    min_workers: int = runtime_field(0, ge=0)
    """Fewest processes to go on with where the cluster has not `num_workers` at the time; when more come or some go,
    the run starts anew from its checkpoint with as many as there are. 0: exactly `num_workers`."""
    cpus_per_worker: int = runtime_field(0, ge=0)
    """CPUs and torch threads of a worker; 0: an equal share of the cluster's."""
    use_gpu: bool | Literal["auto"] = runtime_field("auto")
    """true: a GPU for every worker, refused where there is none; auto: GPUs where there are enough; false: CPUs."""
    max_hours: float = runtime_field(0.0, ge=0)
    """Hours after which the run leaves a checkpoint and stops, to be gone on with by the same command; 0: none."""
    checkpoint_every_s: float = runtime_field(60.0, ge=0)
    """Seconds between checkpoints inside an epoch; there is one at the end of every epoch in any case."""
    cache_limit_mb: int = runtime_field(2048, ge=0)
    """Decoded images of a split that are kept in memory, in MB, once for all workers of a node; a larger split is
    decoded as it is read."""
    loader_threads: int = runtime_field(0, ge=0)
    """Threads that decode images in a worker; 0: as many as it has CPUs."""
    log_every_steps: int = runtime_field(0, ge=0)
    """Steps between two points of loss, learning rate and images/s in MLflow; 0: as many as make 30 points an epoch."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the run is recorded."""
    ray: RayConfig = RayConfig()
    """The Ray cluster that runs the workers."""

    @model_validator(mode="after")
    def _check_workers(self) -> TrainConfig:
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers is {self.min_workers} and num_workers {self.num_workers}; mend: num_workers is the most"
            )
        return self


class ReplayConfig(StrictModel):
    """A window of a finished run, done once more."""

    run: str = Field(min_length=1)
    """Folder or address of the training run."""
    window: int = Field(50, ge=1)
    """Steps to do; fewer where the run ends before."""
    workers: int = Field(1, ge=1)
    """Training processes to do them with; one runs without Ray."""
    seed: int = Field(0, ge=0)
    """Chooses among the checkpoints that the run kept."""
    tolerance: float = Field(0.0, ge=0)
    """Largest relative difference of a step's loss; 0: what the run's precision allows."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the run was recorded; the certificate is added there."""
    ray: RayConfig = RayConfig()
    """The Ray cluster that runs several workers."""
