"""The command line, `ebsfuzz`: reads what the user asks for, calls what does it, and gives the exit status.

Each command imports what it needs when it runs, so that `ebsfuzz --help` is quick and a missing engine hurts only
`run`. Messages: one line on standard error for whatever the user can mend (`UsageProblem`, status 2). What ebsfuzz
itself did wrong is not caught before `main`, which shows it whole (status 3).
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Collection, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from campaign.durations import parse_duration
from campaign.exit_status import CampaignFailure, Exit, UsageProblem

if TYPE_CHECKING:
    from campaign.trial import TrialResult
    from reference_impl.scenario import Scenario

DEFAULT_TARGET = "lifecycle"
DEFAULT_TIME_S = 60
DEFAULT_OUT = "campaign-out"

app = typer.Typer(
    name="ebsfuzz",
    help="Finds out whether UEFI bus and device drivers let go of the machine correctly at ExitBootServices.",
    epilog="Exit status: 0 nothing found, 1 findings, 2 wrong usage or unreadable input, 3 ebsfuzz itself failed.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Format(StrEnum):
    """In which form an answer is printed."""

    TEXT = "text"
    JSON = "json"


class RunFormat(StrEnum):
    """In which form the answer of a run is printed."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    JUNIT = "junit"
    MARKDOWN = "markdown"


_FORMAT = typer.Option(
    "--format", help="`text` for people, or `json`: one object ends standard output, the rest goes to standard error."
)


