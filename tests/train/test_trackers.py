"""Trackers hold what metrics.jsonl holds, each number once, whatever interrupts a run; and no tracker ends one."""
import json
import math
import struct
import sys
import types

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.train import trackers
from diffusion_jax.train.log import Writer

PAGE = {"seed": 0, "model": {"name": "diffusion_jax.models.dit:DiT", "width": 96}, "ema": {}, "sharding": [[".*", "fsdp"]]}
ODD = "val_loss[0.0-0.2]"


# Stand-ins: what a tracker keeps, and the calls that are made of it -----------------------------------------------------------

class Broken(RuntimeError):
    """What a network does."""


@pytest.fixture
def wandb(monkeypatch):
    """W&B: `module.rows[id]` are (step, row), as its server has them, or `offline` the folder of the last start."""
    module = types.ModuleType("wandb")
    module.rows, module.starts, module.offline, module.down = {}, [], False, False

    class Run:
        def __init__(self, id, resumed):
            self.id, self.resumed = id, resumed
            self.step = module.rows[id][-1][0] + 1 if resumed else 0

        def log(self, row, step):
            if module.down:
                raise Broken("no route to host")
            rows = module.rows[self.id]
            if not rows or step > rows[-1][0]:                                       # a lower step is left out with a warning
                rows.append((step, dict(row)))

        def finish(self):
            module.starts[-1]["finished"] = True

    def init(id=None, resume=None, **options):
        if module.down:
            raise Broken("api.wandb.ai does not answer")
        module.starts.append({"id": id, "resume": resume, **options})
        id = id or f"run{len(module.starts)}"
        rows = [] if module.offline else module.rows.get(id, [])
        module.rows[id] = rows
        return Run(id, resume == "allow" and bool(rows))

    module.init, module.Settings, module.Image = init, dict, lambda pixels: pixels
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    """MLflow: `module.runs[id]` has its metrics {name: [(step, value)]}, params, files and status."""
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.runs, module.experiments, module.down = {}, {}, False
    Of = types.SimpleNamespace

    class Client:
        def _run(self, id):
            if module.down:
                raise Broken("connection refused\nand more")
            return module.runs[id]

        def get_experiment_by_name(self, name):
            return Of(experiment_id=module.experiments[name]) if name in module.experiments else None

        def create_experiment(self, name):
            return module.experiments.setdefault(name, str(len(module.experiments)))

        def create_run(self, experiment, run_name):
            if module.down:
                raise Broken("connection refused")
            id = f"run{len(module.runs)}"
            module.runs[id] = Of(metrics={}, params={}, files={}, status="RUNNING", name=run_name, experiment=experiment)
            return Of(info=Of(run_id=id))

        def update_run(self, id, status):
            self._run(id).status = status

        def set_terminated(self, id):
            self._run(id).status = "FINISHED"

        def log_param(self, id, key, value):
            assert self._run(id).params.setdefault(key, value) == value
            assert isinstance(value, str)

        def log_dict(self, id, config, name):
            self._run(id).files[name] = json.dumps(config)

        def log_image(self, id, image, name):
            self._run(id).files[name] = image

        def log_batch(self, id, metrics):
            for metric in metrics:
                assert not set(metric.key) & set("[]")                               # which MLflow refuses
                self._run(id).metrics.setdefault(metric.key, []).append((metric.step, metric.value))

        def get_run(self, id):
            return Of(data=Of(metrics={name: rows[-1][1] for name, rows in self._run(id).metrics.items()}))

        def get_metric_history(self, id, name):
            return [Of(step=step) for step, _ in self._run(id).metrics[name]]

    module.MlflowClient = Client
    entities.Metric = lambda key, value, timestamp, step: Of(key=key, value=value, timestamp=timestamp, step=step)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return module


# A run, and what is read back of it -------------------------------------------------------------------------------------------

def train(folder, names, start, stop, killed=False, end=None, page=PAGE):
    """The writer's part of steps start + 1 ... stop, in the loop's order: samples and measures of a step before its own loss.

    It is closed at the end unless it is `killed`.
    """
    writer = Writer(folder, trackers.of_names(names, folder, page))
    writer.resume(start)
    for step in range(start + 1, stop + 1):
        if step % 3 == 0:
            writer.images(step, {"samples": np.full((4, 2, 2, 1), step / 10 - 1, np.float32)})
            writer.scalars(step, {ODD: math.cos(step)})
        writer.scalars(step, {"loss": math.sin(step), "grad_norm": step / 3})
        writer.speeds(step, {"images_per_second": 100.0 + stop})
        if end:
            end(step)
    if not killed:
        writer.close()
    return writer


