"""The table in its other forms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unspool.config import NO_EFFECT, OPTIONS, REFUSED, GenerationConfig, help_for, json_schema, option_table_markdown
from unspool.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "tools" / "write_option_docs.py", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_page_has_a_row_for_every_name():
    rows = [line for line in option_table_markdown().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [*OPTIONS, *NO_EFFECT, *REFUSED]


def test_help_says_range_default_and_readers():
    text = help_for("top_p")
    assert "must be in (0, 1]" in text and "Default: None" in text and "Read by: sample" in text
    assert "Default: 256. Off: None." in help_for("max_new_tokens")
    assert "Default: 1.0. Off: 1.0." in help_for("length_penalty")
    assert "only together with xtc_probability" in help_for("xtc_threshold")
    assert "only together with guidance_scale" in help_for("negative_prompt")
    assert "only together with force_words_ids or force_words" in help_for("force_words_ordered")
    assert "Read by: native API only: all" in help_for("negative_prompt")
    assert "Read by: beam, beam_sample." in help_for("lookahead_steps")
    assert "not in this version yet" not in help_for("guidance_scale")
    with pytest.raises(OptionError, match="name of an option"):
        help_for("topp")


def test_the_schema_is_plain_json_and_its_defaults_are_accepted():
    schema = json.loads(json.dumps(json_schema(), allow_nan=False))
    assert schema["properties"].keys() == {name for name, row in OPTIONS.items() if row.door != "drop_in"}
    for name, entry in schema["properties"].items():
        assert getattr(GenerationConfig.from_dict({name: entry["default"]}), name) == OPTIONS[name].shown_default
    assert schema["properties"]["max_new_tokens"]["default"] == 256
    assert schema["properties"]["top_p"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


def test_importing_the_options_loads_neither_torch_nor_transformers():
    code = "import sys, unspool.config; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
