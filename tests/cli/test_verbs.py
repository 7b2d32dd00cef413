"""The command line as a newcomer runs it: real processes, what they print, how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import parser

ROOT = Path(__file__).resolve().parents[2]
LLAMA = {"version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "inference", "inference": {"batch": 4, "prompt_tokens": 4096}}


def highwater(*arguments: str, given: object = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    text = given if isinstance(given, str) else json.dumps(given)
    clean = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT, input=text, capture_output=True, text=True, timeout=280, check=False,
        env=clean | {"HF_ENDPOINT": "http://127.0.0.1:9", "COLUMNS": "120"} | (env or {}),
    )  # fmt: skip


def test_predict_prints_the_footprint_as_json() -> None:
    done = highwater("predict", "-", "--json", given=LLAMA)
    footprint = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert footprint["parameters"] == 8030261248
    assert footprint["verdict"] == "fits"
    assert {term["certainty"] for term in footprint["terms"]} == {"derived", "modelled"}


def test_predict_prints_a_table_and_tells_by_its_status_that_it_does_not_fit() -> None:
    done = highwater("predict", "-", given=LLAMA | {"hardware": {"gpu": "GeForce RTX 3060 12GB"}})
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert "14.96 GiB" in done.stdout


def test_what_is_not_modelled_is_unknown_and_ends_with_3() -> None:
    done = highwater(
        "predict",
        "-",
        given={"version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "inference", "weights": "hqq-int4-g64"},
    )
    assert done.returncode == 3
    assert "unknown" in done.stdout


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        (LLAMA | {"inference": {"batch": -1}}, 2, ["inference.batch: must be at least 1, got -1"]),
        ("{", 2, ["standard input"]),
        ("", 2, ["standard input"]),
        (LLAMA | {"model": "meta-llama/Llama-9-8B"}, 3, ["model: meta-llama/Llama-9-8B: ", "close names in the catalog"]),
        (LLAMA | {"model": {"path": "/nowhere/config.json"}}, 2, ["model.path: does not exist"]),
        (LLAMA | {"weights": "int3"}, 2, ["weights:"]),
        (LLAMA | {"task": "both", "x": 1}, 2, ["task: must be one of", "x: unknown key"]),
    ],
)
def test_bad_input_is_one_clear_message_a_fault(given: object, status: int, told: list[str]) -> None:
    done = highwater("predict", "-", given=given)
    assert done.returncode == status
    lines = done.stderr.strip().splitlines()
    assert len(lines) == len(told)
    for line, words in zip(lines, told, strict=True):
        assert line.startswith("highwater: ")
        assert words in line


def test_measuring_without_torch_says_what_to_install(tmp_path: Path) -> None:
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else found(name, package)\n"
    )
    done = highwater("measure", "-", given=LLAMA, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 3
    assert 'pip install "highwater[probe]"' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_python_without_the_packages_says_how_to_install_them() -> None:
    done = subprocess.run([sys.executable, "-S", "main.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "lacks rich" in done.stderr
    assert "pip install" in done.stderr


def test_the_program_goes_by_the_name_it_was_started_with(tmp_path: Path) -> None:
    """Installed it is `highwater`; from any folder."""
    started = tmp_path / "highwater"
    started.symlink_to(ROOT / "main.py")
    for arguments in (("--help",), ("measure", "--help")):
        done = subprocess.run([sys.executable, started, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: highwater ")


def test_models_are_listed_found_and_shown() -> None:
    assert highwater("models", "--ids").stdout.count("\n") == 126
    rows = json.loads(highwater("models", "smollm2-135m", "--json").stdout)
    assert [(row["id"], row["parameters"]) for row in rows] == [("HuggingFaceTB/SmolLM2-135M", 134515008)]
    shown = json.loads(highwater("models", "show", "meta-llama/Llama-3.1-8B", "--json").stdout)
    assert shown["cache_bytes_per_token"] == 131072
    assert shown["layers"] == [{"stack": "model.layers", "count": 32, "kind": "GQA 32/8 × 128 + gated MLP 14336"}]
    assert highwater("models", "no such model").returncode == 2


def test_gpus_are_listed_with_what_is_known() -> None:
    rows = json.loads(highwater("gpus", "h200", "sxm", "--json").stdout)
    assert [row["name"] for row in rows] == ["H200 SXM 141GB"]
    assert highwater("gpus", "voodoo").returncode == 2


def test_the_doctor_names_every_part() -> None:
    told = {row["what"] for row in json.loads(highwater("doctor", "--json").stdout)}
    assert {"Python", "torch", "GPU driver", "display", "Qt's libraries", "measuring"} <= told


def test_without_a_display_the_first_plan_is_printed_and_the_way_to_the_window_told() -> None:
    done = highwater()
    assert done.returncode == 3
    assert "meta-llama/Llama-3.1-8B" in done.stdout
    assert "xvfb-run" in done.stderr


def test_a_picture_of_the_window_is_rendered_offscreen(tmp_path: Path) -> None:
    file, scenario = tmp_path / "window.png", tmp_path / "plan.json"
    scenario.write_text(json.dumps(LLAMA))
    done = highwater(
        "--screenshot", str(file), "--tab", "probe", "--scenario", str(scenario), "--theme", "dark", "--size", "1000x700"
    )
    assert (done.returncode, done.stderr) == (0, "")
    header = file.read_bytes()[:24]
    assert header[1:4] == b"PNG"
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == (1000, 700)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--screenshot", "x.png", "--tab", "nothing"), "nothing"),
        (("--screenshot", "x.png", "--size", "big"), "WIDTHxHEIGHT"),
        (("--screenshot", "/nowhere/x.png"), "/nowhere/x.png"),
        (("predcit",), "Verbs: predict"),
        (("predict",), "scenario"),
    ],
)
def test_wrong_arguments_are_told(arguments: tuple[str, ...], told: str) -> None:
    done = highwater(*arguments)
    assert done.returncode in (2, 3)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


WORK = {
    "inference": {"inference": {"batch": 2, "prompt_tokens": 64, "new_tokens": 4}},
    "training": {"training": {"batch": 2, "sequence": 48}},
    "checkpointed": {"training": {"batch": 1, "sequence": 64, "checkpointing": "full", "optimizer": "adamw_foreach"}},
}
PHASES = {"inference": {"load", "prefill", "decode"}, "training": {"load", "forward", "backward", "optimizer"}}


@pytest.mark.parametrize("work", WORK)
def test_a_measurement_of_a_real_model_agrees_with_the_prediction(work: str, tmp_path: Path) -> None:
    """Two layers of SmolLM2-135M on the CPU: predicted and measured allocated differ by less than 5 % in every phase."""
    task = next(iter(WORK[work]))
    record = tmp_path / "run.jsonl"
    scenario = {"version": 1, "model": "HuggingFaceTB/SmolLM2-135M", "task": task} | WORK[work]
    done = highwater("measure", "-", "--device", "cpu", "--layers", "2", "--json", "--record", str(record), given=scenario)
    result = json.loads(done.stdout)
    assert (done.returncode, result["level"]) == (0, "measure")
    assert set(result["error"]) == PHASES[task]
    assert max(abs(error["allocated"]) for error in result["error"].values()) < 0.05
    assert json.loads(record.read_text().splitlines()[0])["highwater_recording"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("measure", "--attach", "-5"), "--attach: must be at least 1, got -5"),
        (("measure", "x.json", "--budget", "inf"), "--budget: must be a number above 0, got inf"),
        (("measure", "x.json", "--time-limit", "nan"), "--time-limit: must be a number above 0, got nan"),
        (("history", "--limit", "0"), "--limit: must be at least 1, got 0"),
        (("history", "--limit", "x"), "--limit: must be a whole number, got 'x'"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_with_their_option(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser.run(list(arguments))
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("history", "show", "9" * 30), "is not the id of a run"),
        (("calibrate", "fit", "nowhere.jsonl"), "highwater: nowhere.jsonl: No such file or directory"),
        (("calibrate", "reset", "Voodoo"), "reset: name a card that is calibrated"),
        (("mesure",), "did you mean measure?"),
    ],
)
def test_what_is_not_there_is_bad_input_in_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parser.run(list(arguments)) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert errors.count("\n") == 1


def test_more_layers_than_the_model_has_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(LLAMA))
    for verb in ("measure", "rehearse"):
        assert parser.run([verb, str(path), "--layers", "33"]) == 2
        assert capsys.readouterr().err == "highwater: layers: the model has 32, got 33\n"
