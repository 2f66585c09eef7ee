"""Runs test files: each test in a world of its own, step by step, until one goes otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath

from mlxd.control.rules import rules_in_force
from mlxd.policy import files
from mlxd.policy.load import PolicyError, PolicyErrors
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import Path
from mlxd.simulate import cases
from mlxd.simulate.cases import Case, Step
from mlxd.simulate.expect import Failed, Mismatch, mismatch
from mlxd.simulate.layers import Layers
from mlxd.simulate.report import Failure, Report, Result
from mlxd.simulate.steps import reasons
from mlxd.simulate.world import World


def run(folder: FilePath | None, paths: Sequence[FilePath] = ()) -> Report:
    """Test the policies of a folder (without one, the defaults), whatever is set outside it: a test
    says the same on every machine.

    `paths` are test files and folders of them; without any, those of `folder`/tests. Never raises:
    what is wrong with the policies or the test files is in the report.
    """
    layers = Layers(files.read(folder))
    try:
        policies = layers.judged()
    except PolicyErrors as refused:
        return Report(errors=refused.errors)
    found, errors = _read(paths or ([folder / "tests"] if folder is not None else []))
    if errors:
        return Report(errors=tuple(errors))
    with _unlogged():
        results = tuple(run_case(case, layers, policies) for case in found)
    return Report(results, tuple(rules_in_force(policies)))


@contextmanager
def _unlogged() -> Iterator[None]:
    """What a simulated daemon would log happened to nobody."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run_case(case: Case, layers: Layers, policies: PolicySet) -> Result:
    """One test; `policies` are what `layers` says."""
    if case.changes:
        layers = layers.over(case.changes)
        try:
            policies = layers.judged()
        except PolicyErrors as refused:
            wrong = Mismatch(("policies",), "policies that are valid", reasons(refused))
            return _result(case, _failure(case, case.path, wrong, "policies"))
    world = World(layers, policies)
    failure = next(_failures(case, world), None)
    return _result(case, failure, frozenset(world.acted))


def _failures(case: Case, world: World) -> Iterator[Failure]:
    for step in case.steps:
        world.begin(step.at)
        wrong = _run_step(step, world)
        if wrong is not None:
            yield _failure(case, step.path, wrong, f"{step.kind.kind} at {step.at:g}s")


def _run_step(step: Step, world: World) -> Mismatch | None:
    try:
        return mismatch(step.kind.run(world), step.expects)
    except Failed as failed:
        return failed.mismatch


def _failure(case: Case, path: Path, wrong: Mismatch, step: str) -> Failure:
    return Failure(case.place((*path, *wrong.path)), wrong.expected, wrong.got, step)


def _result(case: Case, failure: Failure | None, acted: frozenset[str] = frozenset()) -> Result:
    return Result(case.name, case.file, case.place(case.path), failure, acted)


def _read(paths: Sequence[FilePath]) -> tuple[list[Case], list[PolicyError]]:
    """The tests of all files, and all that is wrong with any."""
    found: list[Case] = []
    errors: list[PolicyError] = []
    if not paths:
        errors.append(PolicyError("policies", "there is no policy folder: name a test file"))
    for file in _files(paths, errors):
        try:
            found.extend(cases.read(file))
        except PolicyErrors as refused:
            errors.extend(refused.errors)
    return found, errors


def _files(paths: Sequence[FilePath], errors: list[PolicyError]) -> Iterator[FilePath]:
    """Files as they are, and the test files of folders."""
    for path in paths:
        try:
            names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else None
        except OSError as error:
            errors.append(PolicyError(str(path), f"cannot be read: {error.strerror}"))
            continue
        if names is None:
            yield path
            continue
        tests = [n for n in names if n.endswith((".yaml", ".yml")) and not n.startswith(".")]
        if not tests:
            errors.append(PolicyError(str(path), "holds no test file (*.yaml)"))
        yield from (path / name for name in tests)