def lines(folder):
    """{name: [(step, value)]} of metrics.jsonl."""
    columns = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            columns.setdefault(name, []).append((step, value))
    return columns


def of_wandb(rows):
    """The same of W&B's rows, without speeds and pictures."""
    columns = {}
    for step, row in rows:
        for name, value in row.items():
            if isinstance(value, float) and name != "images_per_second":
                columns.setdefault(name, []).append((step, value))
    return columns


def held(folder, wandb=None, mlflow=None):
    """Asserts that each tracker has one run, and in it the numbers of metrics.jsonl."""
    want = lines(folder)
    if wandb:
        (rows,) = wandb.rows.values()
        assert of_wandb(rows) == want
        assert len({step for step, _ in rows}) == len(rows)
    if mlflow:
        (run,) = mlflow.runs.values()
        speeds = run.metrics.pop("images_per_second")
        assert run.metrics == {name.replace("[", " ").replace("]", ""): column for name, column in want.items()}
        assert len({step for step, _ in speeds}) == len(speeds) and run.status == "FINISHED"


SESSIONS = {
    "one": [(0, 10, False)],
    "stopped where it was saved": [(0, 4, False), (4, 10, False)],
    "stopped after it was saved": [(0, 7, False), (4, 10, False)],
    "killed": [(0, 7, True), (4, 10, False)],
    "killed at a step of samples": [(0, 6, True), (4, 10, False)],
    "killed again before it was where it was": [(0, 8, True), (4, 6, True), (4, 10, False)],
    "killed before anything was saved": [(0, 3, True), (0, 10, False)],
}


@pytest.mark.parametrize("sessions", SESSIONS.values(), ids=SESSIONS)
@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
def test_trackers_hold_the_numbers_of_metrics_jsonl_each_once(wandb, mlflow, tmp_path, sessions, offline):
    wandb.offline = offline
    for start, stop, killed in sessions:
        train(tmp_path, ("wandb", "mlflow"), start, stop, killed)
    held(tmp_path, wandb, mlflow)
    assert len(lines(tmp_path)["loss"]) == 10 and len(lines(tmp_path)[ODD]) == 3


def test_the_same_run_goes_on_and_has_the_page_and_the_samples(wandb, mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "flowers")
    folder = tmp_path / "mine"
    train(folder, ("wandb", "mlflow"), 0, 5)
    train(folder, ("wandb", "mlflow"), 5, 6, page={**PAGE, "seed": 1})
    first, again = wandb.starts
    assert first["id"] is None and again["id"] == "run1" and again["resume"] == "allow"
    assert (first["project"], first["name"], first["config"]) == ("flowers", "mine", PAGE) and again["config"]["seed"] == 1
    assert first["dir"] == str(folder / "trackers") and first["finished"] and again["finished"]
    assert json.loads((folder / "trackers" / "wandb.json").read_text()) == {"id": "run1"}
    (run,) = mlflow.runs.values()
    assert (run.name, mlflow.experiments) == ("mine", {"diffusion_jax": "0"})
    assert run.params["model.width"] == "96" and run.params["seed"] == "0" and json.loads(run.files["page.json"])["seed"] == 1
    for sheet in (run.files["samples/00000006.png"], dict(wandb.rows["run1"])[6]["samples"]):
        assert sheet.shape[:2] == (6, 6) and sheet[0, 0, 0] == round((6 / 10) * 127.5) and sheet[2, 2, 0] == 255


def test_a_tracker_that_comes_later_gets_what_was_before(wandb, mlflow, tmp_path):
    train(tmp_path, (), 0, 5)
    train(tmp_path, ("mlflow",), 5, 7)
    train(tmp_path, ("wandb", "mlflow"), 7, 10)
    held(tmp_path, wandb)
    assert [step for step, _ in mlflow.runs["run0"].metrics["loss"]] == list(range(1, 11))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_network_that_fails_ends_no_run_is_said_once_and_made_up_for_later(wandb, mlflow, tmp_path, caplog, name):
    module = {"wandb": wandb, "mlflow": mlflow}[name]
    train(tmp_path, (name,), 0, 7, end=lambda step: setattr(module, "down", step >= 5))
    train(tmp_path, (name,), 7, 8)                                                   # it still is when the run goes on
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and all(f"tracker {name} fails (Broken: " in line and "\n" not in line for line in warnings)
    module.down = False
    train(tmp_path, (name,), 8, 10)
    held(tmp_path, **{name: module})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_cannot_begin_stops_a_run_before_its_first_step(wandb, mlflow, tmp_path, name):
    {"wandb": wandb, "mlflow": mlflow}[name].down = True
    with pytest.raises(ConfigError, match=f"tracker {name} does not begin .Broken: .*: mend that, or leave it out") as error:
        train(tmp_path, (name,), 0, 1)
    assert "\n" not in str(error.value)


