import hashlib
import json
import os
import shutil
import subprocess
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseq.training import (
    CheckpointError,
    CheckpointMismatchError,
    Checkpoints,
    CheckpointWarning,
    checkpoints,
    create_state,
    manifest,
)


def state(number, **more):
    return {
        "params": {"kernel": jnp.full((3, 2), number + 0.1), "low": jnp.full((4,), number, jnp.bfloat16)},
        "carry": (jnp.full((2, 5), number, jnp.int32), jnp.zeros((2, 0, 3))),
        "key": jax.random.key(number),
        "keys": jax.random.split(jax.random.key(number, impl="rbg"), 3),
        "ema": None,
        "mask": jnp.arange(4) == number,
        "step": jnp.asarray(number, jnp.int32),
        **more,
    }


def same(a, b):
    def plain(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [
            (
                jax.tree_util.keystr(path),
                str(x.dtype),
                np.asarray(jax.random.key_data(x) if "key" in str(x.dtype) else x),
            )
            for path, x in leaves
        ]

    return all(
        x[:2] == y[:2] and x[2].dtype == y[2].dtype and np.array_equal(x[2], y[2])
        for x, y in zip(plain(a), plain(b), strict=True)
    )


def saved(folder, *steps, max_to_keep=3):
    store = Checkpoints(folder, max_to_keep=max_to_keep)
    for step in steps:
        store.save(step, state(step), {"tokens": step * 7})
    store.close()
    return store


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path):
    saved(tmp_path, 1, 2)
    restored = Checkpoints(tmp_path).restore_latest(state(0))
    assert restored.step == 2
    assert restored.meta == {"tokens": 14}
    assert same(restored.state, state(2))
    assert not same(restored.state, state(1))


def test_where_there_is_nothing_nothing_is_restored(tmp_path):
    assert Checkpoints(tmp_path / "absent").restore_latest(state(0)) is None
    (tmp_path / "00000003.writing").mkdir()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).restore_latest(state(0)) is None


def test_only_the_newest_are_kept(tmp_path):
    assert saved(tmp_path, 1, 2, 3, 4, max_to_keep=2).steps() == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000004"]


def test_the_copy_is_taken_before_the_buffers_are_used_again(tmp_path):
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    big = jnp.arange(200_000.0)
    store = Checkpoints(tmp_path)
    store.save(1, {"x": big})
    for _ in range(3):
        big = step(big)
    jax.block_until_ready(big)
    store.close()
    restored = Checkpoints(tmp_path).restore_latest({"x": big}).state["x"]
    np.testing.assert_array_equal(restored, np.arange(200_000.0, dtype=np.float32))