def main() -> NoReturn:
    """The program `ebsfuzz`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `ebsfuzz list services | head` ends quietly
    status = call(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains once more
        status = _complain(f"standard output: {error.strerror}", Exit.USAGE)
    sys.exit(status)


def call(arguments: list[str]) -> int:
    """Run the command that `arguments` name; its exit status. Every message has been printed then."""
    try:
        status = typer.main.get_command(app).main(arguments, prog_name="ebsfuzz", standalone_mode=False)
        return int(status or Exit.NOTHING_FOUND)
    except UsageProblem as problem:
        return _complain(str(problem), Exit.USAGE)
    except CampaignFailure as failure:
        return _complain(str(failure), Exit.FAILED)
    except Exception as error:
        # What Typer raises for wrong usage; its class lies elsewhere in every version.
        if getattr(error, "exit_code", None) == Exit.USAGE and hasattr(error, "format_message"):
            message = " ".join(error.format_message().split())
            # Without any argument Typer has printed the help and has nothing to add.
            return _complain(message, Exit.USAGE) if message else Exit.USAGE
        from fuzz_targets.scenario_yaml import InputError
        from guest import ExtraMissing
        from guest.image import ImageError

        if isinstance(error, ExtraMissing):
            return _complain(str(error), Exit.FAILED)
        if isinstance(error, InputError | ImageError):
            return _complain(str(error), Exit.USAGE)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _complain(f"{error.filename or 'standard output'}: {error.strerror}", Exit.USAGE)
        traceback.print_exc()
        return _complain(f"ebsfuzz itself failed: {type(error).__name__}: {error}", Exit.FAILED)


def _complain(message: str, status: Exit) -> int:
    print(f"ebsfuzz: {message}", file=sys.stderr)
    return int(status)


# ---- run ----------------------------------------------------------------------------------------------------------


@app.command()
def run(
    target: Annotated[str, typer.Option(help="What to fuzz; see `ebsfuzz list targets`.")] = DEFAULT_TARGET,
    design: Annotated[
        list[str] | None,
        typer.Option(help="Teardown design; can be given several times. Without it all designs, side by side."),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            help="What may happen around the drivers; see `ebsfuzz list environments`. Without it what the seeded fault "
            "needs, which is conforming most often."
        ),
    ] = None,
    switch: Annotated[
        list[str] | None,
        typer.Option(
            help="A single permission of the hostile environment; can be given several times. Without it all of them, in "
            "every scenario some; see `ebsfuzz list switches`."
        ),
    ] = None,
    fault: Annotated[str, typer.Option(help="Seeded fault to build in; see `ebsfuzz list faults`.")] = "",
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="Driver of your own for the target efi-image: file .efi, option ROM, or FIRMWARE:MODULE; can be given "
            "several times. One that is named like a driver of the design takes its place.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(help="Folder of scenarios to start from, only read. Without it the repository's own."),
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long in all: 90, 90s, 15m, 8h, 7d. Without this and --runs, one minute.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="How many executions of each design.")] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="The longest that one execution may take; more is a failure. Without it 10s, for the target efi-image 120s.",
            show_default=False,
        ),
    ] = None,
    rss_limit_mb: Annotated[
        int, typer.Option(min=64, help="The most memory that a worker may use, in MiB; more is a failure.")
    ] = 2048,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="How many worker processes at a time. Fewer than designs: they take turns and share the time; more: "
            "several workers on one corpus. Without it one for each design.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=1, max=0xFFFF_FFFF, help="Of the random numbers. Without it another every time.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the campaign: corpus, findings, statistics. The same command on it goes on where it was. "
            f"Without it `{DEFAULT_OUT}`, followed by what differs from the defaults.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="File of signatures that are known (one a line, or JSON): counted and shown, but they do not make the "
            "exit status 1."
        ),
    ] = None,
    unguided: Annotated[
        bool,
        typer.Option("--unguided", help="Weighted random scenarios without coverage feedback; works without atheris."),
    ] = False,
    output_format: Annotated[
        RunFormat,
        typer.Option(
            "--format",
            help="`text` for people; `json`, or for CI systems `sarif` (code scanning), `junit` (XML, test views) and "
            "`markdown` (job pages): one document ends standard output, the rest goes to standard error.",
        ),
    ] = RunFormat.TEXT,
) -> int:
    """Fuzz: run scenarios until the time is up, and report each broken rule once, with a reproducer.

    A run goes on after a finding. Ctrl-C ends it with the summary; a second Ctrl-C does not wait for the minimizer.
    """
    max_time_s = None if max_time is None else _duration("--max-time", max_time)
    timeout_s = None if timeout is None else _duration("--timeout", timeout)

    from campaign.findings import read_baseline
    from campaign.run import Campaign, Settings
    from fuzz_targets.registry import TARGETS
    from reference_impl.faulty import FAULTS, faulty
    from reference_impl.scenario import ENVIRONMENTS, SWITCHES, environments_of

    _known("--target", target, TARGETS)
    if fault:
        _known("--fault", fault, FAULTS)
    if environment is None:
        environment, switch = faulty(fault).environment, switch or list(faulty(fault).switches)
    _known("--environment", environment, ENVIRONMENTS)
    for name in switch or ():
        _known("--switch", name, SWITCHES)
    if environment not in environments_of(TARGETS[target].world):
        raise UsageProblem(f"--environment: the target {target} has only the conforming one")
    if switch and environment == "conforming":
        raise UsageProblem("--switch: the conforming environment has none; --environment hostile has")
    designs = _designs(target, design)
    images = _images(target, image or [])
    if max_time_s is None and runs is None:
        max_time_s = DEFAULT_TIME_S
    if not unguided:
        _require_engine()
    for one in designs:
        TARGETS[target].prepare(one, images)
    settings = Settings(
        target=target,
        designs=designs,
        environment=environment,
        switches=tuple(sorted(set(switch or SWITCHES))) if environment == "hostile" else (),
        fault=fault,
        images=images,
        corpus=corpus,
        max_time_s=max_time_s,
        runs=runs,
        timeout_s=timeout_s or TARGETS[target].timeout_s,
        rss_limit_mb=rss_limit_mb,
        jobs=jobs,
        seed=seed,
        out=out or _default_out(target, environment, switch or (), fault, images),
        baseline=read_baseline(baseline) if baseline else frozenset(),
        guided=not unguided,
    )
    from campaign.display import ProgressDisplay, console_for, show_result

    for_people = console_for("stdout" if output_format is RunFormat.TEXT else "stderr")
    with ProgressDisplay(console_for("stderr")) as display:
        campaign = Campaign(settings, display.show)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: campaign.stop())
        result = campaign.run()
    show_result(result, for_people)
    for problem in result.problems:
        _complain(problem, Exit.FAILED)
    if output_format is not RunFormat.TEXT:
        from campaign.formats import DOCUMENTS

        print(DOCUMENTS[output_format](result.as_object()), flush=True)
    return result.exit


@app.command()
def status(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a campaign, running or not.", show_default=False)
    ],
    output_format: Annotated[Format, _FORMAT] = Format.TEXT,
) -> int:
    """Say how far a campaign has come: workers, designs, findings and the last news. It may be running."""
    from campaign.display import console_for
    from campaign.status import show_status, status_of

    state = status_of(folder)
    if output_format is Format.JSON:
        _print_json(state)
    else:
        show_status(state, console_for("stdout"))
    return Exit.NOTHING_FOUND


def _default_out(target: str, environment: str, switches: Iterable[str], fault: str, images: Iterable[str]) -> Path:
    """A folder for each campaign, so that commands without --out get on with one another."""
    usual = (DEFAULT_TARGET, "conforming", "")
    parts = [target, environment, *sorted(set(switches)), fault]
    parts += [re.sub(r"[^A-Za-z0-9._]+", "-", Path(image).name) for image in images]
    return Path("-".join([DEFAULT_OUT, *(part for part in parts if part not in usual)]))


def _designs(target: str, chosen: list[str] | None) -> tuple[str, ...]:
    """The designs to fuzz, each once, in the order in which they were named; all where none was."""
    from fuzz_targets.registry import TARGETS

    all_designs = TARGETS[target].designs
    if not chosen:
        return all_designs
    if all_designs == ("",):
        raise UsageProblem(f"--design: the target {target} has no designs")
    for name in chosen:
        _known("--design", name, all_designs)
    return tuple(dict.fromkeys(chosen))


def _images(target: str, specs: list[str]) -> tuple[str, ...]:
    """The images as scenarios name them: files by their absolute paths, so that reproducers find them from anywhere."""
    from fuzz_targets.registry import TARGETS
    from guest.files import split
    from reference_impl.scenario import MAX_IMAGES, is_image_name

    if specs and TARGETS[target].world != "efi-image":
        raise UsageProblem(f"--image: the target {target} runs no images; --target efi-image does")
    if len(specs) > MAX_IMAGES:
        raise UsageProblem(f"--image: {len(specs)} images, at most {MAX_IMAGES}")
    names = []
    for spec in specs:
        path, module = split(spec)
        name = spec
        if path.is_file():
            name = f"{path.resolve()}:{module}" if module else str(path.resolve())
        if not is_image_name(name):
            raise UsageProblem(f"--image: {name[:80]!r}: too long, or not printable")
        names.append(name)
    return tuple(names)


def _require_engine() -> None:
    """Raise CampaignFailure, with what is missing, where this machine cannot fuzz with guidance."""
    from importlib.util import find_spec

    if find_spec("atheris") is None:
        raise CampaignFailure(
            "fuzzing needs atheris, and it is not installed: it comes with the extra 'fuzz' and exists for CPython 3.11 "
            f"to 3.13 on x86-64 Linux (this is Python {sys.version_info.major}.{sys.version_info.minor} on "
            f"{sys.platform}); "
            "`ebsfuzz run --unguided` and all other commands work without it"
        )


# ---- scenarios ----------------------------------------------------------------------------------------------------


@app.command()
def replay(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Reproducers, scenarios (.yaml), raw inputs (.bin), or folders of them.",
            show_default=False,
        ),
    ],
    brief: Annotated[bool, typer.Option("--brief", help="Only findings and verdicts, without the timelines.")] = False,
    output_format: Annotated[Format, _FORMAT] = Format.TEXT,
) -> int:
    """Run scenarios again: timeline and verdict. FAILED means that the finding is there, FIXED that it is gone.

    A scenario that is no reproducer is FAILED where an oracle finds an error, else PASSED.
    """
    from campaign import replay as replaying

    failed = False
    objects = []
    as_json = output_format is Format.JSON
    for replayed in replaying.replay(paths):
        failed = failed or replaying.is_failure([replayed])
        lines = replaying.verdict_of(replayed) if brief or as_json else replaying.story_of(replayed)
        for line in lines:
            print(line, file=sys.stderr if as_json else sys.stdout)
        objects.append(replaying.as_object(replayed))
    if as_json:
        _print_json({"scenarios": objects})
    return Exit.FINDINGS if failed else Exit.NOTHING_FOUND


@app.command()
def minimize(
    path: Annotated[
        Path | None, typer.Argument(help="Reproducer, scenario (.yaml) or raw input (.bin).", show_default=False)
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Instead of one scenario, a folder of them: delete those that fuzzing does not need, because the others "
            "reach everything that they reach.",
        ),
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(help="The finding to keep. Without it a reproducer's own, or the first that the run has."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File .yaml or .bin for the result. Without it, YAML on standard output.")
    ] = None,
    output_format: Annotated[Format, _FORMAT] = Format.TEXT,
) -> int:
    """Make a scenario as small as it can be with the same finding: nothing more can be taken away from it."""
    if (path is None) == (corpus is None):
        raise UsageProblem("minimize: give a PATH, or a folder with --corpus")
    if corpus is not None:
        return _minimize_corpus(corpus, output_format)
    assert path is not None
    from campaign import minimize as minimizing
    from campaign.reproducer import is_reproducer, read_verdict
    from fuzz_targets import scenario_yaml
    from fuzz_targets.harness import run_in_orders
    from fuzz_targets.input_files import read_scenario
    from fuzz_targets.registry import TARGETS

    if out is not None:
        _writable_scenario(out)
    recorded = read_verdict(path) if is_reproducer(path) else None
    run_one = TARGETS[recorded.target].run if recorded and recorded.target else run_in_orders
    scenario = read_scenario(path)
    findings = run_one(scenario).findings
    found = [finding.signature for finding in sorted(findings, key=lambda finding: finding.note)]
    if not found:
        raise UsageProblem(f"{path}: no oracle finds anything in it, so there is nothing to keep")
    wanted = signature or (recorded.signature if recorded else found[0])
    if signature is not None:
        _known("--signature", signature, found)
    elif wanted not in found:
        raise UsageProblem(f"{path}: the finding {wanted} is gone, so there is nothing to keep")
    smallest = minimizing.minimize(
        scenario, wanted, lambda one: [finding.signature for finding in run_one(one).findings]
    )
    text = scenario_yaml.dump(smallest)
    print(
        f"kept: {wanted}; operations: {len(scenario.operations)} before, {len(smallest.operations)} now",
        file=sys.stderr,
    )
    if out is not None:
        _write_scenario(out, smallest)
    if output_format is Format.JSON:
        _print_json({"path": str(path), "signature": wanted, "operations": len(smallest.operations), "scenario": text})
    elif out is None:
        print(text, end="")
    return Exit.NOTHING_FOUND


def _minimize_corpus(folder: Path, output_format: Format) -> int:
    from campaign.campaign_folder import campaign_around, is_running
    from campaign.minimize_corpus import WeakerCorpus
    from campaign.minimize_corpus import minimize as minimize_corpus

    campaign = campaign_around(folder)
    if campaign is not None and is_running(campaign):
        raise UsageProblem(f"{folder}: a campaign runs on it, which keeps it small by itself")
    try:
        kept, superfluous = minimize_corpus(folder)
    except WeakerCorpus as problem:
        raise CampaignFailure(str(problem)) from None
    for entry in superfluous:
        entry.unlink()
    before = len(kept) + len(superfluous)
    print(f"{folder}: {before} scenarios before, {len(kept)} now", file=sys.stderr)
    if output_format is Format.JSON:
        _print_json({"path": str(folder), "before": before, "kept": len(kept)})
    return Exit.NOTHING_FOUND


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Scenario to read: .yaml, .bin, or a reproducer.", show_default=False)
    ],
    destination: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="File to write: .yaml or .bin, as its suffix says.", show_default=False),
    ],
) -> int:
    """Turn a scenario from bytes into YAML and back. Nothing is lost on either way."""
    from fuzz_targets.input_files import read_scenario

    _writable_scenario(destination)
    _write_scenario(destination, read_scenario(source))
    return Exit.NOTHING_FOUND


def _writable_scenario(path: Path) -> None:
    """Raise UsageProblem where `path` cannot become a scenario's file."""
    if path.suffix not in (".yaml", ".yml", ".bin"):
        found = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise UsageProblem(f"{path}: {found}; a scenario is written as .yaml or .bin")
    if path.is_dir():
        raise UsageProblem(f"{path}: a folder, and a file is to be written")


