"""registry.toml: what is allowed, decided before import; layers; names that are catalogued but not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specdec_core.config.load import read_toml
from specdec_core.errors import UserError, UserErrors
from specdec_core.registry.catalogue import SHIPPED, layers, load_catalogue
from specdec_core.registry.record import Record, State
from specdec_core.registry.registry import Registry

# Importing it leaves a file behind, so a test sees whether code that is not allowed was run.
TELLTALE = "open('imported', 'w').close()\n"


def record(registry: Registry, distribution: str) -> Record:
    (found,) = [r for r in registry.records if r.distribution == distribution]
    return found


@pytest.fixture
def risky(working: Any) -> Any:
    """A site with specdec-risky 1.2, which leaves a trace if it is imported."""
    module = working.provide("specdec-risky", "algorithm", "risky", version="1.2")
    path = working.path / f"{module}.py"
    path.write_text(TELLTALE + path.read_text())
    return working


ENTRY = '[plugins.specdec-risky]\nversion = "{}"\nprovides = ["algorithm.risky"]\n'


@pytest.mark.parametrize(
    ("text", "state", "reason"),
    [
        ('[policy]\ndisabled = ["risky"]', State.DISABLED, "disabled by"),
        ('[policy]\ndisabled = ["Specdec_Risky"]', State.DISABLED, "disabled by"),
        ('[policy]\nmode = "listed"', State.NOT_LISTED, "no registry.toml lists specdec-risky"),
        ('[policy]\nmode = "listed"\n' + ENTRY.format(">=2"), State.NOT_LISTED, "allows >=2, not 1.2"),
        ('[policy]\nmode = "locked"', State.NOT_LISTED, "no registry.toml lists specdec-risky"),
        ('[policy]\nmode = "locked"\n' + ENTRY.format(">=1"), State.NOT_LOCKED, "no exact version"),
        ('[policy]\nmode = "locked"\n' + ENTRY.format("==1.*"), State.NOT_LOCKED, "no exact version"),
        ('[policy]\nmode = "locked"\n' + ENTRY.format("==1.3"), State.NOT_LOCKED, "allows ==1.3, not 1.2"),
    ],
)
def test_what_policy_refuses_is_never_imported(risky: Any, text: str, state: State, reason: str) -> None:
    risky.registry(text)
    registry = Registry.discover()
    found = record(registry, "specdec-risky")
    assert found.state is state
    assert reason in found.reason
    assert not (risky.work / "imported").exists()
    assert registry.find("engine", "torch").distribution == "specdec-core"
    with pytest.raises(UserError, match=r'algorithm "risky": specdec-risky 1\.2 is (disabled|not allowed): ') as error:
        registry.find("algorithm", "risky")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        '[policy]\nmode = "open"',
        '[policy]\nmode = "open"\n' + ENTRY.format(">=2"),
        '[policy]\nmode = "listed"\n' + ENTRY.format(">=1,<2"),
        '[policy]\nmode = "listed"\n' + ENTRY.format(""),
        '[policy]\nmode = "locked"\n' + ENTRY.format("==1.2"),
    ],
)
def test_what_policy_allows_is_active(risky: Any, text: str) -> None:
    risky.registry(text)
    assert record(Registry.discover(), "specdec-risky").state is State.ACTIVE
    assert (risky.work / "imported").exists()


def test_a_name_is_disabled_whatever_its_entry_point_is_called(working: Any) -> None:
    working.provide("specdec-pack", "algorithm", "packed")
    working.registry('[policy]\ndisabled = ["algorithm.packed", "torch"]')
    registry = Registry.discover()
    assert record(registry, "specdec-pack").state is State.DISABLED
    with pytest.raises(UserError, match=r'engine "torch": specdec-core \S+ is disabled'):
        registry.find("engine", "torch")


def test_the_lock_of_a_run_is_a_policy(risky: Any) -> None:
    from specdec_core.registry.resolve import resolve_file

    config = risky.config('algorithm = "risky"\nbackbone = "beta"\n[target]\npath = "x"\n')
    (risky.work / "lock.json").write_text(resolve_file(config, [], Registry.discover()).lock.to_json())

    registry_file = risky.registry('[policy]\nmode = "locked"\nlock = "lock.json"')
    registry = Registry.discover(registry_file)
    assert registry.find("algorithm", "risky").version == "1.2"
    assert record(registry, "specdec-alpha").state is State.NOT_LOCKED
    assert "lock.json does not hold specdec-alpha" in record(registry, "specdec-alpha").reason

    (risky.path / "specdec_risky-1.2.dist-info").rename(risky.path / "specdec_risky-1.3.dist-info")
    metadata = risky.path / "specdec_risky-1.3.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    with pytest.raises(UserError, match=r"specdec-risky 1\.3 is not allowed: .*lock\.json holds 1\.2, not 1\.3"):
        Registry.discover().find("algorithm", "risky")

    (risky.work / "lock.json").write_text("{}")
    with pytest.raises(UserError, match=r"lock\.json: is not a plugin lock"):
        Registry.discover()
    (risky.work / "lock.json").unlink()
    with pytest.raises(UserError, match=r"registry\.toml: policy\.lock: there is no file"):
        Registry.discover()


def test_a_lock_is_found_beside_the_registry_file_that_names_it(working: Any, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text('{"specdec_core": "0", "python": "3", "plugins": []}')
    (tmp_path / "other.toml").write_text('[policy]\nmode = "locked"\nlock = "lock.json"\n')
    registry = Registry.discover(tmp_path / "other.toml")
    assert record(registry, "specdec-alpha").state is State.NOT_LOCKED


def test_a_name_in_the_catalogue_says_what_to_install(working: Any) -> None:
    working.registry('[plugins.Specdec_Wanted]\nversion = ">=0.3,<1"\nprovides = ["algorithm.wanted", "cache.w"]\n')
    registry = Registry.discover()
    with pytest.raises(UserError) as error:
        registry.find("algorithm", "wanted")
    assert str(error.value) == 'algorithm "wanted": not installed: pip install "specdec-wanted>=0.3,<1".'
    with pytest.raises(UserError, match=r'there is no algorithm "wantd"\. Did you mean "wanted"\?'):
        registry.find("algorithm", "wantd")


def test_an_installed_version_that_lacks_a_catalogued_name_says_what_to_install(working: Any) -> None:
    working.registry('[plugins.specdec-alpha]\nversion = ">=2"\nprovides = ["algorithm.alpha", "algorithm.newer"]\n')
    with pytest.raises(UserError, match=r'not in the installed specdec-alpha 1\.0: pip install "specdec-alpha>=2"'):
        Registry.discover().find("algorithm", "newer")


def test_a_failed_distribution_is_blamed_for_the_names_that_the_catalogue_gives_it(working: Any) -> None:
    working.add("specdec-pack", "raise RuntimeError('boom')")
    working.registry('[plugins.specdec-pack]\nprovides = ["algorithm.packed"]\n')
    with pytest.raises(UserError, match=r'algorithm "packed": specdec-pack 1\.0 failed to load: RuntimeError: boom'):
        Registry.discover().find("algorithm", "packed")


def test_an_unknown_name_lists_what_there_is(working: Any) -> None:
    working.add("specdec-broken", "raise RuntimeError('boom')")
    registry = Registry.discover()
    with pytest.raises(UserError) as error:
        registry.find("algorithm", "alhpa")
    assert 'Did you mean "alpha"? Installed: alpha' in str(error.value)
    assert "Not loaded because of errors: specdec-broken 1.0" in str(error.value)
    with pytest.raises(UserError, match=r'no backbone "alpha"\. "alpha" is of kind algorithm\. Installed: '):
        registry.find("backbone", "alpha")


def test_aliases(working: Any) -> None:
    working.registry('[alias]\nalgorithm.a = "alpha"\nalgorithm.gone = "nothing"\n')
    registry = Registry.discover()
    assert registry.find("algorithm", "a").name == "alpha"
    assert "a" in registry.names("algorithm")
    with pytest.raises(UserError, match='there is no algorithm "nothing"'):
        registry.find("algorithm", "gone")


def test_layers_are_read_in_order_and_each_file_once(working: Any, tmp_path: Path) -> None:
    user = tmp_path / "user" / "specdec" / "registry.toml"
    user.parent.mkdir(parents=True)
    user.write_text(
        '[policy]\nmode = "listed"\ndisabled = ["x"]\n[alias]\nalgorithm.u = "alpha"\nalgorithm.both = "u"\n'
    )
    project = working.registry('[policy]\ndisabled = ["y"]\n[alias]\nalgorithm.both = "p"\n')
    explicit = tmp_path / "explicit.toml"
    explicit.write_text('[prefer]\nalgorithm.alpha = "Specdec_Alpha"\n')

    assert [path.resolve() for path in layers(explicit)] == [SHIPPED, user, project.resolve(), explicit]
    merged = load_catalogue(layers(explicit))
    assert merged.policy.mode == "listed"
    assert merged.policy.disabled == ("y",)
    assert merged.alias == {"algorithm": {"u": "alpha", "both": "p"}}
    assert merged.prefer == {"algorithm": {"alpha": "specdec-alpha"}}
    assert merged.plugins == load_catalogue([SHIPPED]).plugins

    # A file that is given explicitly is read last, and only then.
    assert layers(user) == [SHIPPED, Path("registry.toml"), user]


def test_the_shipped_file_linked_into_the_working_directory_changes_nothing(working: Any) -> None:
    alone = load_catalogue(layers())
    (working.work / "registry.toml").symlink_to(SHIPPED)
    assert len(layers()) == 1
    assert load_catalogue([SHIPPED, working.work / "registry.toml"]) == alone


def test_the_shipped_file_states_no_policy() -> None:
    assert set(read_toml(SHIPPED)) == {"plugins"}


def test_without_any_registry_file_installed_plugins_work(working: Any) -> None:
    from specdec_core.registry.discovery import discover, new_manager
    from specdec_core.registry.policy import Gate

    catalogue = load_catalogue([])
    manager = new_manager()
    assert Registry(catalogue, discover(manager, Gate(catalogue)), manager).find("algorithm", "alpha")


def test_the_environment_variable_is_the_last_layer(working: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = working.work / "other.toml"
    other.write_text('[policy]\ndisabled = ["alpha"]')
    monkeypatch.setenv("SPECDEC_REGISTRY", str(other))
    assert record(Registry.discover(), "specdec-alpha").state is State.DISABLED
    monkeypatch.setenv("SPECDEC_REGISTRY", "nowhere.toml")
    with pytest.raises(UserError, match=r"nowhere\.toml: no such file"):
        Registry.discover()


def test_a_malformed_registry_names_every_fault(working: Any) -> None:
    working.registry(
        """
        [polcy]
        [policy]
        mode = "opn"
        [prefer]
        algoritm.alpha = "specdec-alpha"
        [plugins.specdec-x]
        version = "~2"
        provides = ["algorithm"]
        module = "os"
        """
    )
    with pytest.raises(UserErrors) as error:
        Registry.discover()
    report = "\n".join(error.value.messages)
    assert all(message.startswith("registry.toml: ") for message in error.value.messages)
    assert 'polcy: unknown key (found {}). Did you mean "policy"?' in report
    assert "policy.mode: found \"opn\"; allowed: 'open', 'listed' or 'locked'. Did you mean \"open\"?" in report
    assert 'prefer.algoritm: found "algoritm"; allowed: one of algorithm, backbone' in report
    assert 'plugins.specdec-x.version: found "~2"; allowed: a version range such as >=0.1,<0.2' in report
    assert 'plugins.specdec-x.provides.0: found "algorithm"; allowed: kind.name' in report
    assert 'plugins.specdec-x.module: unknown key (found "os")' in report