def test_what_is_restored_can_be_donated(tmp_path):
    saved(tmp_path, 1)
    restored = Checkpoints(tmp_path).restore_latest(state(0)).state
    out = jax.jit(lambda x: x + 1, donate_argnums=0)(restored["params"]["kernel"])
    np.testing.assert_allclose(out, 2.1, rtol=1e-6)


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        place = {"flipped early": 0, "flipped late": -1, "flipped inside": len(data) // 2}[how]
        data[place] ^= 1
        file.write_bytes(data)


def test_a_damaged_file_is_never_loaded_silently(tmp_path, capfd):
    source = tmp_path / "source"
    saved(source, 1, 2)
    files = sorted(p.relative_to(source) for p in (source / "00000002").rglob("*") if p.is_file())
    assert len(files) > 8
    fell_back = set()
    for file in files:
        for how in ("deleted", "cut", "flipped early", "flipped late", "flipped inside"):
            if not (source / file).stat().st_size:
                continue
            folder = tmp_path / "damaged"
            shutil.copytree(source, folder)
            damage(folder / file, how)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                restored = Checkpoints(folder).restore_latest(state(0))
            passed = [w for w in caught if issubclass(w.category, CheckpointWarning)]
            assert restored.step == (1 if passed else 2), (file, how)
            assert same(restored.state, state(restored.step)), (file, how)
            assert restored.meta == {"tokens": 7 * restored.step}, (file, how)
            for warning in passed:
                assert "step 2" in str(warning.message) and "\n" not in str(warning.message)
                fell_back.add((file.name, how))
            assert (folder / "00000002").is_dir()
            shutil.rmtree(folder)
    assert {name for name, _ in fell_back} >= {file.name for file in files}
    output = capfd.readouterr()
    assert len(output.err) < 2000, "pages of the store's own words"


def test_values_that_differ_from_their_checksum_are_refused_though_the_store_reads_them(tmp_path):
    saved(tmp_path, 1, 2)
    arrays = tmp_path / "00000002" / "arrays"
    shutil.rmtree(arrays)
    other = manifest.host_copy(state(5))
    checkpoints.write_arrays(arrays, other)
    rows = manifest.leaf_rows(manifest.host_copy(state(2)))
    forged = manifest.make_manifest(2, rows, manifest.describe_files(arrays), {})
    (tmp_path / "00000002" / "manifest.json").write_text(json.dumps(forged))
    with pytest.warns(CheckpointWarning, match=r"step 2 .*SHA-256"):
        restored = Checkpoints(tmp_path).restore_latest(state(0))
    assert restored.step == 1 and same(restored.state, state(1))


def test_a_renamed_step_is_not_taken_for_another(tmp_path):
    saved(tmp_path, 1, 2)
    os.rename(tmp_path / "00000001", tmp_path / "00000009")
    with pytest.warns(CheckpointWarning, match=r"step 9 .*step 1"):
        assert Checkpoints(tmp_path).restore_latest(state(0)).step == 2


def test_if_none_verifies_it_says_so_and_deletes_nothing(tmp_path):
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / f"0000000{step}" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)every checkpoint is corrupted.*step 2.*step 1"):
        Checkpoints(tmp_path).restore_latest(state(0))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_step_never_pushes_out_a_sound_one(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "00000002" / "manifest.json").unlink()
    store = Checkpoints(tmp_path, max_to_keep=1)
    with pytest.warns(CheckpointWarning):
        assert store.restore_latest(state(0)).step == 1
    store.save(2, state(2))
    store.close()
    assert store.steps() == [2]
    restored = Checkpoints(tmp_path).restore_latest(state(0))
    assert restored.step == 2 and same(restored.state, state(2))


@pytest.mark.parametrize(
    ("like", "said"),
    [
        (state(0, mask=jnp.zeros((4,), jnp.int32)), r"'mask'.*bool\[4\].*int32\[4\]"),
        (state(0, mask=jnp.zeros((5,), bool)), r"'mask'.*bool\[4\].*bool\[5\]"),
        (state(0, extra=jnp.zeros(())), r"'extra'.*nothing in the checkpoint"),
        (state(0, step=None), r"'step'.*nothing in the state"),
        (state(0, key=jax.random.key(0, impl="rbg")), "'key'"),
        (state(0, ema=jnp.zeros(2)), "'ema'"),
    ],
)
def test_a_sound_checkpoint_of_another_state_is_refused_by_leaf(tmp_path, like, said):
    saved(tmp_path, 1)
    with pytest.raises(CheckpointMismatchError, match=said):
        Checkpoints(tmp_path).restore_latest(like)


