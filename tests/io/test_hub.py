from __future__ import annotations

from pathlib import Path

import pytest

from octavo.core.errors import FetchError, ModelFileError, UserError
from octavo.io import hub
from octavo.io.hub import resolve_config, resolve_model


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert resolve_model(str(file)) == file
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_demo_name_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "fetch_demo_model", lambda name: tmp_path / f"{name}.gguf")
    assert resolve_model("smollm2-135m") == tmp_path / "smollm2-135m.gguf"


@pytest.mark.parametrize("ref", ["org/name", "org/name@main", "or.g/na-me_1@refs/pr/1"])
def test_hub_ids_go_through_huggingface_hub(
    ref: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(ref) == tmp_path
    name, _, revision = ref.partition("@")
    assert asked[0][:2] == (name, revision or None)
    assert "*.safetensors" in asked[0][2]
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked[0][2])


def test_offline_and_not_cached_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FetchError, match=r"org/name .*HF_HUB_OFFLINE"):
        resolve_model("org/name")


def test_a_snapshot_without_a_model_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        resolve_model("org/name")


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("smollm", UserError, r"The nearest name is 'smollm2-135m'"),
        ("qwen-coder-0.5b", UserError, r"The nearest name is 'qwen2\.5-coder-0\.5b'"),
        ("", UserError, r"'' is no model here"),
        ("a/b/c", UserError, r"'a/b/c' is no model here"),
        ("not-there.gguf", ModelFileError, r"not-there\.gguf does not exist"),
        ("./x/y", ModelFileError, r"x/y does not exist\. Check the path"),
        ("x/y/", ModelFileError, r"x/y does not exist"),
        ("12345", UserError, r"qwen2\.5-coder-1\.5b\)\.$"),
        ("org/file.gguf", ModelFileError, r"does not exist"),
    ],
)
def test_anything_else_is_one_error(
    ref: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        resolve_model(ref)


def test_wrong_kinds_of_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelFileError, match=r"neither a directory nor a \.gguf"):
        resolve_model(str(tmp_path / "model.bin"))


def test_of_a_hub_id_only_the_config_is_fetched_where_that_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    assert resolve_config("org/name") == tmp_path
    assert asked == [["config.json"]]
    assert resolve_config(str(tmp_path / "config.json")) == tmp_path / "config.json"
    (tmp_path / "m.gguf").touch()
    assert resolve_config(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    assert len(asked) == 1
