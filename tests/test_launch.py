"""The launcher with plain scripts, which import no JAX: attempts, exit codes, output, signals, no process left."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxseq import launch

RANK = "import os, pathlib, signal, sys, time\nrank = int(os.environ['JAXSEQ_PROCESS'])\n"


def command(folder, script, *options, processes=2, arguments=()):
    file = folder / "script.py"
    file.write_text(RANK + textwrap.dedent(script))
    return [
        sys.executable,
        "-m",
        "jaxseq.launch",
        "--processes",
        str(processes),
        *options,
        str(file),
        *arguments,
    ]


def launched(folder, script, *options, **more):
    return subprocess.run(
        command(folder, script, *options, **more), cwd=folder, capture_output=True, text=True, timeout=60
    )


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_every_process_knows_its_rank_and_lines_say_it(tmp_path):
    script = """
    names = ("PROCESSES", "LOCAL_DEVICES")
    print(*(os.environ["JAXSEQ_" + name] for name in names), sys.argv[1:])
    print(os.environ["JAXSEQ_COORDINATOR"], file=sys.stderr)
    print(os.environ["XLA_FLAGS"].split()[-1])
    sys.stdout.write("no line feed")
    """
    done = launched(tmp_path, script, "--devices-per-process=2", arguments=["--processes", "7", "-m"])
    assert done.returncode == 0
    lines = sorted(done.stdout.splitlines())
    assert lines == sorted(
        line
        for rank, devices in ((0, "0,1"), (1, "2,3"))
        for line in (
            f"[{rank}] 2 {devices} ['--processes', '7', '-m']",
            f"[{rank}] --xla_force_host_platform_device_count=2",
            f"[{rank}] no line feed",
        )
    )
    errors = done.stderr.splitlines()
    assert {line[:4] for line in errors} == {"[0] ", "[1] "} and len({line[4:] for line in errors}) == 1


def test_a_death_restarts_all_until_they_succeed(tmp_path):
    script = """
    file = pathlib.Path(f"starts{rank}")
    starts = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(starts))
    pathlib.Path(f"port{rank}.{starts}").write_text(os.environ["JAXSEQ_COORDINATOR"])
    if starts < 3 and rank == 1:
        while not pathlib.Path(f"port0.{starts}").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    if starts < 3:
        time.sleep(60)
    """
    start = time.monotonic()
    done = launched(tmp_path, script, "--max-restarts", "5")
    assert done.returncode == 0 and time.monotonic() - start < 20
    assert [(tmp_path / f"starts{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    assert done.stderr.count("process 1 died by SIGKILL") == 2 and "restart 2 of 5" in done.stderr
    assert len({(tmp_path / f"port0.{start}").read_text() for start in (1, 2, 3)}) > 1


@pytest.mark.parametrize(
    ("ending", "code", "starts"),
    [
        ("sys.exit(7)", 7, 2),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9, 2),
        ("sys.exit(75)", 75, 1),
        ("sys.exit(2)", 2, 1),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_died_first(tmp_path, ending, code, starts):
    script = f"""
    with open("starts", "a") as stream:
        stream.write(".")
    if rank == 1:
        {ending}
    time.sleep(60)
    """
    done = launched(tmp_path, script, "--max-restarts=1", "--grace=0.2")
    assert done.returncode == code
    assert len((tmp_path / "starts").read_text()) <= 2 * starts
    assert done.stderr.count("restart 1 of 1") == starts - 1


def test_after_an_error_the_others_may_report_it_too(tmp_path):
    script = "time.sleep(rank / 2); sys.exit(f'error of {rank}')"
    done = launched(tmp_path, script)
    assert done.returncode == 1
    assert "[0] error of 0" in done.stderr and "[1] error of 1" in done.stderr


SAVING = """
def save(number, frame):
    print("saved", flush=True)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, save)