def _write_scenario(path: Path, scenario: Scenario) -> None:
    from campaign.findings import write_atomically
    from fuzz_targets import codec, scenario_yaml

    data = codec.encode(scenario) if path.suffix == ".bin" else scenario_yaml.dump(scenario).encode()
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UsageProblem(f"{path}: cannot be written: {error.strerror}") from None


@app.command()
def coverage(
    corpora: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CORPUS...",
            help="Scenarios, or folders of them. Without any, the starting corpora of the model.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Folder for a page for each file.")] = None,
    xml: Annotated[Path | None, typer.Option(help="File for the figures in Cobertura's form.")] = None,
    lcov: Annotated[Path | None, typer.Option(help="File for the figures in LCOV's form.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the whole measurement, which --against reads.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Show the difference to this: a corpus, a campaign's folder, or a file that --json wrote."),
    ] = None,
    fail_under: Annotated[
        float | None, typer.Option(min=0, max=100, help="Exit with 1 when lines or branches have fewer percents.")
    ] = None,
    blocks: Annotated[
        bool,
        typer.Option(
            "--blocks", help="Instead of all that, the basic blocks of real images that a corpus of efi-image runs."
        ),
    ] = False,
    output_format: Annotated[Format, _FORMAT] = Format.TEXT,
) -> int:
    """Lines and branches of the model and the oracles, and behaviour, that a corpus covers, by replay."""
    if blocks:
        if html or xml or lcov or json_file or against or fail_under is not None:
            raise UsageProblem("--blocks: goes with --format alone; --html, --xml and so on are about the model")
        return _print_blocks(corpora or [], output_format)
    from campaign import coverage as covering
    from campaign.measurement import behaviour_lines, difference_lines

    result = covering.coverage(
        corpora or (), html=html, xml=xml, lcov=lcov, json_file=json_file, against=against, fail_under=fail_under
    )
    measured = result.measured
    lines, branches = f"{measured.line_percent:.1f} % of lines", f"{measured.branch_percent:.1f} % of branches"
    for_people = sys.stderr if output_format is Format.JSON else sys.stdout
    print(result.report, file=for_people)
    for line in behaviour_lines(measured.behaviour):
        print(line, file=for_people)
    for line in difference_lines(result.difference) if result.difference else ():
        print(line, file=for_people)
    print(f"{measured.scenarios} scenarios: {lines}, {branches}", file=for_people)
    if not result.enough:
        print(f"ebsfuzz: less than the {fail_under:g} % that were asked for", file=sys.stderr)
    if output_format is Format.JSON:
        import msgspec

        _print_json(
            {
                "scenarios": measured.scenarios,
                "line_percent": measured.line_percent,
                "branch_percent": measured.branch_percent,
                "enough": result.enough,
                "behaviour": measured.behaviour,
                "difference": msgspec.to_builtins(result.difference),
            }
        )
    return Exit.NOTHING_FOUND if result.enough else Exit.FINDINGS


