"""Make prompts of a text of stories: the first words of each, as JSONL for `factory eval --prompts`.

    python docs/benchmarks/story_prompts.py TinyStoriesV2.txt prompts.jsonl --stories 200 --words 24

Expects stories divided by a single line break and their paragraphs by a blank line.
"""

import argparse
import json
import re
from pathlib import Path


def main() -> None:
    """Read, cut, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument("--words", type=int, default=24)
    arguments = parser.parse_args()
    stories = re.split(r"(?<!\n)\n(?!\n)", arguments.text.read_text(encoding="utf-8"))
    openings = [" ".join(story.split()[: arguments.words]) for story in stories if len(story.split()) > arguments.words]
    lines = [json.dumps({"prompt": opening}) for opening in dict.fromkeys(openings)][: arguments.stories]
    arguments.prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} prompts in {arguments.prompts}")


if __name__ == "__main__":
    main()
