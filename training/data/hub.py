"""A data set of the Hugging Face hub at one commit, through ``datasets``, which never runs a repository's code.

What was loaded once stays in the cache of ``datasets`` as Arrow files, under its commit: from then on it is read from
there, without a connection (``HF_HUB_OFFLINE=1`` keeps it so).
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.data.settings import Hub
from training.strict import Refused


def hub_files(hub: Hub) -> list[tuple[str, Path]]:
    """(name, path) of the Arrow files of ``hub``'s split, in order. Raises Refused where it is not to be had."""
    if not re.fullmatch(r"[\w.-]+", hub.split):
        raise Refused(f"{_name(hub)}: {hub.split!r} is no split's name. Name one whole split, such as 'train'")
    with _quiet():
        try:
            found = _cached(hub)
            if found is None:
                found = _loaded(hub)
            paths = [Path(file["filename"]) for file in found.cache_files]
        except Refused:
            raise
        except Exception as error:  # whatever a server, a cache or a data set may hold; the message goes to a person
            raise _refusal(hub, error) from None
    if not paths or any(path.parent.name != hub.revision for path in paths):
        raise Refused(
            f"{_name(hub)}: the hub doesn't have this commit or cannot be reached, and only another commit is in the "
            "cache. Check name and commit, and the connection"
        )
    of = f"{_name(hub)}:{hub.config or paths[0].parents[2].name}/{hub.split}"
    return [(f"{of}/{i:05d}-of-{len(paths):05d}", path) for i, path in enumerate(paths)]


def _name(hub: Hub) -> str:
    return f"hub:{hub.name}@{hub.revision}"


def _cached(hub: Hub) -> Any:
    """The split from the cache of ``datasets``, if this very commit is there."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *space, last = hub.name.split("/")
    folder = Path(os.path.expanduser(str(config.HF_DATASETS_CACHE)), "___".join([*space, camelcase_to_snakecase(last)]))
    found = [path.parent for path in sorted(folder.glob(f"*/*/{hub.revision}/dataset_info.json")) if _whole(path)]
    names = [path.parts[-3] for path in found]
    wanted = hub.config or ("default" if "default" in names else names[0] if len(names) == 1 else None)
    if wanted not in names:
        return None
    place = found[names.index(wanted)]
    splits = json.loads((place / "dataset_info.json").read_bytes()).get("splits") or {}
    if hub.split not in splits:
        raise Refused(f"{_name(hub)}: there is no split {hub.split!r}; there are: {', '.join(sorted(splits))}")
    builder = Cache(dataset_name=last, config_name=wanted, version=place.parts[-2], hash=hub.revision, repo_id=hub.name)
    return builder.as_dataset(split=hub.split)


def _whole(info: Path) -> bool:
    """Whether a folder of the cache is a configuration as it stands in the repository, and not a part of it."""
    return bool(json.loads(info.read_bytes()).get("config_name") == info.parts[-4])


def _loaded(hub: Hub) -> Any:
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        raise Refused(
            f"{_name(hub)}: this commit isn't in the cache ({datasets.config.HF_DATASETS_CACHE}), and HF_HUB_OFFLINE is set. "
            "Load it once with a connection, or copy the cache here"
        )
    return datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)


def _refusal(hub: Hub, error: Exception) -> Refused:
    reason = " ".join(str(error).split())[:300] or "no reason given"
    return Refused(
        f"{_name(hub)}: cannot be loaded ({type(error).__name__}: {reason}). Check name, commit, config and split, and the "
        "connection; or download its files and name them as 'path'"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings: what is told goes through our own messages."""
    import datasets
    import huggingface_hub

    loggers = (datasets.utils.logging, huggingface_hub.utils.logging)
    shown, levels = datasets.utils.logging.is_progress_bar_enabled(), [logger.get_verbosity() for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()
