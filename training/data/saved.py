"""A data set saved by ``datasets``' ``save_to_disk``: its Arrow files, in order."""

import json
from pathlib import Path
from typing import Any

from training.strict import Refused


def saved_files(folder: Path, name: str) -> list[tuple[str, Path]] | None:
    """(name, path) of the Arrow files of a saved data set in order; None where ``folder`` is none.

    Of several splits ``train`` is taken, or the only one. Raises Refused where neither is there or files are missing.
    """
    name = name.rstrip("/")
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json", name).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) and _plain(split) for split in splits):
            raise Refused(f"{name}: dataset_dict.json names no splits. Save the data set again")
        split = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
        if split is None:
            raise Refused(
                f"{name}: a saved data set with the splits {', '.join(splits) or '(none)'}, none of which is 'train'. Name "
                f"the folder of one split, such as {name}/{splits[0] if splits else 'train'}"
            )
        folder, name = folder / split, f"{name}/{split}"
        if not (folder / "state.json").is_file():
            raise Refused(f"{name}: the split's folder is missing or incomplete. Save the data set again")
    elif not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    state = _json(folder / "state.json", name)
    if state.get("_indices_data_files"):
        raise Refused(
            f"{name}: rows are selected by indices. Load the data set, flatten_indices() it and save it again"
        )
    files = state.get("_data_files")
    named = (
        [file.get("filename") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else []
    )
    if not named or not all(isinstance(file, str) and _plain(file) for file in named):
        raise Refused(f"{name}: state.json names no Arrow files. Save the data set again")
    missing = [file for file in named if not (folder / str(file)).is_file()]
    if missing:
        raise Refused(
            f"{name}: {missing[0]} and {len(missing) - 1} more of {len(named)} files are missing. Copy it again"
        )
    return [(f"{name}/{file}", folder / str(file)) for file in named]


def _plain(name: str) -> bool:
    return bool(name) and "/" not in name and name not in (".", "..")


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise Refused(f"{name}: {path.name} cannot be read ({type(error).__name__}). Save the data set again") from None
    return found if isinstance(found, dict) else {}
