"""The engine around atheris, with a stand-in for it; the real one runs in `test_programs`."""

import gc
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuzz_targets import codec, engine
from fuzz_targets.engine import BlindError, CrashError, EngineMissing, Run, UsageError
from fuzz_targets.generator import failure_sweep
from fuzz_targets.mutator import Mutator
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import Scenario, operation, scenario

LIFECYCLE = TARGETS["lifecycle"]
MADE = scenario(design="disconnect", devices=("block",), operations=(operation("connect"), operation("exit")))


class FuzzingEnds(BaseException):
    """Raised in the place of `atheris.Fuzz()` that never returns."""


class StandIn:
    """As much of atheris as the engine uses; it runs the inputs it is given."""

    def __init__(self, inputs: list[bytes]) -> None:
        self.inputs = inputs
        self.counters = 0
        self.hits: list[int] = []
        self.patched: list[str] = []
        self.arguments: list[str] = []
        self.options: dict[str, Any] = {}
        self.instrument_bytecode = types.SimpleNamespace(patch_code=self._patch_code)

    def _patch_code(self, code: types.CodeType, trace_dataflow: bool) -> types.CodeType:
        assert not trace_dataflow
        self.patched.append(code.co_qualname)
        return code

    def _reserve_counter(self) -> int:
        self.counters += 1
        return self.counters

    def _trace_branch(self, index: int) -> None:
        self.hits.append(index)

    def Setup(self, arguments: list[str], one_input: Callable[[bytes], None], **options: Any) -> None:  # noqa: N802
        """Keep what was set up."""
        self.arguments, self.one_input, self.options = arguments, one_input, options

    def Fuzz(self) -> None:  # noqa: N802
        """Run the inputs."""
        for data in self.inputs:
            self.one_input(data)
        raise FuzzingEnds


@pytest.fixture(autouse=True)
def garbage_collector() -> Iterator[None]:
    """The engine switches it off; the other tests want it on."""
    yield
    gc.unfreeze()
    gc.enable()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """atheris, with one input."""
    subject = StandIn([codec.encode(MADE)])
    monkeypatch.setattr(engine, "import_atheris", lambda: subject)
    monkeypatch.delenv("EBSFUZZ_INSTRUMENT", raising=False)
    monkeypatch.delenv("EBSFUZZ_GUIDANCE", raising=False)
    return subject


def _fuzz(**options: Any) -> list[tuple[bytes, Scenario, int]]:
    seen: list[tuple[bytes, Scenario, int]] = []
    given: dict[str, Any] = {"design": "reference-count", "arguments": ["-runs=5"]}
    with pytest.raises(FuzzingEnds):
        engine.fuzz(
            "lifecycle",
            on_verdict=lambda data, made, verdict: seen.append((data, made, len(verdict.trace.records))),
            **(given | options),
        )
    return seen


def test_every_input_is_run_in_the_campaigns_design(stand_in: StandIn) -> None:
    """The callback gets the scenario that ran, its bytes, and a trace with records."""
    [(data, made, records)] = _fuzz()
    assert made.design == "reference-count"
    assert made.operations == MADE.operations
    assert codec.decode(data) == made
    assert records > 20


def test_without_a_design_the_bytes_decide(stand_in: StandIn) -> None:
    """An input runs as it is, and its bytes are not made anew."""
    stand_in.inputs = [codec.encode(MADE) + b""]
    [(data, made, _)] = _fuzz(design=None, fault=None)
    assert made == MADE
    assert data is stand_in.inputs[0]


def test_feedback_comes_from_code_and_from_the_trace(stand_in: StandIn) -> None:
    """The designs are instrumented, counters are reserved, and a run hits some."""
    _fuzz()
    assert "Bus.remove_reference" in stand_in.patched
    assert not any("worn" in name or name.startswith("_Teardown") for name in stand_in.patched)
    assert stand_in.counters >= 1 << 15
    assert len(stand_in.hits) > 20


def test_a_fault_is_instrumented_where_one_is_asked_for(stand_in: StandIn) -> None:
    """The code of faults gives feedback too."""
    _fuzz(fault="six-stage-chain")
    assert "_Bus.reach" in stand_in.patched


