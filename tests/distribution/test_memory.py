"""Whether a training state fits the memory: what is counted, and where the limit comes from."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxseq.distribution import Placement, device_memory, memory


def init(key: jax.Array) -> dict:
    return {"small": jnp.zeros(3), "large": {"kernel": jax.random.normal(key, (40, 50))}}


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [(optax.adam(1e-3), 4), (optax.sgd(1e-3, momentum=0.9), 3), (optax.sgd(1e-3), 2)],
    ids=["adam", "momentum", "sgd"],
)
def test_parameters_gradients_and_the_optimizers_state_must_fit(monkeypatch, key, optimizer, copies):
    needed = 4 * 2003 * copies + (4 if copies == 4 else 0)  # Adam counts its steps
    monkeypatch.setattr(memory, "_machine_limits", lambda: iter([needed, 10 * needed]))
    placement = Placement(None)
    shapes = placement.check_memory(init, key, optimizer=optimizer)
    assert shapes["large"]["kernel"].shape == (40, 50) and isinstance(shapes["small"], jax.ShapeDtypeStruct)
    monkeypatch.setattr(memory, "_machine_limits", lambda: iter([needed - 1]))
    said = r"2,003 parameters \(the largest: large/kernel \[40, 50\]\).* lower a, b or c$"
    with pytest.raises(ValueError, match=said):
        placement.check_memory(init, key, optimizer=optimizer, sizes=("a", "b", "c"))
    monkeypatch.setattr(memory, "_machine_limits", lambda: iter(()))
    placement.check_memory(init, key, optimizer=optimizer)  # nothing is known


def test_a_model_of_any_size_is_refused_without_making_it(key):
    def huge(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (2**31 - 1, 2**31 - 1, 2**31 - 1))

    with pytest.raises(ValueError, match=rf"{(2**31 - 1) ** 3:,} parameters"):
        Placement(None).check_memory(huge, key, optimizer=optax.adam(1e-3))


@pytest.mark.parametrize(
    ("groups", "limits", "least"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000\n"}, 5000),
        ("4:memory:/a\n2:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "9\n", "cpu/a/memory.limit_in_bytes": "3"}, 9),
        ("4:memory:/elsewhere\n", {"memory/memory.limit_in_bytes": "7000\n"}, 7000),
        ("0::/\n", {}, None),
        (None, {}, None),
    ],
    ids=["v2", "v1", "v1-root", "no-limit", "no-groups"],
)
def test_the_limit_is_the_smallest_of_the_machines_and_the_control_groups(monkeypatch, tmp_path, groups, limits, least):
    for name, content in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    monkeypatch.setattr(memory, "CGROUPS", (tmp_path / "cgroup", tmp_path))
    found = device_memory(jax.local_devices(backend="cpu")[0])
    assert found == least if least is not None else found > 2**28


def test_the_limit_of_an_accelerator_is_its_own(untyped):
    class Device:
        platform, device_kind, stats = "gpu", "H", {"bytes_limit": 100}

        def memory_stats(self) -> dict | None:
            return self.stats

    device = Device()
    assert device_memory(device) == 100
    with pytest.raises(ValueError, match=r"^x needs 0\.0 GB of memory, but a device \(H\) has 0\.0 GB: lower y$"):
        memory.check_memory(101, device, "x needs", ("y",))
    device.stats = None
    memory.check_memory(101, device, "x needs", ("y",))