def test_a_full_disk_of_our_own_lines_stops_a_run_that_is_tracked(wandb, tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = Writer(tmp_path, trackers.of_names(("wandb",), tmp_path, PAGE))
    with pytest.raises(ConfigError, match="No space left"):
        writer.scalars(1, {"loss": 0.5})


def test_a_note_that_does_not_read_says_what_to_do(wandb, tmp_path):
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "wandb.json").write_text('{"id"')
    with pytest.raises(ConfigError, match="wandb.json does not read .*: delete it to begin a new run of wandb"):
        train(tmp_path, ("wandb",), 0, 1)


@pytest.mark.parametrize(("text", "says"), [
    ("wnadb", "unknown tracker 'wnadb': did you mean 'wandb'"), ("wandb,mlfow", "did you mean 'mlflow'"),
    ("tensorboard", "unknown tracker 'tensorboard': known: mlflow, wandb")])
def test_unknown_trackers_are_named(wandb, text, says):
    with pytest.raises(ConfigError, match=says):
        trackers.names_of(text)


def test_a_library_that_is_not_there_is_one_line_with_the_command(wandb, monkeypatch):
    assert trackers.names_of("") == () and trackers.names_of(" wandb, wandb") == ("wandb",)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="tracker mlflow does not import .*: pip install mlflow$"):
        trackers.names_of("wandb,mlflow")


# The libraries themselves, where they are installed: pip install wandb mlflow ------------------------------------------------

def records(file):
    """Of a file of W&B, a log of LevelDB: blocks of 32 KiB, records (checksum, length, kind), kind 1 whole, 2 ... 4 parts."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record = (b"" if kind in (1, 2) else record) + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield record


def offline_rows(folder):
    """(step, row) of the last start's folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in records(next((folder / "trackers" / "wandb" / "latest-run").resolve().glob("*.wandb"))):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            numbers = {name: float(value) for name, value in row.items() if not name.startswith(("_", "samples/"))}
            yield row["_step"], numbers


def test_the_file_of_wandb_holds_the_numbers(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, ("wandb",), 0, 7)
    train(tmp_path, ("wandb",), 4, 10)
    wandb.teardown()                                                                 # as at the end of a process: all is written
    starts = [path.name for path in (tmp_path / "trackers" / "wandb").glob("offline-run-*")]
    assert len(starts) == 2 and len({name.split("-")[-1] for name in starts}) == 1
    rows = list(offline_rows(tmp_path))
    assert [step for step, _ in rows] == list(range(1, 11)) and of_wandb(rows) == lines(tmp_path)
    assert list((tmp_path / "trackers" / "wandb").rglob("samples_*.png"))


@pytest.mark.parametrize("store", ["file:{}/mlruns", "sqlite:///{}/mlflow.db"], ids=["files", "database"])
def test_the_store_of_mlflow_holds_the_numbers(tmp_path, monkeypatch, store):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracking.set_tracking_uri(None)                                                  # or it stays that of the first test
    folder = tmp_path / "mine"
    train(folder, ("mlflow",), 0, 7, killed=True)
    train(folder, ("mlflow",), 4, 10)
    client = tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("diffusion_jax").experiment_id])
    columns = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    assert len(columns.pop("images_per_second")) == 10
    assert columns == {name.replace("[", " ").replace("]", ""): column for name, column in lines(folder).items()}
    assert (run.info.run_name, run.info.status, run.data.params["model.width"]) == ("mine", "FINISHED", "96")
    files = {file.path for part in ("", "samples") for file in client.list_artifacts(run.info.run_id, part)}
    assert files == {"page.json", "samples", *(f"samples/{step:08d}.png" for step in (3, 6, 9))}