def _print_blocks(corpora: list[Path], output_format: Format) -> Exit:
    from campaign.block_coverage import block_coverage

    found = block_coverage(corpora)
    for_people = sys.stderr if output_format is Format.JSON else sys.stdout
    for image, offsets in found.blocks.items():
        print(f"{image:<20} {len(offsets):>6,} basic blocks", file=for_people)
    print(f"{found.scenarios} scenarios", file=for_people)
    if output_format is Format.JSON:
        _print_json({"scenarios": found.scenarios, "blocks": found.blocks})
    return Exit.NOTHING_FOUND


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A campaign's folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="File for the page. Without it, report.html in the folder.")] = None,
    scenarios: Annotated[
        int, typer.Option(min=0, help="How many of the corpus run again for the map of behaviour, evenly spread.")
    ] = 2000,
) -> int:
    """Make one HTML page of a campaign: findings, coverage over time, behaviour, configuration. It works offline."""
    from campaign.report import write_report

    print(write_report(folder, out, scenarios))
    return Exit.NOTHING_FOUND


# ---- real images --------------------------------------------------------------------------------------------------


@app.command()
def inspect(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="File .efi, option ROM, or module of firmware by name or GUID: OVMF_CODE_4M.fd:XenBusDxe.",
            show_default=False,
        ),
    ],
    output_format: Annotated[Format, _FORMAT] = Format.TEXT,
) -> int:
    """Say what a real image is, and, started in a world of its own, what it does: protocols, driver bindings, exit events."""
    from guest.inspect import describe

    report = describe(image)
    if output_format is Format.JSON:
        _print_json(report.as_object())
    else:
        print("\n".join(report.lines()))
    return Exit.NOTHING_FOUND


