"""The experiment file: what to train. Its sections belong to the modules that they configure; here they are composed.

An experiment's identity is the SHA-256 of its validated settings' canonical JSON: comments, key order and defaults
written out or left out make no difference.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from evaluation.settings import BenchmarkSettings, GateSettings
from tasks.settings import Candidate, RegistrySettings
from training.data.settings import DataSettings, ValidationSettings
from training.digest import Digest, canonical_json, digest_bytes
from training.settings import ModelSettings, PreferenceSettings, Profile, SFTSettings
from training.strict import Refused, Settings

Model = TypeVar("Model", bound=BaseModel)


class Experiment(Settings):
    """One experiment. Without ``sft`` the base model itself is the warm start; ``compare`` is read by that command only."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    model: ModelSettings
    data: DataSettings
    validation: ValidationSettings = ValidationSettings()
    sft: SFTSettings | None = None
    preference: PreferenceSettings
    compare: tuple[Candidate, ...] = ()
    benchmarks: BenchmarkSettings = BenchmarkSettings()
    gate: GateSettings = GateSettings()
    registry: RegistrySettings

    @field_validator("compare")
    @classmethod
    def _told_apart(cls, compare: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        names = [candidate.name for candidate in compare]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"{names.count(twice[0])} candidates are called {twice[0]!r}; give each a 'label' of its own"
            )
        return compare

    def candidates(self, labels: Sequence[str] | None = None) -> dict[str, PreferenceSettings]:
        """The candidates of ``compare`` by label, all or those of ``labels``. Raises Refused."""
        if not self.compare:
            raise Refused(
                "the experiment has no 'compare' list, so there is nothing to compare; add one with complete preference "
                "settings per loss, such as  compare: [{loss: {name: dpo, beta: 0.1}, epochs: 1, learning_rate: 1e-5}, "
                "{loss: {name: ipo, tau: 0.1}, epochs: 1, learning_rate: 1e-5}]"
            )
        known = {candidate.name: candidate.settings for candidate in self.compare}
        if labels is None:
            return known
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise Refused(f"--losses: no candidate {unknown[0]!r}{_meant(unknown[0], list(known))}")
        return {label: known[label] for label in dict.fromkeys(labels)}

    @property
    def max_tokens(self) -> dict[str, int]:
        """How many tokens a row of each part of the data may have before training cuts it."""
        learnt = (self.sft or self.preference).max_tokens
        return {"preferences": self.preference.max_tokens, "sft": learnt, "holdout": self.preference.max_tokens}

    @cached_property
    def canonical(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        return digest_bytes(self.canonical)


@dataclass(frozen=True)
class Loaded:
    """An experiment with the file it came from; ``root`` is the folder that its relative paths start at."""

    experiment: Experiment
    path: Path

    @property
    def root(self) -> Path:
        return self.path.parent


def load_experiment(path: str | Path) -> Loaded:
    """Read and validate an experiment file. Raises Refused with all errors at once."""
    file = Path(path).absolute()
    return Loaded(load_settings(Experiment, file), file)


def load_profile(path: str | Path | None) -> Profile:
    """Read a profile: a file, or the name of one in ``deployments/profiles``; the laptop's without one.

    Raises Refused.
    """
    shipped = Path(__file__).resolve().parents[1] / "deployments" / "profiles"
    file = Path(path or "laptop")
    if not file.suffix and not file.exists():
        names = sorted(found.stem for found in shipped.glob("*.yaml"))
        if file.name not in names:
            raise Refused(f"profile {str(path)!r} is no file and no shipped profile{_meant(file.name, names)}")
        file = shipped / f"{file.name}.yaml"
    return load_settings(Profile, file.absolute())


def load_settings(model: type[Model], path: Path) -> Model:
    """A YAML file as validated settings. Raises Refused: what, where, found, allowed, and the nearest right name."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        unicode = isinstance(error, UnicodeDecodeError)
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text" if unicode else error
        raise Refused(f"{path} cannot be read: {reason}; name a YAML file of settings") from error
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise Refused(f"{path} is nested too deeply; settings are sections of keys with values") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise Refused(f"{path} holds {found}; expected are the sections {', '.join(model.model_fields)}")
    try:
        plain = json.dumps(content)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{path} holds what JSON has not ({error}); write plain values, without tags (!!)") from None
    try:
        # Through JSON, so that lists become tuples and nothing else is converted.
        return model.model_validate_json(plain)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A faulty item also makes its list too short: that second error would only confuse.
        broken = {fault["loc"][:i] for fault in faults for i in range(len(fault["loc"]))}
        lines = [_explain(model, f) for f in faults if not (f["type"] == "too_short" and f["loc"] in broken)]
        raise Refused("\n  ".join([f"{path}: {len(lines)} error{'s' * (len(lines) > 1)}", *lines])) from None


class _Loader(yaml.SafeLoader):
    """YAML with JSON's scalars (``4e-3`` is a number, ``no`` is text, dates are text); a key may stand once only.

    Aliases are refused: an experiment says everything where it stands, and a few of them can stand for gigabytes.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias (*) stands for a value; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            if key in seen:
                told = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, told, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", "~n\0"),
    ("bool", r"^(?:true|false)$", "tf"),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),  # no leading zero: PyYAML would read octal
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^[-+]?[0-9]+[eE][-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^(?:[-+]?\.inf|\.nan)$", "-+."),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), [c if c != "\0" else "" for c in _first]
    )


