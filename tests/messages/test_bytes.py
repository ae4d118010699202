"""Files of other bytes than text: as a recipe, as a plan, as prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
SOUND = b"name: x\nstages: [{kind: drop_layers, keep: 2}]\n"
NOT_TEXT = "not text, but some other kind of file; name a YAML file"
UTF_8 = "not UTF-8 text: save the file as UTF-8"
YAML: dict[str, tuple[bytes, str]] = {
    "UTF-16": (SOUND.decode().encode("utf-16"), f":1: {UTF_8}"),
    "Latin-1": (SOUND + b"# caf\xe9\n", f":3: {UTF_8}"),
    "an archive": (b"PK\x03\x04\x14\x00\x00\x00", f": {NOT_TEXT}"),
    "weights": ((40).to_bytes(8, "little") + b'{"a": {"dtype": "F32"}}', f": {NOT_TEXT}"),
    "zeros": (b"\x00" * 100, f": {NOT_TEXT}"),
    "an escape": (b"name: \x1b[31mx\n", ":1: the character U+001B, which YAML forbids: remove it"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_recipe_and_a_plan_of_other_bytes(factory: Run, name: str) -> None:
    content, said = YAML[name]
    Path("x.yaml").write_bytes(content)
    assert factory("check", "x.yaml") == (2, "wrong  x.yaml\n", f"x.yaml{said}\n")
    assert factory("build", "x.yaml") == (2, "", f"x.yaml{said}\n")
    assert factory("eval", "empty", "--plan", "x.yaml") == (2, "", f"x.yaml{said}\n")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + SOUND, SOUND.replace(b"\n", b"\r\n"), SOUND.rstrip()])
def test_marks_and_line_ends_of_other_systems_are_no_fault(factory: Run, content: bytes) -> None:
    Path("x.yaml").write_bytes(content)
    code, stdout, stderr = factory("check", "x.yaml")
    assert (code, stderr) == (0, "") and stdout.startswith("ok     x.yaml: x: drop_layers")


NO_TEXT = "cannot be read (not UTF-8 text); give a UTF-8 .jsonl or .txt file, or .parquet"
NO_TABLE = "cannot be read; is it a whole parquet file?"
PROMPTS: dict[str, tuple[str, bytes, str]] = {
    "Latin-1": ("p.txt", b"caf\xe9\n", NO_TEXT),
    "UTF-16": ("p.jsonl", b"\xff\xfe{\x00", NO_TEXT),
    "parquet, cut short": ("p.parquet", b"PAR1", NO_TABLE),
    "parquet that is text": ("p.parquet", b"prompt\n" * 9, NO_TABLE),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_other_bytes(factory: Run, here: Path, name: str) -> None:
    file, content, said = PROMPTS[name]
    Path(file).write_bytes(content)
    Path("r.yaml").write_text(
        f"name: x\ntarget: {{model: target}}\ndata: {{prompts: {file}}}\nstages: [{{kind: distill}}]\n"
    )
    assert factory("check", "r.yaml") == (2, "wrong  r.yaml\n", f"HERE/{file}: {said}\n")