# ---- score --------------------------------------------------------------------------------------------------------


@app.command()
def score(
    fault: Annotated[
        list[str] | None,
        typer.Option(help="Seeded fault to look for; can be given several times. Without it all of them."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine to compare; can be given several times. Without it ebsfuzz and every other one."),
    ] = None,
    trials: Annotated[
        int,
        typer.Option(
            min=0, help="How often each engine looks for each fault, from other seeds; 0 shows what the folder holds."
        ),
    ] = 20,
    cap: Annotated[str, typer.Option(help="Processor time after which a trial is given up.")] = "30s",
    deep_cap: Annotated[str, typer.Option(help="The same for deep faults.")] = "10m",
    jobs: Annotated[int, typer.Option(min=1, help="Trials at the same time.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for results and the page; a score goes on where it was.")] = Path(
        "score-out"
    ),
    output_format: Annotated[Format, _FORMAT] = Format.TEXT,
) -> int:
    """Seeded faults: which are found, how soon, by which oracle, and how other engines do on the same world.

    Ends with 1 where an oracle reported what the fault does not account for.
    """
    from campaign import score as scoring
    from campaign import score_page
    from campaign.findings import write_atomically
    from campaign.trial import ENGINES
    from reference_impl.faulty import FAULTS

    for name in fault or ():
        _known("--fault", name, FAULTS)
    for name in engine or ():
        _known("--engine", name, ENGINES)
    settings = scoring.Settings(
        faults=tuple(dict.fromkeys(fault or FAULTS)),
        engines=tuple(name for name in ENGINES if name in (engine or ENGINES)),
        trials=trials,
        cap_s=_duration("--cap", cap),
        deep_cap_s=_duration("--deep-cap", deep_cap),
        jobs=jobs,
        out=out,
    )

    def report(result: TrialResult, left: int) -> None:
        trial = result.trial
        end = f"found after {result.executions:,} executions" if result.found else "not found"
        print(f"{trial.fault}, {trial.engine}, seed {trial.seed}: {end}; {left:,} trials left", file=sys.stderr)

    found = scoring.Score(scoring.run_trials(settings, report))
    try:
        write_atomically(out / "score.html", score_page.render(found).encode())
    except OSError as error:
        raise UsageProblem(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    for line in scoring.lines(found):
        print(line, file=sys.stderr if output_format is Format.JSON else sys.stdout)
    if output_format is Format.JSON:
        _print_json({**found.as_object(), "page": str((out / "score.html").resolve())})
    return Exit.FINDINGS if found.wrong else Exit.NOTHING_FOUND


# ---- names --------------------------------------------------------------------------------------------------------


class What(StrEnum):
    """What `ebsfuzz list` can list."""

    TARGETS = "targets"
    DESIGNS = "designs"
    ENVIRONMENTS = "environments"
    SWITCHES = "switches"
    ORACLES = "oracles"
    FAULTS = "faults"
    SERVICES = "services"


@app.command(name="list")
def list_names(
    what: Annotated[str, typer.Argument(metavar="WHAT", help=f"One of {', '.join(What)}.", show_default=False)],
    output_format: Annotated[Format, _FORMAT] = Format.TEXT,
) -> int:
    """List the names that options and scenarios take, with a sentence for each."""
    _known("WHAT", what, [one.value for one in What])
    entries = descriptions(What(what))
    if output_format is Format.JSON:
        _print_json([{"name": name, "description": description} for name, description in entries.items()])
        return Exit.NOTHING_FOUND
    width = max(map(len, entries), default=0)
    for name, description in entries.items():
        print(f"{name:<{width}}  {description}")
    return Exit.NOTHING_FOUND


def descriptions(what: What) -> dict[str, str]:
    """Every name of one sort, with a sentence for people."""
    from reference_impl import scenario

    match what:
        case What.TARGETS:
            from fuzz_targets.registry import TARGETS

            return {name: target.description for name, target in TARGETS.items()}
        case What.DESIGNS:
            return {name: f"{entry.world}: {entry.description}" for name, entry in scenario.DESIGNS.items()}
        case What.ENVIRONMENTS:
            return scenario.ENVIRONMENTS
        case What.SWITCHES:
            return scenario.SWITCHES
        case What.ORACLES:
            from oracles import DESCRIPTIONS

            return DESCRIPTIONS
        case What.FAULTS:
            from reference_impl.faulty import FAULTS

            return FAULTS
        case What.SERVICES:
            from reference_impl import failures

            return {
                name: f"{sort}; {_refusals(answers)}"
                for sort, calls in (
                    ("boot service", failures.BOOT_SERVICES),
                    ("hypercall", failures.HYPERCALLS),
                    ("xenstore request", failures.XENSTORE_REQUESTS),
                    ("PCI access", failures.PCI_ACCESSES),
                    ("service for real drivers", failures.GUEST_SERVICES),
                )
                for name, answers in calls.items()
            }


def _refusals(answers: Iterable[Any]) -> str:
    names = ", ".join(map(str, answers))
    return f"can be made to fail with {names}" if names else "cannot fail"


# ---- checks and output --------------------------------------------------------------------------------------------


def _duration(option: str, text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageProblem(f"{option}: {error}") from None


def _known(option: str, name: str, names: Collection[str]) -> None:
    """Raise UsageProblem, with near misses, for a name that is not one of `names`."""
    if name in names:
        return
    from fuzz_targets.scenario_yaml import near_miss

    hint = near_miss(name, names)
    if not hint:
        hint = f"; one of {', '.join(names)}" if names else "; there are none"
    raise UsageProblem(f"{option}: unknown {name[:80]!r}{hint}")


def _print_json(value: Any) -> None:
    """Print one JSON value as the last line of standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
