import contextlib
from types import SimpleNamespace

import pytest

import cluster.submit as submit_module
from cluster.submit import content_of, make_entrypoint, make_parcel, submit
from pipelines.errors import InputError

FAR = "http://10.0.0.5:8265"
NEAR = "http://127.0.0.1:8265"


def test_config_files_travel_under_their_names_and_arguments_follow(tmp_path):
    config = tmp_path / "my train.yaml"
    config.write_text("epochs: 1\n")
    parcel = make_parcel("train", [str(config), "optimizer.lr=0.1", "--out", "s3://b/run"], address=FAR)
    assert parcel.args == ("my train.yaml", "optimizer.lr=0.1", "--out", "s3://b/run")
    assert parcel.files == {"my train.yaml": config}
    assert make_entrypoint(parcel, is_hidden=False) == (
        "python -m pipelines.cli.main train 'my train.yaml' optimizer.lr=0.1 --out s3://b/run"
    )


def test_two_config_files_of_one_name_stay_apart(tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "c.yaml")
        files[-1].write_text(folder)
    parcel = make_parcel("run", [str(files[0]), f"--config={files[1]}", "--out=s3://b/x"], address=FAR)
    assert parcel.args == ("c.yaml", "--config=1-c.yaml", "--out=s3://b/x")
    assert parcel.files == {"c.yaml": files[0], "1-c.yaml": files[1]}


def test_a_local_path_is_refused_on_another_machine_and_passed_on_this_one(tmp_path):
    archive = tmp_path / "photos.zip"
    archive.write_bytes(b"x")
    arguments = [str(archive), "--out", "s3://b/d"]
    with pytest.raises(InputError, match="is a path on this machine, which the cluster cannot see") as refused:
        make_parcel("ingest", arguments, address=FAR)
    assert "put it on storage that every node reaches" in refused.value.mend
    assert make_parcel("ingest", arguments, address=NEAR).args == tuple(arguments)


def test_an_output_place_is_asked_for():
    with pytest.raises(InputError) as refused:
        make_parcel("train", ["cifar-fast", "--dataset", "s3://b/d"], address=FAR)
    assert str(refused.value) == (
        "InputError: a submitted train needs an output place that outlives the job's own folder\n"
        "  where: --out\n"
        "  mend:  add --out s3://BUCKET/PATH"
    )
    for args in (["out=s3://b/r"], ["--out=s3://b/r"], ["--out", "s3://b/r"], ["--dry-run"]):
        make_parcel("train", args, address=FAR)


def test_an_unknown_stage_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'trian' is no stage that can be submitted") as refused:
        make_parcel("trian", [], address=FAR)
    assert "train" in refused.value.mend


def test_hidden_variables_change_the_entry_point_and_are_not_in_it():
    parcel = make_parcel("data", ["show", "s3://b/d"], address=FAR)
    assert make_entrypoint(parcel, is_hidden=True) == "python -m cluster.job data show s3://b/d"


def test_arguments_reach_the_shell_quoted():
    parcel = make_parcel("data", ["show", "s3://b/$(reboot); x"], address=FAR)
    assert make_entrypoint(parcel, is_hidden=False) == "python -m pipelines.cli.main data show 's3://b/$(reboot); x'"


def test_the_derived_key_follows_command_config_and_variables(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("epochs: 1\n")

    def content(*args, seen=(("A", "1"),), hidden=("TOKEN",)):
        return content_of(make_parcel("train", [*args, "--out", "s3://b/r"], address=FAR), dict(seen), hidden)

    first = content(str(config))
    assert content(str(config)) == first
    assert content(str(config), "seed=2") != first
    assert content(str(config), seen=(("A", "2"),)) != first
    assert content(str(config), hidden=()) != first
    config.write_text("epochs: 2\n")
    assert content(str(config)) != first


@pytest.mark.parametrize("words", [["photos.zip"], ["cifar-fast", "--dataset", "s3://b/photos.tar.gz"]])
def test_training_as_a_job_does_not_ingest_on_its_way(words):
    with pytest.raises(
        InputError, match=r"a submitted train takes a dataset, and .* is an archive of images"
    ) as refused:
        make_parcel("train", [*words, "--out", "s3://b/r"], address=FAR)
    assert refused.value.mend == (
        f"resnet submit ingest {words[-1]} --out s3://BUCKET/DATASET, then --dataset s3://BUCKET/DATASET"
    )


class Cluster:
    """What `submit` asks of Ray's client; a job ends when told."""

    def __init__(self):
        self.jobs = {}
        self.lose_answer = False

    def list_jobs(self):
        return list(self.jobs.values())

    def get_job_info(self, submission_id):
        return self.jobs[submission_id]

    def submit_job(self, *, entrypoint, submission_id, metadata, **_):
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id, job_id=None, entrypoint=entrypoint, metadata=metadata, status="RUNNING",
            start_time=1, end_time=None, message="", driver_exit_code=None,
        )  # fmt: skip
        if self.lose_answer:
            raise RuntimeError("Request failed with status code 502: bad gateway.")


@pytest.fixture
def fake(monkeypatch):
    fake = Cluster()
    monkeypatch.setattr(submit_module, "job_client", lambda address: contextlib.nullcontext(fake))
    monkeypatch.setattr(submit_module, "stage_code", lambda target: [])
    return fake


def test_a_key_is_one_job_while_it_runs_and_after_it_succeeded(fake):
    first = submit("data", ["show", "s3://b/d"], FAR, key="k")
    assert first.is_new
    again = submit("data", ["show", "s3://b/d"], FAR, key="k")
    assert (again.is_new, again.submission_id) == (False, first.submission_id)
    fake.jobs[first.submission_id].status = "SUCCEEDED"
    assert not submit("data", ["show", "s3://b/d"], FAR, key="k").is_new
    fake.jobs[first.submission_id].status = "FAILED"
    third = submit("data", ["show", "s3://b/d"], FAR, key="k")
    assert third.is_new
    assert third.submission_id == first.submission_id[:-1] + "2"


def test_without_a_key_a_finished_command_runs_again(fake):
    first = submit("data", ["show", "s3://b/d"], FAR)
    assert not submit("data", ["show", "s3://b/d"], FAR).is_new
    fake.jobs[first.submission_id].status = "SUCCEEDED"
    assert submit("data", ["show", "s3://b/d"], FAR).is_new


def test_a_lost_answer_leaves_one_job(fake):
    fake.lose_answer = True
    submission = submit("data", ["show", "s3://b/d"], FAR, key="k")
    assert not submission.is_new
    assert list(fake.jobs) == [submission.submission_id]


def test_a_refusal_that_left_no_job_goes_on_as_it_is(fake, monkeypatch):
    def refuse(**_):
        raise RuntimeError("no space")

    monkeypatch.setattr(fake, "submit_job", refuse)
    with pytest.raises(RuntimeError, match="no space"):
        submit("data", ["show", "s3://b/d"], FAR, key="k")


def test_a_key_of_another_command_is_refused(fake, monkeypatch):
    submit("data", ["show", "s3://b/d"], FAR, key="k")
    with pytest.raises(InputError) as refused:
        submit("data", ["show", "s3://b/other"], FAR, key="k")
    assert str(refused.value) == (
        "InputError: the key stands for another command on this cluster: python -m pipelines.cli.main data show s3://b/d\n"
        "  where: --key\n"
        "  mend:  give this command another key; config files and variables count as part of it"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    with pytest.raises(InputError, match="the key stands for another command"):
        submit("data", ["show", "s3://b/d"], FAR, key="k")