pathlib.Path(f"ready{rank}").write_text(str(os.getpid()))
time.sleep(60)
"""


def start(folder, script, *options):
    process = subprocess.Popen(
        command(folder, script, *options), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    files = [folder / f"ready{rank}" for rank in (0, 1)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    return process, [int(file.read_text()) for file in files]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_handed_on_and_nothing_is_restarted(tmp_path, number):
    process, pids = start(tmp_path, SAVING, "--max-restarts=3")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
    assert "restart" not in err and not any(map(alive, pids))


def test_a_launcher_that_ignores_the_hangup_goes_on(tmp_path):
    line = command(tmp_path, "time.sleep(0.5); print('done')")
    with subprocess.Popen(["nohup", *line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and sorted(out.splitlines()) == [b"[0] done", b"[1] done"]


def test_lines_of_processes_are_escaped_on_a_terminal_and_unchanged_elsewhere(tmp_path):
    script = "sys.stdout.buffer.write(b'a\\x1b[1m\\xff\\tb\\n')"
    line = command(tmp_path, script, processes=1)
    assert subprocess.run(line, cwd=tmp_path, capture_output=True, timeout=60).stdout == b"[0] a\x1b[1m\xff\tb\n"
    ours, theirs = os.openpty()
    assert subprocess.run(line, cwd=tmp_path, stdout=theirs, stderr=theirs, timeout=60).returncode == 0
    os.close(theirs)
    assert os.read(ours, 1000) == b"[0] a\\x1b[1m\\xff\tb\r\n"
    os.close(ours)


def test_a_launcher_whose_reader_has_ended_goes_on(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    line = command(tmp_path, "print('x' * 100_000); pathlib.Path(f'done{rank}').touch()")
    done = subprocess.run(line, cwd=tmp_path, stdout=writes, stderr=subprocess.PIPE, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")
    assert all((tmp_path / f"done{rank}").exists() for rank in (0, 1))


DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    pathlib.Path(f"child{rank}").write_text(str(child))
    pathlib.Path(f"ready{rank}").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["second signal", "grace"])
def test_processes_that_do_not_listen_are_killed_with_their_children(tmp_path, how):
    process, pids = start(tmp_path, DEAF, "--grace", "0.3" if how == "grace" else "60")
    process.send_signal(signal.SIGTERM)
    if how == "second signal":
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    children = [int((tmp_path / f"child{rank}").read_text()) for rank in (0, 1)]
    wait_until(lambda: not any(map(alive, pids + children)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_no_process_survives_a_launcher_that_is_killed(tmp_path):
    process, pids = start(tmp_path, SAVING)
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not any(map(alive, pids)))


def test_a_stopped_process_is_killed_when_another_dies(tmp_path):
    script = """
    pathlib.Path(f"ready{rank}").write_text(str(os.getpid()))
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    sys.exit(76)
    """
    process, pids = start(tmp_path, script)
    (tmp_path / "go").touch()
    process.communicate(timeout=20)
    assert process.returncode == 76 and not any(map(alive, pids))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0", __file__], "--processes must be at least 1, not 0"),
        (["--processes", "2", "--max-restarts", "-1", __file__], "--max-restarts must be at least 0, not -1"),
        (["--processes", "2", "--devices-per-process", "0", __file__], "--devices-per-process must be at least 1"),
        (["--processes", "2", "--grace", "nan", __file__], "--grace must be at least 0, not nan"),
        (["--processes", "two", __file__], "invalid int value: 'two'"),
        (["--processes", "2", "absent.py"], "there is no script absent.py"),
        (["--processes", "2"], "a script, or -m and a module, must follow the options"),
        (["--processes", "2", "-m"], "-m needs the name of a module"),
        (["--processes", "2", "--procs", "2", __file__], "unrecognized arguments: --procs 2"),
        ([__file__], "the following arguments are required: --processes"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        launch.parse_arguments(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_module_runs_as_with_python():
    _, words = launch.parse_arguments(["--processes=2", "-m", "package.module", "--processes", "3"])
    assert words == [sys.executable, "-m", "package.module", "--processes", "3"]


def test_the_launcher_imports_no_jax():
    code = "import sys, jaxseq.launch; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, env=dict(os.environ)).returncode == 0
