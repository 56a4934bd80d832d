import sys

from distributions import install, loss

from kdcore.plugin.discovery import candidates, commands, sorted_entry_points
from kdcore.plugin.manager import PluginManager


def test_commands_come_from_entry_points_and_own_ones_win(tmp_path, monkeypatch):
    points = {"tell": "delta_tells:tell", "show": "delta_tells:show"}
    modules = {"delta_tells": ""}
    install(tmp_path, "aaa-delta", modules, entry_points=points, group="kdcore.commands")
    monkeypatch.syspath_prepend(tmp_path)
    verbs = commands()
    assert verbs["tell"].value == "delta_tells:tell"
    assert verbs["show"].value.startswith("kdcore.commands.")


def test_nothing_is_imported_before_it_is_loaded(tmp_path, monkeypatch):
    install(tmp_path, "delta", {"delta_lazy": "1 / 0"})
    monkeypatch.syspath_prepend(tmp_path)
    (candidate,) = (each for each in candidates() if each.name == "delta_lazy")
    assert (candidate.distribution, candidate.version) == ("delta", "0.1")


def test_a_half_removed_distribution_hides_nothing(tmp_path, monkeypatch):
    install(tmp_path, "delta", {"delta_left": loss("left")})
    (tmp_path / "delta-0.1.dist-info" / "METADATA").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    (plugin,) = (each for each in PluginManager().plugins if each.name == "delta_left")
    assert plugin.distribution == "?"
    sys.modules.pop("delta_left", None)


def test_entry_points_do_not_depend_on_the_path(tmp_path, monkeypatch):
    for name in ("zeta", "delta"):
        monkeypatch.syspath_prepend(install(tmp_path / name, name, {f"{name}_x": loss("x")}))
    found = [point.name for point in sorted_entry_points("kdcore")]
    assert found.index("delta_x") < found.index("zeta_x")
