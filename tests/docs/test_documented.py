"""tests/support/documented.py: a page's commands are found, and what is wrong with one is seen."""

from pathlib import Path

import pytest
from documented import commands, parse, run, simple

ROOT = Path(__file__).resolve().parents[2]
PAGE = """\
# A page

```sh
make setup && . .venv/bin/activate   # comments go
factory build a.yaml \\
  --jobs 2
printf 'a\\n' | factory chat x; factory ls
```

```text
factory no command
```

```console
$ factory check broken.yaml
wrong  broken.yaml
```
"""


def test_commands_are_found_in_order(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    found = commands(tmp_path, "page.md")
    assert [(one.line, one.text) for one in found] == [
        (4, "make setup"),
        (4, ". .venv/bin/activate"),
        (6, "factory build a.yaml --jobs 2"),
        (7, "printf 'a\\n' | factory chat x"),
        (7, "factory ls"),
        (14, "factory check broken.yaml"),
    ]
    assert [one.shown for one in found] == [*[None] * 5, "wrong  broken.yaml\n"]


def test_a_head_of_a_recipe_and_a_loop(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# What it is.\n#   factory check a.yaml        what it costs\nname: a\n")
    (tmp_path / "b.yaml").write_text("name: b  # factory check b.yaml\n")
    assert [one.text for one in commands(tmp_path, "a.yaml")] == ["factory check a.yaml"]
    assert commands(tmp_path, "b.yaml") == []
    assert simple(tmp_path, 'for x in *.yaml; do factory check "$x"; done') == [
        "factory check a.yaml",
        "factory check b.yaml",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("factory biuld recipes/demo/quick.yaml", "factory has no command biuld"),
        ("factory build recipes/demo/quick.yaml --job 2", "No such option: --job"),
        ("factory build recipes/demo/quick.yaml --jobs two", "valid integer"),
        ("factory build recipes/demo/gone.yaml", "recipes/demo/gone.yaml is not there"),
        ("factory build recipes/demo/quick.yaml --set stages.0.kep=2", "kep"),
        ("factory eval artifacts --plan tiny", "plan tiny: no such file"),
        ("accelerate launch --multi-gpus -m factory build recipe.yaml", "SystemExit"),
        ("python docs/table.py", "results"),
        ("python docs/tabel.py x.json", "docs/tabel.py is not there"),
        ("make demos", "demos"),
        ("pip install '.[gptqs]'", "no such extra: gptqs"),
        ("npm install", "nobody knows"),
    ],
)
def test_what_is_wrong_is_seen(text: str, fault: str) -> None:
    assert fault in parse(text, ROOT)


def test_what_fails_is_no_success() -> None:
    assert run("factory check gone.yaml").code == 2
    assert run("false").code == 1
    assert run("cat", given="typed").output == "typed"