def test_state_features_can_be_switched_off_alone(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """EBSFUZZ_GUIDANCE=none leaves the instrumentation, for a comparison."""
    monkeypatch.setenv("EBSFUZZ_GUIDANCE", "none")
    assert len(_fuzz()) == 1
    assert stand_in.patched
    assert not stand_in.hits


def test_a_run_can_begin_with_generated_scenarios(stand_in: StandIn, tmp_path: Path) -> None:
    """As many as the profile says, half of all runs at most, as a corpus for libFuzzer and not the smallest first.

    Every other one is of the failure sweep, and the rest of it comes later.
    """
    _fuzz(beginning=tmp_path, arguments=["-runs=20", "-seed=3"])
    assert stand_in.arguments[-2:] == [str(tmp_path), "-prefer_small=0"]
    made = [codec.decode(path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    assert len(made) == 10
    assert {one.design for one in made} == {"reference-count"}
    assert any(one.operations for one in made)
    sweeping = Mutator(LIFECYCLE, "reference-count", "")
    sweeping.begin_sweep(3)
    left = stand_in.options["custom_mutator"].__self__.sweep
    assert [*left, *reversed(made[1::2])] == sweeping.sweep


def test_in_the_hostile_environment_a_run_begins_with_hostile_scenarios(stand_in: StandIn, tmp_path: Path) -> None:
    """The failure sweep, which has no switches, comes later."""
    _fuzz(beginning=tmp_path, environment="hostile", arguments=["-runs=20", "-seed=3"])
    assert all(codec.decode(path.read_bytes()).switches for path in tmp_path.iterdir())
    assert len(stand_in.options["custom_mutator"].__self__.sweep) == len(failure_sweep(LIFECYCLE, "reference-count"))


def test_what_a_run_begins_with_depends_on_its_seed(stand_in: StandIn, tmp_path: Path) -> None:
    """The same seed gives the same scenarios."""
    begun = []
    for number, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        _fuzz(beginning=folder, arguments=["-runs=16", f"-seed={seed}"])
        begun.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert begun[0] == begun[1] != begun[2]


def test_inputs_are_mutated_by_operations_or_as_plain_bytes(stand_in: StandIn) -> None:
    """Plain bytes, libFuzzer's own way, are for comparison."""
    _fuzz()
    assert set(stand_in.options) == {"custom_mutator", "custom_crossover"}
    _fuzz(mutate=False)
    assert not stand_in.options


def test_all_feedback_can_be_switched_off(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the fuzzer is blind, and says so."""
    assert not engine.blind()
    monkeypatch.setenv("EBSFUZZ_INSTRUMENT", "none")
    assert engine.blind()
    assert len(_fuzz()) == 1
    assert not stand_in.patched
    assert not stand_in.counters


def test_a_fuzzer_that_sees_nothing_is_an_error(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance that never finds a feature ends the process instead of fuzzing blindly for hours."""
    monkeypatch.setattr(engine, "_RUNS_BEFORE_FEEDBACK", 3)
    monkeypatch.setattr("fuzz_targets.guidance.Features.of", lambda self, trace: set())
    stand_in.inputs *= 3
    with pytest.raises(BlindError, match="no feedback in the first 3 runs"):
        engine.fuzz("lifecycle", design="disconnect", arguments=[], on_verdict=lambda *_: None)


def test_given_arguments_win_over_defaults(stand_in: StandIn) -> None:
    """The engine's and the target's own arguments come first, and only where they are not given."""
    _fuzz(arguments=["-max_len=99", "-runs=1", "corpus"])
    assert stand_in.arguments == [sys.argv[0], "-len_control=0", "-max_len=99", "-runs=1", "corpus"]
    with pytest.raises(FuzzingEnds):
        engine.fuzz("smoke", design=None, fault=None, arguments=["-runs=7"], on_verdict=lambda *_: None)
    assert "-seed=1" in stand_in.arguments
    assert [argument for argument in stand_in.arguments if argument.startswith("-runs")] == ["-runs=7"]


def test_an_error_of_the_mutator_ends_the_process_at_the_next_run(stand_in: StandIn) -> None:
    """What could not be raised in the mutator is raised here."""
    run = Run(Mutator(LIFECYCLE, "disconnect", ""), lambda *_: None)
    run.mutator.failure = ZeroDivisionError("planted")
    with pytest.raises(ZeroDivisionError, match="planted"):
        run.one_input(b"")


def test_what_the_callback_raises_ends_the_process(stand_in: StandIn) -> None:
    """A target that runs by itself raises on a finding."""
    with pytest.raises(CrashError, match=r"^memory-services/\S+ at step \d+: expected .*; seen "):
        engine.fuzz("lifecycle", design="disconnect", arguments=[], on_verdict=engine.raising(LIFECYCLE))


def test_garbage_is_collected_in_batches(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own collections are off while fuzzing, and worlds do not pile up."""
    collections: list[int] = []
    stand_in.inputs *= 2 * engine.RUNS_PER_COLLECTION
    monkeypatch.setattr(gc, "collect", lambda: collections.append(1))
    _fuzz()
    assert not gc.isenabled()
    assert len(collections) == 1 + 2


def test_fuzz_that_returns_is_our_own_bug(stand_in: StandIn) -> None:
    """atheris never returns."""
    stand_in.Fuzz = lambda: None  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        engine.fuzz("lifecycle", design="disconnect", arguments=[], on_verdict=lambda *_: None)


def test_missing_atheris_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install and where it exists."""
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(EngineMissing, match=r"^fuzzing needs atheris, .*pip install 'ebsfuzz\[fuzz\]'.*x86-64 Linux"):
        engine.fuzz("lifecycle", design="disconnect", arguments=[], on_verdict=lambda *_: None)


def test_the_real_atheris_is_imported() -> None:
    """Where it is installed."""
    pytest.importorskip("atheris")
    assert engine.import_atheris().__name__ == "atheris"


def test_methods_of_every_kind_are_instrumented() -> None:
    """Functions, methods, static and class methods, properties and what a decorator wraps; nothing imported."""
    module = types.ModuleType("sample")
    exec(
        "import functools\n"
        "from os.path import join\n"
        "def wrap(function):\n"
        "    @functools.wraps(function)\n"
        "    def call(): return function()\n"
        "    return call\n"
        "@wrap\n"
        "def wrapped(): pass\n"
        "class C:\n"
        "    number = 1\n"
        "    def method(self): pass\n"
        "    @staticmethod\n"
        "    def static(): pass\n"
        "    @classmethod\n"
        "    def klass(cls): pass\n"
        "    @property\n"
        "    def prop(self): pass\n"
        "    class Inner:\n"
        "        def deep(self): pass\n",
        module.__dict__,
    )
    names = [function.__qualname__ for function in engine._functions(module)]
    assert names == ["wrap", "wrapped", "C.method", "C.static", "C.klass", "C.prop", "C.Inner.deep"]


def test_every_world_has_code_to_instrument() -> None:
    """The names in the table exist, and lead to functions."""
    for packages in (*engine.INSTRUMENTED.values(), engine.INSTRUMENTED_FAULTS):
        for package in packages:
            assert engine.instrument_code(StandIn([]), (package,)) > 1


# ---- a target as a program ----------------------------------------------------------------------------------------


@pytest.fixture
def program(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs a target's `main` with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.delenv("EBSFUZZ_DESIGN", raising=False)
    monkeypatch.delenv("EBSFUZZ_FAULT", raising=False)

    def run(*arguments: str, target: str = "lifecycle") -> None:
        monkeypatch.setattr(sys, "argv", ["lifecycle.py", *arguments])
        engine.main(target)

    return run


def test_a_program_fuzzes_its_default_design(program: Callable[..., None], stand_in: StandIn) -> None:
    """Children of libFuzzer find it by its whole path, and this interpreter first."""
    with pytest.raises(FuzzingEnds):
        program("-runs=1")
    assert Path(stand_in.arguments[0]).is_absolute()
    assert stand_in.arguments[-1] == "-runs=1"


def test_a_program_fuzzes_the_design_in_the_environment(
    program: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EBSFUZZ_DESIGN names it."""
    monkeypatch.setenv("EBSFUZZ_DESIGN", "disconnect")
    with pytest.raises(CrashError):
        program()


def test_a_program_runs_files_as_they_are(program: Callable[..., None], tmp_path: Path) -> None:
    """A crash file replays in the design that it was found in."""
    (tmp_path / "crash").write_bytes(b"")
    with pytest.raises(CrashError):
        program("crash")


def test_a_program_reads_arguments_from_a_file(program: Callable[..., None], stand_in: StandIn, tmp_path: Path) -> None:
    """`@FILE` stands for its lines."""
    (tmp_path / "options").write_text("-runs=3\n-seed=4\n")
    with pytest.raises(FuzzingEnds):
        program("@options", "-max_len=10")
    assert stand_in.arguments[1:] == ["-len_control=0", "-runs=3", "-seed=4", "-max_len=10"]


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"EBSFUZZ_DESIGN": "x"}, [], "EBSFUZZ_DESIGN: unknown 'x'; one of disconnect, exit-callback, reference-count"),
        ({"EBSFUZZ_FAULT": "x"}, [], "EBSFUZZ_FAULT: unknown 'x'"),
        ({}, ["@missing"], "@missing: cannot be read: [Errno 2] No such file or directory: 'missing'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    program: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    arguments: list[str],
    message: str,
) -> None:
    """Nothing has run by then."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        program(*arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"lifecycle: {message}\n"


def test_a_program_without_atheris_ends_with_status_3(
    program: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is missing."""

    def missing() -> Any:
        raise EngineMissing("no engine")

    monkeypatch.setattr(engine, "import_atheris", missing)
    with pytest.raises(SystemExit) as caught:
        program()
    assert caught.value.code == 3
    assert capsys.readouterr().err == "lifecycle: no engine\n"


def test_a_known_finding_does_not_crash() -> None:
    """The smoke target goes on after what is expected, and only then."""
    verdict = TARGETS["smoke"].run(MADE)
    assert verdict.findings
    engine.raising(TARGETS["smoke"])(b"", MADE, verdict)
    with pytest.raises(CrashError):
        engine.raising(LIFECYCLE)(b"", MADE, verdict)


def test_usage_errors_are_exceptions_of_their_own() -> None:
    """A caller can tell them from what a target raises."""
    with pytest.raises(UsageError):
        list(engine.expanded(["@/nowhere"]))
