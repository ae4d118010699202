"""Which tokens begin and end a text, from files alone."""

import json
from pathlib import Path

import pytest

from factory.data.special_tokens import special_tokens
from factory.errors import ModelError


def test_generation_settings_come_before_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 9}))
    assert special_tokens(tmp_path).ends == {2}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    found = special_tokens(tmp_path)
    assert (found.first, found.ends) == (1, {3, 4})


@pytest.mark.parametrize("text", ["[]", "3"])
def test_generation_settings_that_are_no_object_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 9}))
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json: it must hold an object; mend the file"):
        special_tokens(tmp_path)
