"""Strict YAML: what is read, what is refused, and the very words in which it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from factory.errors import RecipeError
from factory.files.documents import dump, override, read, validate
from factory.files.yaml12 import scalar


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Cut(Section):
    kind: Literal["cut"]
    keep: int | float | list[int]


class Train(Section):
    kind: Literal["train"]
    lr: float = Field(default=1e-3, gt=0)
    pair: tuple[int, ...] = ()
    how: Literal["gently", "hard"] = "gently"
    resume: bool = False

    @model_validator(mode="after")
    def _two_faults(self) -> Train:
        if self.pair == (0, 0):
            raise ValueError("pair: is twice zero\nlr: is of no use then\nand nothing is right")
        return self


class Source(Section):
    table: str = Field(description="where rows are")
    row: int = 0


class Job(Section):
    name: str
    source: str | Source = "none"
    steps: list[Annotated[Cut | Train, Field(discriminator="kind")]] = Field(min_length=1)


def faults_of(text: str, *settings: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        validate(override(read(text, "job.yaml"), settings), Job)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1.0e+3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("0b1", "0b1"),
        ("1e", "1e"),
        (".", "."),
        ("-", "-"),
    ],
)
def test_plain_scalars_are_read_the_yaml_1_2_way(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_quotes_make_text() -> None:
    assert read("a: '2'\nb: \"true\"\nc: |\n  5\n").data == {"a": "2", "b": "true", "c": "5\n"}


def test_marks_name_the_line_of_keys_items_and_what_is_missing() -> None:
    document = read(
        "# a comment\nname: x\nsteps:\n  - kind: cut\n    keep: 2\n  - {kind: train,\n     lr: 1}\n", "j.yaml"
    )
    assert document.mark(()) == "j.yaml:2"
    assert document.mark(("steps", 0, "keep")) == "j.yaml:5"
    assert document.mark(("steps", 1)) == "j.yaml:6"
    assert document.mark(("steps", 1, "lr")) == "j.yaml:7"
    assert document.mark(("steps", 0, "absent")) == "j.yaml:4"
    assert document.mark(("absent",)) == "j.yaml:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "j.yaml:1: it is empty, but must hold keys and values such as `name: quick`"),
        ("# only this\n", "j.yaml:1: it is empty, but must hold keys and values such as `name: quick`"),
        ("\n- a\n- b\n", "j.yaml:2: it holds a list, but must hold keys and values such as `name: quick`"),
        ("hello", "j.yaml:1: it holds a single value, but must hold keys and values such as `name: quick`"),
        ("a: 1\nb:\n\tc: 2\n", "j.yaml:3: not YAML: a tab: YAML indents with spaces"),
        ("a: 1\nb: 2\na: 3\n", "j.yaml:3: the key 'a' stands here and in line 1: keep one"),
        ("a: {b: 1, b: 1}\n", "j.yaml:1: the key 'b' stands here and in line 1: keep one"),
        ("a: b: c\n", "j.yaml:1: not YAML: a second ': ' in one line: put the text in quotes, or mend the indentation"),
        ("a: [1,\nb: 2\n", "j.yaml:3: not YAML: a [ that is not closed, or a missing comma (begun in line 1)"),
        ("a: 'x\nb: 2\n", "j.yaml:3: not YAML: a quote that is not closed (begun in line 1)"),
        ("a: 1\nlonely\nb: 2\n", "j.yaml:2: not YAML: a line without a key: write `key: value`"),
        ("a: @x\n", "j.yaml:1: not YAML: a character that no plain text may begin with: put the text in quotes"),
        ("a: 1\n---\nb: 1\n", "j.yaml:2: a second document begins here: one document a file"),
        (
            "a: !!int 3\n",
            "j.yaml:1: the tag tag:yaml.org,2002:int is not read here: remove it, or put the text in quotes",
        ),
        ("a: 1\n? [b]\n: 2\n", "j.yaml:2: a key must be one word before the colon"),
        ("a: 1\n'': 2\n", "j.yaml:2: a key must be one word before the colon"),
        ("a: 1\nb: .inf\n", "j.yaml:2: .inf is not a finite number"),
        ("a: 1e999\n", "j.yaml:1: 1e999 is not a finite number"),
        ("a: 9223372036854775808\n", "j.yaml:1: 9223372036854775808 does not fit 64 bits"),
        ("a: " + "9" * 5000, "j.yaml:1: 99999999999999999999 is not a finite number"),
        ("a: " + "[" * 60, "j.yaml:1: more than 24 levels of nesting"),
        ("a: 1\nb: \x07\n", "j.yaml:2: the character U+0007, which YAML forbids: remove it"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', "j.yaml:2: not YAML: an escape or a number that nothing can stand for"),
        ('a: "\\ud800"\n', "j.yaml:1: half of a surrogate pair, which is no character: remove the escape"),
    ],
)
def test_unreadable_text_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(text, "j.yaml")
    assert str(caught.value) == message


def test_anchors_aliases_and_merge_keys_are_all_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        read("base: &base {a: 1}\ncopy: *base\nmerged:\n  <<: *base\n", "j.yaml")
    anchor = "anchors and aliases (& and *) are not read here: write the value out"
    assert str(caught.value).splitlines() == [
        f"j.yaml:1: {anchor}",
        f"j.yaml:2: {anchor}",
        f"j.yaml:4: {anchor}",
        "j.yaml:4: merge keys (<<) are not read here: write the values out",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: caf\xe9\n".encode("latin-1"))
    wide = tmp_path / "wide.yaml"
    wide.write_bytes("a: 1\n".encode("utf-16"))
    for path, message in [
        (latin, f"{latin}:2: not UTF-8 text: save the file as UTF-8"),
        (wide, f"{wide}:1: not UTF-8 text: save the file as UTF-8"),
        (tmp_path / "none.yaml", f"{tmp_path / 'none.yaml'}: no such file; name one that is there"),
        (tmp_path, f"{tmp_path}: a folder; name one .yaml file"),
    ]:
        with pytest.raises(RecipeError) as caught:
            read(path)
        assert str(caught.value) == message


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    document = read(path)
    assert document.data == {"name": "x"}
    assert document.source == path.read_bytes()


def test_ints_pass_for_floats_and_lists_for_tuples() -> None:
    job = validate(read("name: x\nsteps: [{kind: train, lr: 1, pair: [1, 2]}]"), Job)
    step = job.steps[0]
    assert isinstance(step, Train)
    assert (step.lr, step.pair) == (1.0, (1, 2))


def test_all_faults_at_once_in_the_order_of_the_file() -> None:
    assert faults_of(
        "nmae: x\n"
        "source: {tabel: 1, row: 1.5}\n"
        "steps:\n"
        "  - kind: cut\n"
        "    keep: half\n"
        "  - kind: trian\n"
        "  - lr: 2\n"
        "  -\n"
        "  - kind: train\n"
        "    lr: '1e-3'\n"
        "    how: hrad\n"
        "    resume: yes\n"
        "    pair: [1, 1_0]\n"
        "    speed: 3\n"
        "  - {kind: train, lr: -1}\n"
    ) == [
        "job.yaml:1: nmae: unknown key 'nmae'; did you mean 'name'?",
        "job.yaml:2: source.row: must be a whole number, not 1.5",
        "job.yaml:2: source.tabel: unknown key 'tabel'; did you mean 'table'?",
        "job.yaml:5: steps.0.keep: must be a number or a list, not the text 'half'",
        "job.yaml:6: steps.1.kind: unknown kind 'trian'; did you mean 'train'?",
        "job.yaml:7: steps.2.kind: missing; one of cut, train",
        "job.yaml:8: steps.3: must be keys and values, not empty; write `{kind: cut}` or another of cut, train",
        "job.yaml:10: steps.4.lr: must be a number, not the text '1e-3'; remove the quotes",
        "job.yaml:11: steps.4.how: the text 'hrad' is not known here; did you mean 'hard'?",
        "job.yaml:12: steps.4.resume: must be true or false, not the text 'yes'; write true",
        "job.yaml:13: steps.4.pair.1: must be a whole number, not the text '1_0'; write 10",
        "job.yaml:14: steps.4.speed: unknown key 'speed'; known here: how, kind, lr, pair, resume",
        "job.yaml:15: steps.5.lr: must be greater than 0, not -1",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: x\nsteps: []", "job.yaml:2: steps: must have at least 1 item, not 0"),
        ("name: x\nsteps: {}", "job.yaml:2: steps: must be a list, not keys and values"),
        ("name: 3\nsteps: [{kind: train}]", "job.yaml:1: name: must be text, not 3"),
        (
            "name: x\nsteps: [{kind: 7}]",
            "job.yaml:2: steps.0.kind: must be the name of a kind, not 7; one of cut, train",
        ),
        (
            "name: x\nsteps: [{kind: cut, keep: [1, a]}]",
            "job.yaml:2: steps.0.keep.1: must be a whole number, not the text 'a'",
        ),
        ("name: x\nsteps: [{kind: cut, keep: true}]", "job.yaml:2: steps.0.keep: must be a number or a list, not true"),
        (
            "name: x\nsource: 3\nsteps: [{kind: train}]",
            "job.yaml:2: source: must be text or keys and values, not 3; known here: row, table",
        ),
    ],
)
def test_single_faults(text: str, fault: str) -> None:
    assert faults_of(text) == [fault]


def test_a_key_called_like_the_kind_of_its_stage_confuses_no_path() -> None:
    assert faults_of("name: x\nsteps:\n  - kind: cut\n    cut: {keep: 1}\n") == [
        "job.yaml:3: steps.0.keep: missing",
        "job.yaml:4: steps.0.cut: unknown key 'cut'; known here: keep, kind",
    ]


def test_a_validators_message_lands_on_the_key_it_names() -> None:
    assert faults_of("name: x\nsteps:\n  - kind: train\n    lr: 1\n    pair: [0, 0]\n") == [
        "job.yaml:3: steps.0: and nothing is right",
        "job.yaml:4: steps.0.lr: is of no use then",
        "job.yaml:5: steps.0.pair: is twice zero",
    ]


def test_overrides_are_yaml_and_make_what_is_missing() -> None:
    document = read("name: x\nsteps: [{kind: cut, keep: 1}]")
    job = validate(override(document, ["steps.0.keep=[0, 3]", "source.table=a=b", "name='7'"]), Job)
    assert job.steps[0] == Cut(kind="cut", keep=[0, 3])
    assert (job.source, job.name) == (Source(table="a=b"), "7")
    assert document.data == {"name": "x", "steps": [{"kind": "cut", "keep": 1}]}  # the document itself stays


def test_faults_of_overrides_name_the_option() -> None:
    text = "name: x\nsteps:\n  - {kind: cut, keep: 1}\n"
    assert faults_of(text, "steps.0.keep=half", "nme=y", "source={table: 1}") == [
        "--set source: source.table: must be text, not 1: where rows are",
        "--set steps.0.keep: must be a number or a list, not the text 'half'",
        "--set nme: unknown key 'nme'; did you mean 'name'?",
    ]


def test_overrides_that_fit_nowhere_are_all_told() -> None:
    assert faults_of(
        "name: x\nsteps: [{kind: cut, keep: 1}]", "nonsense", "=1", "steps.4.keep=1", "steps.x=1", "name.y=1", "name=[1"
    ) == [
        "--set nonsense: write KEY=VALUE, such as stages.0.keep=2",
        "--set =1: write KEY=VALUE, such as stages.0.keep=2",
        "--set steps.4.keep: steps is a list of 1; its entries are counted from 0",
        "--set steps.x: steps is a list of 1; its entries are counted from 0",
        "--set name.y: name is the text 'x' and holds no key 'y'",
        "--set name: not YAML: a [ that is not closed, or a missing comma",
    ]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=12)
    | st.sampled_from(["2e-4", "0o17", "1:30", "yes", "null", "0x1", "<<", "", " ", "a: b", "#", "- x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc<&*!%@`'\"#:- ", min_size=1, max_size=4), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), plain, min_size=1))
def test_what_is_dumped_reads_back_equal(data: dict[str, Any]) -> None:
    assert read(dump(data)).data == data


marks = (
    """name steps kind cut train keep lr : - [ ] { } , ' " &a *a ! !!str !<x> | > ? << # --- ... @ ` %zz 0x .nan ~ é"""
)
others = [
    ": ",
    "\n",
    "\n  ",
    "- ",
    "\t",
    "%YAML 1.1\n",
    "\\U0011FFFF",
    "\\x",
    "\x00",
    "\x85",
    "\u2028",
    "\ud800",
    "\ufeff",
]
pieces = st.sampled_from([*marks.split(), *others, "9" * 5000, "x" * 1100])


@settings(max_examples=400, deadline=None)
@given(st.lists(pieces, max_size=24).map("".join) | st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever the text, it is a valid job or a RecipeError whose every line names the file."""
    try:
        validate(read(text, "job.yaml"), Job)
    except RecipeError as error:
        assert all(line.startswith("job.yaml:") for line in str(error).split("\n"))


@settings(max_examples=200, deadline=None)
@given(plain)
def test_no_value_breaks_the_explanation(value: object) -> None:
    for data in (
        {"name": value, "source": value, "steps": [value]},
        {"name": "x", "steps": [{"kind": value, "lr": value}]},
    ):
        try:
            validate(read(dump(data), "job.yaml"), Job)
        except RecipeError as error:
            assert str(error).startswith("job.yaml:")
