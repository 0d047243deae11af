"""A config to the plugins that serve it: options, locks, fingerprints, and where the sources are."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from specdec_core.config.load import read_config
from specdec_core.config.run import RunConfig
from specdec_core.errors import UserError, UserErrors
from specdec_core.registry.locate import locate
from specdec_core.registry.lock import Lock, compare_lock, read_lock
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import ResolvedRun, resolve, resolve_file

BASE = '[target]\npath = "x"\n[backbone]\nname = "beta"\n'


def run(site: Any, text: str = '[algorithm]\nname = "alpha"\n', *overrides: str) -> ResolvedRun:
    return resolve_file(site.config(BASE + text), list(overrides), Registry.discover())


def test_options_are_the_plugins_own_model_with_defaults(working: Any) -> None:
    resolved = run(working, '[algorithm]\nname = "alpha"\ninner.size = 5\n', "algorithm.steps=2")
    options: Any = resolved.algorithm.options
    assert type(options).__name__ == "Options"
    assert (options.steps, options.inner.size) == (2, 5)
    assert resolved.table["algorithm"] == {"name": "alpha", "steps": 2, "inner": {"size": 5}}
    assert resolved.algorithm.load().options is options
    assert (resolved.engine.spec.name, resolved.export.spec.name, resolved.cache) == ("torch", "hf", None)
    with pytest.raises(FrozenInstanceError):
        resolved.algorithm = resolved.engine  # type: ignore[misc]


def test_a_name_alone_stands_for_its_table(working: Any) -> None:
    config = working.config('algorithm = "alpha"\nbackbone = "beta"\n[target]\npath = "x"\n')
    resolved = resolve_file(config, ["algorithm.steps=3", "engine=torch"], Registry.discover())
    assert resolved.table["algorithm"]["steps"] == 3


def test_resolving_in_memory_equals_resolving_the_file(working: Any) -> None:
    resolved = run(working)
    raw, _ = read_config(working.work / "run.toml")
    assert resolve(RunConfig.model_validate(raw), Registry.discover()) == resolved


def test_errors_of_core_and_plugins_come_in_one_report(working: Any) -> None:
    text = """
    [algorithm]
    name = "alpha"
    stepz = 3
    steps = 0
    inner = { siz = 1 }
    [train]
    lrr = 1
    [cache]
    name = "memry"
    [export]
    nam = "hf"
    """
    with pytest.raises(UserErrors) as error:
        run(working, text.replace("    ", ""), "backbone.colour=red", "nonsense")
    report = error.value.messages
    path = working.work / "run.toml"
    assert report[0].startswith("command line: `nonsense` is not of the form section.key=value")
    assert all(message.startswith(f"{path}: ") for message in report[1:])
    expected = [
        'train.lrr: unknown key (found 1). Did you mean "lr"?',
        "export.name: missing.",
        'backbone.colour: unknown key (found "red"): backbone beta takes no options.',
        'algorithm.stepz: unknown key (found 3). Did you mean "steps"? Allowed keys: steps, inner.',
        "algorithm.steps: found 0; allowed: greater than or equal to 1.",
        'algorithm.inner.siz: unknown key (found 1). Did you mean "size"? Allowed keys: size.',
        'cache.name: there is no cache "memry". Did you mean "memory"?',
    ]
    for sentence in expected:
        assert sum(sentence in message for message in report) == 1, sentence
    # `export` has a wrong key and lacks its name, but is not told twice that it lacks it.
    assert len(report) == len(expected) + 1


def test_unknown_keys_are_refused_even_if_the_plugins_model_does_not_say_so(working: Any) -> None:
    working.module("lax_options", "from pydantic import BaseModel\nclass Options(BaseModel):\n    size: int = 1\n")
    working.provide("specdec-lax", "algorithm", "lax", config="lax_options:Options")
    with pytest.raises(UserErrors, match=r'algorithm\.siez: unknown key \(found 1\)\. Did you mean "size"\?'):
        run(working, '[algorithm]\nname = "lax"\nsiez = 1\n')


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_there", "No module named 'not_there'"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        ("import asyncio\nraise asyncio.CancelledError('later')", "CancelledError: later"),
        ("", "has no attribute 'Class'"),
    ],
)
def test_an_implementation_that_cannot_be_imported_says_why(working: Any, source: str, reason: str) -> None:
    working.module("hollow", source)
    working.provide("specdec-hollow", "algorithm", "hollow", implementation="hollow:Class")
    resolved = run(working, '[algorithm]\nname = "hollow"\n')
    with pytest.raises(UserError) as error:
        resolved.algorithm.load()
    assert str(error.value).startswith("algorithm hollow of specdec-hollow 1.0 cannot be loaded: ")
    assert reason in str(error.value)
    assert '`python -c "import hollow"` shows the traceback' in str(error.value)


def test_a_class_that_is_half_written_says_what_it_lacks(working: Any) -> None:
    working.module("half", "from specdec_core.export.base import Exporter\nclass Half(Exporter): pass")
    working.provide("specdec-half", "exporter", "half", implementation="half:Half")
    resolved = run(working, '[algorithm]\nname = "alpha"\n[export]\nname = "half"\n')
    with pytest.raises(UserError) as error:
        resolved.export.load()
    assert str(error.value) == (
        "half:Half of specdec-half 1.0 does not implement write; this is a fault of that plugin."
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_there", "the options of algorithm odd of specdec-odd 1.0 cannot be loaded: ModuleNotFoundError"),
        ("Options = dict", "odd_options:Options of specdec-odd 1.0 is not a pydantic model"),
    ],
)
def test_options_that_cannot_be_checked_are_an_error(working: Any, source: str, reason: str) -> None:
    working.module("odd_options", source)
    working.provide("specdec-odd", "algorithm", "odd", config="odd_options:Options")
    with pytest.raises(UserErrors) as error:
        run(working, '[algorithm]\nname = "odd"\n')
    assert reason in str(error.value)


def test_the_lock_of_a_run_says_what_to_install(working: Any) -> None:
    lock = run(working).lock
    config = RunConfig.model_validate({"target": {"path": "x"}, "backbone": "beta", "algorithm": "alpha"})
    away = [record for record in Registry.discover().records if record.name != "alpha"]
    registry = Registry.discover()
    registry.records = tuple(away)
    mend = ' This run was made with specdec-alpha 1.0: pip install "specdec-alpha==1.0".'
    with pytest.raises(UserErrors) as error:
        resolve(config, registry, lock)
    assert str(error.value).startswith('algorithm.name: there is no algorithm "alpha".')
    assert str(error.value).endswith(mend)

    path = working.work / "made" / "plugins.lock.json"
    path.parent.mkdir()
    begun = working.config(BASE + '[algorithm]\nname = "alpha"\n[train]\noutput_dir = "made"\n')
    for content, expected in ((lock.to_json(), True), ("{}", False)):
        path.write_text(content)
        with pytest.raises(UserErrors) as error:
            resolve_file(begun, [], registry)
        assert str(error.value).endswith(mend) is expected


def test_the_lock_of_a_run_blames_nobody_who_is_there(working: Any) -> None:
    lock = run(working).lock
    working.registry('[policy]\ndisabled = ["specdec-alpha"]\n')
    config = RunConfig.model_validate({"target": {"path": "x"}, "backbone": "beta", "algorithm": "alpha"})
    with pytest.raises(UserErrors) as error:
        resolve(config, Registry.discover(), lock)
    assert str(error.value).endswith("specdec-alpha 1.0 is disabled: disabled by [policy] in registry.toml.")


def test_lists_of_plugins(working: Any) -> None:
    working.provide("specdec-p", "prompts", "some")
    working.provide("specdec-l", "logger", "log")
    text = '[algorithm]\nname = "alpha"\n[eval]\nprompts = ["some", { name = "some" }]\n'
    resolved = run(working, text, "loggers=['log']")
    assert [plugin.spec.name for plugin in resolved.prompts] == ["some", "some"]
    assert [plugin.section for plugin in resolved.loggers] == ["loggers"]
    assert len(resolved.lock.plugins) == 6
    with pytest.raises(UserErrors, match=r"eval\.prompts\.1\.colour: unknown key"):
        run(working, text, "eval.prompts.1.colour=1")


def test_the_lock_round_trips_and_names_everything(working: Any) -> None:
    lock = run(working).lock
    path = working.work / "lock.json"
    path.write_text(lock.to_json())
    assert read_lock(path) == lock
    assert compare_lock(lock, read_lock(path)) == []
    assert json.loads(path.read_text())["plugins"][1] == {
        "section": "algorithm",
        "kind": "algorithm",
        "name": "alpha",
        "distribution": "specdec-alpha",
        "version": "1.0",
        "api_version": 1,
        "entry_point": "specdec_alpha_entry",
        "implementation": "alpha_code:Alpha",
    }
    assert list(working.work.glob("*.tmp")) == []


def test_lock_differences_are_sentences(working: Any) -> None:
    old = run(working).lock
    backbone, algorithm, engine, export = old.plugins

    def differing(**changes: Any) -> list[str]:
        return compare_lock(old, old.model_copy(update=changes))

    def changed(**fields: Any) -> list[str]:
        return differing(plugins=(backbone, algorithm.model_copy(update=fields), engine, export))

    assert differing(python="3.99.0") == [f"Python was {old.python} and is now 3.99.0."]
    assert differing(specdec_core="9") == [f"specdec-core was {old.specdec_core} and is now 9."]
    assert changed(version="2.0") == ["algorithm alpha was of specdec-alpha 1.0 and is now of specdec-alpha 2.0."]
    assert changed(name="b", distribution="d") == ["algorithm was alpha of specdec-alpha 1.0 and is now b of d 1.0."]
    assert changed(implementation="a:B") == [
        "algorithm alpha of specdec-alpha 1.0: implementation was alpha_code:Alpha and is now a:B."
    ]
    logger = algorithm.model_copy(update={"section": "loggers", "kind": "logger", "name": "log"})
    assert differing(plugins=(*old.plugins, logger)) == ["loggers log is used and was not."]
    assert compare_lock(old.model_copy(update={"plugins": (*old.plugins, logger)}), old) == [
        "loggers log was used and no longer is."
    ]


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"specdec_core": "1", "python": "3", "plugins": [1]}'])
def test_what_is_no_lock_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "lock.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"lock\.json: (is not a plugin lock|the plugin lock cannot be read)"):
        read_lock(path)


def test_the_fingerprint_sees_config_options_and_versions(working: Any) -> None:
    base = run(working).fingerprint
    text = '[algorithm]\nname = "alpha"\n'
    assert run(working, text, "algorithm.steps=7", "train.seed=0").fingerprint == base
    others = {
        run(working, text, "train.seed=1").fingerprint,
        run(working, text, "algorithm.steps=6").fingerprint,
        run(working, text, "algorithm.inner.size=4").fingerprint,
    }
    metadata = working.path / "specdec_alpha-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    others.add(run(working).fingerprint)
    assert len(others | {base}) == 5
    assert isinstance(run(working).lock, Lock)


@pytest.mark.parametrize(
    ("reference", "file", "line"),
    [
        ("pack.deep.code:Thing", "pack/deep/code.py", 3),
        ("pack.deep.code:Thing.Inner", "pack/deep/code.py", 4),
        ("pack.deep.code:function", "pack/deep/code.py", 6),
        ("pack.deep.code:alias", "pack/deep/code.py", 7),
        ("pack.deep.code:twice", "pack/deep/code.py", 9),
        ("pack.deep.code", "pack/deep/code.py", 1),
        ("pack:Thing", "pack/deep/code.py", 3),
        ("pack.deep:Renamed", "pack/deep/code.py", 3),
    ],
)
def test_locating_a_class_imports_nothing(site: Any, reference: str, file: str, line: int) -> None:
    deep = site.path / "pack" / "deep"
    deep.mkdir(parents=True)
    (site.path / "pack" / "__init__.py").write_text("from .deep import Renamed as Thing\nraise RuntimeError\n")
    (deep / "__init__.py").write_text("from .code import Thing as Renamed\nraise RuntimeError\n")
    (deep / "code.py").write_text(
        "raise RuntimeError\n\nclass Thing:\n    class Inner: pass\n\ndef function(): pass\nalias: type = Thing\n"
        "twice = 1\ntwice = 2\n"
    )
    found = locate(reference)
    assert found is not None
    assert (found.path, found.line) == (site.path / file, line)


@pytest.mark.parametrize(
    "reference", ["nowhere:X", "pack.nowhere:X", "pack:X", "sys:path", "pack.loop:X", "json.x.y:Z"]
)
def test_what_cannot_be_located_is_none(site: Any, reference: str) -> None:
    (site.path / "pack").mkdir()
    (site.path / "pack" / "__init__.py").write_text("")
    (site.path / "pack" / "loop.py").write_text("from pack.loop import X\n")
    assert locate(reference) is None