@pytest.mark.parametrize("moment", ["arrays", "manifest", "rename"])
def test_a_save_that_fails_warns_and_the_next_one_is_tried(tmp_path, monkeypatch, moment):
    store = saved(tmp_path, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device\nand a page more")

    with monkeypatch.context() as patch:
        target = {"arrays": "write_arrays", "manifest": "write_json"}.get(moment)
        patch.setattr(checkpoints if target else checkpoints.os, target or "rename", full)
        store.save(2, state(2))
        with pytest.warns(CheckpointWarning, match=r"step 2 was not written \(OSError.*No space.*step 1") as caught:
            assert not store.wait()
    assert "page more" not in str(caught[0].message)
    assert store.steps() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    store.save(3, state(3))
    assert store.wait()
    assert store.restore_latest(state(0)).step == 3
    store.close()


def test_a_full_disk_loses_nothing(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        store = Checkpoints(tmp_path, max_to_keep=2)
        small, large = {"x": jnp.ones(1000)}, jax.random.normal(jax.random.key(0), (1_000_000,))
        store.save(1, small)
        store.save(2, {"x": large})
        with pytest.warns(CheckpointWarning, match="step 2 was not written") as caught:
            assert not store.wait()
        assert len(str(caught[0].message)) < 400
        assert store.restore_latest(small).step == 1
        store.save(3, small)
        assert store.wait()
        assert store.restore_latest(small).step == 3
        store.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_saving_a_step_again_replaces_it_only_when_complete(tmp_path, monkeypatch):
    store = saved(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", lambda *a: 1 / 0)
        store.save(1, state(5))
        with pytest.warns(CheckpointWarning):
            store.wait()
    assert same(Checkpoints(tmp_path).restore_latest(state(0)).state, state(1))
    store.save(1, state(6))
    store.close()
    assert same(Checkpoints(tmp_path).restore_latest(state(0)).state, state(6))
    assert store.steps() == [1] and len(list(tmp_path.iterdir())) == 1


def test_the_manifest_has_the_checksum_of_each_leaf(tmp_path):
    saved(tmp_path, 2)
    body = manifest.read_manifest(tmp_path / "00000002" / "manifest.json", 2)
    row = body["leaves"]["['params']['kernel']"]
    kernel = np.asarray(state(2)["params"]["kernel"])
    assert row.pop("sha256") == hashlib.sha256(kernel.tobytes()).hexdigest()
    assert row == {"shape": [3, 2], "dtype": "float32", "key": None}


def train_state(number, *, ema):
    params = {"kernel": jnp.full((3, 2), number + 0.1), "low": jnp.full((4,), number, jnp.bfloat16)}
    carry, key = (jnp.full((2, 5), number, jnp.int32),), jax.random.key(number)
    state = create_state(params, optax.adam(1e-3), carry=carry, key=key, ema=ema)
    return state._replace(ema=jax.tree.map(lambda leaf: leaf + jnp.asarray(1.001).astype(leaf.dtype), state.ema))


def trained(folder, *steps, ema=True):
    store = Checkpoints(folder)
    for step in steps:
        store.save(step, train_state(step, ema=ema), {"tokens": step * 7})
    store.close()
    return Checkpoints(folder)


@pytest.mark.parametrize("ema", [False, True], ids=["parameters", "average"])
def test_parameters_alone_are_those_of_the_whole_state(tmp_path, ema):
    store = trained(tmp_path, 1, 2, ema=ema)
    whole = store.restore_latest(train_state(0, ema=ema))
    like = train_state(0, ema=False).params
    for alike in (like, jax.eval_shape(lambda: like)):
        part = store.restore_parameters(alike)
        assert (part.step, part.meta) == (2, {"tokens": 14})
        assert same(part.state, whole.state.eval_params)
        assert same(part.state, whole.state.params) is not ema


def test_an_average_of_an_older_version_is_refused(tmp_path):
    store, state = Checkpoints(tmp_path), train_state(1, ema=True)
    store.save(1, state._replace(ema=state.ema.mean))
    for load, like in ((store.restore_latest, state), (store.restore_parameters, state.params)):
        with pytest.raises(CheckpointMismatchError, match=r"\.ema: the average of an older version"):
            load(like)
    store.close()


@pytest.mark.parametrize("how", ["deleted", "cut", "flipped inside"])
def test_parameters_of_a_damaged_step_are_passed_over(tmp_path, how):
    store = trained(tmp_path, 1, 2)
    like = train_state(0, ema=False).params
    files = [file for file in (tmp_path / "00000002").rglob("*") if file.is_file()]
    damage(max(files, key=lambda file: file.stat().st_size), how)
    with pytest.warns(CheckpointWarning, match=r"skipped the corrupted checkpoint of step 2 .*using step 1"):
        restored = store.restore_parameters(like)
    assert restored.step == 1 and same(restored.state, train_state(1, ema=True).eval_params)
    for file in (tmp_path / "00000001").glob("manifest.json"):
        damage(file, how)
    with pytest.raises(CheckpointError, match="every checkpoint is corrupted"):
        store.restore_parameters(like)


def test_parameters_that_differ_from_their_checksum_are_refused_though_the_store_reads_them(tmp_path):
    store = trained(tmp_path, 1, 2)
    arrays = tmp_path / "00000002" / "arrays"
    shutil.rmtree(arrays)
    checkpoints.write_arrays(arrays, manifest.host_copy(train_state(5, ema=True)))
    written = manifest.leaf_rows(manifest.host_copy(train_state(2, ema=True)))
    forged = manifest.make_manifest(2, written, manifest.describe_files(arrays), {})
    (tmp_path / "00000002" / "manifest.json").write_text(json.dumps(forged))
    with pytest.warns(CheckpointWarning, match=r"step 2 .*SHA-256"):
        assert store.restore_parameters(train_state(0, ema=False).params).step == 1


def test_parameters_of_another_model_are_refused_by_leaf(tmp_path):
    store = trained(tmp_path, 1)
    like = train_state(0, ema=False).params
    with pytest.raises(CheckpointMismatchError, match=r"params\['kernel'\].*\[3, 2\].*\[3, 3\]"):
        store.restore_parameters(like | {"kernel": jnp.zeros((3, 3))})
    with pytest.raises(CheckpointMismatchError, match=r"ema.mean\['low'\].*nothing in the state"):
        store.restore_parameters({"kernel": like["kernel"]})
    assert Checkpoints(tmp_path / "none").restore_parameters(like) is None
    assert not (tmp_path / "none").exists()


def test_a_step_that_is_replaced_while_it_is_read_gives_way_to_the_newer_one(tmp_path, monkeypatch):
    store = trained(tmp_path, 1)
    verify_files, calls = checkpoints.verify_files, []

    def replaced_first(folder, rows):
        if not calls:
            trained(tmp_path, 2)
            shutil.rmtree(tmp_path / "00000001")
        calls.append(folder)
        verify_files(folder, rows)

    monkeypatch.setattr(checkpoints, "verify_files", replaced_first)
    restored = store.restore_parameters(train_state(0, ema=False).params)
    assert restored.step == 2 and len(calls) == 2


def kept_with_best(folder, bests, max_to_keep=2):
    """Save a step for each best step that its meta names."""
    store = Checkpoints(folder, max_to_keep=max_to_keep)
    for step, best in bests.items():
        store.save(step, train_state(step, ema=True), {} if best is None else {"best": {"step": best}})
    store.close()
    return Checkpoints(folder, max_to_keep=max_to_keep)


def test_the_best_of_every_kept_checkpoint_is_kept(tmp_path):
    store = kept_with_best(tmp_path, {1: 1, 2: 1, 3: 1, 4: 1, 5: 5, 6: 5})
    assert store.steps() == [5, 6]
    store = kept_with_best(tmp_path, {7: 5, 8: 8, 9: 8})
    assert store.steps() == [8, 9]
    store = kept_with_best(tmp_path, {10: 8, 11: 8})
    assert store.steps() == [8, 10, 11] and store.best_step() == 8
    store = kept_with_best(tmp_path, {12: 12})
    assert store.steps() == [8, 11, 12], "if 12 is damaged, 11 needs the step that was the best then"
    (tmp_path / "00000012" / "manifest.json").unlink()
    assert store.best_step() == 8


def test_parameters_of_a_step_of_the_best_and_without_the_average(tmp_path):
    store, like = kept_with_best(tmp_path, {1: 1, 2: 1, 3: 1, 4: 1}), train_state(0, ema=False).params
    for step, expected in ((1, 1), ("best", 1), (3, 3), ("latest", 4)):
        whole = train_state(expected, ema=True)
        averaged = store.restore_parameters(like, step=step)
        assert averaged.step == expected and same(averaged.state, whole.eval_params)
        assert same(store.restore_parameters(like, step=step, averaged=False).state, whole.params)
        assert same(store.restore(train_state(0, ema=True), step).state, whole)


def test_a_step_that_cannot_be_had_is_an_error_that_lists_the_others(tmp_path, untyped):
    like = train_state(0, ema=False).params
    assert Checkpoints(tmp_path / "none").restore_parameters(like, step="best") is None
    store = kept_with_best(tmp_path, {3: None, 4: None})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2; there are checkpoints of the steps 3, 4$"):
        store.restore_parameters(like, step=2)
    with pytest.raises(CheckpointError, match=r"no best checkpoint: .*best_metric was not set; .*3, 4$"):
        store.restore_parameters(like, step="best")
    for wrong in ("newest", True, 3.0):
        with pytest.raises(ValueError, match=r'step must be an integer, "latest" or "best", not'):
            store.restore_parameters(like, step=wrong)
    store = kept_with_best(tmp_path, {5: 4, 6: 4})
    damage(tmp_path / "00000004" / "manifest.json", "cut")
    with pytest.raises(CheckpointError, match=r"the best checkpoint \(step 4\) is corrupted: its manifest .*4, 5, 6$"):
        store.restore_parameters(like, step="best")