def _explain(model: type[BaseModel], fault: Any) -> str:
    """One error as ``path: what was found; what is allowed``."""
    location = [part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    keys, here = _walk(model, location)
    where = ".".join(str(key) for key in keys) or "the file"
    match fault["type"]:
        case "union_tag_not_found" | "union_tag_invalid":
            key = fault["ctx"]["discriminator"].strip("'")
            names = [name for owner in here for name in _literals(owner, key)]
            if fault["type"] == "union_tag_not_found":
                return f"{where}.{key}: missing; it is required. Allowed: {', '.join(names)}"
            found = json.dumps(fault["input"][key], default=str)
            return f"{where}.{key}: found {found[:120]}{_meant(str(fault['input'][key]), names)}"
        case "extra_forbidden":
            known = [name for owner in _walk(model, location[:-1])[1] for name in owner.model_fields]
            return f"{where}: unknown key{_meant(str(location[-1]), known)}"
        case "missing":
            return f"{where}: missing; it is required"
        case "value_error":
            return f"{where}: {fault['ctx']['error']}"
        case _:
            found = json.dumps(fault["input"], default=str)
            message = fault["msg"][:1].lower() + fault["msg"][1:]
            expected = str(fault.get("ctx", {}).get("expected", "")).replace(" or ", ",")
            allowed = [value.strip(" '") for value in expected.split(",")]
            near = difflib.get_close_matches(str(fault["input"]), allowed, 1) if any(allowed) else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{where}: found {found[:120]}; {message}{hint}"


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return (f"; did you mean {near[0]!r}?" if near else ".") + f" Allowed: {', '.join(known)}"


def _walk(model: type[BaseModel], location: list[Any]) -> tuple[list[Any], list[type[BaseModel]]]:
    """The keys of the file on the way to ``location``, and the models that may stand there.

    Within a union told apart by a name, a location also holds that name: it chooses the model and is no key.
    """
    keys: list[Any] = []
    here: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, str) and len(here) > 1:
            chosen = [owner for owner in here for key in owner.model_fields if part in _literals(owner, key)]
            if chosen and not any(part in owner.model_fields for owner in here):
                here = chosen
                continue
        keys.append(part)
        if isinstance(part, str):
            here = [
                found
                for owner in here
                if part in owner.model_fields
                for found in _models(owner.model_fields[part].annotation)
            ] or here
    return keys, here


def _literals(owner: type[BaseModel], key: str) -> tuple[Any, ...]:
    """The words that a field accepts, where it accepts nothing else."""
    annotation = owner.model_fields[key].annotation
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in typing.get_args(annotation) for found in _models(argument)]
