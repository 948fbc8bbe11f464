import pytest

from cluster.submit import _content_of, make_entrypoint, make_parcel
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
        make_parcel("train", ["cifar10", "--dataset", "s3://b/d"], address=FAR)
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


def test_the_derived_key_follows_command_and_config(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("epochs: 1\n")

    def content(*args):
        return _content_of(make_parcel("train", [*args, "--out", "s3://b/r"], address=FAR), "cluster")

    first = content(str(config))
    assert content(str(config)) == first
    assert content(str(config), "seed=2") != first
    config.write_text("epochs: 2\n")
    assert content(str(config)) != first
